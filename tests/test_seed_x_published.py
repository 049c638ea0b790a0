"""Published SEED-X files, tiny and random: converted, loaded, used, exported, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

import seed_x_release
from rebus.checkpoint import load_system, read_tensors
from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.papers.seed_x.export import TEXT, export_published
from rebus.papers.seed_x.published import convert_published, find_published
from rebus.papers.seed_x.published_decoder import SdxlDetokenizerConfig
from rebus.sampling import Sampling
from rebus.sequence import Sequence, collate
from rebus.system import System, load
from rebus.visual import ImageSampling
from seed_x_release import CONFIG, EDITING, LORA, WORDS, Release

TUNED = "llm.base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seed_x")


@pytest.fixture(scope="module")
def written(folder: Path) -> Release:
    return seed_x_release.release(folder / "release")


@pytest.fixture(scope="module")
def system(folder: Path, written: Release) -> System:
    convert_published(find_published(folder / "release", "17b-i"), folder / "ours", "17b-i", config=CONFIG)
    return load("seed_x:17b-i", weights=folder / "ours", dtype=torch.float32)


def same(one: Any, two: Any) -> None:
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=0, rtol=0, msg=name)


def test_what_was_published_is_what_is_loaded(system: System, written: Release, folder: Path) -> None:
    same(system.tokenizer, written.tokenizer)
    same(system.lm, written.lm)
    same(system.detokenizer.adapter, written.first.adapter)
    same(system.detokenizer.diffusion, written.first.diffusion)
    saved = load_system(folder / "ours")
    assert len(saved.dropped["lm"]) == 2 and not saved.ignored
    assert not system.detokenizer.edits and system.lm.image_weight == 6
    # guidance leads away from what the tokenizer says of nothing, computed without the whole of it in memory
    torch.testing.assert_close(system.detokenizer.empty_SC, system.tokenizer.blank().x_WNC[0], atol=1e-6, rtol=1e-5)
    saved.verify()


def test_it_reads_says_and_draws(system: System) -> None:
    document = Document((user(tiny.picture(), "cat"),))
    (reply,) = system.generate([document], modality="text", sampling=Sampling(max_new_tokens=5))
    assert not reply.images
    sampling = Sampling(max_new_tokens=20, image=ImageSampling(size=(32, 32)))
    (drawn,) = system.generate([Document((user("cat"),))], modality="image", sampling=sampling)
    (image,) = drawn.images
    assert image.pixels.size == (32, 32) and image.generated.x_WNC.shape == (1, 4, 12)


def test_the_editing_model_takes_the_second_stage_and_reads_on_one_grid(folder: Path, written: Release) -> None:
    found = find_published(folder / "release", "17b-edit")
    assert found.agent.parts[-3] == "seed_x_edit" and found.decoder.parts[-2] == "second_stage"
    convert_published(replace(found, agent=None), folder / "edit", "17b-edit", config=EDITING)
    system = load("seed_x:17b-edit", weights=folder / "edit", dtype=torch.float32, parts=("detokenizer",))
    assert system.detokenizer.edits
    same(system.detokenizer.diffusion.unet, written.second.diffusion.unet)


def test_the_encoder_is_found_in_qwen_as_well(folder: Path, written: Release, tmp_path: Path) -> None:
    held = read_tensors(folder / "release/QwenViT/qwen_vit_G.pt")
    whole = {f"transformer.visual.{name}": held[name] for name in held} | {"transformer.wte.weight": torch.ones(2, 2)}
    shutil.copytree(folder / "release" / TEXT, tmp_path / "r" / TEXT)
    (tmp_path / "r/Qwen-VL-Chat").mkdir()
    torch.save(whole, tmp_path / "r/Qwen-VL-Chat/pytorch_model.bin")
    saved = convert_published(find_published(tmp_path / "r", "17b"), tmp_path / "ours", "17b", config=CONFIG)
    assert set(saved.files) == {"tokenizer", "text"}
    system = load("seed_x:17b", weights=tmp_path / "ours", dtype=torch.float32, parts=("tokenizer",))
    same(system.tokenizer, written.tokenizer)


# ------------------------------------------------------------------------------------------------ instruction tuning


@pytest.fixture(scope="module")
def tuned(folder: Path, written: Release) -> System:
    found = replace(
        find_published(folder / "release", "17b-i"),
        agent=None,
        tuned=folder / "tuned" / "checkpoint-20" / "pytorch_model.bin",
        decoder=None,
    )
    lora = replace(LORA, rank=99)  # the file knows better
    convert_published(found, folder / "ours tuned", "17b-i", config=CONFIG, lora=lora)
    return load("seed_x:17b-i", weights=folder / "ours tuned", dtype=torch.float32, parts=("lm",))


def test_a_checkpoint_is_loaded_with_its_adapters_folded_in(tuned: System, written: Release, folder: Path) -> None:
    ids = [1, 5, 9, WORDS, WORDS + 3, 7]
    batch = collate([Sequence(ids, [True] * len(ids))])
    with torch.no_grad():
        want = written.tuned.llm.logits(written.tuned.hidden(written.tuned.embed(batch), batch))
        got = tuned.lm.llm.logits(tuned.lm.hidden(tuned.lm.embed(batch), batch))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not any("lora_" in name for name in tuned.lm.state_dict())
    same(tuned.lm.output_projector, written.tuned.output_projector)
    dropped = load_system(folder / "ours tuned").dropped["lm"]
    assert sum("original_module" in name for name in dropped) == 5 and len(dropped) == 7


def test_a_checkpoint_is_written_again(tuned: System, folder: Path) -> None:
    export_published(folder / "ours tuned", folder / "back tuned")
    mine = whole(folder / "back tuned/seed_x_i/checkpoint/pytorch_model.bin")
    theirs = whole(folder / "tuned/checkpoint-20/pytorch_model.bin")
    assert set(theirs) - set(mine) == {name for name in theirs if "inv_freq" in name} and set(mine) <= set(theirs)
    for name in mine:
        if "original_module" in name:  # what is not kept is written as what came of it
            assert torch.equal(mine[name], theirs[name.replace("original_module", "modules_to_save.default")])
        else:
            assert torch.equal(mine[name], theirs[name]), name
    assert f"{TUNED}.lora_A.default.weight" in mine and f"{TUNED}.weight" in mine


# ------------------------------------------------------------------------------------------------ there and back


def whole(path: Path) -> dict[str, torch.Tensor]:
    """A pickled state dict, read at once: tensor by tensor it would be opened anew for each."""
    return torch.load(path, weights_only=True)


def test_there_and_back(folder: Path, system: System, written: Release) -> None:
    back = folder / "back"
    export_published(folder / "ours", back)
    pairs = {file: folder / "release" / file.relative_to(back) for file in sorted(back.rglob("*.bin"))}
    pairs[back / "QwenViT/qwen_vit_G.pt"] = folder / "release/QwenViT/qwen_vit_G.pt"
    assert len(pairs) == 3
    for mine, theirs in ((whole(one), whole(two)) for one, two in pairs.items()):
        assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    llm = read_tensors(back / "seed_x_i/llm")
    assert set(llm) == set(written.lm.llm.base.state_dict())
    found = replace(find_published(back, "17b-i"), decoder=None)  # whose way back is tested with it
    again = convert_published(found, folder / "again", "17b-i", config=CONFIG)
    before = load_system(folder / "ours")
    for part in ("tokenizer", "lm"):
        one, two = before.tensors(part), again.tensors(part)
        assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
        assert before.config["language"] == again.config["language"]
    with pytest.raises(RebusError, match="something at"):
        export_published(folder / "ours", back)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_release_that_is_not_whole_is_refused(folder: Path, written: Release, tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="no qwen_vit_G.pt nor a folder Qwen-VL-Chat under"):
        find_published(folder / "release" / TEXT, "17b")
    with pytest.raises(RebusError, match="no tokenizer.model beside an added_tokens.json"):
        find_published(folder / "release/QwenViT", "17b")
    shutil.copytree(folder / "release", tmp_path / "r")
    shutil.copytree(tmp_path / "r/QwenViT", tmp_path / "r/copy")
    with pytest.raises(RebusError, match="holds several of qwen_vit_G.pt"):
        find_published(tmp_path / "r", "17b")
    shutil.rmtree(tmp_path / "r/copy")
    shutil.rmtree(tmp_path / "r/seed_x_i/llm")
    with pytest.raises(RebusError, match="no folder llm beside"):
        convert_published(find_published(tmp_path / "r", "17b-i"), tmp_path / "o", "17b-i", config=CONFIG)
    assert not (tmp_path / "o").exists()


def test_parts_that_do_not_belong_together_are_refused(folder: Path, written: Release, tmp_path: Path) -> None:
    shutil.copytree(folder / "release", tmp_path / "r")
    found = find_published(tmp_path / "r", "17b-i")

    def refuse(match: str, config: Any = CONFIG) -> None:
        with pytest.raises(RebusError, match=match):
            convert_published(found, tmp_path / "o", "17b-i", config=config)
        assert not (tmp_path / "o").exists()

    about = json.loads((found.language / "config.json").read_text())
    (found.language / "config.json").write_text(json.dumps({**about, "vocab_size": WORDS + 3}))
    refuse(f"has {WORDS + 3} words, but SEED-X's own go up to id {WORDS + 17}")
    (found.language / "config.json").write_text("[]")
    refuse("should hold names and values")
    (found.language / "config.json").write_text(json.dumps(about))
    narrow = replace(CONFIG.projectors, into=replace(CONFIG.projectors.into, grid=3))
    refuse("way in gives 9 vectors and a view has 4 slots", replace(CONFIG, projectors=narrow))
    added = json.loads((found.text / "added_tokens.json").read_text())
    (found.text / "added_tokens.json").write_text(json.dumps({**added, "<img_00002>": 7}))
    refuse("<img_00002> has id 7")
    (found.text / "added_tokens.json").write_text(json.dumps({k: v for k, v in added.items() if k != "<patch>"}))
    refuse("1 are missing .<patch>")
    (found.text / "added_tokens.json").write_text(json.dumps(added))
    agent = torch.load(found.agent, weights_only=True)
    torch.save({k: v for k, v in agent.items() if k != "patch_pos_embed"} | {"more": torch.ones(1)}, found.agent)
    refuse(r"(?s)1 missing, 2 unexpected|1 missing, 1 unexpected.*position_4D")


def test_names_that_are_no_release_are_refused(folder: Path, written: Release) -> None:
    with pytest.raises(RebusError, match="no published SEED-X 'tiny'. Name 17b-i, 17b, 17b-edit"):
        find_published(folder / "release", "tiny")
    with pytest.raises(RebusError, match="no published SEED-X 'tiny'. Name 17b-i, 17b, 17b-edit"):
        convert_published(find_published(folder / "release", "17b"), folder / "nothing", "tiny")
    with pytest.raises(RebusError, match="weights are not part of the library"):
        load("seed_x:17b")
    assert isinstance(CONFIG.detokenizer, SdxlDetokenizerConfig)
