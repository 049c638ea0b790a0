"""Mixtures of the sets that a user has, as a paper's table describes them: batches of one source each, drawn by the
table's weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.interleaved import rearrange
from rebus.data.layouts import frames
from rebus.data.lines import Unreadable
from rebus.data.loader import position_of
from rebus.data.mixture import Mixture, shuffled
from rebus.data.records import Record, Template, pair
from rebus.data.sets import Items, open_set
from rebus.data.sources import Joined
from rebus.document import Document
from rebus.errors import RebusError

PATIENCE = 1000
"""Batches in a row that may be empty."""

Form = Literal["caption", "interleaved", "video", "text", "instruction"]


@dataclass(frozen=True)
class Source:
    """Sets of one kind that are drawn from together; a batch comes from one source."""

    name: str
    """What the source is called."""
    sets: tuple[str, ...]
    """The sets in it."""
    max_length: int
    """Longest document in words; longer ones are cut at the end."""
    batch: int
    """Documents of one process's batch."""
    weight: float
    """How often a batch comes from here, relative to the others."""
    form: Form = "instruction"
    """How its documents are laid out. `caption`: image and caption in either order; `interleaved`: as the page had them;
    `video`: frames, then the caption, which alone is learned; `text`: plain; `instruction`: the chat template."""
    images: int | None = None
    """Most images of a document; none: as many as there are."""
    swap: float = 0.0
    """How often every image of a document changes places with what follows it."""
    template: str = "question"
    """How its records are worded, the name of one of the paper's templates; documents of chat messages are taken as they
    are."""
    keep: Keep = KEEP_ALL
    """Which pictures are good enough."""


def unnamed(sources: Sequence[Source], named: Collection[str]) -> list[str]:
    """The sets of `sources` that `named` does not have. Raises RebusError for a name that is in none of them."""
    known = [name for source in sources for name in source.sets]
    if strange := sorted(set(named) - set(known)):
        raise RebusError(
            f"{strange[0]!r} is in no source of this mixture. The sets are {', '.join(known)}. Name some of these."
        )
    return [name for name in known if name not in named]


@dataclass(frozen=True)
class SourceBatch:
    """Documents of one source."""

    documents: list[Document]
    source: Source


def read_places(file: Path, sources: Sequence[Source]) -> dict[str, Path]:
    """Where each set of a mixture lies, from a JSON object `{"CC3M": "path", "LAION-COCO": null, …}`; paths are relative to
    the file, and null leaves a set out. Raises RebusError naming the sets that it does not mention."""
    try:
        named = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RebusError(f"{file} cannot be read as JSON ({error}). Give an object of sets and paths.") from None
    if not isinstance(named, dict) or not all(path is None or isinstance(path, str) for path in named.values()):
        raise RebusError(f'{file} is no object of sets and paths. Write it as {{"CC3M": "path", "LAION-COCO": null}}.')
    if missing := unnamed(sources, named):
        raise RebusError(
            f"{file} names {len(named)} sets, but not {', '.join(missing)}. Give each a path, or null to leave it out."
        )
    found = {name: file.parent / path for name, path in named.items() if path is not None}
    if not found:
        raise RebusError(f"{file} leaves every set out. Give at least one of them a path.")
    return found


class SourceBatches:
    """Batches without end from `position` on, a pure function of the seed and the position. A source draws from its sets
    together; what cannot be read is left out and counted by source. `templates` word its records. `batch` is the batch size of every source in place
    of the table's. Raises RebusError for sets that are empty or cannot be opened."""

    def __init__(
        self,
        sources: Sequence[Source],
        places: Mapping[str, Path],
        templates: Mapping[str, Template],
        *,
        batch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.items: dict[str, Items] = {}
        self.sources: dict[str, Source] = {}
        for source in sources:
            parts: list[Any] = [open_set(places[name], source.keep) for name in source.sets if name in places]
            if parts:
                self.items[source.name], self.sources[source.name] = Joined(parts), source
        self.templates = templates
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        endless = {name: _Endless(len(items)) for name, items in self.items.items()}
        self.mixture = Mixture(endless, {name: source.weight for name, source in self.sources.items()}, seed)
        self.position = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[SourceBatch]:
        in_vain = 0
        while True:
            found = self._make(self.position)
            self.position += 1
            in_vain = 0 if found.documents else in_vain + 1
            if in_vain >= PATIENCE:
                raise RebusError(f"{in_vain} batches in a row could not be read; the last of {found.source.name}.")
            if found.documents:
                yield found

    def state_dict(self) -> dict[str, Any]:
        """The position, and what was skipped."""
        return {"position": self.position, "skipped": dict(self.skipped), "step": self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        # how many documents a process takes is the table's to say
        self.position, self.skipped = position_of(state, self.world), Counter(state["skipped"])

    def _make(self, position: int) -> SourceBatch:
        place = self.mixture.place(position)
        source, items = self.sources[place.source], self.items[place.source]
        size = self.batch or source.batch
        start = (place.index * self.world + self.rank) * size
        documents = []
        for number in range(start, start + size):
            epoch, index = divmod(number, len(items))
            item = shuffled(index, len(items), f"{self.seed} {source.name} {epoch}")
            try:
                documents.append(
                    worded(items[item], source, Random(f"{self.seed} {source.name} {number}"), self.templates)
                )
            except Unreadable:
                self.skipped[source.name] += 1
        return SourceBatch(documents, source)


def worded(item: Document | Record, source: Source, rng: Random, templates: Mapping[str, Template]) -> Document:
    """An item of a source as the Document that is trained on. Raises Unreadable when the template lacks something."""
    if isinstance(item, Document):
        if source.form == "interleaved":
            return rearrange(item, rng, images=source.images, swap=source.swap)
        record = pair(item)
        if record is None:
            return item
    else:
        record = item
    if source.form == "video":
        record = Record(frames(record.images, source.images), record.fields)
    return templates[source.template](record, rng)


class _Endless:
    """Numbers from 0 on, of which `count` are an epoch."""

    endless = True

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return index
