"""SEED's stages 1 and 2 on image-text pairs: what learns, which losses there are, and what the pairs become."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import seed_pairs
import seed_release
from rebus.checkpoint import export
from rebus.data.filters import Keep
from rebus.data.pairs import PairBatches, clean, random_view
from rebus.errors import RebusError
from rebus.nn.image_encoder import ClipImageEncoder
from rebus.nn.text_tokenizer import read_tokenizer
from rebus.papers.seed.convert import BLIP2_RULES
from rebus.papers.seed.losses import ContrastiveHeads, hard_negatives
from rebus.papers.seed.pairs import bert_words, load_vision
from rebus.papers.seed.qformer import QFormer, TextBranch
from rebus.papers.seed.stages import stage1_qformer, stage2_codebook
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.train import FitResult, Optim, Stage, fit

SHORT = Optim(steps=3, precision="fp32")
FIRST = stage1_qformer.Config(seed_release.TOKENIZER, contrast_width=8, batch=8, lr=1e-2, optim=SHORT)
SECOND = stage2_codebook.Config(seed_release.TOKENIZER, batch=8, lr=1e-2, optim=SHORT)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    seed_pairs.write_pairs(folder / "data")
    seed_pairs.write_bert(folder / "bert")
    seed_pairs.write_clip(folder / "clip")
    seed_release.write_tokenizer(folder)
    return folder


def first(files: Path, config: stage1_qformer.Config = FIRST, **named: Path | None) -> Stage:
    paths = {"data": files / "data", "vision": files / "eva_vit_g.pth", "bert": files / "bert"} | named
    return stage1_qformer.stage(config, files, **paths)


def second(files: Path, work: Path, config: stage2_codebook.Config = SECOND, **named: Path | None) -> Stage:
    paths = {"data": files / "data", "vision": files / "eva_vit_g.pth", "clip": files / "clip"} | named
    return stage2_codebook.stage(config, work, **paths)


def run(stage: Stage, folder: Path) -> tuple[FitResult, dict[str, float]]:
    """The result, and the first record of the log."""
    result = fit(stage, folder, device="cpu", log_every=1)
    return result, json.loads((folder / "log.jsonl").read_text().splitlines()[0])


@pytest.fixture(scope="module")
def work(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    run(first(files), folder / "seed.stage1_qformer")
    return folder


# ------------------------------------------------------------------------------------------------ pairs


def test_pairs_are_a_pure_function_of_seed_and_position(files: Path) -> None:
    def batches() -> PairBatches:
        return PairBatches(files / "data", 6, seed_release.TOKENIZER, seed=3)

    one, two = batches(), batches()
    before = list(itertools.islice(one, 5))
    two.load_state_dict(json.loads(json.dumps({"position": 3, "skipped": 0})))
    for ours, theirs in zip(before[3:], two, strict=False):
        assert ours.captions == theirs.captions and torch.equal(ours.pixels_I3hw, theirs.pixels_I3hw)
    epoch = [caption for batch in before[:2] for caption in batch.captions]
    assert len(epoch) == 12 and before[0].pixels_I3hw.shape == (6, 3, 16, 16)
    assert all(caption.startswith("a ") and "!" not in caption for caption in epoch)


def test_processes_share_the_pairs_and_filters_count(files: Path) -> None:
    config = seed_release.TOKENIZER
    halves = [PairBatches(files / "data", 8, config, rank=rank, world=2) for rank in (0, 1)]
    whole = next(iter(PairBatches(files / "data", 16, config)))
    assert [c for half in halves for c in next(iter(half)).captions] == whole.captions
    some = PairBatches(files / "data", 16, config, keep=Keep(similarity=0.25))
    assert len(next(iter(some)).captions) == 12 and some.skipped == 4
    with pytest.raises(RebusError, match="holds 16 pairs, but a step takes 40"):
        PairBatches(files / "data", 20, config, world=2)


def test_captions_and_views() -> None:
    assert clean('A "Cat": it sleeps... (well)! #1') == "a cat it sleeps well 1"
    assert len(clean("word " * 70).split()) == 50
    gradient = PIL.Image.linear_gradient("L").convert("RGB")
    views = [random_view(gradient, Random(seed), 16) for seed in range(40)]
    assert {view.size for view in views} == {(16, 16)}
    seen = [max(view.getdata())[0] - min(view.getdata())[0] for view in views]
    assert min(seen) > 255 * 0.5 and min(seen) < 220  # parts of the height, never less than half of the area


def test_berts_words(files: Path) -> None:
    text = read_tokenizer(files / "bert")
    ids_IL, mask_IL = bert_words(text, ["a red cat", "a blue dog a blue dog"], 6)
    assert ids_IL.tolist() == [[2, 4, 5, 9, 3, 0], [2, 4, 7, 10, 4, 3]]
    assert mask_IL.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    with pytest.raises(RebusError, match=r"no \[CLS\]"):
        bert_words(type("Other", (), {"specials": {}, "words": 1})(), ["a"])


# ------------------------------------------------------------------------------------------------ stage 1


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, x in module.state_dict().items() if not torch.equal(before[name], x)}


@pytest.mark.parametrize("weights", [{}, {"matching_weight": 1.0, "captioning_weight": 1.0, "gather": "gradient"}])
def test_stage_1_learns_what_it_names(files: Path, tmp_path: Path, weights: dict) -> None:
    stage = first(files, replace(FIRST, **weights))
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    result, record = run(stage, tmp_path / "run")
    parts = changed(before, stage.module)
    heads = {
        "tokenizer.qformer.query_tokens",
        "tokenizer.vision_norm.weight",
        "heads.temperature",
        "heads.text_proj.bias",
    }
    assert heads <= parts and "text.word_embeddings.weight" in parts
    assert not [name for name in parts if name.startswith(("tokenizer.visual_encoder", "tokenizer.quantizer"))]
    assert any(name.startswith("text.head.") for name in parts) == bool(weights)
    assert any(name.startswith("matching.") for name in parts) == bool(weights)
    assert ("matching" in record) == ("captioning" in record) == bool(weights)
    total = sum(record.get(name, 0) for name in ("contrast", "matching", "captioning"))
    assert record["loss"] == pytest.approx(total, rel=1e-4)
    assert not [name for name in load_file(result.weights) if "visual_encoder" in name]


def test_stage_1_learns_to_tell_pictures_apart(files: Path, tmp_path: Path) -> None:
    # labels smoothed by 0.1 over 8: the least loss that there is lies near 0.5
    stage = first(files, replace(FIRST, optim=replace(SHORT, steps=40)))
    losses = run(stage, tmp_path / "run")[0].losses
    assert sum(losses[-5:]) / 5 < 0.8 * sum(losses[:5]) / 5


def test_stage_1_starts_from_blip2(files: Path, tmp_path: Path) -> None:
    config = seed_release.TOKENIZER
    theirs = nn.ModuleDict(
        {
            "qformer": QFormer(config.qformer),
            "vision_norm": nn.LayerNorm(16),
            "text": TextBranch(config.qformer, read_tokenizer(files / "bert").words + 1, 512),
            "heads": ContrastiveHeads(16, 8),
        }
    )
    published = export(theirs.state_dict(), BLIP2_RULES)
    torch.save({name: published[name].clone() for name in published}, tmp_path / "blip2.pth")
    module = first(files, blip2=tmp_path / "blip2.pth").module
    ours = module.state_dict()
    for name, x in theirs.state_dict().items():
        assert torch.equal(ours[stage1_qformer.in_training(name)], x), name


def test_wrong_pairs_are_wrong_and_alike() -> None:
    similarity_II = torch.tensor([[9.0, 8.0, -9.0], [8.0, 9.0, -9.0], [0.0, 9.0, 9.0]])
    drawn = [hard_negatives(similarity_II, torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert all((chosen != torch.arange(3)).all() for pair in drawn for chosen in pair)
    texts = torch.stack([text_I for _, text_I in drawn])
    assert (texts[:, 0] == 1).all() and (texts[:, 2] == 1).all()


def test_what_is_not_named_is_asked_for(files: Path, work: Path) -> None:
    with pytest.raises(RebusError, match="`vision` names none. Give `--vision PATH`"):
        first(files, vision=None)
    with pytest.raises(RebusError, match="needs CLIP's image encoder"):
        second(files, work, clip=None)
    with pytest.raises(RebusError, match="has no CLIP image encoder"):
        ClipImageEncoder(files / "bert")


# ------------------------------------------------------------------------------------------------ stage 2


def test_stage_2_learns_codes_of_clips_embeddings(files: Path, work: Path, tmp_path: Path) -> None:
    stage = second(files, work, replace(SECOND, kmeans=True, optim=replace(SHORT, steps=30)))
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    trained = load_file(work / "seed.stage1_qformer" / "weights.safetensors")
    assert torch.equal(before["tokenizer.qformer.query_tokens"], trained["tokenizer.qformer.query_tokens"])
    result, record = run(stage, tmp_path / "run")
    frozen = ("tokenizer.visual_encoder.", "tokenizer.vision_norm.", "tokenizer.qformer.")
    assert not [name for name in changed(before, stage.module) if name.startswith(frozen)]
    assert "tokenizer.quantizer.codebook_KC" in changed(before, stage.module)
    assert record["loss"] == pytest.approx(record["quantiser"] + record["image"] + record["embedding"], rel=1e-4)
    assert 1 <= record["perplexity"] <= record["codes_used"] <= seed_release.CODES
    assert result.losses[-1] < result.losses[0]


def test_a_codebook_that_follows_running_means(files: Path, work: Path, tmp_path: Path) -> None:
    config = replace(SECOND, ema=0.5, revive_every=2)
    stage = second(files, work, config)
    before = stage.module.tokenizer.quantizer.codebook_KC.clone()
    result, record = run(stage, tmp_path / "seed.stage2_codebook")
    saved = load_file(result.weights)["tokenizer.quantizer.codebook_KC"]
    assert not torch.equal(saved, before) and {"codes_used", "perplexity"} <= record.keys()
    read = stage2_codebook.load_tokenizer(
        config.tokenizer, work / "seed.stage1_qformer/weights.safetensors", result.weights
    )
    assert torch.equal(read.quantizer.codebook_KC, saved)


def test_entries_of_places_do_not_follow_running_means() -> None:
    apart = replace(seed_release.TOKENIZER, codebook="per_query")
    with pytest.raises(RebusError, match="is trained by gradient, but ema=0.9"):
        stage2_codebook.CodebookTraining(replace(SECOND, tokenizer=apart, ema=0.9))


def test_the_frozen_part_drops_out_only_where_asked(files: Path, work: Path) -> None:
    dropping = replace(seed_release.TOKENIZER, qformer=replace(seed_release.TOKENIZER.qformer, dropout=0.5))
    for asked in (False, True):
        stage = second(files, work, replace(SECOND, tokenizer=dropping, frozen_dropout=asked))
        for name, parameter in stage.module.named_parameters():
            parameter.requires_grad_(not name.startswith(("tokenizer.visual", "tokenizer.qformer", "tokenizer.vision")))
        stage.module.train()
        batch = next(iter(stage.data))
        with torch.random.fork_rng(devices=[]):
            losses = [stage.step(stage.module, batch).total.item() for _ in range(2)]
        assert (losses[0] != losses[1]) == asked


def test_text_states_can_be_given_back_too(files: Path, work: Path, tmp_path: Path) -> None:
    seed_release.write_decoder(tmp_path / "sd", unclip=False)
    config = replace(SECOND, text_weight=0.5, text_states=(8, 32))
    stage = second(files, work, config, prompts=tmp_path / "sd")
    record = run(stage, tmp_path / "both")[1]
    parts = ("quantiser", "image", "embedding", "text")
    assert record["loss"] == pytest.approx(sum(record[name] for name in parts), rel=1e-4)
    v1 = replace(seed_release.V1_CONFIG.tokenizer, reverse_queries=8)
    record = run(
        second(files, work, replace(SECOND, tokenizer=v1, target="text"), clip=None, prompts=tmp_path / "sd"),
        tmp_path / "v1",
    )[1]
    assert record["image"] > 0 and "text" not in record


def test_a_tokenizer_that_learned_reads_pictures(files: Path, work: Path, tmp_path: Path) -> None:
    stage = second(files, work)
    run(stage, tmp_path / "run")
    tokenizer = stage.module.tokenizer
    assert isinstance(tokenizer, SeedTokenizer)
    pixels = next(iter(stage.data)).pixels_I3hw
    assert tokenizer.eval().ids(pixels).shape == (8, seed_release.PER_IMAGE)


def test_codes_that_start_from_patches_are_not_trained_on_pairs(tmp_path: Path) -> None:
    starting = replace(seed_release.TOKENIZER, start_per_patch=2, start_width=4)
    with pytest.raises(RebusError, match=r"start_per_patch=2.*which only the mini vision encoder has"):
        load_vision(SeedTokenizer(starting), tmp_path / "eva_vit_g.pth")
