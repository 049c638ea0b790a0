"""Published SEED: tiny real files in the official layout become a system that runs, and go back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import seed_release
from rebus.checkpoint import export, load_system, read_tensors
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.papers.seed.blip2 import read_blip2
from rebus.papers.seed.convert import BLIP2_RULES
from rebus.papers.seed.export import export_published
from rebus.papers.seed.losses import ContrastiveHeads
from rebus.papers.seed.negative import unconditional_image
from rebus.papers.seed.published import Published, convert_published
from rebus.papers.seed.published_decoder import UnclipDetokenizer
from rebus.papers.seed.qformer import QFormer, TextBranch
from rebus.sampling import Sampling
from rebus.system import System, load
from rebus.visual import Codes, ImageSampling, Progress

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return seed_release.release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def folder(found: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "seed"
    convert_published(found, folder, "v2-8b", config=seed_release.CONFIG)
    return folder


@pytest.fixture(scope="module")
def system(folder: Path) -> System:
    return load("seed:v2-8b", weights=folder, **CPU)


def picture() -> PIL.Image.Image:
    return PIL.Image.effect_noise((20, 16), 90).convert("RGB")


def draw(system: System, codes: list[Codes], seeds: list[int], *, negative: Codes | None = None, **sampling) -> list:
    drawn = system.detokenizer.decode(
        codes,
        sources=[None] * len(codes),
        negatives=[negative] * len(codes),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        sampling=ImageSampling(**sampling),
    )
    return [np.asarray(image) for image in drawn if not isinstance(image, Progress)]


def some_codes(system: System, *ids: int) -> Codes:
    return Codes(torch.tensor(ids), system.detokenizer.codes.source)


# ------------------------------------------------------------------------------------------------ conversion


def test_conversion_says_what_it_dropped(folder: Path) -> None:
    saved = load_system(folder)
    saved.verify()
    assert set(saved.files) == {"tokenizer", "lm", "detokenizer", "text"}
    reasons = saved.dropped["tokenizer"]
    assert "Qformer.bert.embeddings.position_ids" in reasons
    assert any(name.startswith("eva_vit_g.pth: blocks.39.") for name in reasons)
    assert {n for n in saved.dropped["lm"]} == {f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2)}


def test_a_converted_tokenizer_gives_the_published_codes(system: System, tmp_path: Path) -> None:
    theirs = seed_release.write_tokenizer(tmp_path)
    pixels = theirs.pixels([Image(picture())])
    (image,) = system.tokenizer.encode([Image(picture())], {"generation"})
    assert isinstance(image.generated, Codes)
    assert image.generated.ids_N.tolist() == theirs.eval().ids(pixels)[0].tolist()


def test_a_converted_language_model_says_what_the_release_says(system: System, tmp_path: Path) -> None:
    theirs = seed_release.write_language(tmp_path / "m")
    ids_BL = torch.arange(1, 9)[None] * 30
    positions = torch.arange(8)[None]
    llm = system.lm.llm
    hidden = llm.hidden(llm.embed(ids_BL), positions)
    torch.testing.assert_close(llm.logits(hidden[0]), theirs(ids_BL).logits[0], atol=1e-4, rtol=1e-4)
    assert system.grammar.special.bos == 1 and system.grammar.special.eos == 2  # the release's config says 0 and 1
    assert system.grammar.special.begin_image == seed_release.added_tokens()["<img>"]


def test_a_file_may_hold_both_heads_and_the_text_halves(found: Published, tmp_path: Path) -> None:
    held = torch.load(found.quantizer, weights_only=True)
    surplus = {"reverse_tokens": torch.ones(1, 1, 16), "Reverse_Qformer.bert.embeddings.LayerNorm.bias": torch.ones(16)}
    surplus |= {"Qformer.bert.embeddings.word_embeddings.weight": torch.ones(30, 16), "temp": torch.ones(())}
    surplus |= {"Qformer.cls.predictions.bias": torch.ones(30)}
    torch.save(held | surplus, tmp_path / "seed_quantizer.pt")
    only = replace(found, quantizer=tmp_path / "seed_quantizer.pt", language=None, decoder=None, text=found.language)
    saved = convert_published(only, tmp_path / "c", config=seed_release.CONFIG)
    assert surplus.keys() <= saved.dropped["tokenizer"].keys()
    assert "Reverse Q-Former" in saved.dropped["tokenizer"]["reverse_tokens"]
    reverse = replace(seed_release.TOKENIZER, head="reverse", reverse_depth=2)
    seed_release.write_tokenizer(tmp_path, reverse)
    held = torch.load(tmp_path / "seed_quantizer.pt", weights_only=True)
    surplus = {"Reverse_Qformer.bert.encoder.layer.1.output.dense.weight": torch.ones(16, 32)}
    surplus |= {"Reverse_Qformer.bert.embeddings.word_embeddings.weight": torch.ones(30, 16)}
    surplus |= {"image_down.0.weight": torch.ones(8, 16)}
    torch.save(held | surplus, tmp_path / "seed_quantizer.pt")
    config = replace(seed_release.CONFIG, tokenizer=reverse)
    saved = convert_published(replace(only, vision=tmp_path / "eva_vit_g.pth"), tmp_path / "d", config=config)
    assert surplus.keys() <= saved.dropped["tokenizer"].keys()


@pytest.mark.parametrize("parts", [("tokenizer",), ("lm",), ("lm", "detokenizer")])
def test_parts_are_loaded_alone(folder: Path, parts: tuple[str, ...]) -> None:
    system = load("seed:v2-8b", weights=folder, parts=parts, **CPU)
    assert (system.tokenizer is not None) == ("tokenizer" in parts)
    assert (system.lm.llm.device.type == "cpu") == ("lm" in parts)


def test_a_converted_system_reads_writes_and_draws(system: System) -> None:
    asked = Document((user(Image(picture()), "a cat"),))
    sampling = Sampling(max_new_tokens=12, image=ImageSampling(steps=2))
    (said,) = system.generate([asked], modality="image", sampling=sampling)
    (drawn,) = [part for part in said.content if isinstance(part, Image)]
    assert drawn.pixels is not None and drawn.pixels.size == (16, 16)
    (caption,) = system.generate([asked], modality="text", sampling=sampling)
    assert all(isinstance(part, str) for part in caption.content)


def test_half_precision_safetensors_and_other_ids(found: Published, tmp_path: Path) -> None:
    seed_release.write_language(tmp_path / "m", dtype=torch.bfloat16, safetensors=True)
    moved = {name: seed_release.WORDS + 17 - n for n, name in enumerate(("</img>", "<img>"))}
    codes = {f"<img_{code:05d}>": seed_release.WORDS + code for code in range(16)}
    (tmp_path / "m" / "added_tokens.json").write_text(json.dumps(codes | moved))
    saved = convert_published(
        replace(found, language=tmp_path / "m", decoder=None), tmp_path / "c", config=seed_release.CONFIG
    )
    assert saved.config["grammar"]["begin_image"] == seed_release.WORDS + 16
    assert all(x.dtype == torch.bfloat16 for x in saved.tensors("lm").meta.values())


# ------------------------------------------------------------------------------------------------ drawing


def test_images_are_those_of_the_published_pipeline(system: System, found: Published, tmp_path: Path) -> None:
    pipeline = seed_release.write_decoder(tmp_path / "unclip")
    codes = some_codes(system, 3, 1, 4, 1)
    generator = torch.Generator().manual_seed(5)
    embedding_ID = system.detokenizer.codes.image_embedding(codes.ids_N[None])
    torch.randn(seed_release.WIDTH, generator=generator)  # ours: first the embedding's noise, then the latent
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    for guidance, level in ((10.0, 0), (1.0, 300)):
        theirs = pipeline(
            prompt="",
            image_embeds=embedding_ID.detach(),
            latents=latents,
            generator=torch.Generator().manual_seed(5),
            guidance_scale=guidance,
            num_inference_steps=3,
            noise_level=level,
            output_type="np",
        ).images[0]
        ours = draw(system, [codes], [5], steps=3, guidance=guidance, noise_level=level)[0]
        assert np.abs(ours - theirs * 255).max() <= 1


def test_an_image_depends_on_its_codes_and_seed_and_not_on_the_batch(system: System) -> None:
    codes = [some_codes(system, n, 2, 3, 15) for n in range(6)]  # more than are drawn side by side
    together = draw(system, codes, list(range(6)), steps=2)
    for n in (0, 5):
        alone = draw(system, [codes[n]], [n], steps=2)[0]
        assert np.abs(together[n].astype(int) - alone).max() <= 1
    assert (together[0] != draw(system, [codes[0]], [9], steps=2)[0]).any()


def test_officially_every_image_begins_as_the_same_noise(folder: Path, system: System) -> None:
    fixed = load("seed:v2-8b", weights=folder, official=True, parts=("detokenizer",), **CPU).detokenizer
    assert isinstance(fixed, UnclipDetokenizer) and fixed.config.latents == "fixed"
    blind = replace(system, detokenizer=fixed)
    codes, far = some_codes(system, 1, 2, 3, 4), {"steps": 2, "noise_level": 0}
    near = [draw(blind, [codes], [seed], **far)[0].astype(int) for seed in (1, 2)]
    apart = [draw(system, [codes], [seed], **far)[0].astype(int) for seed in (1, 2)]
    assert np.abs(near[0] - near[1]).mean() < np.abs(apart[0] - apart[1]).mean() / 4  # level 0 still adds a little


def test_guidance_leads_away_from_the_models_own_unconditional_image(system: System) -> None:
    negative = unconditional_image(system, generator=torch.Generator().manual_seed(0))
    assert len(negative.ids_N) == seed_release.PER_IMAGE
    codes = some_codes(system, 5, 6, 7, 8)
    plain, away = draw(system, [codes], [1], steps=2)[0], draw(system, [codes], [1], steps=2, negative=negative)[0]
    assert (plain != away).any()
    unguided = [draw(system, [codes], [1], steps=2, guidance=1.0, negative=n)[0] for n in (None, negative)]
    np.testing.assert_array_equal(*unguided)


# ------------------------------------------------------------------------------------------------ the way back


def test_an_export_is_the_published_layout(folder: Path, found: Published, tmp_path: Path) -> None:
    export_published(folder, tmp_path / "out")
    for name in ("seed_quantizer.pt", "eva_vit_g.pth"):
        theirs, ours = read_tensors(found.quantizer.parent / name), read_tensors(tmp_path / "out" / name)
        assert all(torch.equal(theirs[key], ours[key]) for key in ours)
        left = [key for key in theirs if key not in ours]
        assert all("position_ids" in k or "intermediate.dense" in k or "blocks.39" in k for k in left)
    again = Published(tmp_path / "out/seed_quantizer.pt", tmp_path / "out/eva_vit_g.pth", tmp_path / "out/language")
    convert_published(again, tmp_path / "again", config=seed_release.CONFIG)
    first, second = load_system(folder), load_system(tmp_path / "again")
    for part in ("tokenizer", "lm"):
        one, two = first.tensors(part), second.tensors(part)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_an_exported_language_model_runs_in_transformers(folder: Path, system: System, tmp_path: Path) -> None:
    export_published(folder, tmp_path / "out")
    text = AutoTokenizer.from_pretrained(tmp_path / "out/language")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/language", dtype=torch.float32)
    ids = text("a cat<img><img_00003><img_00015></img>cat", return_tensors="pt")["input_ids"]
    added = seed_release.added_tokens()
    expected = [
        1,
        *system.grammar.text.encode("a cat"),
        *(added[name] for name in ("<img>", "<img_00003>", "<img_00015>", "</img>")),
        *system.grammar.text.encode("cat"),
    ]
    assert ids[0].tolist() == expected
    assert text.convert_tokens_to_ids(list(added)) == list(added.values())
    made = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    step = ids
    for _ in range(4):
        llm = system.lm.llm
        logits = llm.logits(llm.hidden(llm.embed(step), torch.arange(step.shape[1])[None])[:, -1])
        step = torch.cat([step, logits.argmax(-1, keepdim=True)], 1)
    assert made.tolist() == step.tolist()
    assert model.generation_config.eos_token_id == 2 and model.config.architectures == ["LlamaForCausalLM"]


def test_blip2_is_a_start_for_stage_1(tmp_path: Path) -> None:
    config = seed_release.TOKENIZER
    ours = nn.ModuleDict(
        {
            "qformer": QFormer(config.qformer),
            "vision_norm": nn.LayerNorm(16),
            "text": TextBranch(config.qformer, 11, 6),
            "heads": ContrastiveHeads(16, 4),
        }
    ).state_dict()
    theirs = export(ours, BLIP2_RULES)
    leftovers = {"itm_head.weight": torch.ones(2, 16), "visual_encoder.cls_token": torch.ones(1)}
    torch.save({"model": {name: theirs[name].clone() for name in theirs} | leftovers}, tmp_path / "blip2.pth")
    read = read_blip2(tmp_path / "blip2.pth", config, contrast_width=4)
    assert read.keys() == ours.keys() and all(torch.equal(read[name], ours[name]) for name in ours)


# ------------------------------------------------------------------------------------------------ bad input


def broken(found: Published, tmp_path: Path, **changes: Path | None) -> str:
    with pytest.raises(RebusError) as caught:
        convert_published(replace(found, **changes), tmp_path / "c", config=seed_release.CONFIG)
    assert not (tmp_path / "c").exists()
    return str(caught.value)


def test_a_missing_and_an_unknown_tensor_are_named(found: Published, tmp_path: Path) -> None:
    content = torch.load(found.quantizer, weights_only=True)
    del content["query_tokens"]
    torch.save(content | {"surplus.weight": torch.ones(1)}, tmp_path / "q.pt")
    said = broken(found, tmp_path, quantizer=tmp_path / "q.pt", text=found.language)
    assert "missing: qformer.query_tokens" in said and "unexpected: surplus.weight" in said
    content = torch.load(found.quantizer, weights_only=True)
    torch.save(content | {"surplus.weight": torch.ones(1)}, tmp_path / "q.pt")
    saved = convert_published(
        replace(found, quantizer=tmp_path / "q.pt", decoder=None),
        tmp_path / "let_pass",
        config=seed_release.CONFIG,
        ignore_unexpected=["surplus.*"],
    )
    assert saved.ignored == {"tokenizer": ["surplus.weight"]}


def test_a_tokenizer_without_image_tokens(found: Published, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(seed_release.sentencepiece())
    assert "does not have the image tokens" in broken(found, tmp_path, text=tmp_path)
    some = {name: at for name, at in seed_release.added_tokens().items() if name != "<img_00007>"}
    (tmp_path / "added_tokens.json").write_text(json.dumps(some))
    assert "1 are missing (<img_00007>" in broken(found, tmp_path, text=tmp_path)


def test_a_language_model_without_image_words(found: Published, tmp_path: Path) -> None:
    seed_release.write_language(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"vocab_size": seed_release.WORDS}))
    assert f"has {seed_release.WORDS} words" in broken(found, tmp_path, language=tmp_path / "m")


def test_a_truncated_shard(found: Published, tmp_path: Path) -> None:
    seed_release.write_language(tmp_path / "m")
    shard = tmp_path / "m/pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-400])
    said = broken(found, tmp_path, language=tmp_path / "m")
    assert shard.name in said and "cannot be read as a state dict" in said
    shard.unlink()
    assert "There is no file" in broken(found, tmp_path, language=tmp_path / "m")


def test_codes_of_a_wrong_count_or_size_are_not_drawn(system: System) -> None:
    for ids in ((1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 16), (-1, 2, 3, 4)):
        with pytest.raises(RebusError, match="SEED writes an image as 4 codes of 0 to 15"):
            draw(system, [some_codes(system, *ids)], [0])


def test_a_pipeline_of_another_width(found: Published, tmp_path: Path) -> None:
    wrong = replace(seed_release.CONFIG, tokenizer=replace(seed_release.TOKENIZER, image_width=16))
    (tmp_path / "r").mkdir()
    seed_release.write_tokenizer(tmp_path / "r", wrong.tokenizer)
    other = replace(found, quantizer=tmp_path / "r/seed_quantizer.pt")
    convert_published(other, tmp_path / "c", config=wrong)
    with pytest.raises(RebusError, match="labels of 64 numbers"):
        load("seed:v2-8b", weights=tmp_path / "c", **CPU)
