"""SEED-X's image in one forced run against the same model word by word, in one run:

    OMP_NUM_THREADS=1 python benchmarks/forced_run.py

The model is a LLaMA of random weights with SEED-X's projectors and its 64 words an image. Both ways start from the same
prompt; in the second the grammar hands over the same words one at a time, so that each costs a pass of its own, as in the
published code. They must say the same image. Each is timed in turn, so that a busy machine is busy for both; timed is the
image part alone, from the opening mark to the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from rebus.document import Document, user
from rebus.generate import Decoder
from rebus.grammar import Allow, Force, Modality
from rebus.lm import InterleavedLM
from rebus.mini.llm import SPECIAL_BYTES
from rebus.narrate import Span
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.projectors import SeedXInputProjector, SeedXOutputProjector
from rebus.papers.seed_x.spelling import mini
from rebus.sampling import Sampling

VISUAL = 256
"""Width of the image's vectors."""


class WordByWord(SeedXGrammar):
    """The same grammar, which leaves every word of an image to be chosen, from one alone."""

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow, one word at a time."""
        action = super().next(reply, modality, left)
        if isinstance(action, Force) and action.run[0] != self.special.eos:
            only_V = torch.zeros(self.vocabulary, dtype=torch.bool)
            only_V[action.run[0]] = True
            return Allow(only_V)
        return action


def build(width: int, depth: int, slots: int, device: str, dtype: torch.dtype) -> tuple[InterleavedLM, ByteTokenizer]:
    """A language model of random weights with projectors."""
    text, spelling = ByteTokenizer(SPECIAL_BYTES), mini(262, slots, vectors=slots * 4, context=2048)
    config = {
        "model_type": "llama",
        "vocab_size": spelling.end_box + 1,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    side, heads = round(slots**0.5), 8
    generator = torch.Generator().manual_seed(0)
    lm = InterleavedLM(
        TextModel(build_causal_lm(config, generator=generator)),
        SeedXInputProjector(ResamplerConfig(side, width, heads, VISUAL), generator),
        SeedXOutputProjector(ResamplerConfig(side, VISUAL, heads, width), source="random", generator=generator),
    )
    return lm.to(device, dtype).eval(), text


@torch.inference_mode()
def image(lm: InterleavedLM, grammar: SeedXGrammar, prompt_words: int, device: str) -> tuple[Tensor, float]:
    """The features of one image, and how long it took once the prompt was read."""
    prompt = grammar.serialize(Document((user("a" * prompt_words),)), reply="any")
    words = grammar.config.slots + 2
    decoder = Decoder(lm, grammar, rows=1, capacity=len(prompt) + words)
    reply = decoder.add(prompt, modality="any", sampling=Sampling(max_new_tokens=words))
    branch = reply.branches[0]
    decoder._read([branch])  # the prompt, which costs both the same
    synchronise(device)
    start = time.perf_counter()
    decoder._take(branch, grammar.special.begin_image)
    decoder._follow(reply, branch)
    hidden_SD = None
    while hidden_SD is None:
        decoder._read([branch])
        if branch.ending is None:
            decoder._choose(reply)
        for event in decoder._tell(reply):
            if isinstance(event, Span):
                hidden_SD = event.hidden_ND
    assert lm.output_projector is not None
    features_SC = lm.output_projector(hidden_SD).x_WNC[0]
    synchronise(device)
    return features_SC, time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for what is under way."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Build, check that both say the same, time in turn, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--width", type=int, default=768, help="width of the language model")
    options.add_argument("--depth", type=int, default=14, help="its layers")
    options.add_argument("--slots", type=int, default=64, help="words of an image between its marks")
    options.add_argument("--prompt", type=int, default=32, help="bytes of the prompt")
    options.add_argument("--repeats", type=int, default=5, help="timings of each way")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    asked = options.parse_args()
    lm, text = build(asked.width, asked.depth, asked.slots, asked.device, getattr(torch, asked.dtype))
    spelling = mini(262, asked.slots, vectors=asked.slots * 4, context=2048)
    ways = {
        "one run": SeedXGrammar(text, spelling, "random"),
        "word by word": WordByWord(text, spelling, "random"),
    }
    said, times = {}, {name: [] for name in ways}
    for turn in range(asked.repeats + 1):
        for name, grammar in ways.items():
            said[name], took = image(lm, grammar, asked.prompt, asked.device)
            if turn:  # the first of each is for warming up
                times[name].append(took)
    apart = float((said["one run"] - said["word by word"]).abs().max())
    middle = {name: statistics.median(held) for name, held in times.items()}
    print(f"{sum(p.numel() for p in lm.parameters()) / 1e6:.0f} M parameters, {asked.dtype} on {asked.device}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"largest difference of the features: {apart:.1e}")
    for name, took in middle.items():
        print(f"{name:>12}: {1000 * took:8.1f} ms (median of {asked.repeats})")
    print(f"{middle['word by word'] / middle['one run']:.1f} times as fast")


if __name__ == "__main__":
    main()
