"""Batches on their way from a stage's data to its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rebus.errors import RebusError
from rebus.train.stage import Stage


def endless(stage: Stage[Any]) -> Iterator[Any]:
    """The stage's batches, from the beginning again when they end. Raises RebusError when there are none at all."""
    empty = 0
    while empty < 2:  # a resumed source may stand at its end, so that one pass may be empty
        empty += 1
        for batch in stage.data:
            empty = 0
            yield batch
    raise RebusError(f"The data of {stage.name} is empty: it yields no batch. Check its source and its filters.")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it, inside lists, tuples and dicts, on the device; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return [to_device(value, device) for value in batch] if isinstance(batch, list) else batch


def batch_size(batch: Any) -> int:
    """How many samples: the first axis of a tensor, of a dict's, tuple's or dataclass's first part; else the length."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        return batch_size(next(iter(batch.values()), ()))
    if isinstance(batch, tuple) and batch:
        return batch_size(batch[0])
    if dataclasses.is_dataclass(batch):
        return batch_size(getattr(batch, dataclasses.fields(batch)[0].name))
    return len(batch) if hasattr(batch, "__len__") else 1
