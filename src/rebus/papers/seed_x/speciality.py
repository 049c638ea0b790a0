"""A speciality of SEED-X: a small folder that makes a chat model, an editor or a storyteller of one and the same base
(section 3.3: "one becomes three").

The folder holds what instruction tuning changed (LoRA, norms, projectors) and says how such documents are laid out, how
images are cut into views, which image decoder draws, and which base all this belongs to. On a system it is laid over copies of
the modules whose tensors are shared, so that several specialities live beside each other in one process, for the memory
of one model.

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import PIL.Image
import torch
from torch import Tensor

from rebus.checkpoint import SavedSystem, check_complete, config_from_json, config_to_json, load_system, save_system
from rebus.errors import RebusError
from rebus.grammar import Template
from rebus.lm import InterleavedLM
from rebus.nn.lora import add_lora
from rebus.packages import embedded
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LoraConfig
from rebus.papers.seed_x.spelling import INSTRUCT
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import SeedXConfig
from rebus.papers.seed_x.views import COMPREHENSION, Grid
from rebus.system import System
from rebus.visual import Detokenizer, Editor, ImageSampling, Progress, VisualTokens

Decoder = Literal["first", "second"]
PART = "lm"
"""The part of a saved system that an adapter's tensors are."""


@dataclass(frozen=True)
class Speciality:
    """What an adapter says of itself."""

    name: str
    """What it is for: chat, edit, story, layout, try_on, or a name of one's own."""
    base: str
    """The system that it was trained on, `PAPER:VARIANT`."""
    base_hash: str
    """Which weights of it: the digits that the saved system gives to its language model."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Its LoRA; none: it has none."""
    template: Template = INSTRUCT
    """How its documents are laid out."""
    grids: tuple[Grid, ...] = COMPREHENSION
    """Grids that images to be read are cut into."""
    decoder: Decoder = "first"
    """Which stage of the image decoder draws: the first from features alone, the second seeing the picture that is to be
    changed. A second-stage decoder does the work of the first when it is shown no source."""


class Sourceless:
    """An image decoder that is shown no sources: it draws from features alone."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.whole = detokenizer

    @property
    def edits(self) -> bool:
        """It does not."""
        return False

    @property
    def settings(self) -> frozenset[str]:
        """The decoder's, without how a source is kept."""
        return self.whole.settings - {"image_guidance"}

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """As the decoder's own; `sources` are not looked at."""
        nothing: list[PIL.Image.Image | None] = [None] * len(tokens)
        return self.whole.decode(tokens, sources=nothing, negatives=negatives, generators=generators, sampling=sampling)


# ------------------------------------------------------------------------------------------------ onto a system


def adapt(system: System, adapter: Path | str) -> System:
    """The system with a speciality; see `System.with_adapter`."""
    saved = load_system(find(system, adapter))
    speciality = read_speciality(saved)
    check_base(system, speciality, saved.folder)
    grammar, tokenizer = system.grammar, system.tokenizer
    if not isinstance(grammar, SeedXGrammar):
        raise RebusError(f"An adapter of SEED-X is laid over SEED-X, but {system.name} is another model.")
    detokenizer = system.detokenizer
    if detokenizer is not None:
        edits = isinstance(detokenizer, Editor) and detokenizer.edits
        if speciality.decoder == "second" and not edits:
            raise RebusError(
                f"The adapter {speciality.name!r} changes pictures with the second stage of the image decoder, but "
                f"{system.name} in {system.folder} has the first. Load weights that hold the second, or leave the part "
                "`detokenizer` out."
            )
        if speciality.decoder == "first" and edits:
            detokenizer = Sourceless(detokenizer)
    lm = system.lm
    # one that was not asked for has no weights, or its base's LoRA still beside them, which loading for use folds in
    if lm.llm.device.type != "meta" and not any(".lora_" in name for name, _ in lm.named_parameters()):
        lm = shared(lm)
        if speciality.lora is not None:
            begin_lora(lm, speciality.lora)
        fill(lm, saved.tensors(PART))
        lm.eval()
    return replace(
        system,
        grammar=SeedXGrammar(grammar.text, replace(grammar.config, chat=speciality.template), grammar.source),
        lm=lm,
        tokenizer=tokenizer.with_grids(speciality.grids).eval() if isinstance(tokenizer, SeedXTokenizer) else tokenizer,
        detokenizer=detokenizer,
        adapter=speciality.name,
        weights=hash_with(system.weights, saved),
    )


def hash_with(weights: str, saved: SavedSystem) -> str:
    """Sixteen digits that tell these weights under this adapter from all others."""
    digests = sorted(digest for files in saved.files.values() for digest in files.values())
    return hashlib.sha256("".join([weights, *digests]).encode()).hexdigest()[:16]


def shared(lm: InterleavedLM) -> InterleavedLM:
    """A copy of the modules whose tensors are the original's: changing the one's structure leaves the other as it is."""
    tensors = [*lm.parameters(), *lm.buffers()]
    return copy.deepcopy(lm, {id(tensor): tensor for tensor in tensors})


def begin_lora(lm: InterleavedLM, lora: LoraConfig, generator: torch.Generator | None = None) -> None:
    """Fresh adapters beside the language model's projections, on its device; they say nothing yet."""
    add_lora(lm.llm, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, generator=generator)


def fill(lm: InterleavedLM, tensors: Mapping[str, Tensor]) -> None:
    """Puts an adapter's tensors in the place of a shared copy's, in the number format of what they are beside. Raises
    RebusError when one is not the model's, or one of its LoRA is missing."""
    ours = lm.state_dict()
    lora = [name for name in ours if ".lora_" in name]
    wanted = {name: ours[name] for name in {*lora, *(name for name in tensors if name in ours)}}
    check_complete(
        {name: x for name, x in tensors.items() if name in ours}, wanted, [n for n in tensors if n not in ours]
    )
    made = {}
    for name, tensor in tensors.items():
        beside = lm.llm.dtype if ".lora_" in name else ours[name].dtype
        made[name] = tensor.to(ours[name].device, beside if ours[name].is_floating_point() else tensor.dtype)
    lm.load_state_dict(made, strict=False, assign=True)
    lm.requires_grad_(False)


# ------------------------------------------------------------------------------------------------ on a disk


def save_speciality(
    folder: Path,
    speciality: Speciality,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    source: str = "",
) -> SavedSystem:
    """Writes an adapter's folder, whole or not at all, in place of an older one."""
    name = f"{speciality.base}+{speciality.name}"
    about = SavedSystem(name, config_to_json(speciality), source=source or "trained by seed_x.instruct")
    return save_system(folder, about, {PART: tensors}, dtype=dtype, overwrite=True)


def read_speciality(saved: SavedSystem) -> Speciality:
    """What a saved adapter says of itself. Raises RebusError for a folder that holds something else."""
    if "+" not in saved.name or PART not in saved.files:
        raise RebusError(f"{saved.folder} holds {saved.name}, which is no adapter. Name the folder of one.")
    return config_from_json(Speciality, saved.config)


def check_base(system: System, speciality: Speciality, where: Path) -> None:
    """Raises RebusError unless an adapter was trained on exactly this system's language model."""
    held = None if system.folder is None else load_system(system.folder).hash("lm")
    if system.adapter:
        raise RebusError(
            f"{system.name} already is made for {system.adapter}, and a second adapter is not laid over the first. Take the "
            "system that was loaded without one."
        )
    if (system.name, held) != (speciality.base, speciality.base_hash):
        raise RebusError(
            f"The adapter in {where} was trained on {speciality.base} with the weights {speciality.base_hash}, but this is "
            f"{system.name} with {held or 'random ones'}. Load that base, or train the adapter again on this one."
        )


def find(system: System, adapter: Path | str) -> Path:
    """The folder of an adapter: `adapter` itself, or the one of this name beside the system's weights. Raises RebusError
    listing those that there are."""
    if (Path(adapter) / "system.json").exists():
        return Path(adapter)
    if system.folder is not None and (beside(system.folder, str(adapter)) / "system.json").exists():
        return beside(system.folder, str(adapter))
    there = [] if system.folder is None else names(system.folder)
    raise RebusError(
        f"There is no adapter {str(adapter)!r} for {system.name}. "
        + (f"Beside its weights are {', '.join(there)}. " if there else "Beside its weights there is none. ")
        + "Name one of these, or the folder of one; `rebus train seed_x.instruct` makes them."
    )


def beside(weights: Path, name: str) -> Path:
    """Where the adapter of this name lies for the weights of a base: `seed_x-mini-edit` beside `seed_x-mini`."""
    return weights.parent / f"{weights.name}-{name}"


def names(weights: Path) -> list[str]:
    """The adapters beside the weights of a base."""
    found = sorted(weights.parent.glob(f"{weights.name}-*/system.json"))
    return [file.parent.name.removeprefix(f"{weights.name}-") for file in found]


def adapters(config: SeedXConfig, weights: Path | None) -> list[str]:
    """The adapters beside the weights named, or beside the variant's own."""
    if weights is None:
        if config.weights is None:
            return []
        try:
            weights = embedded(config.weights)
        except RebusError:
            return []
    return names(weights)
