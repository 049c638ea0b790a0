"""Published LaVIT files, tiny and random: converted, loaded, used, exported, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

import lavit_release
from lavit_release import CODES, CONFIG, WORDS, Release
from rebus.checkpoint import load_system, read_tensors
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.papers.lavit.detokenizer import DDIM, HighresConfig, LowresConfig
from rebus.papers.lavit.export import export_published
from rebus.papers.lavit.published import convert_published, find_published
from rebus.papers.lavit.settings import ANSWER, CAPTION, DRAW
from rebus.sequence import collate
from rebus.system import System, load
from rebus.visual import Codes, ImageSampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lavit")


@pytest.fixture(scope="module")
def written(folder: Path) -> Release:
    return lavit_release.release(folder / "release")


@pytest.fixture(scope="module")
def system(folder: Path, written: Release) -> System:
    convert_published(find_published(folder / "release"), folder / "ours", "v2", config=CONFIG)
    return load("lavit:v2", weights=folder / "ours", dtype=torch.float32)


def same(one: Any, two: Any) -> None:
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=0, rtol=0, msg=name)


def test_what_was_published_is_what_is_loaded(system: System, written: Release, folder: Path) -> None:
    same(system.tokenizer, written.tokenizer)
    same(system.lm.input_projector, written.way_in)
    same(system.lm.llm.base, written.language)
    same(system.detokenizer, written.highres)
    saved = load_system(folder / "ours")
    assert sorted(saved.dropped["tokenizer"]) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    assert isinstance(system.detokenizer.config, HighresConfig)
    scheduler = system.detokenizer.config.diffusion.scheduler
    assert scheduler["_class_name"] == DDIM["_class_name"] and scheduler["steps_offset"] == 1
    assert system.lm.input_projector.merger.config.softmax == "policy_eps"
    saved.verify()


def test_it_reads_words_and_vectors_as_published(system: System, written: Release) -> None:
    (image,) = system.tokenizer.encode([tiny.picture()], {"understanding"})
    sequence = system.grammar.serialize(Document((user(image, "cat"),)), reply="text")
    kept = int(image.understood.keep_N.sum())
    assert sequence.ids[0] == WORDS and sequence.input_spans == [(1, 1 + kept)]
    with torch.no_grad():
        x_1LD = written.language.get_input_embeddings()(torch.tensor([sequence.ids]))
        x_1LD[0, 1 : 1 + kept] = written.way_in([image.understood])
        want = written.language(inputs_embeds=x_1LD).logits
        batch = collate([sequence])
        got = system.lm.llm.logits(system.lm.hidden(system.lm.embed(batch), batch))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_it_says_and_draws(system: System) -> None:
    wish = Document((user("cat"),))
    sampling = replace(DRAW, image=ImageSampling(size=(24, 16)))
    (message,) = system.generate([wish], modality="image", sampling=sampling, generators=[tiny.generator(0)])
    (image,) = message.images
    assert image.pixels.size == (16, 24) and 1 <= len(image.generated.ids_N) <= 3
    seen = Document((user(tiny.picture(), "cat"),))
    for asked in (CAPTION, ANSWER):
        (reply,) = system.generate([seen], modality="text", sampling=asked)
        assert not reply.images and not any(stop in reply.text for stop in asked.stop)


def test_the_other_image_decoder_is_taken_when_named(folder: Path, written: Release) -> None:
    found = find_published(folder / "release", folder / "release" / "pixel_decoding")
    assert found.decoder.name == "tokenizer_decoder.bin"
    config = replace(CONFIG, detokenizer=lavit_release.LOWRES)
    convert_published(found, folder / "low", "v1", config=config)
    system = load("lavit:v1", weights=folder / "low", dtype=torch.float32, parts=("detokenizer",))
    assert isinstance(system.detokenizer.config, LowresConfig) and system.detokenizer.config.empty == 3
    same(system.detokenizer, written.lowres)
    codes = Codes(torch.tensor([3, 1]), system.grammar.source)
    told, untold = system.detokenizer.conditions([codes], [None], (16, 16))
    assert told.tokens_ISC.shape == untold.tokens_ISC.shape == (1, 4, 8) and untold.seen_IS[0].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("which", ["ours", "low"])
def test_there_and_back(which: str, folder: Path, system: System, written: Release) -> None:
    if which == "low" and not (folder / "low").exists():
        pytest.skip("the lowres conversion did not run")
    back = folder / f"back of {which}"
    export_published(folder / which, back)
    for file in sorted(back.rglob("*.bin")):
        if file.name == "uncond_embeddings.bin":
            assert torch.equal(torch.load(file, weights_only=True), written.lowres.empty_1SC)
            continue
        mine, theirs = read_tensors(file), read_tensors(folder / "release" / file.relative_to(back))
        assert set(mine) == set(theirs)
        for name in mine:
            if file.name != "eva_vitg_psz14.bin" or not name.startswith(("norm.", "head.")):
                assert torch.equal(mine[name], theirs[name]), (file.name, name)
    model = read_tensors(back / "language_model")
    assert set(model) == set(written.language.state_dict())
    again = convert_published(
        find_published(back), folder / f"again {which}", load_system(folder / which).name[6:], config=_config(which)
    )
    before = load_system(folder / which)
    for part in before.files:
        if part == "text":
            continue
        one, two = before.tensors(part), again.tensors(part)
        assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(RebusError, match="something at"):
        export_published(folder / which, back)


def _config(which: str) -> Any:
    return CONFIG if which == "ours" else replace(CONFIG, detokenizer=lavit_release.LOWRES)


def test_codes_that_were_stored_are_read_and_learned(system: System) -> None:
    image = Image(generated=Codes(torch.tensor([CODES - 1, 0]), system.grammar.source))
    sequence = system.grammar.serialize(Document((user("cat"), assistant(image))), template="plain", loss="paper")
    assert sequence.ids[-5:] == [WORDS, WORDS + 2 + CODES - 1, WORDS + 2, WORDS + 1, 2] and all(sequence.target)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_release_that_is_not_whole_is_refused(folder: Path, written: Release, tmp_path: Path) -> None:
    shutil.copytree(folder / "release", tmp_path / "r")
    with pytest.raises(RebusError, match="no eva_vitg_psz14.bin under"):
        find_published(tmp_path / "r" / "language_model")
    shutil.copytree(tmp_path / "r" / "visual_tokenizer", tmp_path / "r" / "copy")
    with pytest.raises(RebusError, match="holds several of eva_vitg_psz14.bin"):
        find_published(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "copy")
    (tmp_path / "r" / "visual_tokenizer" / "tokenizer_decoder.bin").unlink()
    with pytest.raises(RebusError, match="is a lowres image decoder, but tokenizer_decoder.bin is not under"):
        find_published(tmp_path / "r", tmp_path / "r" / "pixel_decoding")
    (tmp_path / "r" / "visual_tokenizer" / "highres_tokenizer_decoder.bin").unlink()
    assert find_published(tmp_path / "r").decoder is None


def test_parts_that_do_not_belong_together_are_refused(folder: Path, written: Release, tmp_path: Path) -> None:
    shutil.copytree(folder / "release", tmp_path / "r")
    language = tmp_path / "r" / "language_model"
    about = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps({**about, "vocab_size": WORDS}))
    with pytest.raises(RebusError, match=f"has {WORDS} words, but LaVIT's codes go up to id {WORDS + 1 + CODES}"):
        convert_published(find_published(tmp_path / "r"), tmp_path / "o", config=CONFIG)
    (language / "config.json").write_text(json.dumps(about))
    way_in = torch.load(language / "visual_weight.bin", weights_only=True)
    torch.save(
        {k: v for k, v in way_in.items() if k != "vit_proj.bias"} | {"more": torch.ones(1)},
        language / "visual_weight.bin",
    )
    with pytest.raises(RebusError, match=r"(?s)1 missing, 1 unexpected.*proj.bias.*more"):
        convert_published(find_published(tmp_path / "r"), tmp_path / "o", config=CONFIG)
    torch.save(way_in, language / "visual_weight.bin")
    torch.save(torch.ones(2, 3, 8), tmp_path / "r" / "pixel_decoding" / "uncond_embeddings.bin")
    found = find_published(tmp_path / "r", tmp_path / "r" / "pixel_decoding")
    with pytest.raises(RebusError, match="should hold the states of one prompt"):
        convert_published(found, tmp_path / "o", config=_config("low"))
    assert not (tmp_path / "o").exists()


def test_names_that_are_no_release_are_refused(folder: Path, written: Release) -> None:
    with pytest.raises(RebusError, match="no published LaVIT 'tiny'. Name v1 or v2"):
        convert_published(find_published(folder / "release"), folder / "nothing", "tiny")
    with pytest.raises(RebusError, match="weights are not part of the library"):
        load("lavit:v1")
