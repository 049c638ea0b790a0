"""LaVIT's tokenizer: an image becomes as many tokens as it needs, vectors to be read and codes to be written (section 3.1).

    pixels ─ features ─▶ x_INC ─ selector ─▶ keep_IN                      Patches: what the language model reads
    x_INC, keep_IN ─ merger ─▶ x_TC ─ to_code, look-up ─▶ ids_T           Codes: what it writes

Dimension key: I images · N patches · T kept patches of all images · C width · E code width
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import CLIP_MEAN, CLIP_STD, RGB, Resize, prepare
from rebus.nn.attention import init_linears
from rebus.nn.quantize import VectorQuantizer
from rebus.nn.vit import ViT, ViTConfig
from rebus.papers.lavit.merger import Merger, MergerConfig
from rebus.papers.lavit.selector import (
    KEEP,
    Selection,
    Selector,
    at_least_one,
    check_budget,
    gumbel_noise,
    keep_best,
    keep_expected,
    keep_likely,
    keep_sampled,
)
from rebus.visual import Codes, Patches, Purpose

AT_ONCE = 32
"""Images that `encode` puts through the vision encoder together."""


@dataclass(frozen=True)
class LavitTokenizerConfig:
    """Sizes and choices of LaVIT's tokenizer; the defaults are the published ones, but for `selection`."""

    vision: ViTConfig = field(default_factory=lambda: ViTConfig(depth=40))
    """The vision encoder; all its blocks, without the norm behind them."""
    merger: MergerConfig = field(default_factory=MergerConfig)
    """The merger that the codes come from."""
    codebook_size: int = 16384
    """Entries of the codebook."""
    code_width: int = 32
    """Width of an entry."""
    selection: Selection = "threshold"
    """How the selector's probabilities become a choice. The published code draws (`sample`), so that one image has other
    tokens each time; ours has the same ones."""
    budget: int | None = None
    """`topk`: patches that are kept."""
    keep_odds: float = 0.0
    """Added to a patch's log-odds of being kept, but in a choice of a given number: below 0 images have fewer tokens than in training.
    (The published code: 0.)"""
    selector_std: float = 0.02
    """Deviation of the selector's first weights. A layer passes on about 0.02 · √width / 2 of what differs between patches,
    so that a narrow selector begun with the published 0.02 gives all patches one probability and is slow to learn better:
    at width 192, 0.1 keeps differences as they are."""
    resize: Resize = "bicubic"
    """How an image is stretched to the encoder's square."""
    mean: RGB = CLIP_MEAN
    """Channel means of the pixels."""
    std: RGB = CLIP_STD
    """Channel deviations of the pixels."""


class LavitTokenizer(nn.Module):
    """Images → patches and codes. `source` names the tokenizer and its weights; both carry it.

    `visual_encoder` may be one that is shared with others; by default one is built from the config.
    """

    def __init__(
        self,
        config: LavitTokenizerConfig,
        *,
        source: str = "lavit",
        visual_encoder: ViT | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if visual_encoder is not None and visual_encoder.config != config.vision:
            raise RebusError(
                "The vision encoder handed to LaVIT's tokenizer is not the one its config describes: "
                f"{visual_encoder.config} against {config.vision}. Pass the encoder's own config as `vision`."
            )
        width = config.vision.width
        if config.merger.width != width:
            raise RebusError(
                "The merger takes vectors of another width than the vision encoder gives: "
                f"{config.merger.width} against {width}. Set `merger.width` to it."
            )
        self.config = config
        self.source = source
        self.visual_encoder = visual_encoder or ViT(config.vision, generator)
        self.selector = Selector(width, generator, config.selector_std)
        self.merger = Merger(config.merger, generator)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_width))
        self.quantizer = VectorQuantizer(config.codebook_size, config.code_width, generator=generator)
        self.quantizer.codebook_KC.requires_grad_(False)  # it follows what is assigned to it, not a gradient
        with torch.no_grad():  # rows of length 1, as training keeps them
            self.quantizer.codebook_KC.copy_(F.normalize(self.quantizer.codebook_KC, dim=-1))
        init_linears(self.to_code, generator)
        self.choose(config.selection, config.budget)

    def choose(self, selection: Selection, budget: int | None = None) -> None:
        """Another way of choosing patches from now on. Raises RebusError for `topk` with a budget that cannot be, and for
        a budget that the selection would not use."""
        if selection == "topk":
            check_budget(budget, self.config.vision.grid**2)
        elif budget is not None or selection not in ("sample", "threshold", "expected"):
            raise RebusError(
                "Patches are chosen by `sample`, `threshold`, `expected`, or `topk` with a budget, but the choice was "
                f"{selection!r} with a budget of {budget}. Name one of the four, and a budget for `topk` only."
            )
        self.selection: Selection = selection
        self.budget = budget

    @contextlib.contextmanager
    def choosing(self, selection: Selection, budget: int | None = None) -> Iterator[None]:
        """Inside, patches are chosen in another way. Raises RebusError as `choose` does."""
        before = self.selection, self.budget
        self.choose(selection, budget)
        try:
            yield
        finally:
            self.choose(*before)

    @property
    def patches(self) -> int:
        """Patches of an image, and the most tokens that it can have."""
        return self.config.vision.grid**2

    # -------------------------------------------------------------------------------------- image → tokens

    def features(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → x_INC of the patches, as the last block of the vision encoder gives them."""
        return self.visual_encoder(pixels_I3hw)[:, int(self.config.vision.class_token) :]

    def keep(self, x_INC: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Features → bool keep_IN, at least one patch an image. `sample` draws from each image's generator (none: from
        one with seed 0)."""
        logp_IN2 = self.logp(x_INC)
        if self.selection != "sample":
            return self.undiced(logp_IN2)
        generators = generators or [torch.Generator().manual_seed(0) for _ in x_INC]
        noise_IN2 = gumbel_noise(x_INC.shape[1], generators)
        return at_least_one(keep_sampled(logp_IN2, noise_IN2), logp_IN2)

    def logp(self, x_INC: Tensor) -> Tensor:
        """Features → logp_IN2 of being kept and of being dropped, with the odds that are asked for."""
        logp_IN2 = self.selector(x_INC)
        odds = self.config.keep_odds
        return (
            logp_IN2
            if not odds
            else (logp_IN2 + odds * F.one_hot(logp_IN2.new_tensor(KEEP, dtype=torch.int64), 2)).log_softmax(-1)
        )

    def undiced(self, logp_IN2: Tensor) -> Tensor:
        """What is kept without dice: by the tokenizer's own choice, where that draws by the threshold."""
        if self.selection == "topk":
            assert self.budget is not None
            return keep_best(logp_IN2, self.budget)
        if self.selection == "expected":
            return keep_expected(logp_IN2)
        return at_least_one(keep_likely(logp_IN2), logp_IN2)

    def codes_before(self, x_TC: Tensor) -> Tensor:
        """Merged vectors → z_TE of length 1, which are looked up in the codebook as it stands."""
        return F.normalize(self.to_code(x_TC), dim=-1, eps=1e-12)

    def ids(self, x_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """Features and what is kept → ids_T, image by image."""
        return self.quantizer.encode(self.codes_before(self.merger.kept(x_INC, keep_IN)))

    # -------------------------------------------------------------------------------------- documents

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image],
        purposes: set[Purpose],
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Image]:
        """The images with `Patches` as `understood` and `Codes` as `generated`, both of one choice of patches, so that
        the codes of an image can stand, and be learned, where its vectors go in. Images that have what is asked are
        returned as they are; one without pixels is read as the codes it has.

        Raises RebusError for an image that has neither what is asked nor pixels, and for a choice with too few generators.
        """
        if generators is not None and len(generators) != len(images):
            raise RebusError(
                f"Every image needs a generator of its own, but there are {len(images)} images and "
                f"{len(generators)} generators. Give as many, or none."
            )
        done = [_complete(image, purposes, self.source) for image in images]
        todo = [number for number, image in enumerate(done) if image is None]
        for number in todo:
            if images[number].pixels is None:
                raise RebusError(
                    f"Image {number + 1} of {len(images)} has no pixels and lacks the tokens for "
                    f"{' and '.join(sorted(purposes))}, so it cannot be encoded. Give it pixels, or tokens of "
                    f"{self.source!r}."
                )
        device = self.quantizer.codebook_KC.device
        was_training = self.training
        self.eval()
        try:
            for start in range(0, len(todo), AT_ONCE):
                numbers = todo[start : start + AT_ONCE]
                x_INC = self.features(self.pixels([images[number] for number in numbers]).to(device))
                keep_IN = self.keep(x_INC, None if generators is None else [generators[number] for number in numbers])
                ids = self.ids(x_INC, keep_IN).cpu().split(keep_IN.sum(1).tolist())
                for number, x_NC, keep_N, ids_N in zip(numbers, x_INC.cpu(), keep_IN.cpu(), ids, strict=True):
                    patches, codes = Patches(x_NC, keep_N, self.source), Codes(ids_N, self.source)
                    done[number] = images[number].with_tokens(understood=patches, generated=codes)
        finally:
            self.train(was_training)
        return [image for image in done if image is not None]

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Images that have pixels → normalised pixels_I3hw on the CPU."""
        pictures = [image.pixels for image in images if image.pixels is not None]
        config = self.config
        return prepare(pictures, config.vision.image_size, resize=config.resize, mean=config.mean, std=config.std)


def _complete(image: Image, purposes: set[Purpose], source: str) -> Image | None:
    """The image if it has what is asked, else None."""
    asked = {"understanding": image.understood, "generation": image.generated}
    if all(asked[purpose] is not None for purpose in purposes):
        return image
    if image.pixels is None:  # codes of this tokenizer can be read too
        for codes in (image.understood, image.generated):
            if isinstance(codes, Codes) and codes.source == source:
                return replace(image, understood=image.understood or codes, generated=image.generated or codes)
    return None
