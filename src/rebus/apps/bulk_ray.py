"""Bulk runs on many machines: Ray Data hands shards to actors that keep the model loaded. The only file that imports Ray.

Every machine needs this library and sees the two folders under the same paths. Ray starts an actor again that died, and
gives its shard to another; as a shard is moved into place when it is whole and is always the same, it does not matter how
often that happens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rebus.apps.bulk_worker import Done, Event, Lost, Worker
from rebus.data.token_shards import Entry, as_json
from rebus.errors import RebusError


class _Actor:
    """Loads the model once, then makes shard after shard."""

    def __init__(self, worker: Worker) -> None:
        self.refused = ""
        try:
            self.make = worker.open()
        except RebusError as error:  # as an exception it would begin again and again
            self.refused = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        name = Path(row["shard"]).name
        if self.refused:
            return {"shard": name, "refused": self.refused}
        try:
            return {"shard": name, "entry": as_json(self.make(Path(row["shard"]), lambda images, size: None))}
        except RebusError as error:
            return {"shard": name, "refused": str(error)}
        except Exception as error:  # the others can go on without this one
            return {"shard": name, "lost": f"{type(error).__name__}: {error}"}


def run_ray(worker: Worker, shards: Sequence[Path], processes: int, address: str | None) -> Iterator[Event]:
    """Makes shards in at most `processes` actors of the cluster at `address`, as many as have room there, or of one that
    lasts as long as this run. On CUDA each actor has a GPU of its own.

    Raises RebusError where Ray is not installed or the cluster cannot be reached, and for what a worker raises as such.
    """
    try:
        import ray
    except ImportError:
        raise RebusError(
            "`--engine ray` needs Ray, which is not installed. Install it: pip install 'rebus-lm[scale]'."
        ) from None
    mine = not ray.is_initialized()
    try:
        if mine:
            # a cluster of one's own must have room for the actors, however few cores there are
            own: dict[str, Any] = (
                {} if address else {"num_cpus": processes * worker.threads + 1, "include_dashboard": False}
            )
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # it raises many kinds
        raise RebusError(
            f"There is no Ray cluster at {address or 'this machine'} that can be reached: {error}. Start one with "
            "`ray start --head`, and give its address."
        ) from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"shard": str(shard.resolve())} for shard in shards]
        needs: dict[str, Any] = {"num_cpus": worker.threads}
        if worker.device.startswith("cuda"):
            needs["num_gpus"] = 1
        actor: Any = _Actor
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            actor, fn_constructor_args=(worker,), concurrency=(1, min(processes, len(rows))), **needs
        )
        for row in made.iter_rows():
            if row.get("refused"):
                raise RebusError(row["refused"])
            if row.get("lost"):
                yield Lost(row["shard"], row["lost"])
            else:
                yield Done(Entry.read(row["entry"]))
    finally:
        if mine:
            ray.shutdown()
