"""Published LaVIT files → a saved system: tokenizer, language model with its way in, image decoder. The way back is in
`export.py`.

Everything is read and written one tensor at a time. Of a release's two image decoders the highres one is taken, unless
there is only the other or that one is named.

Dimension key: K codebook entries · E code width · S prompt tokens · C token width
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rebus.checkpoint import (
    Converted,
    LazyTensors,
    SavedSystem,
    config_to_json,
    convert,
    lay_over,
    read_tensors,
    save_system,
    without_weights,
)
from rebus.diffusion.pipeline import component_config, read_diffusion
from rebus.errors import RebusError
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import read_tokenizer, text_file
from rebus.papers.lavit.build import named
from rebus.papers.lavit.convert import DECODER_RULES, ENCODER_RULES, LANGUAGE_RULES, PROJECTOR_RULES, vision_rules
from rebus.papers.lavit.detokenizer import HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import MergedLanguageConfig
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import VARIANTS, LavitConfig

SEEN = "visual_encoder."
CODEBOOK = "quantize.embedding.weight"
FILES = {"highres": "highres_tokenizer_decoder.bin", "lowres": "tokenizer_decoder.bin"}
FOLDERS = {"highres": "highres_pixel_decoding", "lowres": "pixel_decoding"}
EMPTY = "uncond_embeddings.bin"


@dataclass(frozen=True)
class Published:
    """Where the published files lie."""

    vision: Path
    """`eva_vitg_psz14.bin`, the vision encoder."""
    encoder: Path
    """`tokenizer_encoder.bin`, the rest of the tokenizer."""
    language: Path
    """Folder of the language model, with the text tokenizer."""
    way_in: Path | None = None
    """`visual_weight.bin`; none: neither language model nor way in is converted, only the text tokenizer is read."""
    decoder: Path | None = None
    """One of the two decoders' files; none: codes stay codes."""
    pixels: Path | None = None
    """Folder of the latent diffusion model that belongs to it."""


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
    """`convert_published` of the files that lie anywhere under `source`, under their published names; `decoder` is the
    folder of the latent diffusion model where it is not the highres one, or lies elsewhere. Raises RebusError when a file
    is not there, or there are several of it."""
    return convert_published(
        find_published(source, decoder),
        folder,
        variant or next(iter(VARIANTS)),
        ignore_unexpected=ignore_unexpected,
        dtype=dtype,
        overwrite=overwrite,
    )


def find_published(source: Path, pixels: Path | None = None) -> Published:
    """The published files under `source`. Raises RebusError as `convert_folder` does."""

    def one(name: str, good: Callable[[Path], bool] = Path.exists) -> Path | None:
        paths = [path for path in sorted(source.rglob(name)) if good(path)]
        if len(paths) > 1:
            listed = ", ".join(str(path.relative_to(source)) for path in paths)
            raise RebusError(f"{source} holds several of {name}: {listed}. Name a folder that holds one release.")
        return paths[0] if paths else None

    def needed(name: str) -> Path:
        found = one(name)
        if found is None:
            raise RebusError(f"There is no {name} under {source}. Name the folder of a downloaded LaVIT release.")
        return found

    vision, encoder, text = (needed(n) for n in ("eva_vitg_psz14.bin", "tokenizer_encoder.bin", "tokenizer.model"))
    kinds = {kind: (one(FILES[kind]), one(FOLDERS[kind], Path.is_dir)) for kind in FILES}
    if pixels is not None:
        kind = _kind(pixels)
        if kinds[kind][0] is None:
            raise RebusError(
                f"{pixels} is a {kind} image decoder, but {FILES[kind]} is not under {source}. Name the folder of the "
                "other decoder, or fetch the file."
            )
        kinds = {kind: (kinds[kind][0], pixels)}
    whole = next(((file, found) for file, found in kinds.values() if file and found), (None, None))
    return Published(vision, encoder, text.parent, one("visual_weight.bin"), *whole)


def _kind(folder: Path) -> str:
    """Which of the two image decoders a folder of a latent diffusion model is."""
    return "highres" if component_config(folder, "unet").get("addition_embed_type") == "text_time" else "lowres"


def convert_published(
    found: Published,
    folder: Path,
    variant: str = "v2",
    *,
    config: LavitConfig | None = None,
    ignore_unexpected: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """Writes `folder`, which `load(f"lavit:{variant}", weights=folder)` reads. Sizes of the language model and of the
    latent diffusion model are read from their configs; `config` gives other sizes of the rest than the variant's.

    `ignore_unexpected` are patterns of published names that may stay without a place; `dtype` is what is stored (none: as
    published). Raises RebusError for an unknown variant, and listing whatever does not fit.
    """
    config = config or VARIANTS.get(variant)
    if config is None or not isinstance(config.language, MergedLanguageConfig):
        raise RebusError(f"There is no published LaVIT {variant!r}. Name v1 or v2.")
    parts: dict[str, Mapping[str, Tensor]] = {}
    results: dict[str, list[Converted]] = {}
    parts["tokenizer"], results["tokenizer"] = _tokenizer(found, config, ignore_unexpected)
    text = read_tokenizer(found.language)
    LavitGrammar(text, config.grammar, "")  # raises for a tokenizer that lacks the template's special words
    others = {"text": text_file(found.language)}
    if found.way_in is not None:
        config, parts["lm"], results["lm"] = _language(found.language, found.way_in, config, ignore_unexpected)
    if found.decoder is not None and found.pixels is not None:
        config, parts["detokenizer"], results["detokenizer"] = _decoder(found, config, ignore_unexpected)
    saved = SavedSystem(
        name=f"lavit:{variant}",
        config=config_to_json(config),
        source="converted from " + ", ".join(path.name for path in vars(found).values() if path is not None),
        dropped={
            part: all_ for part, many in results.items() if (all_ := {k: v for r in many for k, v in r.dropped.items()})
        },
        ignored={part: names for part, many in results.items() if (names := [n for r in many for n in r.ignored])},
    )
    return save_system(folder, saved, parts, others=others, dtype=dtype, overwrite=overwrite)


def _tokenizer(found: Published, config: LavitConfig, ignore: Sequence[str]) -> tuple[LazyTensors, list[Converted]]:
    with without_weights():
        ours = LavitTokenizer(config.tokenizer).state_dict()
    seen = {name: tensor for name, tensor in ours.items() if name.startswith(SEEN)}
    rest = {name: tensor for name, tensor in ours.items() if name not in seen}
    vision = convert(read_tensors(found.vision), vision_rules(""), seen, ignore_unexpected=ignore)
    coded = convert(read_tensors(found.encoder), ENCODER_RULES, rest, ignore_unexpected=ignore)
    return lay_over(vision.tensors, coded.tensors), [vision, coded]


def _language(
    folder: Path, way_in: Path, config: LavitConfig, ignore: Sequence[str]
) -> tuple[LavitConfig, LazyTensors, list[Converted]]:
    try:
        model = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RebusError(f"{folder} has no config.json that can be read ({error}). Name the model's folder.") from None
    spelling = config.grammar
    words, needed = int(model.get("vocab_size", 0)), spelling.first_code + spelling.codes
    if words < needed:
        raise RebusError(
            f"The language model in {folder} has {words} words, but LaVIT's codes go up to id {needed - 1}. "
            "Name the language model of a LaVIT release."
        )
    unused = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")
    model = {key: value for key, value in model.items() if key not in unused}
    with without_weights():
        llm = TextModel(build_causal_lm(model))
        projector = LavitInputProjector(config.projector, llm.width)
    language = convert(read_tensors(folder), LANGUAGE_RULES, llm.state_dict(), ignore_unexpected=ignore)
    merged = convert(read_tensors(way_in), PROJECTOR_RULES, projector.state_dict(), ignore_unexpected=ignore)
    tensors = lay_over(named(language.tensors, "", "llm."), named(merged.tensors, "", "input_projector."))
    return replace(config, language=MergedLanguageConfig(model)), tensors, [language, merged]


def _decoder(
    found: Published, config: LavitConfig, ignore: Sequence[str]
) -> tuple[LavitConfig, LazyTensors, list[Converted]]:
    assert found.decoder is not None and found.pixels is not None
    diffusion, networks = read_diffusion(found.pixels)
    # the published code runs the DDIM sampler on whatever schedule the folder has
    diffusion = replace(diffusion, scheduler={**diffusion.scheduler, "_class_name": "DDIMScheduler"})
    sizes, kind = config.detokenizer, _kind(found.pixels)
    drawing: HighresConfig | LowresConfig
    own: dict[str, Tensor] = {}
    if kind == "highres":
        drawing = sizes if isinstance(sizes, HighresConfig) else HighresConfig(sizes.decoder, sizes.codes)
    else:
        drawing = sizes if isinstance(sizes, LowresConfig) else LowresConfig(sizes.decoder, sizes.codes)
        own["empty_1SC"] = _empty_prompt(found.pixels)
        drawing = replace(drawing, empty=own["empty_1SC"].shape[1])
    drawing = replace(drawing, diffusion=diffusion)
    with without_weights():
        ours = LavitDetokenizer(drawing).state_dict()
    wanted = {name: tensor for name, tensor in ours.items() if name.startswith(("decoder.", "head."))}
    decoder = convert(read_tensors(found.decoder), DECODER_RULES, wanted, ignore_unexpected=ignore)
    codebook = read_tensors(found.encoder)
    shared = LazyTensors({"codebook_KE": codebook.meta[CODEBOOK]}, lambda _: codebook[CODEBOOK])
    tensors = lay_over(decoder.tensors, named(networks, "", "diffusion."), shared, own)
    return replace(config, detokenizer=drawing), tensors, [decoder]


def _empty_prompt(folder: Path) -> Tensor:
    """The states of the empty prompt [1, S, C], one tensor in a file of its own. Raises RebusError when it is none."""
    path = folder / EMPTY
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise RebusError(f"{path} cannot be read ({str(error).splitlines()[0]}). Fetch it again.") from None
    if isinstance(held, dict) and len(held) == 1:
        held = next(iter(held.values()))
    if not isinstance(held, Tensor) or held.ndim not in (2, 3) or (held.ndim == 3 and len(held) != 1):
        raise RebusError(f"{path} should hold the states of one prompt, but holds something else. Fetch it again.")
    return held if held.ndim == 3 else held[None]
