"""LaVIT trained on a user's own data, all stages, tiny: what they leave is a system as a release is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import lavit_release
import seed_pairs
import seed_release
from rebus.checkpoint import load_system
from rebus.data.source_batches import read_places
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.papers.lavit.export import export_published
from rebus.papers.lavit.language import LanguageConfig
from rebus.papers.lavit.language_training import INSTRUCT, PRETRAIN
from rebus.papers.lavit.pack import pack
from rebus.papers.lavit.reconstruction import ReconstructionConfig
from rebus.papers.lavit.stages import (
    stage1a_selector,
    stage1b_codebook,
    stage2_language,
    stage3_pixels,
    stage4_instruct,
)
from rebus.papers.lavit.trained import VISION
from rebus.sampling import Sampling
from rebus.system import load
from rebus.train import Optim, fit

SHORT = Optim(steps=2, precision="fp32")
SIZES = ReconstructionConfig(tokenizer=lavit_release.CONFIG.tokenizer, decoder=lavit_release.DECODER)
WORDS = lavit_release.WORDS


def write_base(folder: Path) -> Path:
    """A LLaMA that knows no images."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(seed_release.sentencepiece())
    return folder


def test_the_tables_are_named_in_full() -> None:
    pairs, text = PRETRAIN[:2], PRETRAIN[2:]
    assert [source.template for source in pairs] == ["image first", "text first"]
    weights = [sum(source.weight for source in group) for group in (pairs, text)]
    assert weights[1] / weights[0] == pytest.approx(2, abs=0.01)  # two of text to one of images
    assert {source.form for source in text} == {"text"}


def test_all_stages_leave_a_system_as_a_release_is(tmp_path: Path) -> None:
    work, data = tmp_path / "work", seed_pairs.write_pairs(tmp_path / "pairs", side=32)
    work.mkdir()
    lavit_release.release(tmp_path / "release")
    shutil.copy(tmp_path / "release/visual_tokenizer/eva_vitg_psz14.bin", work / VISION)
    shutil.copytree(tmp_path / "release/highres_pixel_decoding", work / "pixels")

    def run(stage) -> list[float]:
        return fit(stage, work / stage.name, device="cpu").losses

    with pytest.raises(RebusError, match="holds no weights of lavit.stage1a_selector"):
        pack(work, tmp_path / "none", "v1")
    sizes = {"loss": SIZES, "batch": 8, "optim": SHORT}
    losses = run(stage1a_selector.stage(stage1a_selector.Config(**sizes), work, data, work / VISION))
    assert all(0.5 < loss < 1.7 for loss in losses)
    codebook = stage1b_codebook.Config(**sizes, train_selector=True, revive_every=1)
    run(stage1b_codebook.stage(codebook, work, data, work / VISION))
    pixels = stage3_pixels.Config(
        tokenizer=SIZES.tokenizer, detokenizer=lavit_release.HIGHRES, batch=4, untold=0.5, optim=SHORT
    )
    (first, *_) = run(stage3_pixels.stage(pixels, work, data, work / VISION, work / "pixels"))
    assert 0.3 < first < 3  # squared error of noise that nothing is known of
    seen = pack(work, tmp_path / "tokenizer", "v1")
    assert set(seen.files) == {"tokenizer", "detokenizer"}
    trained = load_file(work / "lavit.stage3_pixels/weights.safetensors")
    packed = load_system(tmp_path / "tokenizer").tensors("detokenizer")
    for name in ("head.first.weight", "diffusion.unet.conv_in.weight"):
        torch.testing.assert_close(packed[name], trained[f"detokenizer.{name}"])

    base = write_base(tmp_path / "base")
    system = replace(lavit_release.CONFIG, language=LanguageConfig(new_words=lavit_release.CODES + 2))
    for name, sources in (("pretrain.json", PRETRAIN), ("instruct.json", INSTRUCT)):
        given = {each: None for one in sources for each in one.sets}
        given |= {"CC3M": "pairs", "LAION-Aesthetics": "pairs"} if sources is PRETRAIN else {}
        (tmp_path / name).write_text(json.dumps(given))
    turns = {"images": ["a.png"], "turns": ["What is it?", "a cat", "And its colour?", "red"]}
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "llava.jsonl").write_text(json.dumps(turns) + "\n")
    (tmp_path / "instruct.json").write_text(json.dumps({"LLaVA-1.5 665k": "llava.jsonl"}))
    assert read_places(tmp_path / "instruct.json", INSTRUCT)
    common = {"system": system, "source_batch": 2, "optim": SHORT}
    told = {"tokenizer": tmp_path / "tokenizer", "base": base}
    second = stage2_language.stage(stage2_language.Config(**common), work, tmp_path / "pretrain.json", **told)
    assert {batch.source.name for batch in islice(second.data, 12)} == {"captions", "drawings"}
    second.data.load_state_dict({"position": 0, "skipped": {}})
    before = {name: x.clone() for name, x in second.module.state_dict().items()}
    run(second)
    after = second.module.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"lm.llm.rows.input.weight_VD", "lm.input_projector.proj.weight"} <= moved
    assert "lm.llm.base.model.embed_tokens.weight" in moved and "lm.llm.base.lm_head.weight" in moved
    assert not [name for name in moved if name.startswith("tokenizer.")]
    last = stage4_instruct.stage(stage4_instruct.Config(**common), work, tmp_path / "instruct.json", **told)
    run(last)
    pack(work, tmp_path / "whole", "v1")

    made = load("lavit:v1", weights=tmp_path / "whole", device="cpu", dtype=torch.float32)
    ids_BL, positions = torch.tensor([[1, 5, 270, WORDS + 3, WORDS + 1]]), torch.arange(5)[None]
    with torch.no_grad():
        both = [
            llm.logits(llm.hidden(llm.embed(ids_BL), positions)[0]) for llm in (last.module.lm.llm.eval(), made.lm.llm)
        ]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)
    picture = Image(PIL.Image.new("RGB", (20, 20), "red"))
    (said,) = made.generate(
        [Document((user(picture, "a cat"),))], modality="image", sampling=Sampling(max_new_tokens=6)
    )
    assert said.images[0].pixels.size == (16, 16)
    export_published(tmp_path / "whole", tmp_path / "out")
    assert (tmp_path / "out/visual_tokenizer/tokenizer_encoder.bin").exists()


def test_what_a_stage_needs_is_asked_for(tmp_path: Path) -> None:
    data = seed_pairs.write_pairs(tmp_path / "pairs", side=32)
    with pytest.raises(RebusError, match="needs the vision encoder's weights .* Give `--vision PATH`"):
        stage1a_selector.stage(stage1a_selector.Config(loss=SIZES, batch=4), tmp_path, data)
    with pytest.raises(RebusError, match="no tokenizer was named"):
        stage2_language.stage(stage2_language.Config(), tmp_path, tmp_path / "sets.json")
