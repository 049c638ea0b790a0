"""SEED trained from the released files on, all four stages, tiny: what they leave is a system as a release is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import seed_pairs
import seed_release
from rebus.checkpoint import load_system
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.papers.seed.export import export_published
from rebus.papers.seed.language import LanguageConfig
from rebus.papers.seed.mixture import INSTRUCT, PRETRAIN
from rebus.papers.seed.pack import pack
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.stages import stage1_qformer, stage2_codebook, stage3_full, stage3_pretrain, stage4_instruct
from rebus.papers.seed.stages.stage3_pretrain import code_weights
from rebus.sampling import Sampling
from rebus.system import load
from rebus.train import Optim, fit

SHORT = Optim(steps=1, precision="fp32")
WORDS, CODES = seed_release.WORDS, seed_release.CODES


def write_base(folder: Path) -> Path:
    """A LLaMA that knows no images."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(seed_release.sentencepiece())
    return folder


def test_all_stages_leave_a_system_as_a_release_is(tmp_path: Path) -> None:
    work, data = tmp_path / "work", seed_pairs.write_pairs(tmp_path / "pairs", side=192)
    work.mkdir()
    seed_release.write_tokenizer(work)  # of which only eva_vit_g.pth is read
    bert, clip = seed_pairs.write_bert(tmp_path / "bert"), seed_pairs.write_clip(tmp_path / "clip")

    def run(stage) -> None:
        fit(stage, work / stage.name, device="cpu")

    sizes = {"tokenizer": seed_release.TOKENIZER, "batch": 8, "optim": SHORT}
    vision = work / "eva_vit_g.pth"
    run(stage1_qformer.stage(stage1_qformer.Config(**sizes), work, data, vision, None, bert))
    with pytest.raises(RebusError, match="There is no .*seed.stage2_codebook"):
        pack(work, tmp_path / "none", "v2-8b")
    run(stage2_codebook.stage(stage2_codebook.Config(**sizes), work, data, vision, clip))
    seen = pack(work, tmp_path / "tokenizer", "v2-8b")
    assert set(seen.files) == {"tokenizer"}

    base, language = write_base(tmp_path / "base"), LanguageConfig(new_words=CODES + 2, lora_rank=2)
    grammar = replace(
        seed_release.CONFIG.grammar, first_code=WORDS, begin_image=WORDS + CODES, end_image=WORDS + CODES + 1
    )
    system = replace(seed_release.CONFIG, grammar=grammar, language=language)
    for name, sources in (("pretrain.json", PRETRAIN), ("instruct.json", INSTRUCT)):
        there = {each: "pairs" if each == "COCO" else None for one in sources for each in one.sets}
        (tmp_path / name).write_text(json.dumps(there))
    common = {"system": system, "source_batch": 2, "optim": SHORT}
    given = {"tokenizer": tmp_path / "tokenizer", "base": base}
    run(stage3_pretrain.stage(stage3_pretrain.Config(**common), work, tmp_path / "pretrain.json", **given))
    run(stage3_full.stage(stage3_full.Config(**common), work, tmp_path / "pretrain.json", **given))
    last = stage4_instruct.stage(stage4_instruct.Config(**common), work, tmp_path / "instruct.json", **given)
    run(last)
    pack(work, tmp_path / "whole", "v2-8b")

    made = load("seed:v2-8b", weights=tmp_path / "whole", parts=("tokenizer", "lm"), device="cpu", dtype=torch.float32)
    ids_BL, positions = torch.tensor([[1, 5, 270, WORDS + 3, WORDS + CODES + 1]]), torch.arange(5)[None]
    trained, packed = last.module.lm.llm.eval(), made.lm.llm
    with torch.no_grad():
        both = [llm.logits(llm.hidden(llm.embed(ids_BL), positions)[0]) for llm in (trained, packed)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)
    asked = Document((user(Image(PIL.Image.new("RGB", (20, 20))), "a cat"),))
    (said,) = made.generate([asked], modality="image", sampling=Sampling(max_new_tokens=12))
    assert len(said.images) == 1

    export_published(tmp_path / "whole", tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/language", dtype=torch.float32)
    torch.testing.assert_close(plain(ids_BL).logits[0], both[1], atol=1e-5, rtol=1e-4)
    assert (tmp_path / "out/eva_vit_g.pth").exists() and load_system(tmp_path / "whole").source.endswith(
        "stage4_instruct"
    )


def test_the_first_codes_of_an_image_may_count_more() -> None:
    config = mini(262, 12, per_image=4, per_query=True)
    weights_V = code_weights(config, 276, 8.0)
    codes = weights_V[262:274].view(4, 3)
    assert (codes == codes[:, :1]).all() and codes[0, 0] / codes[3, 0] == pytest.approx(8)
    assert codes.mean() == pytest.approx(1) and (weights_V[:262] == 1).all() and (weights_V[274:] == 1).all()
    with pytest.raises(RebusError, match="above 0, but they are 0"):
        code_weights(config, 276, 0.0)
    with pytest.raises(RebusError, match="any code may stand anywhere"):
        code_weights(replace(config, per_query=False), 276, 8.0)
