"""Published SEED files → a saved system: the tokenizer in two pickles, the language model as a LLaMA of Hugging Face,
the image decoder as a folder of diffusers. The way back is in `export.py`.

Everything is read and written one tensor at a time. Ids of codes and marks come from the release's own tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rebus.checkpoint import (
    LazyTensors,
    SavedSystem,
    config_to_json,
    convert,
    lay_over,
    read_tensors,
    save_system,
    without_weights,
)
from rebus.diffusion.pipeline import component_config, component_tensors, read_diffusion
from rebus.errors import RebusError
from rebus.nn.text_encoder import prompt_states
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import TextTokenizer, read_tokenizer, text_file
from rebus.papers.seed.convert import RULES, VISION_RULES, tokenizer_rules
from rebus.papers.seed.detokenizer import MiniDetokenizerConfig
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import MergedLanguageConfig
from rebus.papers.seed.published_decoder import TextLikeConfig, UnclipConfig
from rebus.papers.seed.spelling import SeedGrammarConfig, from_added_tokens
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import VARIANTS, SeedConfig

SEEN = "visual_encoder."


@dataclass(frozen=True)
class Published:
    """Where the published files lie."""

    quantizer: Path
    """`seed_quantizer.pt`, all of the tokenizer but the vision encoder."""
    vision: Path | None = None
    """`eva_vit_g.pth`, the vision encoder; none: the other file holds it too."""
    language: Path | None = None
    """Folder of the language model; none: only images are tokenized and drawn."""
    text: Path | None = None
    """Folder with the text tokenizer and `added_tokens.json`; none: the language model's, else the quantiser's."""
    decoder: Path | None = None
    """Folder of the image decoder, all components of a diffusers pipeline; none: codes stay codes."""


def convert_folder(
    source: Path,
    folder: Path,
    variant: str,
    *,
    decoder: Path | None = None,
    ignore_unexpected: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """`convert_published` of the files that lie anywhere under `source`, under their published names; `decoder` may lie
    elsewhere. Raises RebusError when the tokenizer is not there, or there are several of something."""
    found = find_published(source)
    return convert_published(
        found if decoder is None else replace(found, decoder=decoder),
        folder,
        variant or "v2-8b",
        ignore_unexpected=ignore_unexpected,
        dtype=dtype,
        overwrite=overwrite,
    )


def find_published(source: Path) -> Published:
    """The published files under `source`. Raises RebusError as `convert_folder` does."""

    def one(name: str, good: Callable[[Path], bool] = Path.is_file) -> Path | None:
        paths = [path for path in sorted(source.rglob(name)) if good(path)]
        if len(paths) > 1:
            listed = ", ".join(str(path.relative_to(source)) for path in paths)
            raise RebusError(f"{source} holds several of {name}: {listed}. Name a folder that holds one release.")
        return paths[0] if paths else None

    quantizer = one("seed_quantizer.pt")
    if quantizer is None:
        raise RebusError(f"There is no seed_quantizer.pt under {source}. Name the folder of a downloaded SEED release.")
    model, decoder = one("config.json", _is_llama), one("model_index.json")
    language = None if model is None else model.parent
    if language is not None and any((language / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        text = language
    else:
        added = one("added_tokens.json")
        text = quantizer.parent if added is None else added.parent
    return Published(quantizer, one("eva_vit_g.pth"), language, text, None if decoder is None else decoder.parent)


def _is_llama(file: Path) -> bool:
    try:
        return json.loads(file.read_text()).get("model_type") == "llama"
    except (ValueError, AttributeError):
        return False


def convert_published(
    found: Published,
    folder: Path,
    variant: str = "v2-8b",
    *,
    config: SeedConfig | None = None,
    ignore_unexpected: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """Writes `folder`, which `load(f"seed:{variant}", weights=folder)` reads. Sizes of the language model and of the image
    decoder are read from their configs; `config` gives other sizes of the tokenizer than the variant's.

    `ignore_unexpected` are patterns of published names that may stay without a place; `dtype` is what is stored (none: as
    published). Raises RebusError for an unknown variant, and listing whatever does not fit.
    """
    if config is None:
        if variant not in VARIANTS:
            raise RebusError(
                f"There is no published SEED {variant!r}; the variants are {', '.join(VARIANTS)}. Name v2-8b, v2-14b or v1."
            )
        config = VARIANTS[variant]
    parts: dict[str, Mapping[str, Tensor]] = {}
    others: dict[str, dict[str, bytes]] = {}
    parts["tokenizer"], dropped, ignored = _tokenizer(found, config.tokenizer, ignore_unexpected)
    if isinstance(config.language, MergedLanguageConfig):
        folder_of_text = found.text or found.language or found.quantizer.parent
        text = read_tokenizer(folder_of_text)
        config = replace(config, grammar=_spelling(folder_of_text, config.grammar))
        SeedGrammar(text, config.grammar, "")  # raises for a tokenizer that lacks the template's special words
        others["text"] = text_file(folder_of_text)
        if found.language is not None:
            config, lm = _language(found.language, config, text, ignore_unexpected)
            parts["lm"], dropped["lm"], ignored["lm"] = lm
    elif found.language is not None:
        raise RebusError(
            f"seed:{variant} takes its language model from {config.language.base} and what stages 3 and 4 train, but "
            f"{found.language} was given to be converted. Convert without a language model."
        )
    if found.decoder is not None:
        drawing, parts["detokenizer"] = _decoder(found.decoder, config.detokenizer)
        config = replace(config, detokenizer=drawing)
    saved = SavedSystem(
        name=f"seed:{variant}",
        config=config_to_json(config),
        source="converted from " + ", ".join(p.name for p in vars(found).values() if p is not None),
        dropped={part: names for part, names in dropped.items() if names},
        ignored={part: names for part, names in ignored.items() if names},
    )
    return save_system(folder, saved, parts, others=others, dtype=dtype, overwrite=overwrite)


def _tokenizer(
    found: Published, config: SeedTokenizerConfig, ignore: Sequence[str]
) -> tuple[LazyTensors, dict[str, dict[str, str]], dict[str, list[str]]]:
    """The tokenizer's tensors, and what was dropped and ignored."""
    with without_weights():
        ours = SeedTokenizer(config).state_dict()
    files, rules = read_tensors(found.quantizer), tokenizer_rules(config.head)
    if found.vision is None:
        whole = convert(files, rules, ours, ignore_unexpected=ignore)
        return whole.tensors, {"tokenizer": whole.dropped}, {"tokenizer": whole.ignored}
    seen = {name: tensor for name, tensor in ours.items() if name.startswith(SEEN)}
    rest = {name: tensor for name, tensor in ours.items() if name not in seen}
    vision = convert(read_tensors(found.vision), VISION_RULES, seen, ignore_unexpected=ignore)
    coded = convert(files, rules, rest, ignore_unexpected=ignore)
    dropped = coded.dropped | {f"{found.vision.name}: {name}": why for name, why in vision.dropped.items()}
    return lay_over(vision.tensors, coded.tensors), {"tokenizer": dropped}, {"tokenizer": coded.ignored}


def _spelling(folder: Path, config: SeedGrammarConfig) -> SeedGrammarConfig:
    """The ids of codes and marks, as the release's tokenizer gives them."""
    file, whole = folder / "added_tokens.json", folder / "tokenizer.json"
    try:
        if file.exists():
            return from_added_tokens(json.loads(file.read_text()), config)
        if whole.exists():
            added = {token["content"]: token["id"] for token in json.loads(whole.read_text())["added_tokens"]}
            return from_added_tokens(added, config)
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, RebusError):
            raise
        raise RebusError(
            f"{folder} names its added tokens in a file that is damaged ({error}). Fetch it again."
        ) from error
    raise RebusError(
        f"The tokenizer in {folder} does not have the image tokens: there is no added_tokens.json that names "
        f"<img_00000> and the {config.codes - 1} others. Name the folder of a SEED release with `text`."
    )


def _language(
    folder: Path, config: SeedConfig, text: TextTokenizer, ignore: Sequence[str]
) -> tuple[SeedConfig, tuple[LazyTensors, dict[str, str], list[str]]]:
    """The config with the language model's, and its tensors with what was dropped and ignored."""
    try:
        model = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RebusError(f"{folder} has no config.json that can be read ({error}). Name the model's folder.") from None
    words, last = int(model.get("vocab_size", 0)), max(config.grammar.begin_image, config.grammar.end_image)
    last = max(last, config.grammar.first_code + config.grammar.codes - 1)
    if last >= words:
        raise RebusError(
            f"The language model in {folder} has {words} words, but the tokenizer's image tokens go up to id {last}. "
            "Name the language model and the tokenizer of one release."
        )
    # the release's bos, eos and pad (8B: 0, 1, -1) are not its tokenizer's (1, 2, 0)
    ids = {f"{kind}_token_id": number for kind, number in special_ids(config.grammar, text).items()}
    unused = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")
    model = {key: value for key, value in model.items() if key not in unused} | ids
    with without_weights():
        ours = TextModel(build_causal_lm(model)).state_dict()
    result = convert(read_tensors(folder), RULES["lm"], ours, ignore_unexpected=ignore)
    config = replace(config, language=MergedLanguageConfig(model))
    return config, (result.tensors, result.dropped, result.ignored)


def special_ids(grammar: SeedGrammarConfig, text: TextTokenizer) -> dict[str, int]:
    names = {"bos": grammar.bos, "eos": grammar.eos, "pad": grammar.pad}
    return {kind: text.specials[name] for kind, name in names.items() if name is not None}


def _decoder(
    folder: Path, config: MiniDetokenizerConfig | UnclipConfig | TextLikeConfig
) -> tuple[UnclipConfig | TextLikeConfig, LazyTensors]:
    """The image decoder's config, and its tensors: the networks, the state of the empty prompt, the statistics of image
    embeddings."""
    if isinstance(config, MiniDetokenizerConfig):
        raise RebusError(
            f"This variant draws with its own small decoder, but {folder} was named. Convert v2-8b, v2-14b or v1 with it."
        )
    diffusion, networks = read_diffusion(folder)
    prompt_1SC = prompt_states(folder, [""])
    own: dict[str, Tensor] = {"prompt_1SC": prompt_1SC}
    config = replace(config, diffusion=diffusion, prompt=(prompt_1SC.shape[1], prompt_1SC.shape[2]))
    if isinstance(config, UnclipConfig):
        noising = component_config(folder, "image_noising_scheduler", "scheduler_config.json")
        config = replace(config, noising=noising)
        own |= {f"unclip.{name}": x for name, x in component_tensors(folder, "image_normalizer").items()}
    named = LazyTensors({f"diffusion.{k}": v for k, v in networks.meta.items()}, lambda name: networks[name[10:]])
    return config, lay_over(named, own)
