"""A SEED-X release in the published layout, tiny and random: vision encoder, text tokenizer, agent, sharded language model,
a checkpoint of instruction tuning, both image decoders and the SDXL they lie over."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import seed_release
from rebus.checkpoint import Rule, export
from rebus.lm import InterleavedLM
from rebus.nn.lora import add_lora
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.vit import ViTConfig
from rebus.papers.seed_x.build import assemble
from rebus.papers.seed_x.convert import AGENT_RULES, LANGUAGE_RULES, tuned_rules, vision_rules
from rebus.papers.seed_x.language import LoraConfig, MergedLanguageConfig, ProjectorsConfig
from rebus.papers.seed_x.published import MODELS
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer
from rebus.papers.seed_x.spelling import added_tokens, after_words, new_words
from rebus.papers.seed_x.tokenizer import SeedXTokenizer, SeedXTokenizerConfig
from rebus.papers.seed_x.variants import EDIT_17B, INSTRUCT_17B, SeedXConfig
from rebus.papers.seed_x.vision import VisionConfig
from seed_x_decoders import decoder, sdxl_config, write_sdxl, write_stage

WORDS, SLOTS, LOCATIONS, WIDTH, RANK = seed_release.WORDS, 4, 8, 16, 2
LORA = LoraConfig(rank=RANK, alpha=6)
LLAMA = {
    "model_type": "llama",
    "vocab_size": WORDS + new_words(SLOTS, LOCATIONS),
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_TRUNK = replace(
    ViTConfig(image_size=32, patch=8, width=16, depth=2, heads=2, mlp_hidden=24),
    class_token=False,
    patch_bias=False,
    norm_before=True,
    attention_bias="qkv",
    position_grid=2,
)
CONFIG = replace(
    INSTRUCT_17B,
    tokenizer=SeedXTokenizerConfig(VisionConfig(_TRUNK, ResamplerConfig(4, 12, 2, 16, eps=1e-6))),
    projectors=ProjectorsConfig(ResamplerConfig(2, WIDTH, 2, 12), ResamplerConfig(2, 12, 2, WIDTH)),
    grammar=replace(
        after_words(WORDS, SLOTS, LOCATIONS), vectors=16, context=256, bos="<s>", chat=INSTRUCT_17B.grammar.chat
    ),
    language=MergedLanguageConfig(LLAMA),
    detokenizer=sdxl_config(1),
)
EDITING = replace(CONFIG, detokenizer=sdxl_config(2), grammar=replace(CONFIG.grammar, chat=EDIT_17B.grammar.chat))


@dataclass
class Release:
    """What was written."""

    tokenizer: SeedXTokenizer
    lm: InterleavedLM
    tuned: InterleavedLM
    first: SdxlDetokenizer
    second: SdxlDetokenizer


def language(seed: int, lora: LoraConfig | None = None, config: SeedXConfig = CONFIG) -> InterleavedLM:
    """A language model with both projectors, nothing in it zero or one."""
    generator = torch.Generator().manual_seed(seed)
    llm = TextModel(build_causal_lm(dict(LLAMA), generator=generator))
    if lora is not None:
        add_lora(llm, rank=lora.rank, alpha=lora.alpha, generator=generator)
    lm = assemble(config, llm, generator=generator)
    return _lively(lm, generator)


def _lively(module: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():  # nothing is left that another tensor could stand for
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def release(folder: Path) -> Release:
    """All files of a release, in its folders; the modules that they hold."""
    generator = torch.Generator().manual_seed(3)
    tokenizer = _lively(SeedXTokenizer(CONFIG.tokenizer, generator=generator), generator)
    lm, tuned = language(1), language(2, LORA)
    rules = vision_rules(_TRUNK.heads)
    _pickle(tokenizer.vision.state_dict(), rules, folder / "QwenViT" / "qwen_vit_G.pt")
    text = folder / "cvlm_llama2_tokenizer_100img_and_224loc_addpatch"
    text.mkdir()
    (text / "tokenizer.model").write_bytes(seed_release.sentencepiece())
    (text / "added_tokens.json").write_text(json.dumps(added_tokens(CONFIG.grammar)))
    for model in MODELS.values():
        write_model(folder / model, lm)
    write_checkpoint(folder.parent / "tuned" / "checkpoint-20", tuned)
    first, second = (decoder("sdxl", stage) for stage in (1, 2))
    for name, made in (("first_stage", first), ("second_stage", second)):
        write_stage(folder / "seed_detokenizer" / name / "pytorch_model.bin", made)
    write_sdxl(folder / "stable-diffusion-xl-base-1.0", first)
    return Release(tokenizer, lm, tuned, first, second)


def write_model(folder: Path, lm: InterleavedLM) -> None:
    """The agent's file and a language model of two shards with the leftovers of old versions."""
    held = lm.state_dict()
    _pickle({k: x for k, x in held.items() if "projector" in k}, AGENT_RULES, folder / "agent" / "pytorch_model.bin")
    theirs = export({k: x for k, x in held.items() if "projector" not in k}, LANGUAGE_RULES)
    state = {k: theirs[k] for k in theirs}
    state |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    names, where = list(state), {}
    (folder / "llm").mkdir()
    for number, shard in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name].clone() for name in shard}, folder / "llm" / file)
        where |= dict.fromkeys(shard, file)
    (folder / "llm" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "llm" / "config.json").write_text(json.dumps({**LLAMA, "torch_dtype": "float32"}))


def write_checkpoint(folder: Path, lm: InterleavedLM) -> None:
    """A checkpoint of instruction tuning: agent, language model, adapters, norms before and after."""
    theirs = export(lm.state_dict(), tuned_rules())
    kept = {k.replace("modules_to_save.default", "original_module"): torch.ones_like(theirs[k]) for k in theirs}
    more = {k: x for k, x in kept.items() if "original_module" in k}
    more |= {f"llm.base_model.model.model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    _pickle(lm.state_dict(), tuned_rules(), folder / "pytorch_model.bin", more)


def _pickle(
    ours: dict[str, Tensor], rules: tuple[Rule, ...], path: Path, more: dict[str, Tensor] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs = export(ours, rules)
    torch.save({name: theirs[name].clone() for name in theirs} | (more or {}), path)
