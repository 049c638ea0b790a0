"""Reading of images made to begin like reading of names: the states that an image leaves in the lower layers of the base
language model are drawn to those that the words of its name leave there.

The upper layers, which learn nothing here, know what to do with words; where the states of an image are like those of its
name, they can say it. A step costs a fifth of a step of language modelling, as only the lower layers are run and an image is all
that is read.

Dimension key: I images · Q names · P places · L length · D language-model width
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rebus.errors import RebusError
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.train import Losses

BEFORE = ("<|im_start|>", "user\n")
"""What stands before images and names, a special token and text: how a message begins in the mini's base model."""
SAYING = "A picture of {}"
"""Names are compared in this saying, so that every one has as many places as are compared."""


@dataclass(frozen=True)
class AlignConfig:
    """What is compared."""

    depth: int = 6
    """Layers of the language model that are run."""
    places: int = 4
    """Last places of an image and of a name that are compared."""
    contrast: float = 0.5
    """Weight of telling all names apart, beside the distance to the right one's states."""
    sharpness: float = 20.0
    """Factor of the cosine with a name's states in the softmax over all names."""
    smoothing: float = 0.1
    """Share of the aim that goes to all names alike."""

    def check(self, last: int) -> None:
        """Raises RebusError where more places are compared than there are, of an image of which the `last` are there."""
        if last < self.places:
            raise RebusError(
                f"The last {self.places} places of an image are compared, but only its last {last} are there. Give `--last` at "
                "least as many as `--align.places`."
            )


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


def read_states(part: TextModel, words_IL: Tensor) -> Tensor:
    """States [I, L, D] of words, which see those before them."""
    return vector_states(part, part.embed(words_IL), torch.arange(words_IL.shape[1], device=words_IL.device))


def vector_states(part: TextModel, x_ILD: Tensor, places_L: Tensor) -> Tensor:
    """States [I, L, D] of vectors at these places, which see those before them."""
    # a mask that says what is the rule without one: with it plain products are taken, which are faster to train here
    sees_11LL = (places_L[:, None] >= places_L)[None, None]
    return part.hidden(x_ILD, places_L.expand(len(x_ILD), -1), sees_11LL)


class NameStates(nn.Module):
    """The states of all names in the base model as it was given, and how those of images compare with them."""

    def __init__(self, llm: TextModel, text: TextTokenizer, names: Sequence[str], config: AlignConfig) -> None:
        super().__init__()
        self.config = config
        states_QPD = name_states(lower(llm, config.depth), text, names, config.places)
        # numbers of a state differ in size by orders of magnitude: each counts in units of how it varies among names
        self.mean_PD = nn.Buffer(states_QPD.mean(0), persistent=False)
        self.std_D = nn.Buffer(
            (states_QPD - self.mean_PD).square().mean((0, 1)).sqrt().clamp(min=1e-4), persistent=False
        )
        self.names_QPD = nn.Buffer((states_QPD - self.mean_PD) / self.std_D, persistent=False)

    def standard(self, states_IPD: Tensor) -> Tensor:
        """In units of how they vary among names, float32."""
        return (states_IPD.float() - self.mean_PD) / self.std_D

    def likeness(self, x_IPD: Tensor) -> Tensor:
        """Cosine of standardised states with those of every name, [I, Q]."""
        return F.normalize(x_IPD.flatten(1), dim=1) @ F.normalize(self.names_QPD.flatten(1), dim=1).T

    def forward(self, states_IPD: Tensor, name_I: Tensor) -> Losses:
        """The states of images' last places, and which name each image has."""
        config, x_IPD = self.config, self.standard(states_IPD)
        likeness_IQ = self.likeness(x_IPD)
        distance = F.mse_loss(x_IPD, self.names_QPD[name_I])
        contrast = F.cross_entropy(likeness_IQ * config.sharpness, name_I, label_smoothing=config.smoothing)
        named = (likeness_IQ.argmax(1) == name_I).float().mean()
        return Losses(
            distance + config.contrast * contrast, {"distance": distance, "contrast": contrast, "named": named}
        )


@torch.no_grad()
def name_states(part: TextModel, text: TextTokenizer, names: Sequence[str], places: int) -> Tensor:
    """States of the last `places` words of the saying with each name, [Q, P, D] float32. Raises RebusError where a name
    has fewer."""
    before = begun(text)
    said = [text.encode(SAYING.format(name)) for name in names]
    shortest = min(map(len, said))
    if not 1 <= places <= shortest:
        raise RebusError(
            f"The last places of an image are compared with a name's last words, but places={places} and the shortest name has "
            f"{shortest} with what is said around it. Give 1 to {shortest}."
        )
    rows = [[*before, *words] for words in said]
    states = []
    for start in range(0, len(rows), 128):
        some = rows[start : start + 128]
        length = max(map(len, some))
        # what follows a name is not seen by it
        ids_IL = torch.tensor([row + [before[0]] * (length - len(row)) for row in some], device=part.device)
        hidden_ILD = read_states(part, ids_IL)
        last_IP = torch.tensor([[len(row) - places + p for p in range(places)] for row in some], device=part.device)
        states.append(hidden_ILD.gather(1, last_IP[..., None].expand(-1, -1, hidden_ILD.shape[2])).float())
    return torch.cat(states)


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
