"""LaVIT at full size, without its weights: every published tensor has a place of its shape, and every place a tensor."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebus.checkpoint import convert, export, without_weights
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.papers.lavit.convert import DECODER_RULES, ENCODER_RULES, LANGUAGE_RULES, PROJECTOR_RULES, vision_rules
from rebus.papers.lavit.decoder import Decoder, DecoderConfig, TokenHead, pooled_head
from rebus.papers.lavit.detokenizer import ASPECTS, HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.language import LLAMA_7B
from rebus.papers.lavit.merger import MergerConfig
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads(gzip.decompress((HERE / "lavit.keys.json.gz").read_bytes()))


def file_of(published: dict[str, Any], path: str) -> dict[str, Tensor]:
    """The tensors of one published file, on the meta device."""
    about = published["_files"][path]
    strip = about.get("strip_prefix", "")
    return {
        name.removeprefix(strip): torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for name, (shape, kind) in published[about["section"]].items()
        if name.startswith(tuple(about["prefixes"]))
    }


def check_both_ways(theirs: dict[str, Tensor], rules: Any, ours: dict[str, Tensor], dropped: int = 0) -> None:
    result = convert(theirs, rules, ours)
    assert len(result.dropped) == dropped and not result.ignored
    back = export(ours, rules)
    assert back.keys() | result.dropped.keys() == theirs.keys()
    assert all(back.meta[name].shape == theirs[name].shape for name in back)


def count(ours: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in ours.values())


def test_the_tokenizer_in_its_two_files(published: dict[str, Any]) -> None:
    with without_weights():
        ours = LavitTokenizer(LavitTokenizerConfig()).state_dict()
    seen = {name: tensor for name, tensor in ours.items() if name.startswith("visual_encoder.")}
    rest = {name: tensor for name, tensor in ours.items() if name not in seen}
    vision = file_of(published, "visual_tokenizer/eva_vitg_psz14.bin")
    check_both_ways(vision, vision_rules(""), seen, dropped=4)
    check_both_ways(file_of(published, "visual_tokenizer/tokenizer_encoder.bin"), ENCODER_RULES, rest)
    assert 2 * count(vision) == published["_files"]["visual_tokenizer/eva_vitg_psz14.bin"]["computed_bf16_bytes"]
    assert 2 * count(rest) == published["_files"]["visual_tokenizer/tokenizer_encoder.bin"]["computed_bf16_bytes"]


def test_the_way_into_the_language_model(published: dict[str, Any]) -> None:
    with without_weights():
        ours = LavitInputProjector(MergerConfig(), 4096).state_dict()
    check_both_ways(file_of(published, "language_model/visual_weight.bin"), PROJECTOR_RULES, ours)
    assert 2 * count(ours) == published["_files"]["language_model/visual_weight.bin"]["computed_bf16_bytes"]


def test_the_language_model(published: dict[str, Any]) -> None:
    with without_weights():
        ours = TextModel(build_causal_lm(dict(LLAMA_7B))).state_dict()
    check_both_ways(file_of(published, "language_model/pytorch_model-*.bin"), LANGUAGE_RULES, ours)
    assert count(ours) == 6_872_649_728


@pytest.mark.parametrize("kind", ["tokenizer_decoder", "highres_tokenizer_decoder"])
def test_the_decoders(published: dict[str, Any], kind: str) -> None:
    config = DecoderConfig()
    with without_weights():
        head = TokenHead(1408, 768) if kind == "tokenizer_decoder" else pooled_head(config, (768, 1280))
        ours = nn.ModuleDict({"decoder": Decoder(config), "head": head}).state_dict()
    check_both_ways(file_of(published, f"visual_tokenizer/{kind}.bin"), DECODER_RULES, ours)
    assert 2 * count(ours) == published["_files"][f"visual_tokenizer/{kind}.bin"]["computed_bf16_bytes"]


@pytest.mark.parametrize(
    ("config", "unet", "latent"),
    [(LowresConfig(), 859_520_964, (4, 64, 64)), (HighresConfig(), 2_567_463_684, (4, 128, 128))],
    ids=["Stable Diffusion 1.5", "SDXL"],
)
def test_the_latent_diffusion_models(config: LowresConfig | HighresConfig, unet: int, latent: tuple[int, ...]) -> None:
    with without_weights():
        made = LavitDetokenizer(config)
    assert sum(parameter.numel() for parameter in made.diffusion.unet.parameters()) == unet
    assert sum(parameter.numel() for parameter in made.diffusion.vae.parameters()) == 83_653_863
    assert made.diffusion.latent_of(config.size) == latent == made.diffusion.latent_shape
    for height, width in ASPECTS.values():
        assert made.diffusion.latent_of((height, width)) == (4, height // 8, width // 8)
