"""What packing documents of different lengths into shared rows saves in training, beside a padded row for each.

    python benchmarks/packing.py --width 384 --depth 8 --pack 256

Two copies of one language model learn the same batches, one of padded rows, one of packed rows (`rebus.sequence.collated`,
as the language stages use it), by turns in one run, so that what else the machine does strikes both. Lengths are those of a
mixture of captioned pictures (a picture is 34 words), chats and a few long documents. Real words are counted, not padding.
Each document's loss must be the same in both.

Dimension key: N documents
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import time

import torch
from torch import Tensor

from rebus.lm import InterleavedLM, log_likelihoods
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.sequence import Collated, Sequence, collated

VOCABULARY = 2048
MIXTURE = ((0.65, 40, 75), (0.28, 80, 240), (0.07, 260, 480))
"""Share, shortest and longest: captions and drawings, chats, long documents."""


def build(width: int, depth: int) -> InterleavedLM:
    """A LLaMA of this size, with random weights."""
    config = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    return InterleavedLM(TextModel(build_causal_lm(config, generator=torch.Generator().manual_seed(0)))).train()


def documents(count: int, rng: random.Random) -> list[Sequence]:
    """Documents of the mixture, of random words, all of which are learned."""
    kinds = rng.choices(MIXTURE, weights=[share for share, _, _ in MIXTURE], k=count)
    lengths = [rng.randint(least, most) for _, least, most in kinds]
    return [Sequence([rng.randrange(VOCABULARY) for _ in range(n)], [True] * n) for n in lengths]


def of_each(lm: InterleavedLM, rows: Collated, batch: list[Sequence], pack: int | None) -> Tensor:
    """Loss per word of each document, by its first word and length, so that the order of rows does not matter."""
    found_N = torch.cat([log_likelihoods(lm, part) for part in rows.batches])
    order = batch if pack is None else [s for s in batch if len(s) <= pack] + [s for s in batch if len(s) > pack]
    by_document = {id(s): -lost / (len(s) - 1) for s, lost in zip(order, found_N, strict=True)}
    return torch.stack([by_document[id(s)] for s in batch])


def main() -> None:
    """Build, compare, time by turns, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--width", type=int, default=384, help="width of the language model")
    options.add_argument("--depth", type=int, default=8, help="its layers")
    options.add_argument("--batch", type=int, default=16, help="documents of a step")
    options.add_argument("--pack", type=int, default=256, help="words of a packed row")
    options.add_argument("--steps", type=int, default=12, help="timed steps of each")
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="autocast of the forward pass"
    )
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    rng, dtype = random.Random(asked.seed), getattr(torch, asked.dtype)
    first = build(asked.width, asked.depth).to(asked.device)
    models = {"padded": first, "packed": copy.deepcopy(first)}
    rows = {"padded": None, "packed": asked.pack}
    optimisers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    busy: dict[str, list[float]] = {name: [] for name in models}
    places: dict[str, list[int]] = {name: [] for name in models}
    words, apart, losses_apart = [], 0.0, 0.0
    for step in range(asked.steps + 1):
        batch = documents(asked.batch, rng)
        said, each = {}, {}
        for name in sorted(models, reverse=step % 2 == 0):  # who begins changes
            model = models[name]
            if step == 0:  # weights are still the same: document by document
                laid = collated(batch, pack=rows[name], device=asked.device)
                each[name] = of_each(model, laid, batch, rows[name])
            began, worked = time.perf_counter(), time.process_time()
            laid = collated(batch, pack=rows[name], device=asked.device)
            with torch.autocast(asked.device, dtype, enabled=dtype != torch.float32):
                loss = model.losses(laid).total
            loss.backward()
            optimisers[name].step()
            optimisers[name].zero_grad()
            said[name] = loss.item()  # waits for the device
            if step:  # the first of each is for warming up
                times[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - worked)
                places[name].append(sum(part.ids_BL.numel() for part in laid.batches))
        if step == 0:
            apart = float((each["padded"] - each["packed"]).abs().max())
        else:
            words.append(sum(map(len, batch)))
        losses_apart = max(losses_apart, abs(said["padded"] - said["packed"]))
    size = sum(p.numel() for p in first.parameters()) / 1e6
    print(
        f"{size:.0f} M parameters, {asked.dtype} on {asked.device}, {asked.batch} documents a step, rows of {asked.pack}"
    )
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"loss per word of a document, largest difference: {apart:.1e}; of a step while training: {losses_apart:.1e}")
    for name, took in times.items():
        share, speed = sum(words) / sum(places[name]), sum(words) / sum(took)
        print(f"{name:>8}: {speed:7.0f} real words/s, {100 * share:.0f} % of the places are words")
    for what, spent in (("by the clock", times), ("by the processor's time, which other work hardly touches", busy)):
        ratios = [a / b for a, b in zip(spent["padded"], spent["packed"], strict=True)]
        whole = sum(spent["padded"]) / sum(spent["packed"])
        print(
            f"{what}: {whole:.2f} times as fast (median of steps {statistics.median(ratios):.2f}, least {min(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
