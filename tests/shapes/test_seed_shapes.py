"""SEED at full size, without its weights: every published tensor has a place of its shape, and every place a tensor."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from rebus.checkpoint import convert, export, lay_over, without_weights
from rebus.papers.seed.convert import CONTRASTIVE_RULES, RULES, TEXT_RULES, VISION_RULES
from rebus.papers.seed.losses import ContrastiveHeads
from rebus.papers.seed.qformer import QFormerConfig, TextBranch
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads(gzip.decompress((HERE / "seed.keys.json.gz").read_bytes()))


def on_meta(shapes: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.empty(entry[0], dtype=getattr(torch, entry[1]), device="meta")
        for name, entry in shapes.items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("head", ["mlp", "reverse"])
def test_every_published_tensor_of_seed_has_its_place(
    published: dict[str, Any], head: Literal["mlp", "reverse"]
) -> None:
    theirs = on_meta(published["tokenizer_seed2_inference"])
    assert len(theirs) == 881
    if head == "reverse":
        difference = published["tokenizer_seed2_reverse_qformer_variant_differences"]
        theirs = {k: v for k, v in theirs.items() if not k.startswith("image_down.")} | on_meta(difference)
        theirs["distill_image_proj.weight"] = torch.empty(1024, 768, device="meta")
    with without_weights():
        model = SeedTokenizer(SeedTokenizerConfig(head=head))
    result = convert(theirs, RULES["tokenizer"], model.state_dict())
    assert all(name.endswith("position_ids") for name in result.dropped)
    assert len(result.dropped) == (1 if head == "mlp" else 2)
    back = export(model.state_dict(), RULES["tokenizer"])
    assert back.keys() | result.dropped.keys() == theirs.keys()
    assert all(back.meta[name].shape == theirs[name].shape for name in back)
    if head == "mlp":
        vision = sum(p.numel() for p in model.visual_encoder.parameters())
        assert vision == published["tokenizer_counts"]["visual_encoder_params"] == 985_894_528
        others = sum(p.numel() for p in model.parameters()) - vision + 512  # they count position_ids
        assert others == published["tokenizer_counts"]["everything_else_params"] == 164_104_512


def test_vision_encoder_and_quantiser_in_two_files(published: dict[str, Any]) -> None:
    """As released: the vision encoder's file has a block more than is used, the quantiser's the unused text half."""
    theirs = on_meta(published["tokenizer_seed2_inference"])
    vision = {k.removeprefix("visual_encoder."): v for k, v in theirs.items() if k.startswith("visual_encoder.")}
    vision |= {k.replace("blocks.38.", "blocks.39."): v for k, v in vision.items() if "blocks.38." in k}
    vision |= {name: torch.empty(1, device="meta") for name in ("norm.weight", "norm.bias", "head.weight")}
    rest = {k: v for k, v in theirs.items() if not k.startswith("visual_encoder.")}
    rest |= {
        f"Qformer.{name}": torch.empty(1, device="meta")
        for name in ("bert.encoder.layer.3.intermediate.dense.weight", "cls.predictions.bias")
    }
    with without_weights():
        ours = SeedTokenizer(SeedTokenizerConfig()).state_dict()
    first = convert(vision, VISION_RULES, {k: v for k, v in ours.items() if k.startswith("visual_encoder.")})
    second = convert(rest, RULES["tokenizer"], {k: v for k, v in ours.items() if not k.startswith("visual_encoder.")})
    assert lay_over(first.tensors, second.tensors).keys() == ours.keys()


def test_the_text_half_goes_there_and_back() -> None:
    config = QFormerConfig(queries=4, width=8, depth=2, heads=2, mlp_hidden=16, source_width=8)
    module = nn.ModuleDict({"text": TextBranch(config, 11, 6), "heads": ContrastiveHeads(8, 4)})
    rules = TEXT_RULES + CONTRASTIVE_RULES
    theirs = export(module.state_dict(), rules)
    result = convert(theirs, rules, module.state_dict())
    assert all(torch.equal(result.tensors[name], x) for name, x in module.state_dict().items())
