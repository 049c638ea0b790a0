"""Bulk tokenising with one process and with several, in turns:

    OMP_NUM_THREADS=1 python benchmarks/bulk_tokenize.py
    OMP_NUM_THREADS=1 python benchmarks/bulk_tokenize.py --system lavit:mini --processes 1 2 4

Each process has one thread. Timed is from the first batch that a worker reports to the last, so that loading the model does
not count. Runs of one and of several follow each other, and every ratio is of two neighbours, so that a busy machine is busy
for both; beside the pictures a second stands how many are made in a second of the workers' own time, which other programs
touch less. Where the first falls short of linear and the second does not, the machine had no second core to give.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import PIL.Image

from rebus.apps.bulk_local import run_local
from rebus.apps.bulk_worker import Done, Make, Saw, Seen, Worker
from rebus.data.token_shards import Entry


def write_shards(folder: Path, shards: int, each: int) -> list[Path]:
    """Shards of JPEG pictures of 256 pixels with captions."""
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard:05}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(shard * each, (shard + 1) * each):
                noise = PIL.Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192))
                held = io.BytesIO()
                noise.resize((256, 256), PIL.Image.Resampling.BICUBIC).save(held, "JPEG")
                for name, data in ((f"{number:06}.jpg", held.getvalue()), (f"{number:06}.txt", b"noise")):
                    about = tarfile.TarInfo(name)
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return paths


class Timed(Worker):
    """A worker that leaves beside the shards how much of its own time they took."""

    def open(self, number: int = 0) -> Make:
        """As a worker does; loading the model is not counted."""
        make, began = super().open(number), time.process_time()

        def timed(source: Path, seen: Seen) -> Entry:
            entry = make(source, seen)
            (self.out / f"{os.getpid()}.seconds").write_text(str(time.process_time() - began))
            return entry

        return timed


def once(worker: Worker, shards: list[Path], processes: int) -> tuple[float, float]:
    """Pictures a second of the clock, and a second of the workers' own time."""
    first, last, images, early = 0.0, 0.0, 0, 0
    for event in run_local(worker, shards, processes):
        last = time.monotonic()
        if isinstance(event, Saw):
            first, early = first or last, early or event.images
            images += event.images
        elif not isinstance(event, Done):
            raise SystemExit(f"A worker failed: {event}.")
    used = sum(float(file.read_text()) for file in worker.out.glob("*.seconds"))
    return (images - early) / (last - first), images / used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="seed:mini")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--each", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    clocks: dict[int, list[float]] = {}
    owns: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        shards = write_shards(Path(folder) / "in", args.shards, args.each)
        for number in range(args.rounds):
            one: tuple[float, float] | None = None
            for processes in args.processes:
                out = Path(folder) / f"{number}-{processes}"
                clock, own = once(Timed(args.system, out, args.weights, batch=16), shards, processes)
                one = one or (clock / processes, own)
                clocks.setdefault(processes, []).append(clock / processes / one[0])
                owns.setdefault(processes, []).append(own / one[1])
                print(
                    f"round {number + 1}  {processes} processes  {clock:6.1f} pictures/s by the clock ({clocks[processes][-1]:.2f} "
                    f"of linear)  {own:6.1f} in a second of their own time ({owns[processes][-1]:.2f})  "
                    f"load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    for processes in args.processes:
        by_clock, by_own = statistics.median(clocks[processes]), statistics.median(owns[processes])
        print(f"{processes} processes: median {by_clock:.2f} of linear by the clock, {by_own:.2f} by their own time")


if __name__ == "__main__":
    main()
