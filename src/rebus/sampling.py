"""How the next word is chosen: settings, and the arithmetic from scores to a word.

Dimension key: V vocabulary · A words allowed
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rebus.errors import RebusError
from rebus.visual import ImageSampling


@dataclass(frozen=True)
class Sampling:
    """How a reply is decoded; by default greedily, so that the same document gets the same reply."""

    max_new_tokens: int = 512
    """Most words of a reply, those of its images included. An image is only begun when it can be finished."""
    min_new_tokens: int = 0
    """Fewest words before the reply may end."""
    temperature: float = 0.0
    """0 takes the likeliest word; 1 samples from the model's own distribution."""
    top_k: int | None = None
    """Sample among this many likeliest words only."""
    top_p: float = 1.0
    """Sample among the fewest likeliest words that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1, words of text that the reply already holds become less likely. The words of images are exempt."""
    image_temperature: float | None = None
    """Temperature inside images; None: as for text."""
    image_top_k: int | None = None
    """top_k inside images; None: as for text."""
    image_top_p: float | None = None
    """top_p inside images; None: as for text."""
    guidance: float = 1.0
    """Classifier-free guidance of an image's words: score = u + guidance x (c - u), with c the log-probabilities given
    the document and u those given the image alone (LaVIT equation 7). 1 is off."""
    beams: int = 1
    """Above 1, search for the likeliest reply with this many hypotheses. The reply then comes all at once."""
    length_penalty: float = 1.0
    """Beams: a hypothesis is worth its log-probability divided by its length to this power."""
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these strings in its text."""
    best_of: int = 1
    """Sample this many replies and keep the one that a given scorer likes best."""
    image: ImageSampling = field(default_factory=ImageSampling)
    """How the detokenizer draws."""

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "min_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": 0 < self.top_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "image_temperature": self.image_temperature is None or self.image_temperature >= 0,
            "image_top_k": self.image_top_k is None or self.image_top_k >= 1,
            "image_top_p": self.image_top_p is None or 0 < self.image_top_p <= 1,
            "beams": self.beams >= 1,
            "best_of": self.best_of >= 1,
            "stop": all(self.stop),
        }
        for name, fine in bounds.items():
            if not fine:
                raise RebusError(
                    f"The sampling setting {name} cannot be {getattr(self, name)!r}. See `help(Sampling)` for its range."
                )
        if self.beams > 1 and (self.temperature or self.image_temperature):
            raise RebusError(
                f"Beam search does not sample, but beams is {self.beams} with a temperature of "
                f"{self.temperature or self.image_temperature}. Set the temperature to 0, or beams to 1."
            )
        if self.best_of > 1 and self.is_greedy:
            raise RebusError(
                f"The best of {self.best_of} replies was asked for, but with temperature 0 they are all the same. "
                "Raise the temperature."
            )

    @property
    def is_greedy(self) -> bool:
        """Is nothing left to chance?"""
        return self.temperature == 0 and not self.image_temperature

    def within(self, image: bool) -> tuple[float, int | None, float]:
        """Temperature, top_k and top_p, inside an image or outside."""
        if not image:
            return self.temperature, self.top_k, self.top_p
        return (
            self.temperature if self.image_temperature is None else self.image_temperature,
            self.top_k if self.image_top_k is None else self.image_top_k,
            self.top_p if self.image_top_p is None else self.image_top_p,
        )


def log_scores(logits_V: Tensor, unguided_V: Tensor | None = None, guidance: float = 1.0) -> Tensor:
    """Log-probabilities in float32; with a guidance stream's logits, moved away from what these say."""
    given_V = logits_V.float().log_softmax(-1)
    if unguided_V is None:
        return given_V
    free_V = unguided_V.float().log_softmax(-1)
    return free_V + guidance * (given_V - free_V)


def restrict(scores_V: Tensor, mask_V: Tensor, repeated: Collection[int] = (), penalty: float = 1.0) -> Tensor:
    """Scores with -inf where a word is not allowed, and those of `repeated` words multiplied by the penalty."""
    if penalty != 1.0 and repeated:
        seen = torch.tensor(sorted(repeated), device=scores_V.device)
        scores_V = scores_V.index_copy(0, seen, scores_V[seen] * penalty)
    return scores_V.masked_fill(~mask_V.to(scores_V.device), float("-inf"))


def decide(
    scores_V: Tensor, word: int, still: float, temperature: float, generator: torch.Generator | None
) -> tuple[bool, float]:
    """Whether `word` comes now, by its probability as the model gives it, whatever the temperature; and the probability that
    it would not have come yet, `still` before. At temperature 0 it comes as soon as it would rather have come than not."""
    chance = float(scores_V.softmax(-1)[word])
    still *= 1 - chance
    if temperature == 0 or generator is None:  # without a generator, choosing among the others says what is missing
        return temperature == 0 and still < 0.5, still
    return bool(torch.rand((), generator=generator, device=generator.device) < chance), still


def pick(
    scores_V: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None
) -> int:
    """One word: the best-scored at temperature 0, else drawn from the scores after temperature, top-k and top-p."""
    if temperature == 0:
        return int(scores_V.argmax())
    if generator is None:
        raise RebusError(
            f"A temperature of {temperature} draws words at random, but no generator was given. "
            "Give `generator=torch.Generator().manual_seed(0)`, or set the temperature to 0."
        )
    words_A = scores_V.isfinite().nonzero()[:, 0]
    scores_A = scores_V[words_A] / temperature
    if top_k is not None and top_k < len(words_A):
        scores_A, best = scores_A.topk(top_k)
        words_A = words_A[best]
    if top_p < 1:
        scores_A, order = scores_A.sort(descending=True)
        words_A = words_A[order]
        before_A = scores_A.softmax(-1).cumsum(-1) - scores_A.softmax(-1)
        kept = max(int((before_A < top_p).sum()), 1)  # the likeliest word stays, also where top_p is none in float32
        scores_A, words_A = scores_A[:kept], words_A[:kept]
    drawn = torch.multinomial(scores_A.softmax(-1).to(generator.device), 1, generator=generator)
    return int(words_A[int(drawn)])
