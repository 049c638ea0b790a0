"""LaVIT's modules in the sizes of a golden file.

Dimension key: none
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tests.parity.golden import Golden
from torch import Tensor, nn

from rebus.checkpoint import Rule, convert
from rebus.nn.vit import ViTConfig
from rebus.papers.lavit.convert import DECODER_RULES
from rebus.papers.lavit.decoder import DecoderConfig
from rebus.papers.lavit.detokenizer import HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.merger import MergerConfig
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig
from rebus.papers.lavit.variants import TINY

SOURCE = "golden"


def fill(module: nn.Module, theirs: dict[str, Tensor], rules: tuple[Rule, ...], *parts: str) -> None:
    """Converts strictly what `parts` of the module need (none: all of it) and loads that."""
    ours = {name: x for name, x in module.state_dict().items() if not parts or name.startswith(parts)}
    module.load_state_dict({**module.state_dict(), **convert(theirs, rules, ours).tensors})


def merger_config(golden: Golden, **others: Any) -> MergerConfig:
    sizes = golden.config
    blocks = {int(found[1]) for name in golden.tensors if (found := re.match(r"state\.blocks\.(\d+)\.token_", name))}
    depth = len(blocks) or sizes["merger_depth"]  # a merger alone may have fewer than the config says
    hidden = int(sizes["width"] * sizes["mlp_ratio"])
    return MergerConfig(sizes["width"], depth, sizes["merger_heads"], hidden, **others)


def tokenizer(golden: Golden, **others: Any) -> LavitTokenizer:
    """A tokenizer of the file's sizes, its weights still random."""
    sizes = golden.config
    vision = ViTConfig(
        image_size=sizes["image_size"],
        patch=sizes["patch_size"],
        width=sizes["width"],
        depth=sizes["vit_depth"],
        heads=sizes["vit_heads"],
        mlp_hidden=int(sizes["width"] * sizes["mlp_ratio"]),
    )
    config = LavitTokenizerConfig(vision, merger_config(golden), sizes["n_code"], sizes["code_dim"], **others)
    return LavitTokenizer(config, source=SOURCE).eval()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def detokenizer(golden: Golden, state: dict[str, Tensor], codebook: Tensor | None = None) -> LavitDetokenizer:
    """The decoder of a file and its head; the UNet is a tiny one with random weights."""
    sizes = golden.config
    decoder = DecoderConfig(
        patches=(sizes["image_size"] // sizes["patch_size"]) ** 2,
        code_width=sizes["code_dim"],
        width=sizes["width"],
        depth=sizes["decoder_depth"],
        heads=sizes["decoder_heads"],
        mlp_hidden=int(sizes["width"] * sizes["mlp_ratio"]),
    )
    widths, codes = (sizes["unet_dim_1"], sizes["unet_dim_2"]), sizes["n_code"]
    tiny = TINY.detokenizer.diffusion
    pooled = any(name.startswith("unet_attnpool") for name in state)
    told = sum(widths) if pooled else widths[0]
    unet = {**tiny.unet, "cross_attention_dim": told, "projection_class_embeddings_input_dim": widths[1] + 24}
    config: HighresConfig | LowresConfig
    if pooled:
        config = HighresConfig(decoder, codes, replace(tiny, unet=unet), widths)
    else:
        config = LowresConfig(decoder, codes, replace(tiny, unet={**unet, "addition_embed_type": None}), told)
    made = LavitDetokenizer(config, source=SOURCE).eval()
    fill(made, state, DECODER_RULES, "decoder.", "head.")
    if codebook is not None:
        made.codebook_KE.copy_(codebook)
    return made
