"""A fixed bank of training pictures with captions, and batches drawn from it.

The vision parts train on the same few ten thousand pictures again and again, so that everything frozen (latents,
patch features, codes) is computed once and read from arrays.

Dimension key: N pictures · H W pixels
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebus.data.bank import bank
from rebus.data.pictures import load_pictures
from rebus.mini.sentences import sentence_vectors
from rebus.train import parallel

try:
    import fcntl
except ImportError:  # where there are no such locks, several processes each build what is not there
    fcntl = None  # type: ignore[assignment]

SIZES = {"train": 36_000, "val": 2_000}


@dataclass(frozen=True)
class Bank:
    """Pictures of one split with what each shows."""

    images_NHW3: np.ndarray
    captions: list[str]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.images_NHW3)

    def pixels(self, indices: np.ndarray) -> Tensor:
        """The pictures as float32 [I, 3, H, W] in −1..1."""
        images = torch.from_numpy(np.ascontiguousarray(self.images_NHW3[indices]))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def load_bank(work: Path, split: str) -> Bank:
    """The bank of `split` under `work/bank`, drawn from the pictures in `work/emoji` the first time."""
    images, texts = work / "bank" / f"{split}.npy", work / "bank" / f"{split}.json"
    with alone(texts):
        if not texts.exists():
            pictures, captions, kinds = bank(load_pictures(work / "emoji"), split, SIZES[split], seed=0)
            write_array(images, pictures)
            write_text(texts, json.dumps({"captions": captions, "kinds": list(kinds)}))
    record = json.loads(texts.read_text())
    return Bank(np.load(images, mmap_mode="r"), record["captions"], record["kinds"])


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time builds `path` if it is not there; the others wait for it."""
    if path.exists():
        yield
        return
    with locked(path):
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is in here for `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(path: Path, build: Callable[[], np.ndarray], *, of: str = "") -> np.ndarray:
    """The array at `path`, built and written the first time. Frozen features are computed once this way.

    `of` says what it is made from. It is kept beside the array, in a file that ends in `.of`, and where it is no longer
    the same the array is built anew: features of weights that were trained again are never those of the old ones.
    """
    record = path.with_suffix(".of")

    def current() -> bool:
        return path.exists() and (not of or (record.exists() and record.read_text() == of))

    if not current():
        with locked(path):
            if not current():
                record.unlink(missing_ok=True)
                write_array(path, build())
                if of:
                    write_text(record, of)
    return np.load(path, mmap_mode="r")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


@torch.no_grad()
def in_batches(run: Callable[[np.ndarray], Tensor], n: int, *, size: int = 256) -> np.ndarray:
    """`run(indices)` over 0..n−1 in batches, as one float16 array (int64 results stay int64)."""
    rows = []
    for start in range(0, n, size):
        row = run(np.arange(start, min(start + size, n)))
        rows.append(row.cpu().numpy() if row.dtype == torch.int64 else row.float().cpu().numpy().astype(np.float16))
    return np.concatenate(rows)


def caption_vectors(work: Path, bank: Bank, split: str) -> np.ndarray:
    """Sentence vectors [N, 384] of the captions of the bank, float16."""

    return cached(work / "cache" / f"captions.{split}.npy", lambda: sentence_vectors(bank.captions))


class IndexBatches:
    """Endless batches of indices 0..n−1: a new order every epoch, resumable to the batch. Processes that train together
    share each batch; raises RebusError when they cannot do so evenly."""

    def __init__(self, n: int, batch: int, *, seed: int = 0):
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.share = parallel.sharded(self.batch)
        self.position = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        per_epoch = self.n // self.batch
        while True:
            epoch, start = divmod(self.position, per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.n)
            for k in range(start, per_epoch):
                self.position += 1
                first = k * self.batch + self.share["rank"] * self.share["batch_size"]
                yield order[first : first + self.share["batch_size"]]

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.position = int(state["position"])
