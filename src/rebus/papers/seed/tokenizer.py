"""SEED's tokenizer: an image becomes 32 codes, and codes become the image embedding that its image decoder takes
(SEED section 3.1, SEED-LLaMA section 3.1).

    pixels ─ features ─▶ x_ISC ─ causal_embeddings ─▶ x_INC ─ quantize ─▶ ids_IN, z_INE
    z_INE ─ embed_codes ─▶ image embedding            z_INE ─ reconstruct_embeddings ─▶ x_INC (training only)

Dimension key: I images · S tokens of the vision encoder · N codes of an image · C width · E code width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import prepare
from rebus.nn.attention import Block, init_linears_by_width, init_transformer
from rebus.nn.quantize import GroupedQuantizer, Quantized, ResidualQuantizer, VectorQuantizer
from rebus.nn.vit import ViT
from rebus.papers.seed.qformer import QFormer
from rebus.papers.seed.reading import CodeStart, CosinePositions
from rebus.papers.seed.space import SentenceSpace
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.visual import Codes, Purpose

SHARED = ("visual_encoder.", "code_start.")
"""How the names of tensors begin that a mini has from the shared vision encoder."""
TRAINING_ONLY = "embedding_decoder."
"""How the names begin of what only stage 2 asks for; saved weights may lack it."""
AT_ONCE = 64
"""Images that `encode` puts through the vision encoder together."""


def _quantizer(config: SeedTokenizerConfig, generator: torch.Generator | None) -> VectorQuantizer:
    size, width, beta, order = config.codebook_size, config.code_width, config.commitment, config.loss_order
    if config.codebook == "shared":
        return VectorQuantizer(size, width, beta=beta, order=order, generator=generator)
    places = config.qformer.queries
    if config.codebook == "per_query":
        return GroupedQuantizer(size, width, places, beta=beta, order=order, generator=generator)
    options: dict[str, Any] = {"beta": beta, "order": order, "generator": generator}
    if config.meaning_places:
        options |= {"meaning": config.meaning_places, "directions": config.meaning_directions}
    return ResidualQuantizer(size, width, places, **options)


class CodeDecoder(nn.Module):
    """Positions and pre-norm blocks in which every code sees every other; no norm at the end."""

    def __init__(self, config: SeedTokenizerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width = config.qformer.width
        self.pos_embed = nn.Parameter(torch.zeros(1, config.qformer.queries, width))
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.decoder_hidden) for _ in range(config.decoder_depth)
        )
        init_transformer(self.blocks, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → x_INC."""
        x_INC = x_INC + self.pos_embed
        for block in self.blocks:
            x_INC = block(x_INC)
        return x_INC


class MLPHead(nn.Module):
    """Decoded codes → image embedding: shrink each, flatten (code by code), project."""

    def __init__(self, config: SeedTokenizerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        widths = (config.qformer.width, *config.head_widths)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after, bias=False), nn.ReLU()]
        self.shrink = nn.Sequential(*layers[:-1])
        self.proj = nn.Linear(config.qformer.queries * widths[-1], config.image_width)
        init_linears_by_width(self, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → image embedding x_IC."""
        return self.proj(rearrange(self.shrink(x_INC), "i n c -> i (n c)"))


class ReverseHead(nn.Module):
    """Decoded codes → image embedding through the learned queries of a bidirectional Q-Former."""

    def __init__(self, config: SeedTokenizerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        reverse = replace(
            config.qformer,
            queries=config.reverse_queries,
            depth=config.reverse_depth,
            source_width=config.qformer.width,
            causal=False,
        )
        self.qformer = QFormer(reverse, generator)
        self.proj = nn.Linear(reverse.width, config.image_width)
        init_linears_by_width(self.proj, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → image embedding x_IC, or x_IQC with more than one query."""
        x_IQC = self.proj(self.qformer(x_INC))
        return x_IQC.squeeze(1) if self.qformer.config.queries == 1 else x_IQC


class SeedTokenizer(nn.Module):
    """Images ↔ codes. `source` names the tokenizer and its weights (`"seed:mini 3f2a9c"`); codes carry it.

    `visual_encoder` may be one that is shared with others; by default one is built from the config.
    """

    def __init__(
        self,
        config: SeedTokenizerConfig,
        *,
        source: str = "seed",
        visual_encoder: ViT | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if visual_encoder is not None and visual_encoder.config != config.vision:
            raise RebusError(
                "The vision encoder handed to SEED's tokenizer is not the one its config describes: "
                f"{visual_encoder.config} against {config.vision}. Pass the encoder's own config as `vision`."
            )
        if config.qformer.source_width != config.vision.width:
            raise RebusError(
                "The Q-Former looks at tokens of another width than the vision encoder's: "
                f"{config.qformer.source_width} against {config.vision.width}. Set `qformer.source_width` to it."
            )
        width, code = config.qformer.width, config.code_width
        if self.adds_up(config) and code != config.image_width:
            raise RebusError(
                "Codes that add up to the image embedding must be as wide as it, but the codebook's width is "
                f"{code} and the embedding's {config.image_width}. Set `code_width` to `image_width`."
            )
        if not 0 <= config.start_width + config.start_contrast <= code:
            raise RebusError(
                f"Codes of width {code} cannot start from a reading of width {config.start_width + config.start_contrast}. "
                f"Set `start_width` and `start_contrast` to together 0 to {code}."
            )
        self.config = config
        self.source = source
        self.visual_encoder = visual_encoder or ViT(config.vision, generator)
        self.vision_norm = nn.LayerNorm(config.vision.width, eps=config.vision_eps)
        self.source_positions = CosinePositions(config.vision) if config.source_positions == "cosine" else nn.Identity()
        self.qformer = QFormer(config.qformer, generator)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code))
        self.quantizer = _quantizer(config, generator)
        self.from_code = nn.Sequential(nn.Linear(code, code), nn.Tanh(), nn.Linear(code, width))
        self.image_decoder = CodeDecoder(config, generator)
        self.embedding_decoder: CodeDecoder | None = CodeDecoder(config, generator)
        head = MLPHead if config.head == "mlp" else ReverseHead
        self.head: MLPHead | ReverseHead = head(config, generator)
        init_linears_by_width(self.to_code, generator)
        init_linears_by_width(self.from_code, generator)
        self.code_start = None
        if config.start_per_patch:
            parts = (config.start_per_patch, config.start_width, config.start_contrast)
            self.code_start = CodeStart(config.vision, *parts, of=code)
        contrast = config.contrast_width
        self.space = (
            None
            if not contrast
            else SentenceSpace(width, contrast, text_width=config.sentence_width, generator=generator)
        )
        for last in self._additions():
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @staticmethod
    def adds_up(config: SeedTokenizerConfig) -> bool:
        """Whether entries add up to the image embedding itself. What a Reverse Q-Former gives back is elsewhere."""
        return config.codebook == "residual" and config.head == "mlp"

    def _additions(self) -> list[nn.Linear]:
        """The layers whose output is added to something that is good without it, and which therefore begin as zeros."""
        last = self.to_code[-1] if self.code_start is not None else None
        heads = [self.head.proj] if self.adds_up(self.config) else []
        return [layer for layer in (last, *heads) if isinstance(layer, nn.Linear)]

    def train(self, mode: bool = True) -> SeedTokenizer:
        """Training mode, but parts in which nothing trains stay in evaluation mode: the dropout of a frozen Q-Former
        would make the codes of an image random (the published stage 2 leaves it on)."""
        super().train(mode)
        for part in (self.visual_encoder, self.qformer):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    # -------------------------------------------------------------------------------------- image → codes

    def features(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → x_ISC of the vision encoder, class token first, not yet normalised."""
        return self.visual_encoder(pixels_I3hw)

    def causal_embeddings(self, x_ISC: Tensor) -> Tensor:
        """Features → x_INC: what the queries of the causal Q-Former found in them."""
        return self.qformer(self.source_positions(self.vision_norm(x_ISC.to(self.vision_norm.weight.dtype))))

    def start(self, x_ISC: Tensor) -> Tensor | None:
        """Features → where the vectors that are looked up start, [I, E]; none where the Q-Former alone makes them."""
        return None if self.code_start is None else self.code_start(x_ISC)

    def codes_before(self, x_INC: Tensor, start_IE: Tensor | None = None) -> Tensor:
        """Causal embeddings, and what `start` said → z_INE, the vectors that are looked up in the codebook."""
        z_INE = self.to_code(x_INC)
        return z_INE if start_IE is None else z_INE + start_IE[:, None]

    def quantize(self, x_INC: Tensor, start_IE: Tensor | None = None) -> Quantized:
        """Causal embeddings, and what `start` said → entries z_INE (straight-through), ids_IN and the quantiser's loss."""
        return self.quantizer(self.codes_before(x_INC, start_IE))

    def ids(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → ids_IN."""
        x_ISC = self.features(pixels_I3hw)
        return self.quantizer.encode(self.codes_before(self.causal_embeddings(x_ISC), self.start(x_ISC)))

    # -------------------------------------------------------------------------------------- codes → embedding

    def embed_codes(self, z_INE: Tensor) -> Tensor:
        """Entries → image embedding [I, image_width], not normalised; [I, Q, image_width] with Q reverse queries. Entries
        that add up to it already are only corrected."""
        x = self.head(self.image_decoder(self.from_code(z_INE)))
        return x + z_INE[:, -1] if self.adds_up(self.config) else x

    def image_embedding(self, ids_IN: Tensor, first: int | None = None) -> Tensor:
        """Ids → image embedding, as `embed_codes`; of each image's codes the `first` alone, where codes add up. Raises RebusError
        where they do not, or for a number that there cannot be."""
        z_INE = self.quantizer.decode(ids_IN)
        if first is not None:
            queries = z_INE.shape[1]
            if not self.adds_up(self.config) or not 1 <= first <= queries:
                raise RebusError(
                    f"An image of {queries} codes was to be drawn from its first {first}. "
                    + (
                        f"Give 1 to {queries}."
                        if self.adds_up(self.config)
                        else "This model's codes do not add up: leave `codes` out."
                    )
                )
            z_INE = torch.cat([z_INE[:, :first], z_INE[:, first - 1 : first].expand(-1, queries - first, -1)], 1)
        return self.embed_codes(z_INE)

    def reconstruct_embeddings(self, z_INE: Tensor) -> Tensor:
        """Entries → causal embeddings x_INC as rebuilt from them; only training asks for this. Raises RebusError for a
        tokenizer whose weights were saved without that part."""
        if self.embedding_decoder is None:
            raise RebusError(
                f"The weights of {self.source} were saved without what rebuilds causal embeddings, which only training "
                "asks for. Train stage 2 from stage 1's weights."
            )
        return self.embedding_decoder(self.from_code(z_INE))

    # -------------------------------------------------------------------------------------- documents

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image],
        purposes: set[Purpose],
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Image]:
        """The images with the same `Codes` as `understood` and `generated`; those that have what is asked are
        returned as they are. Nothing is random, so `generators` are not used.

        Raises RebusError for an image that has neither the codes asked for nor pixels.
        """
        done = [_complete(image, purposes, self.source) for image in images]
        todo = [number for number, image in enumerate(done) if image is None]
        for number in todo:
            if images[number].pixels is None:
                raise RebusError(
                    f"Image {number + 1} of {len(images)} has no pixels and lacks the codes for "
                    f"{' and '.join(sorted(purposes))}, so it cannot be encoded. Give it pixels, or codes of "
                    f"{self.source!r}."
                )
        parameter = self.vision_norm.weight
        was_training = self.training
        self.eval()
        try:
            for start in range(0, len(todo), AT_ONCE):
                numbers = todo[start : start + AT_ONCE]
                pixels_I3hw = self.pixels([images[number] for number in numbers]).to(parameter.device)
                for number, ids_N in zip(numbers, self.ids(pixels_I3hw).cpu(), strict=True):
                    codes = Codes(ids_N, self.source)
                    done[number] = images[number].with_tokens(understood=codes, generated=codes)
        finally:
            self.train(was_training)
        return [image for image in done if image is not None]

    @property
    def embeds(self) -> bool:
        """Whether the projections are there that `embed_images` and `embed_texts` need."""
        return self.space is not None

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """Images with pixels → unit vectors_IC in the space of texts, from the last causal embedding. Raises RebusError for a
        tokenizer without that space."""
        device = self.vision_norm.weight.device
        return self._meeting().image(self.causal_embeddings(self.features(self.pixels(images).to(device))))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit vectors_IC in the space of images. Raises RebusError for a tokenizer without that space."""
        return self._meeting().texts(texts)

    def _meeting(self) -> SentenceSpace:
        if self.space is None:
            raise RebusError(
                f"The weights of {self.source} hold no space in which images meet texts (`contrast_width` is 0), so that it "
                "cannot be searched with. Use a variant that has one, as seed:mini."
            )
        return self.space

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Images that have pixels → normalised pixels_I3hw on the CPU."""
        pictures = [image.pixels for image in images if image.pixels is not None]
        config = self.config
        return prepare(pictures, config.vision.image_size, resize=config.resize, mean=config.mean, std=config.std)


def _complete(image: Image, purposes: set[Purpose], source: str) -> Image | None:
    """The image if it has what is asked (codes of this tokenizer under one purpose serve the other too), else None."""
    for codes in (image.understood, image.generated):
        if isinstance(codes, Codes) and codes.source == source:
            return image.with_tokens(understood=image.understood or codes, generated=image.generated or codes)
    asked = {"understanding": image.understood, "generation": image.generated}
    return None if any(asked[purpose] is None for purpose in purposes) else image
