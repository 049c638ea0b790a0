"""What a system needs before any of it is downloaded: parameters of each part, counted without weights, and sources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from rebus.system.loading import paper_module, papers_config


@dataclass(frozen=True)
class Source:
    """Something that has to be fetched for a system."""

    what: str
    """What it is."""
    where: str
    """A hub id, or in words where it lies."""
    licence: str
    """Of its weights."""
    size: int | None = None
    """Bytes to be downloaded; None where that is not known here."""


BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class PartSize:
    """One part of a system."""

    name: str
    """"tokenizer", "lm" or "detokenizer"."""
    parameters: int
    """Numbers that are stored, those of parts before it left out."""
    linear: int
    """How many of them are held as int8 where that is asked for: the language model's matrices."""

    def memory(self, dtype: str) -> int:
        """Bytes of its weights. int8 holds the language model's matrices in one byte each and the rest in bfloat16."""
        if dtype == "int8":
            return self.linear * BYTES["int8"] + (self.parameters - self.linear) * BYTES["bfloat16"]
        return self.parameters * BYTES[dtype]


@dataclass(frozen=True)
class Plan:
    """What a system needs."""

    name: str
    """PAPER:VARIANT."""
    parts: tuple[PartSize, ...]
    """Tokenizer, language model with its projectors, detokenizer."""
    sources: tuple[Source, ...]
    """What has to be fetched; none for weights that are in the repository or random."""
    cache: int
    """Numbers that the language model's cache holds for each token of each row."""
    longest: int
    """Most tokens that the language model was built to read at once."""


def plan(name: str) -> Plan:
    """The plan of a system by name; nothing is downloaded and no weights are made.

    Raises RebusError for an unknown name, and for a paper that cannot say what it needs.
    """
    _, config, variant = papers_config(name)
    _, module = paper_module(name, "portable", "does not say how large it is")
    tokenizer, lm, detokenizer = module.outline(config)
    seen: set[int] = set()
    parts = [
        PartSize("tokenizer", _count(tokenizer, seen), 0),
        PartSize("lm", _count(lm, seen), _matrices(lm.llm.base)),
        PartSize("detokenizer", _count(detokenizer, seen), 0),
    ]
    about = lm.llm.base.config
    heads = getattr(about, "num_key_value_heads", None) or about.num_attention_heads
    width = getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
    sources = tuple(getattr(module, "SOURCES", {}).get(variant, ()))
    return Plan(name, tuple(parts), sources, 2 * about.num_hidden_layers * heads * width, lm.llm.max_length)


def _count(module: nn.Module, seen: set[int]) -> int:
    """Numbers of the state dict whose tensors are not in `seen`, which grows by them."""
    total = 0
    for tensor in _stored(module):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            total += tensor.numel()
    return total


def _stored(module: nn.Module) -> Iterable[Tensor]:
    """What a state dict holds, by its own tensors, so that what is shared is known as the same."""
    for part in module.modules():
        yield from (p for p in part._parameters.values() if p is not None)
        lasting = set(part._buffers) - part._non_persistent_buffers_set
        yield from (b for name in lasting if (b := part._buffers[name]) is not None)


def _matrices(base: nn.Module) -> int:
    skip = ("lm_head",)  # as in `quantize_int8`
    linears = [m for name, m in base.named_modules() if isinstance(m, nn.Linear) and not name.endswith(skip)]
    return sum(m.weight.numel() for m in linears)
