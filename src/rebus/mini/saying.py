"""The language model says what a picture shows, in as few words as can be; and its layers taken apart, of which `drawing` trains the upper ones.

Dimension key: I images · Q names · T vectors of an image · L length · D language-model width
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.train import Losses

BEFORE = ("<|im_start|>", "user\n")
"""What stands before images and names, a special token and text: how a message begins in the mini's base model."""
SAYING = "A picture of {}"
"""How a picture is named."""


def lower(llm: TextModel, depth: int) -> TextModel:
    """The first `depth` layers of a language model, without the final norm; their weights are shared with the model."""
    part = copy.copy(llm)
    part._modules = dict(llm._modules)
    part.base = copy.copy(llm.base)
    part.base._modules = dict(llm.base._modules)
    trunk = llm.base.base_model
    body = copy.copy(trunk)
    body._modules = {**trunk._modules, "layers": nn.ModuleList(list(trunk.layers)[:depth]), "norm": nn.Identity()}
    body.config = copy.copy(trunk.config)
    body.config.num_hidden_layers = depth
    part.base._modules[part.base.base_model_prefix] = body
    return part


def begun(text: TextTokenizer) -> list[int]:
    """Ids of what stands before images and names; a base model without such a token begins with the text."""
    token, rest = BEFORE
    return [*([text.specials[token]] if token in text.specials else []), *text.encode(rest)]


def vector_states(part: TextModel, x_ILD: Tensor, places_L: Tensor) -> Tensor:
    """States [I, L, D] of vectors at these places, which see those before them."""
    # a mask that says what is the rule without one: with it plain products are taken, which are faster to train here
    sees_11LL = (places_L[:, None] >= places_L)[None, None]
    return part.hidden(x_ILD, places_L.expand(len(x_ILD), -1), sees_11LL)


def of_like_length(lengths: Sequence[int], size: int = 48) -> list[list[int]]:
    """Numbers of rows in groups of at most `size` that are of like length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


ASKED = ("<|im_end|>", "\n", "<|im_start|>", "assistant\n")
"""What stands between an image and the reply to it, special tokens and text by turns."""
ENDED = "<|im_end|>"
"""The special token that ends a reply."""


class Saying(nn.Module):
    """The whole language model says of an image what it shows, in as few words as can be: a reply of which the name alone is
    learned."""

    def __init__(self, text: TextTokenizer, names: Sequence[str]) -> None:
        super().__init__()
        start, _, end = SAYING.partition("{}")
        special = text.specials
        # a base model without such tokens has a line of its own for what they say
        asked = [
            [special[part]] if part in special else text.encode(part)
            for part in ASKED
            if "|" not in part or part in special
        ]
        self.asked_L = nn.Buffer(torch.tensor(sum(asked, []) + text.encode(start.rstrip())), persistent=False)
        last = [special[ENDED]] if ENDED in special else text.encode(".")
        self.names = [torch.tensor(text.encode(f" {name}{end}") + last) for name in names]

    def forward(
        self, llm: TextModel, images: Sequence[Tensor], name_I: Tensor, places_B: Tensor | None = None
    ) -> Losses:
        """The vectors of each image and what stands before it, [T, D], and which name it has; `places_B` are their places, the
        same for all images, where these are not simply one after the other."""
        device, asked = llm.device, len(self.asked_L)
        said = [self.names[k].to(device) for k in name_I.tolist()]
        # what stands behind a name's last word but one is not needed, nor seen
        after = [llm.embed(torch.cat([self.asked_L, words[:-1]])[None])[0] for words in said]
        rows = [torch.cat(pair) for pair in zip(images, after, strict=True)]
        spans: list[Tensor] = list(rows)
        for some in of_like_length([len(row) for row in rows]):
            x_ILD = pad_sequence([rows[i] for i in some], batch_first=True)
            places_L = torch.arange(x_ILD.shape[1], device=device)
            if places_B is not None:
                places_L[: len(places_B)] = places_B
                places_L[len(places_B) :] += places_B[-1] + 1 - len(places_B)
            for i, states_LD in zip(some, vector_states(llm, x_ILD, places_L), strict=True):
                first = len(images[i]) + asked - 1
                spans[i] = states_LD[first : first + len(said[i])]
        logits_TV, said_T = llm.logits(torch.cat(spans)).float(), torch.cat(said)
        right = (logits_TV.argmax(-1) == said_T).split([len(words) for words in said])
        share = sum(float(of.all()) for of in right) / len(right)
        return Losses(F.cross_entropy(logits_TV, said_T), {"said": share})


class VectorNaming(nn.Module):
    """A language model that reads an image as vectors, and says what it shows."""

    def __init__(self, text: TextTokenizer, begin_image: int, end_image: int, names: Sequence[str]) -> None:
        super().__init__()
        self.saying = Saying(text, names)
        self.before_B = nn.Buffer(torch.tensor([*begun(text), begin_image]), persistent=False)
        self.end_1 = nn.Buffer(torch.tensor([end_image]), persistent=False)

    def forward(self, llm: TextModel, images: Sequence[Tensor], name_I: Tensor) -> Losses:
        """The vectors of each image, [T, D], and which name it has."""
        before_BD, end_1D = llm.embed(self.before_B[None])[0], llm.embed(self.end_1[None])[0]
        around = [torch.cat([before_BD, image.to(llm.dtype), end_1D]) for image in images]
        return self.saying(llm, around, name_I)
