"""Batches of documents: addressed by index, made by workers where asked, with a position for a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from rebus.data.sources import Unreadable
from rebus.document import Document
from rebus.errors import RebusError


class Addressed(Protocol):
    """Documents at positions without end: a Mixture, or EmojiDocuments."""

    def __getitem__(self, position: int, /) -> Document: ...


class Loader:
    """Batches of `batch_size` documents, without end, from `position` on.

    Batch `i` of process `rank` of `world` is the documents at positions `(i * world + rank) * batch_size` onwards, so it
    does not depend on what came before, nor on the number of workers. Members that cannot be read are left out of
    their batch and counted in `skipped`. With `workers` processes batches are made ahead, in the same order.
    """

    def __init__(
        self,
        documents: Addressed,
        batch_size: int,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
    ) -> None:
        if batch_size < 1 or workers < 0 or not 0 <= rank < world:
            raise RebusError(
                "A loader needs a batch size of 1 or more, 0 or more workers and a rank below the number of processes, "
                f"but was given {batch_size}, {workers} and {rank} of {world}. Correct these."
            )
        self.documents, self.batch_size, self.workers = documents, batch_size, workers
        self.rank, self.world = rank, world
        self.position = position
        self.skipped = 0

    def __getitem__(self, index: int) -> list[Document]:
        return self._make(index)[0]

    def __iter__(self) -> Iterator[list[Document]]:
        in_vain = 0
        for batch, skipped in self._batches():
            self.position += 1
            self.skipped += skipped
            in_vain = in_vain + skipped if not batch else 0
            if in_vain >= 1000:
                raise RebusError(f"{in_vain} documents in a row could not be read. Check the files of the data.")
            if batch:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position and count of what was skipped; speaks of the batches already handed out."""
        return {"position": self.position, "skipped": self.skipped, "step": self.batch_size * self.world}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.position, self.skipped = position_of(state, self.batch_size * self.world), state["skipped"]

    def _batches(self) -> Iterator[tuple[list[Document], int]]:
        if self.workers == 0:
            while True:
                yield self._make(self.position)
        yield from DataLoader(_Batches(self), batch_size=None, sampler=_From(self.position), num_workers=self.workers)

    def _make(self, index: int) -> tuple[list[Document], int]:
        start = (index * self.world + self.rank) * self.batch_size
        batch, skipped = [], 0
        for position in range(start, start + self.batch_size):
            try:
                batch.append(self.documents[position])
            except Unreadable:
                skipped += 1
        return batch, skipped


def position_of(state: Mapping[str, Any], step: int) -> int:
    """The position that a state speaks of, where a step of all processes takes `step` documents; it may have been written
    where a step took `state["step"]`. No document is left out then, some may come again."""
    return state["position"] * state.get("step", step) // step


class _Batches(Dataset):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, index: int) -> tuple[list[Document], int]:
        return self.loader._make(index)


class _From:
    """All numbers from `start` on, for as long as anybody asks."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        index = self.start
        while True:
            yield index
            index += 1
