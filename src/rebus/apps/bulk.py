"""`rebus tokenize SYSTEM --shards IN OUT`: what is to be done, the engine that does it, and what the terminal says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rebus.apps.bulk_local import run_local
from rebus.apps.bulk_ray import run_ray
from rebus.apps.bulk_worker import Died, Done, Event, Lost, Saw, Worker
from rebus.data.manifest import LINES, Manifest
from rebus.errors import RebusError

Engine = Literal["local", "ray"]
EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


@dataclass
class Meter:
    """How far a run is, how fast, and for how long it still goes on; by bytes, since shards differ in size."""

    total: int
    """bytes of the shards that are to be made"""
    shards: int
    """how many they are"""
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    """shards done"""
    images: int = 0
    """pictures of these, and of the batches of the others"""
    skipped: int = 0
    read: int = 0
    """bytes taken in"""
    began: float = field(default=0.0, init=False)
    _open_images: int = field(default=0, init=False)
    _open_read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def add(self, event: Event) -> None:
        """Takes an event in. Batches tell of shards that are not done; when one is, its own numbers count."""
        match event:
            case Saw(images, size):
                self._open_images, self._open_read = self._open_images + images, self._open_read + size
            case Done(entry):
                self.done, self.skipped = self.done + 1, self.skipped + len(entry.skipped)
                self.images, self.read = self.images + entry.images, self.read + entry.read_bytes
                self._open_images = max(0, self._open_images - entry.images)
                self._open_read = max(0, self._open_read - entry.read_bytes)
            case Died() | Lost():
                self._open_images = self._open_read = 0

    @property
    def share(self) -> float:
        """Of the work, from 0 to 1."""
        return min(1.0, (self.read + self._open_read) / max(1, self.total))

    @property
    def rate(self) -> float:
        """Pictures a second since the beginning, loading of the model included."""
        return (self.images + self._open_images) / max(1e-9, self.clock() - self.began)

    @property
    def left(self) -> float | None:
        """Seconds that it will still take; None before anything is done."""
        return None if not self.share else (self.clock() - self.began) * (1 - self.share) / self.share

    def __str__(self) -> str:
        left = "" if self.left is None else f"  about {duration(self.left)} left"
        skipped = f"  {self.skipped:,} skipped" if self.skipped else ""
        images = self.images + self._open_images
        return f"{self.done:,}/{self.shards:,} shards  {images:,} pictures  {self.rate:,.1f}/s{left}{skipped}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = round(whole / 60), whole // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def tokenize_shards(
    worker: Worker,
    source: Path,
    console: Console,
    *,
    engine: Engine = "local",
    address: str | None = None,
    processes: int | None = None,
    verify: bool = False,
) -> None:
    """Makes every `.tar` of `source` that is not made yet, and says what came of it.

    Raises RebusError where there is nothing to read or nowhere to write, and at the end when shards could not be made.
    """
    if processes is not None and processes < 1:
        raise RebusError(f"Shards are made by at least one process, but --processes is {processes}. Give 1 or more.")
    shards = shards_of(source)
    if worker.out.resolve() in {source.resolve(), source.resolve().parent if source.is_file() else None}:
        raise RebusError(
            f"{worker.out} is where the pictures are, and they would be written over. Name another folder."
        )
    manifest = Manifest(worker.out)
    with manifest.alone():
        sizes = {shard.name: shard.stat().st_size for shard in shards}
        there = manifest.done(sizes, verify=verify)
        todo = [shard for shard in shards if shard.name not in there]
        if there:
            console.print(f"{len(there):,} of {len(shards):,} shards are there already", style="dim")
        lost: list[Lost] = []
        if todo:
            meter = Meter(sum(sizes[shard.name] for shard in todo), len(todo))
            count = min(processes or default_processes(worker.device), len(todo))
            if engine == "ray":
                events = run_ray(worker, todo, len(todo) if address and not processes else count, address)
            else:
                events = run_local(worker, todo, count)
            try:
                lost = list(shown(events, meter, console))
            finally:
                events.close()  # type: ignore[attr-defined]  # it ends the processes
                manifest.collect(list(sizes))
        entries = manifest.collect(list(sizes))
    skipped = [(entry.shard, one) for entry in entries for one in entry.skipped]
    pictures = sum(entry.images for entry in entries)
    console.print(f"{len(entries):,} shards of {pictures:,} pictures in {worker.out}", soft_wrap=True)
    if skipped:
        shard, first = skipped[0]
        console.print(
            f"{len(skipped):,} left out, the first {first.member or 'the end'} of {shard}: {first.why} "
            f"All are in {manifest.folder / LINES}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if lost:
        raise RebusError(
            f"{len(lost)} of {len(shards)} shards could not be made, such as {lost[0].shard}: {lost[0].why}. "
            "The same command tries them again."
        )


def shards_of(source: Path) -> list[Path]:
    """The shards of a folder by name, or the one that is named. Raises RebusError where there is none."""
    if source.is_file() and source.suffix == ".tar":
        return [source]
    found = sorted(path for path in source.glob("*.tar") if path.is_file()) if source.is_dir() else []
    if not found:
        raise RebusError(f"{source} holds no .tar file. Name a folder of shards, or one shard; unpack compressed ones.")
    return found


def default_processes(device: str) -> int:
    """One for each GPU, or one for each core that this process may use."""
    if device.startswith("cuda"):
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shown(events: Iterator[Event], meter: Meter, console: Console) -> Iterator[Lost]:
    """Shows what goes on: a bar on a terminal, else a line now and then. Gives the shards that were lost."""
    bar = Progress(BarColumn(), TextColumn("{task.fields[said]}"), console=console, disable=not console.is_terminal)
    task, next_line = bar.add_task("", total=1.0, said=""), meter.began + EVERY
    with bar:
        for event in events:
            meter.add(event)
            bar.update(task, completed=meter.share, said=str(meter))
            match event:
                case Died(shard, why) | Lost(shard, why):
                    again = "is begun again" if isinstance(event, Died) else "is given up"
                    console.print(f"{shard} {again}: {why}", style="yellow", markup=False, soft_wrap=True)
            if isinstance(event, Lost):
                yield event
            if not console.is_terminal and meter.clock() >= next_line:
                next_line = meter.clock() + EVERY
                console.print(str(meter), markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.print(str(meter), markup=False, soft_wrap=True)


def given(options: Sequence[tuple[str, bool]]) -> None:
    """Raises RebusError for options, named with whether they were given, that only shards have."""
    if names := [name for name, was in options if was]:
        raise RebusError(f"{', '.join(names)} only matter with --shards IN OUT. Leave them out, or name the shards.")
