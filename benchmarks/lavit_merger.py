"""LaVIT's merger on kept rows alone against all rows, at the published width, in one run:

    OMP_NUM_THREADS=1 python benchmarks/lavit_merger.py

Both forms get the same weights, features and masks (a third of the patches kept, another number in every image) and must
agree on the kept rows; each is timed in turn, so that a busy machine is busy for both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rebus.checkpoint import without_weights
from rebus.papers.lavit.merger import Merger, MergerConfig, Softmax


def seconds(run: Callable[[], Tensor], device: str) -> float:
    """How long one call takes."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def random_merger(depth: int) -> Merger:
    """A merger of the published width with weights of the usual spread, drawn faster than by the training's own rule."""
    with without_weights():
        merger = Merger(MergerConfig(depth=depth, softmax="masked"))
    merger = merger.to_empty(device="cpu")
    for part in merger.modules():
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.normal_(part.bias, std=0.02)
    return merger


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2, help="images of the batch")
    options.add_argument("--repeats", type=int, default=3, help="timed runs of each form")
    options.add_argument("--depth", type=int, default=12, help="blocks")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    asked = options.parse_args()
    torch.manual_seed(0)
    place = {"device": asked.device, "dtype": getattr(torch, asked.dtype)}
    merger = random_merger(asked.depth).to(**place).eval()
    features_INC = torch.randn(asked.images, 256, merger.config.width).to(**place)
    keep_IN = torch.rand(asked.images, 256, device=asked.device) < 1 / 3

    def all_rows(softmax: Softmax) -> Tensor:
        for block in merger.blocks:
            block.softmax = softmax
        return merger(features_INC, keep_IN)[keep_IN]

    forms: dict[str, Callable[[], Tensor]] = {
        "merger, all rows, clean masks": lambda: all_rows("masked"),
        "merger, all rows, published softmax": lambda: all_rows("policy_eps"),
        "merger, kept rows": lambda: merger.packed(features_INC, keep_IN),
    }
    with torch.inference_mode():
        dense, eps, packed = (run() for run in forms.values())
        times: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(asked.repeats):
            for name, run in forms.items():
                times[name].append(seconds(run, asked.device))
    threads = torch.get_num_threads()
    print(
        f"{asked.images} images, {keep_IN.float().mean():.3f} of 256 patches kept, width {merger.config.width}, ",
        end="",
    )
    print(f"{asked.depth} blocks, {asked.dtype}, {asked.device}, {threads} thread{'s' * (threads > 1)}")
    print(f"kept rows: largest difference to all rows {(dense - packed).abs().max():.1e}, ", end="")
    print(f"to the published softmax {(eps - packed).abs().max():.1e}")
    fast = statistics.median(times["merger, kept rows"])
    for name, measured in times.items():
        middle = statistics.median(measured)
        print(f"{name:38} {middle:8.2f} s   {middle / fast:5.2f} x kept rows")


if __name__ == "__main__":
    main()
