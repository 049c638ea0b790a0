"""What an image becomes for a language model: codes, features or patches; and the two protocols that make and draw them.

Dimension key: I images · W views of one image · N visual tokens · C visual width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import PIL.Image
import torch
from torch import Tensor

if TYPE_CHECKING:
    from rebus.document import Image

Purpose = Literal["understanding", "generation"]


@dataclass(frozen=True, eq=False)
class Codes:
    """An image as words of a visual vocabulary: int64 `ids_N`, each 0..K-1."""

    ids_N: Tensor
    source: str
    """Tokenizer name and weights hash; a grammar refuses codes of another source."""


@dataclass(frozen=True, eq=False)
class Features:
    """An image as vectors: one row of them per view, and where each view lies in the image; in training also the words that
    it is drawn from, where these are known."""

    x_WNC: Tensor
    source: str
    position_W2: Tensor | None = None
    says_K: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Patches:
    """All patch vectors of an image and which of them are kept (the dropped ones still feed the merger)."""

    x_NC: Tensor
    keep_N: Tensor
    source: str


VisualTokens = Codes | Features | Patches


@dataclass(frozen=True)
class Progress:
    """How far an image being drawn is: `step` of `of`, and what it looks like so far where that is known."""

    step: int
    of: int
    preview: PIL.Image.Image | None = None


@dataclass(frozen=True)
class ImageSampling:
    """How a detokenizer draws. `None` leaves a value to the detokenizer's own config (the paper's number)."""

    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Classifier-free guidance scale of the diffusion model."""
    image_guidance: float | None = None
    """How far a detokenizer that edits is led towards the source image."""
    noise_level: int | None = None
    """unCLIP only: how much noise is added to the image embedding, 0..999."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, where the detokenizer draws several (LaVIT)."""
    codes: int | None = None
    """How many of an image's first codes are drawn from, where codes add up (SEED's minis). A code that is wrong costs more
    than one that is left out."""

    def unused(self, settings: frozenset[str]) -> list[str]:
        """Names of what is given here and is none of a detokenizer's `settings`."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None and f.name not in settings]

    def only(self, settings: frozenset[str]) -> ImageSampling:
        """These without what is unused."""
        return replace(self, **dict.fromkeys(self.unused(settings)))


@dataclass(frozen=True, eq=False)
class Drawn:
    """How a picture was drawn from its tokens: with these, the same weights draw it again."""

    model: str
    """The system that drew it: `seed:mini`."""
    weights: str
    """Hash of all its weights."""
    seed: int
    """Of the picture's own generator."""
    sampling: ImageSampling
    """The settings that were given."""
    source: PIL.Image.Image | None = None
    """What a detokenizer that edits started from."""


class VisualTokenizer(Protocol):
    """Images → tokens."""

    def encode(
        self,
        images: Sequence[Image],
        purposes: set[Purpose],
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Image]:
        """The images with `understood` and/or `generated` filled, both from one and the same draw."""
        ...


class Detokenizer(Protocol):
    """Tokens → images."""

    @property
    def settings(self) -> frozenset[str]:
        """Which of the values of `ImageSampling` change what it draws, or how."""
        ...

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """`Progress` while it draws, then one image for each of `tokens`, in order."""
        ...


@runtime_checkable
class DrawsReplies(Protocol):
    """A detokenizer that draws otherwise what a language model wrote than what a tokenizer read."""

    def as_written(self, sampling: ImageSampling) -> ImageSampling:
        """The settings for it, where nothing else was asked for."""
        ...


@runtime_checkable
class Editor(Protocol):
    """A detokenizer that may be able to keep what a source image shows."""

    @property
    def edits(self) -> bool:
        """Whether it is: a network of the same kind may have been trained without sources."""
        ...
