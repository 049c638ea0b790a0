"""SEED-X's image decoders at full size, without their weights: every published tensor has a place of its shape, and every
place a tensor."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebus.checkpoint import convert, export, without_weights
from rebus.papers.seed_x.convert_decoder import DECODER_RULES
from rebus.papers.seed_x.published_decoder import FIRST_STAGE, SECOND_STAGE, SdxlDetokenizer, SdxlDetokenizerConfig


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads(gzip.decompress((Path(__file__).parent / "seed_x.keys.json.gz").read_bytes()))


@pytest.mark.parametrize("stage", ["first", "second"])
def test_every_tensor_has_its_place(published: dict[str, Any], stage: str) -> None:
    section = f"detokenizer_{stage}_stage"
    theirs = {
        name: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for name, (shape, kind) in published[section].items()
    }
    diffusion = FIRST_STAGE if stage == "first" else SECOND_STAGE
    with without_weights():
        made = SdxlDetokenizer(SdxlDetokenizerConfig(diffusion=diffusion))
    ours = {name: x for name, x in made.state_dict().items() if name.startswith(("adapter.", "diffusion.unet."))}
    result = convert(theirs, DECODER_RULES, ours)
    assert not result.dropped and not result.ignored
    back = export(ours, DECODER_RULES)
    assert {name: x.shape for name, x in back.meta.items()} == {name: x.shape for name, x in theirs.items()}
    assert sum(x.numel() for x in ours.values()) == published["_stats"][section]["parameters"]
    assert made.edits == (stage == "second") and made.diffusion.latent_of((1024, 1024)) == (4, 128, 128)
    known = {**published["_unet_config"], "in_channels": 4 if stage == "first" else 8}
    for name, value in known.items():
        mine = made.diffusion.unet.config[name]
        assert (list(mine) if isinstance(mine, tuple) else mine) == value, name
