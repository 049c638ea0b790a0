"""Time and cost of the papers' runs at 8 to 1,000 GPUs: rates measured here, and a small simulator:

    OMP_NUM_THREADS=1 python benchmarks/scale.py
    OMP_NUM_THREADS=1 python benchmarks/scale.py --machine a100 --efficiency 0.3 --gpus 8 256

What a core does (decode pictures, read token shards, lay documents out) is measured in its own seconds, so that a busy machine
gives the same rates; the disk is measured by the clock. What no machine here has (GPUs, their network, how often they fail) is
assumed, in `Machine` and `Assumed`; `docs/scale.md` says where from and what follows.
"""

from __future__ import annotations

import argparse
import heapq
import io
import math
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from rebus.data.sources import Tar
from rebus.data.token_files import pack
from rebus.document import Image
from rebus.images import prepare
from rebus.papers.seed.mixture import INSTRUCT, PRETRAIN
from rebus.visual import Codes, Features, Patches

# ------------------------------------------------------------------------------------------------ what is assumed


@dataclass(frozen=True)
class Machine:
    """A node of eight GPUs."""

    name: str
    peak: float
    """bf16 FLOP/s of a GPU, dense, as its maker says"""
    dollars: float
    """price of a GPU hour"""
    inside: float
    """bytes/s of a GPU to the others of its node"""
    network: float
    """bytes/s of a node to other nodes"""
    cores: int = 96
    """cores of a node that may load data"""
    gpus: int = 8


MACHINES = {
    "a100": Machine("A100", 312e12, 1.8, 240e9, 8 * 25e9 / 2),
    "h100": Machine("H100", 989e12, 2.5, 360e9, 8 * 50e9 / 2),
}


@dataclass(frozen=True)
class Assumed:
    """What is the same everywhere."""

    efficiency: float = 0.4
    """of the peak, where a GPU has enough to do"""
    half_tokens: float = 1500.0
    """words of one pass at which it reaches half of that"""
    pass_tokens: float = 24_000.0
    """words of one pass that fit beside the weights"""
    overlap: float = 0.8
    """share of the backward pass behind which the exchange of gradients hides"""
    jitter: float = 0.015
    """spread of the time of one GPU's step; all wait for the slowest"""
    hop: float = 15e-6
    """seconds of one hop of an exchange between nodes"""
    failure_hours: float = 50_700.0
    """GPU hours between two failures: 419 in 54 days on 16,384 H100 (Llama 3)"""
    restart: float = 900.0
    """seconds from a failure to the next step: noticing, a spare node, loading"""
    storage: float = 2e9
    """bytes/s of a node into shared storage"""
    storage_all: float = 40e9
    """bytes/s of the storage"""


# ------------------------------------------------------------------------------------------------ the papers' runs


@dataclass(frozen=True)
class Run:
    """A run of training as its paper gives it."""

    name: str
    weights: float
    """parameters that a word goes through"""
    trained: float
    """of these, with an optimiser"""
    words: float
    """words of a document, padding among them"""
    documents: float
    """documents of a step, of all GPUs"""
    steps: int
    images: float
    """pictures of a document"""
    vision: float
    """FLOP of a picture in frozen encoders, where it is not tokenised ahead"""
    ahead: bool = False
    """whether pictures are tokenised before, as SEED's codes were; vectors are too large to be kept"""
    recompute: bool = True
    """gradient checkpointing: the forward pass is made twice"""
    paper: tuple[int, str, float] | None = None
    """GPUs, machine, hours"""

    @property
    def flops(self) -> float:
        """Of one word: forward, backward to the activations, backward to what is trained, and forward again."""
        return 2 * self.weights * (2 + self.recompute) + 2 * self.trained


def mixed(sources: tuple, gpus: int, accumulate: int = 1) -> tuple[float, float]:
    """Mean words of a document and documents of a step of a table, in which a batch is of one source."""
    total = sum(source.weight for source in sources)
    documents = sum(source.weight * source.batch for source in sources) / total
    words = sum(source.weight * source.batch * source.max_length for source in sources) / total
    return words / documents, documents * gpus * accumulate


VIT_G = 2 * 1.01e9 * 257
"""FLOP of EVA ViT-g on a picture of 224 pixels."""
VIT_BIGG = 2 * 1.84e9 * 1024
"""FLOP of ViT-bigG on one view of 448 pixels."""
RUNS = [
    Run(
        "SEED-LLaMA 8B, stage 3",
        6.9e9,
        0.37e9,
        *mixed(PRETRAIN, 64, 4),
        30_000,
        1.6,
        VIT_G,
        True,
        paper=(64, "a100", 144),
    ),
    Run(
        "SEED-LLaMA 8B, stage 4", 6.9e9, 0.37e9, *mixed(INSTRUCT, 32), 50_000, 1.2, VIT_G, True, paper=(32, "a100", 16)
    ),
    Run("LaVIT, tokenizer", 0.35e9, 0.35e9, 256, 2048, 50_000, 1, VIT_G, recompute=False),
    Run("LaVIT, language model", 6.9e9, 6.9e9, 2048, 2048, 30_000, 8, VIT_G, recompute=False, paper=(256, "a100", 30)),
    Run("SEED-X, pre-training", 13.1e9, 0.46e9, 700, 1344, 117_600, 1, 3 * VIT_BIGG, paper=(48, "h100", 240)),
]


# ------------------------------------------------------------------------------------------------ rates of this machine


@dataclass(frozen=True)
class Rates:
    """What one core and this disk do."""

    decode: float
    """JPEG pictures of 256 pixels decoded and made ready, a second"""
    tokens: float
    """documents of 32 codes read from a token shard, a second"""
    vectors: float
    """documents of 256 vectors of width 1,408 read from a token shard, a second"""
    disk: float
    """bytes/s written and on the disk"""


def cpu_rate(work: Callable[[], int], seconds: float = 2.0) -> float:
    """How many a second of its own time `work`, which returns how many it did, does."""
    work()
    began, done = time.process_time(), 0
    while time.process_time() - began < seconds:
        done += work()
    return done / (time.process_time() - began)


def measure(folder: Path) -> Rates:
    """The rates, on pictures of smooth noise."""
    held = io.BytesIO()
    noise = PIL.Image.frombytes("RGB", (24, 24), random.Random(0).randbytes(24 * 24 * 3))
    noise.resize((256, 256), PIL.Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
    jpeg = held.getvalue()

    def decode() -> int:
        prepare([PIL.Image.open(io.BytesIO(jpeg)) for _ in range(16)], 224, resize="bicubic")
        return 16

    def reader(name: str, image: Image) -> Callable[[], int]:
        data, caption = pack(image), b"a red apple on a wooden table"
        with tarfile.open(folder / name, "w") as tar:
            for number in range(64):
                for file, inside in ((f"{number:04}.jpg.safetensors", data), (f"{number:04}.txt", caption)):
                    about = tarfile.TarInfo(file)
                    about.size = len(inside)
                    tar.addfile(about, io.BytesIO(inside))
        shard = Tar(folder / name)
        return lambda: len([shard[i] for i in range(len(shard))])

    print("| what is stored of a picture | bytes |\n|---|---|")
    ids_N, x_NC = torch.arange(32), torch.randn(256, 1408)
    codes = Codes(ids_N, "seed:v2-8b 0123456789abcdef")
    kinds = {
        "SEED: 32 codes": Image(understood=codes, generated=codes),
        "LaVIT: 256 vectors, and about 90 codes": Image(
            understood=Patches(x_NC, torch.ones(256, dtype=torch.bool), "lavit"),
            generated=Codes(torch.arange(90), "lavit"),
        ),
        "LaVIT: codes alone": Image(generated=Codes(torch.arange(90), "lavit")),
        "SEED-X: 64 vectors to be written": Image(generated=Features(torch.randn(1, 64, 4096), "seed_x")),
        "SEED-X: 5 views to be read": Image(
            understood=Features(torch.randn(5, 256, 4096), "seed_x", torch.zeros(5, 2))
        ),
    }
    for what, image in kinds.items():
        print(f"| {what} | {-(-len(pack(image)) // 512) * 512 + 512:,} |")
    print()
    tokens = cpu_rate(reader("codes.tar", kinds["SEED: 32 codes"]))
    vectors = cpu_rate(reader("vectors.tar", kinds["LaVIT: 256 vectors, and about 90 codes"]))
    block, began = os.urandom(64 << 20), time.monotonic()
    with (folder / "block").open("wb") as file:
        for _ in range(4):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return Rates(cpu_rate(decode), tokens, vectors, 4 * len(block) / (time.monotonic() - began))


# ------------------------------------------------------------------------------------------------ the simulator


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what they go into."""

    compute: float
    """useful work at full efficiency"""
    small: float
    """what too few words a pass cost"""
    idle: float
    """documents that cannot be divided among all GPUs"""
    exchange: float
    """weights and gradients, where they do not hide"""
    wait: float
    """for the slowest GPU"""
    input: float
    """for pictures, beyond all that"""

    @property
    def seconds(self) -> float:
        return self.compute + self.small + self.idle + self.exchange + self.wait + self.input


def step_of(
    run: Run, machine: Machine, gpus: int, known: Assumed, rates: Rates, *, ahead: bool, everywhere: bool = False
) -> Step:
    """A step with weights sharded inside a node, nodes being copies of each other, or, `everywhere`, sharded over all GPUs.
    `ahead`: pictures were tokenised before."""
    nodes = max(1, gpus // machine.gpus)
    rows = math.ceil(run.documents / gpus)
    words = rows * run.words
    flops = words * run.flops + (0 if ahead else rows * run.images * run.vision)
    full = flops / (machine.peak * known.efficiency)
    passes = max(1, math.ceil(words / known.pass_tokens))
    small = full * known.half_tokens / (words / passes)
    compute = full * (run.documents / gpus) / rows
    link = machine.network / machine.gpus if everywhere and nodes > 1 else machine.inside
    gather = 2 * 2 * run.weights * passes * (7 / 8) / link
    reduce = 2 * 2 * run.trained * (nodes - 1) / nodes / machine.network + 2 * (nodes - 1) * known.hop
    exchange = max(0.0, gather - known.overlap * (full + small)) + max(0.0, reduce - known.overlap * (full + small) / 2)
    busy = full + small + exchange
    wait = busy * known.jitter * math.sqrt(2 * math.log(max(2, gpus)))
    per_core = rates.decode / run.images if not ahead else rates.tokens
    loading = run.documents / (nodes * machine.cores * per_core)
    return Step(compute, small, full - compute, exchange, wait, max(0.0, loading - busy - wait))


def with_failures(
    hours: float, run: Run, gpus: int, known: Assumed, machine: Machine, seed: int = 0
) -> tuple[float, float]:
    """Hours of a run with failures and checkpoints at the best interval, mean of simulated runs; and that interval in
    minutes. Written is what is trained: weights, average and two moments in four bytes each."""
    nodes = max(1, gpus // machine.gpus)
    write = 12 * run.trained / min(nodes * known.storage, known.storage_all)
    between = known.failure_hours / gpus * 3600
    interval = math.sqrt(2 * write * between)  # Young's
    rng, total, tries = random.Random(seed), 0.0, 40
    for _ in range(tries):
        clock, done, next_failure = 0.0, 0.0, rng.expovariate(1 / between)
        while done < hours * 3600:
            piece = min(interval, hours * 3600 - done)
            if clock + piece + write <= next_failure:
                clock, done = clock + piece + write, done + piece
            else:  # what was done since the last checkpoint is lost
                clock = next_failure + known.restart
                next_failure = clock + rng.expovariate(1 / between)
        total += clock
    return total / tries / 3600, interval / 60


def bulk(images: float, shard: float, workers: int, rate: float, known: Assumed, seed: int = 0) -> float:
    """Hours of tokenising with workers that take shard after shard: shards vary by a tenth, workers fail and begin theirs
    again."""
    rng, left = random.Random(seed), int(images / shard)
    ends = [0.0] * workers
    heapq.heapify(ends)
    for _ in range(left):
        need = shard / rate * max(0.5, rng.gauss(1, 0.1))
        if rng.random() < need / 3600 / known.failure_hours:
            need = need * rng.random() + known.restart + need
        heapq.heappush(ends, heapq.heappop(ends) + need)
    return max(ends) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=MACHINES, default="h100")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512, 1000])
    parser.add_argument("--efficiency", type=float, default=Assumed.efficiency)
    args = parser.parse_args()
    machine, known = MACHINES[args.machine], Assumed(efficiency=args.efficiency)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder))
    print(
        f"One core: {rates.decode:,.0f} pictures decoded a second, {rates.tokens:,.0f} documents of codes and ", end=""
    )
    print(f"{rates.vectors:,.0f} of vectors read; disk {rates.disk / 1e6:,.0f} MB/s (load {os.getloadavg()[0]:.1f})\n")

    print("| run of a paper | FLOP | GPU hours it says | of the peak | steps that fit |\n|---|---|---|---|---|")
    for run in RUNS:
        work = run.steps * run.documents * (run.words * run.flops + (0 if run.ahead else run.images * run.vision))
        said, share, fit = "not said", "", ""
        if run.paper is not None:
            said = f"{run.paper[0] * run.paper[2]:,.0f} {MACHINES[run.paper[1]].name}"
            reached = work / (run.paper[0] * run.paper[2] * 3600) / MACHINES[run.paper[1]].peak
            share, fit = f"{reached:.0%}", f"{min(1, known.efficiency / reached) * run.steps:,.0f} of {run.steps:,}"
        print(f"| {run.name} | {work:.1e} | {said} | {share} | {fit} |")

    print(
        f"\n| run, on {machine.name} | GPUs | days | thousand dollars | of linear | small | idle | exchange | ", end=""
    )
    print("slowest | loading | failures | checkpoint every |\n" + "|---" * 12 + "|")
    for run in RUNS:
        first = None
        for gpus in args.gpus:
            step = step_of(run, machine, gpus, known, rates, ahead=run.ahead)
            hours = step.seconds * run.steps / 3600
            whole, interval = with_failures(hours, run, gpus, known, machine)
            first = first or whole * gpus
            parts = [step.small, step.idle, step.exchange, step.wait, step.input]
            shares = " | ".join(f"{part / step.seconds:.0%}" for part in parts)
            print(
                f"| {run.name} | {gpus:,} | {whole / 24:.2f} | {whole * gpus * machine.dollars / 1e3:,.1f} | "
                f"{first / (whole * gpus):.0%} | {shares} | {1 - hours / whole:.1%} | {interval:.0f} min |"
            )

    print("\n| seconds of a step | GPUs | sharded in a node | over all GPUs | codes read | pixels read and encoded |")
    print("|---" * 6 + "|")
    for run in RUNS:
        for gpus in args.gpus[1:]:
            ways = [(run.ahead, False), (run.ahead, True), (True, False), (False, False)]
            took = [step_of(run, machine, gpus, known, rates, ahead=a, everywhere=e).seconds for a, e in ways]
            print(f"| {run.name} | {gpus:,} | {' | '.join(f'{seconds:.2f}' for seconds in took)} |")

    print("\n| loader cores that a GPU needs | pixels, decoded here | codes of a shard |\n|---|---|---|")
    for run in RUNS:
        step_64 = step_of(run, machine, 64, known, rates, ahead=run.ahead).seconds
        each = run.documents / 64 / step_64
        print(f"| {run.name} | {each * run.images / rates.decode:.2f} | {each / rates.tokens:.4f} |")

    print(
        "\n| tokenising 100 M pictures | pictures of a shard | GPUs | hours | thousand dollars | of linear |\n"
        + "|---" * 6
        + "|"
    )
    for what, flops in (("SEED, LaVIT (ViT-g)", VIT_G), ("SEED-X, 3 views (ViT-bigG)", 3 * VIT_BIGG)):
        rate = min(machine.peak * known.efficiency / flops, machine.cores / machine.gpus * rates.decode)
        for shard in (1_000, 10_000):
            for gpus in args.gpus:
                hours = bulk(1e8, shard, gpus, rate, known)
                print(
                    f"| {what}: {rate:,.0f}/s a GPU | {shard:,} | {gpus:,} | {hours:.2f} | "
                    f"{hours * gpus * machine.dollars / 1e3:.2f} | {1e8 / rate / 3600 / gpus / hours:.0%} |"
                )


if __name__ == "__main__":
    main()
