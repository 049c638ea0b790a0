"""What the language model sees: ids, where vectors go in and come out, and which words are learned.

Dimension key: B rows of a batch · L length
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebus.errors import RebusError
from rebus.visual import Features, Patches

PADDING = -1


@dataclass
class Sequence:
    """One document, laid out by a grammar. Spans are [start, stop) positions in `ids`."""

    ids: list[int]
    """word ids; a placeholder wherever a vector goes in or comes out"""
    target: list[bool]
    """does next-token loss fall on this word?"""
    input_spans: list[tuple[int, int]] = field(default_factory=list)
    """where understood features are written in, one span for each view"""
    output_spans: list[tuple[int, int]] = field(default_factory=list)
    """whose hidden states become a generated image"""
    inputs: list[Features | Patches] = field(default_factory=list)
    """what is written in, in the order of `input_spans`"""
    outputs: list[Features] = field(default_factory=list)
    """regression targets, in the order of `output_spans`; empty when generating"""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.target):
            raise RebusError(
                f"A sequence needs one target mark for each word, but has {len(self.ids)} words and "
                f"{len(self.target)} marks. Build it with `grammar.Writer`."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seen_before(self) -> list[Features | Patches | None]:
        """Of each image that is generated the features of the last image that was read before it; None where there is none."""
        spans, read = iter(self.input_spans), []
        for seen in self.inputs:
            views = len(seen.x_WNC) if isinstance(seen, Features) else 1
            read += [(stop, seen) for _, stop in list(islice(spans, views))[-1:]]
        return [next((seen for stop, seen in reversed(read) if stop <= start), None) for start, _ in self.output_spans]


class Counts(NamedTuple):
    """What the losses of a batch are means over."""

    words: float = 0.0
    """words that next-token loss falls on (of batches that are not of words: samples)"""
    images: float = 0.0
    """images that are regressed"""


@dataclass
class Batch:
    """Sequences as tensors: padded, one a row, or packed, several a row. Positions and attention are a document's own."""

    ids_BL: Tensor
    """int64 word ids"""
    positions_BL: Tensor
    """int64, where each word stands in its own document"""
    documents_BL: Tensor
    """int64, which of the given sequences each word belongs to; -1 is padding"""
    target_BL: Tensor
    """bool, words that next-token loss falls on; never the first of a document"""
    input_BL: Tensor
    """bool, positions that vectors are written over"""
    output_BL: Tensor
    """bool, positions whose hidden states become images"""
    inputs: list[Features | Patches]
    """the vectors of `input_BL`, in reading order"""
    outputs: list[Features]
    """the regression targets of `output_BL`, in reading order"""
    seen_before: list[Features | Patches | None]
    """of each of these, the last image that was read before it"""
    places: list[tuple[int, int, int]]
    """of each given sequence, in the order given: row, start, stop"""

    @property
    def counts(self) -> Counts:
        """What the losses are means over, where nobody says otherwise."""
        return Counts(int(self.target_BL[:, 1:].sum()), len(self.outputs))

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; features stay where they are, for the projectors to fetch."""
        tensors: dict[str, Any] = {
            f.name: t.to(device) for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)

    def attend(self) -> Tensor | None:
        """Which keys each query may see, bool B x 1 x L x L, or None where plain causal attention says the same.

        The one rule: a word sees the words of its own document up to itself. Padding follows the words of a row, so
        with one document a row causality alone keeps it out of sight.
        """
        if len(self.places) == len(self.ids_BL):
            return None
        same_BLL = self.documents_BL[:, :, None] == self.documents_BL[:, None, :]
        return same_BLL.tril()[:, None]


@dataclass(frozen=True)
class Collated:
    """Documents made ready for a step: one batch, or several whose rows are of different lengths."""

    batches: list[Batch]
    """each on the model's device"""
    over: Counts | None = None
    """what the losses are divided by; none: by what the batches hold"""

    @property
    def counts(self) -> Counts:
        """What all batches hold together."""
        held = [batch.counts for batch in self.batches]
        return Counts(sum(c.words for c in held), sum(c.images for c in held))

    def divided(self, over: Counts) -> Collated:
        """The same rows, with losses divided by `over`."""
        return replace(self, over=over)


def collate(sequences: Many[Sequence], *, pack: int | None = None, pad_id: int = 0) -> Batch:
    """Sequences → Batch: one a row, padded on the right, or, with `pack`, as many a row as fit into that many words.

    Rows are as long as the longest. Raises RebusError when there is nothing to batch, or a sequence is longer than a
    row may be.
    """
    if not sequences:
        raise RebusError("A batch needs at least one sequence, but none was given. Check the data for empty documents.")
    rows = [[i] for i in range(len(sequences))] if pack is None else _first_fit([len(s) for s in sequences], pack)
    length = max(sum(len(sequences[i]) for i in row) for row in rows)
    shape = (len(rows), length)
    ids_BL = torch.full(shape, pad_id)
    positions_BL = torch.arange(length).repeat(len(rows), 1)
    documents_BL = torch.full(shape, PADDING)
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name in ("target", "input", "output")}
    inputs: list[Features | Patches] = []
    outputs: list[Features] = []
    seen_before: list[Features | Patches | None] = []
    places = [(0, 0, 0)] * len(sequences)
    for b, row in enumerate(rows):
        start = 0
        for i in row:
            sequence, stop = sequences[i], start + len(sequences[i])
            ids_BL[b, start:stop] = torch.tensor(sequence.ids)
            positions_BL[b, start:stop] = torch.arange(len(sequence))
            documents_BL[b, start:stop] = i
            masks["target"][b, start + 1 : stop] = torch.tensor(sequence.target[1:], dtype=torch.bool)
            for name, spans in (("input", sequence.input_spans), ("output", sequence.output_spans)):
                for first, last in spans:
                    masks[name][b, start + first : start + last] = True
            inputs += sequence.inputs
            outputs += sequence.outputs
            seen_before += sequence.seen_before
            places[i] = (b, start, stop)
            start = stop
    return Batch(
        ids_BL,
        positions_BL,
        documents_BL,
        masks["target"],
        masks["input"],
        masks["output"],
        inputs,
        outputs,
        seen_before,
        places,
    )


def by_length(sequences: list[Sequence], row: int) -> list[tuple[list[Sequence], int]]:
    """Sequences in groups that are packed apart, each with the length of its rows: short ones share rows of `row` words,
    those that are longer rows as long as the longest. Attention costs the square of a row, however little of it belongs
    together."""
    long = [s for s in sequences if len(s) > row]
    groups = [([s for s in sequences if len(s) <= row], row), (long, max(map(len, long), default=0))]
    return [(some, length) for some, length in groups if some]


def collated(
    sequences: list[Sequence],
    *,
    pack: int | None = None,
    least: int = 1,
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> Collated:
    """Sequences as they are trained on: without `pack` a row for each; with it those of at most that many words share rows
    of that length, and longer ones rows as long as the longest (`by_length`). Packing changes what is computed and not what
    is found: the losses are means over all that is learned, whichever row it stands in.

    What is packed has at least `least` batches, if need be of a single word without a loss: processes that train together
    must run the model equally often, which two make sure of. Errors as of `collate`.
    """
    if pack is None:
        return Collated([collate(sequences, pad_id=pad_id).to(device)])
    groups = by_length(sequences, pack)
    groups += [([Sequence([pad_id], [False])], 1)] * (least - len(groups))
    return Collated([collate(some, pack=row, pad_id=pad_id).to(device) for some, row in groups])


def _first_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Rows of indices: each sequence goes into the first row that has room for it."""
    rows: list[list[int]] = []
    used: list[int] = []
    for i, length in enumerate(lengths):
        if length > room:
            raise RebusError(
                f"Sequence {i + 1} of the batch has {length} words, but a packed row holds {room}. "
                "Shorten the document, or pack longer rows."
            )
        place = next((r for r, taken in enumerate(used) if taken + length <= room), len(rows))
        if place == len(rows):
            rows.append([])
            used.append(0)
        rows[place].append(i)
        used[place] += length
    return rows
