"""Bulk tokenising killed at random moments, against an unbroken run (Linux):

    OMP_NUM_THREADS=1 python benchmarks/bulk_killed.py
    OMP_NUM_THREADS=1 python benchmarks/bulk_killed.py --engine ray --moments 4

An unbroken run makes every shard once. A second folder is made by runs that are killed with SIGKILL: at half of the moments
one of the worker processes, at the others everything (on Ray always an actor). The same command then goes on. In the end
every file must have the hash that it has in the unbroken run, every sample must be there exactly once, and nothing
half-written may be left. Pictures are drawn here, one in a hundred is damaged.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import PIL.Image


def write_shards(folder: Path, shards: int, each: int) -> int:
    """Shards of pictures with captions; returns how many pictures are whole."""
    folder.mkdir(parents=True)
    whole = 0
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(shard * each, (shard + 1) * each):
                held = io.BytesIO()
                noise = random.Random(number).randbytes(48 * 48 * 3)
                PIL.Image.frombytes("RGB", (48, 48), noise).save(held, "PNG")
                picture = held.getvalue() if number % 100 != 50 else held.getvalue()[:500]
                whole += number % 100 != 50
                for name, data in ((f"{number:06}.png", picture), (f"{number:06}.txt", f"picture {number}".encode())):
                    about = tarfile.TarInfo(name)
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return whole


def start(args: argparse.Namespace, source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "rebus.apps.cli", "tokenize", args.system, "--shards", str(source), str(out)]
    command += ["--engine", args.engine, "--processes", str(args.processes), "--device", "cpu"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(run: subprocess.Popen[bytes]) -> None:
    """Waits for a run that must succeed."""
    if run.wait():
        raise SystemExit(f"The run ended with code {run.returncode}.")


def workers(of: int) -> list[int]:
    """Processes below `of` that make shards."""
    found = []
    for child in Path(f"/proc/{of}/task/{of}/children").read_text().split():
        try:
            line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found += [int(child)] if "spawn_main" in line or line.startswith("ray::Map") else []
            found += workers(int(child))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended in between
    return found


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parts(out: Path) -> set[Path]:
    """What is half-written, or was left so."""
    return set(out.glob(".*.part"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="seed:tiny")
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--shards", type=int, default=120)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of work before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        source, whole, broken = Path(folder, "in"), Path(folder, "whole"), Path(folder, "broken")
        pictures = write_shards(source, args.shards, args.each)
        began = time.monotonic()
        finish(start(args, source, whole))
        print(f"unbroken: {args.shards} shards in {time.monotonic() - began:.1f} s", flush=True)

        left, killed = parts(broken), Counter[str]()
        run = start(args, source, broken)
        while sum(killed.values()) < args.moments:
            if rng.random() < 0.15:  # while it starts or loads
                time.sleep(rng.uniform(0, 6))
            else:
                while run.poll() is None and not parts(broken) - left:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, args.longest))
            if run.poll() is not None:
                finish(run)
                raise SystemExit(f"It was done after {sum(killed.values())} moments. Give it more --shards.")
            there = workers(run.pid)
            half = len(parts(broken) - left)
            if args.engine == "ray" or (rng.random() < 0.5 and there):
                if not there:
                    continue
                os.kill(rng.choice(there), signal.SIGKILL)
                what = "a worker"
            else:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                what = "everything"
            killed[what] += 1
            done = len(list((broken / "manifest").glob("*.tar.json")))
            print(f"{sum(killed.values()):3}  {what:10}  {done} shards done, {half} half-written", flush=True)
            left = parts(broken)
            if run.poll() is not None:
                run = start(args, source, broken)
        finish(run)
        one, other = contents(whole), contents(broken)
        differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        keys: Counter[str] = Counter()
        for shard in sorted(broken.glob("*.tar")):
            with tarfile.open(shard) as tar:
                keys.update(name for name in tar.getnames() if name.endswith(".safetensors"))
        left_out = sum(len(json.loads(line)["skipped"]) for line in (broken / "manifest/shards.jsonl").open())
        print(f"killed: {', '.join(f'{what} {count} times' for what, count in killed.items())}")
        print(f"{len(one)} files, {len(differ)} differ {differ[:5]}")
        print(f"{len(keys)} of {pictures} pictures, each {set(keys.values())} times; {left_out} damaged ones listed")
        if differ or len(keys) != pictures or set(keys.values()) != {1}:
            raise SystemExit("The killed runs and the unbroken run differ.")


if __name__ == "__main__":
    main()
