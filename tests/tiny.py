"""The tiny variant of every paper, with random weights: what the laws are tested on. A new paper is found by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable

import PIL.Image
import torch
from torch import nn

from rebus.document import Document, Image, Message, assistant, user
from rebus.nn.lora import add_lora
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.sampling import Sampling
from rebus.system import System, known_systems, load

PAPERS = [paper for paper, variants in known_systems().items() if "tiny" in variants]


def fresh(paper: str, seed: int = 0) -> System:
    """A tiny system of one's own, to change at will. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        system = load(f"{paper}:tiny", dtype=torch.float32)
        liven(system.lm)
        with torch.no_grad():  # a longer row has more extreme scores, so that some replies hold images
            system.lm.llm.rows.output.weight_VD[system.grammar.special.begin_image - system.lm.llm.words] *= 4
    return system


@functools.cache
def system(paper: str) -> System:
    """A tiny system that is shared: not to be changed."""
    return fresh(paper)


@torch.no_grad()
def liven(module: nn.Module) -> None:
    """Give adapters a say (their second matrix begins at zero) and scores a spread, as trained weights have."""
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim > 1:
            parameter.mul_(6)


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: int = 40) -> Image:
    """A picture of one colour with a corner of another."""
    pixels = PIL.Image.new("RGB", (size, size), colour)
    pixels.paste((20, 20, 220), (0, 0, size // 3, size // 2))
    return Image(pixels)


def documents() -> list[Document]:
    """Documents of different lengths: a question, a wish, a chat with a past reply that holds an image."""
    return [
        Document((user(picture(), "What is this?"),)),
        Document((user("Draw a small red house, please."),)),
        Document(
            (
                user("Hello ", picture((0, 160, 0)), " and "),
                assistant("Here: ", picture((9, 9, 99))),
                user("Another, bluer. ü🐈"),
            )
        ),
    ]


def generator(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


WARM = Sampling(max_new_tokens=48, temperature=1.0)


def said(message: Message) -> list[object]:
    """The parts of a message in a form that can be compared: images as their codes, or only as images."""
    return [
        tuple(ids.tolist()) if isinstance(part, Image) and (ids := getattr(part.generated, "ids_N", None)) is not None
        else ("image",) if isinstance(part, Image)  # no text that might be said
        else part
        for part in message.content
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- language models alone

LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 50,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "dropout": 0.0,
}
KINDS: dict[str, dict] = {
    "llama": {**LLAMA, "tie_word_embeddings": False},
    "llama tied": {**LLAMA, "tie_word_embeddings": True},
    "opt": OPT,
}
TARGETS = {"opt": ("q_proj", "v_proj", "fc1")}


def text_model(kind: str, *, new: int = 7, tied: bool = False, lora: bool = True) -> TextModel:
    """A tiny language model with new words and, with `lora`, adapters that say something."""
    model = TextModel(build_causal_lm(KINDS[kind], generator=generator(1))).extend(
        new, tied=tied, generator=generator(2)
    )
    if lora:
        add_lora(model, rank=2, dropout=0.0, generator=generator(3), **lora_targets(kind))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator(4)) * 0.2)
    return model.eval()


def lora_targets(kind: str) -> dict:
    """The `targets=` of a kind of model, where they are not the default."""
    return {"targets": TARGETS[kind]} if kind in TARGETS else {}


def counted(function: Callable, made: list) -> Callable:
    """The function, noting what it returns in `made`."""

    def call(*args, **kwargs):
        made.append(function(*args, **kwargs))
        return made[-1]

    return call
