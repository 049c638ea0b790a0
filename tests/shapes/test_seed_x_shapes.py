"""SEED-X at full size, without its weights: every published tensor has a place of its shape, and every place a tensor. The
image decoders are in `test_seed_x_decoder_shapes.py`."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebus.checkpoint import convert, export, without_weights
from rebus.lm import InterleavedLM
from rebus.papers.seed_x.build import assemble
from rebus.papers.seed_x.convert import AGENT_RULES, LANGUAGE_RULES, tuned_rules, vision_rules
from rebus.papers.seed_x.language import LoraConfig, MergedLanguageConfig, merged_language
from rebus.papers.seed_x.variants import INSTRUCT_17B
from rebus.papers.seed_x.vision import QWEN_VIT, VisionConfig, VisionEncoder


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads(gzip.decompress((Path(__file__).parent / "seed_x.keys.json.gz").read_bytes()))


def section(published: dict[str, Any], name: str) -> dict[str, Tensor]:
    return {
        key: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for key, (shape, kind) in published[name].items()
    }


def check_both_ways(theirs: dict[str, Tensor], rules: Any, ours: dict[str, Tensor], dropped: int = 0) -> None:
    result = convert(theirs, rules, ours)
    assert len(result.dropped) == dropped and not result.ignored
    back = export(ours, rules)
    assert back.keys() | result.dropped.keys() == theirs.keys()
    assert all(back.meta[name].shape == theirs[name].shape for name in back)


def count(ours: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in ours.values())


def language(lora: LoraConfig | None = None) -> InterleavedLM:
    config = MergedLanguageConfig(lora=lora)
    with without_weights():
        return assemble(replace(INSTRUCT_17B, language=config), merged_language(config))


def test_the_vision_encoder(published: dict[str, Any]) -> None:
    with without_weights():
        ours = VisionEncoder(VisionConfig()).state_dict()
    theirs = section(published, "visual_encoder")
    check_both_ways(theirs, vision_rules(QWEN_VIT.heads), ours)
    assert len(theirs) == 594 and count(ours) == published["_stats"]["visual_encoder"]["parameters"]


def test_the_agent_and_the_language_model(published: dict[str, Any]) -> None:
    ours = language().state_dict()
    agent = {name: x for name, x in ours.items() if "projector" in name}
    theirs = section(published, "agent")
    check_both_ways(theirs, AGENT_RULES, agent)
    assert len(theirs) == 23 and count(agent) == published["_stats"]["agent"]["parameters"]
    llm = section(published, "llm")
    check_both_ways(llm, LANGUAGE_RULES, {name: x for name, x in ours.items() if name not in agent}, dropped=40)


def test_a_checkpoint_of_instruction_tuning(published: dict[str, Any]) -> None:
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
    plain = {f"llm.base_model.model.{name}": x for name, x in section(published, "llm").items()}
    theirs = section(published, "agent") | {name: x for name, x in plain.items() if not name.endswith(norms)}
    theirs |= section(published, "sft_lora_extra")
    lm = language(LoraConfig())
    original = sum("original_module" in name for name in theirs)
    assert original == 81
    check_both_ways(theirs, tuned_rules(), lm.state_dict(), dropped=40 + original)
    lora = sum(x.numel() for name, x in lm.state_dict().items() if "lora_" in name)
    assert lora == published["_stats"]["lora_only_parameters"]
