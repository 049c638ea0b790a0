"""Both stages of SEED-X's image decoder on the embedded kind of data, tiny: each learns what it should and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from torch import nn

from lavit_mini import write_work
from rebus.data.edits import KINDS
from rebus.diffusion.draft import GridDraftConfig
from rebus.errors import RebusError
from rebus.papers.seed_x.adapter import AdapterConfig
from rebus.papers.seed_x.decoder_training import DecoderTraining, drawn, masked_psnr
from rebus.papers.seed_x.detokenizer import FIRST_STAGE, SECOND_STAGE, SeedXDetokenizer
from rebus.papers.seed_x.edit_bank import EditBankConfig, Seen, load_edit_bank
from rebus.papers.seed_x.stages import detokenizer1, detokenizer2, keeping
from rebus.train import FitResult, Optim, Stage, fit

SHORT = Optim(steps=2, precision="fp32")
ADAPTER = AdapterConfig(
    in_width=192, latents=4, width=16, depth=1, heads=2, head_width=8, mlp_ratio=1, widths=(96, 96), pooled=512
)
SMALL = {"adapter": ADAPTER, "draft": GridDraftConfig(token_width=8, widths=(8, 8)), "steps": 1}
ONE, TWO = replace(FIRST_STAGE, **SMALL), replace(SECOND_STAGE, **SMALL)
EDITS = EditBankConfig(train=6, val=2)
FIRST = detokenizer1.Config(detokenizer=ONE, batch=2, lr=1e-2, optim=SHORT)
SECOND = detokenizer2.Config(first=ONE, detokenizer=TWO, bank=EDITS, share=0.5, batch=4, lr=1e-2, optim=SHORT)


def run(stage: Stage, work: Path) -> tuple[set[str], FitResult]:
    """What a run of the stage has changed, and what it says."""
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    result = fit(stage, work / stage.name, device="cpu")
    after = stage.module.state_dict()
    return {name for name, x in after.items() if not torch.equal(before[name], x)}, result


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After the first stage."""
    folder = write_work(tmp_path_factory.mktemp("work"))
    base = folder / "mini.denoiser" / "weights.safetensors"
    own = tiny.generator(0)  # a fresh denoiser says zero whatever it is told, from which nothing is learned
    save_file({k: x + 0.03 * torch.randn(x.shape, generator=own) for k, x in load_file(base).items()}, base)
    names, result = run(detokenizer1.stage(FIRST, folder), folder)
    denoiser = {name for name in names if name.startswith("detokenizer.denoiser.")}
    assert all(".to_k." in n or ".to_v." in n or ".add_k_proj." in n or ".add_v_proj." in n for n in denoiser)
    parts = {name.split(".")[1] for name in names}
    assert {"adapter", "draft"} <= parts <= {"adapter", "draft", "denoiser"}
    assert {"val/features_psnr", "val/features_draft_psnr"} <= result.evals.keys()
    return folder


def test_the_papers_numbers_are_the_defaults() -> None:
    one, two = detokenizer1.Config(), detokenizer2.Config()
    assert (one.optim.steps, two.optim.steps) == (42_000, 30_000) and one.lr == two.lr == 1e-4
    assert one.optim.schedule == two.optim.schedule == "cosine"


def test_the_second_stage_begins_as_the_first_ended_and_trains_all(work: Path) -> None:
    stage = detokenizer2.stage(SECOND, work)
    model = stage.module.detokenizer
    seen = Seen(work, ONE.strip)
    first = detokenizer1.first_decoder(ONE, seen)
    weights = load_file(work / "seed_x.detokenizer1" / "weights.safetensors")
    stored = {name.removeprefix("detokenizer."): x for name, x in weights.items()}
    first.load_state_dict({**first.state_dict(), **stored})
    _, x_ISC = seen.pure("val", seen.data.singles("val", 2))
    torch.testing.assert_close(drawn(model, x_ISC), drawn(first, x_ISC), atol=0.02, rtol=0)
    names, result = run(stage, work)
    assert {name.split(".")[1] for name in names} == {"adapter", "draft", "denoiser"}
    assert "detokenizer.denoiser.net.pos_embed.proj.weight" in names
    assert {
        "val/kept_psnr",
        "val/kept_psnr_without_source",
        "val/changed_psnr",
        "val/features_psnr",
    } <= result.evals.keys()


def test_edits_are_kept_and_of_their_split(work: Path) -> None:
    bank, again = (load_edit_bank(work, "train", EDITS) for _ in range(2))
    assert len(bank) == 6 and set(bank.kinds) <= set(KINDS) and bank.kinds == again.kinds
    source, target = bank.images_I2hw3[:, 0], bank.images_I2hw3[:, 1]
    assert (source[~bank.masks_Ihw] == target[~bank.masks_Ihw]).all()
    latents, x_ISC, sources = Seen(work, 4, EDITS).edited("train", torch.arange(3).numpy())
    assert latents.shape == sources.shape == (3, 4, 16, 16) and x_ISC.shape == (3, 16, 192)


def test_another_bank_of_edits_is_made_anew_and_what_was_computed_of_it_too(tmp_path: Path) -> None:
    folder = write_work(tmp_path / "work")
    seen = Seen(folder, 4, EDITS)
    before = seen.edited("train", np.arange(6))[0]
    more = replace(EDITS, train=8, mix={"recolour": 1.0})
    again = Seen(folder, 4, more)
    assert len(again.banks["train"]) == 8 and set(again.banks["train"].kinds) == {"recolour"}
    assert not torch.equal(again.edited("train", np.arange(6))[0], before)
    assert len(again.edited("train", np.arange(8))[0]) == 8


def test_the_adapters_vector_comes_near_the_image_embedding(work: Path) -> None:
    stage = detokenizer1.stage(replace(FIRST, vector_weight=0.5), work)
    parts = stage.step(stage.module, np.arange(2)).parts
    assert parts["vector"] > 0.1
    without = detokenizer1.stage(FIRST, work)
    assert "vector" not in without.step(without.module, np.arange(2)).parts


def test_what_is_dropped_says_nothing() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SeedXDetokenizer(TWO)
        with torch.no_grad():
            for parameter in model.denoiser.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        latents, features, sources = torch.randn(2, 4, 16, 16), torch.randn(2, 2, 16, 192), torch.randn(2, 2, 4, 16, 16)

        def flow(untold: float, unseen: float, which: tuple[int, int]) -> float:
            torch.manual_seed(1)
            module = DecoderTraining(model, untold=untold, unseen=unseen)
            return float(module.losses(latents, features[which[0]], sources[which[1]]).parts["flow"])

    assert flow(1, 1, (0, 0)) == flow(1, 1, (1, 1))
    assert flow(1, 0, (0, 0)) == flow(1, 0, (1, 0)) != flow(1, 0, (0, 1))
    assert flow(0, 1, (0, 0)) == flow(0, 1, (0, 1)) != flow(0, 1, (1, 0))


def test_blurred_features_lie_between_the_picture_and_the_mean() -> None:
    examples, x = torch.randn(50, 16, 192) + 3, torch.randn(400, 16, 192)
    model = SeedXDetokenizer(ONE)
    module = DecoderTraining(model, untold=0.0, blurred=0.5, examples_ISC=examples)
    assert set(module.state_dict()) == {f"detokenizer.{name}" for name in model.state_dict()}
    blurred = module.blur(x)
    same = (blurred - x).abs().amax((1, 2)) < 1e-4
    assert 0.4 < same.float().mean() < 0.6
    apart = x[~same] - examples.mean(0)
    kept = ((blurred[~same] - examples.mean(0)) * apart).sum((1, 2)) / apart.square().sum((1, 2))
    assert -0.05 < kept.min() < 0.2 and 0.8 < kept.max() <= 1.02
    left = blurred[~same] - examples.mean(0) - kept[:, None, None] * apart
    torch.testing.assert_close(left.std((1, 2)), 0.3 * (1 - kept) * examples.std(0).mean(), atol=0.05, rtol=0.1)
    assert torch.equal(DecoderTraining(model, untold=0.0).blur(x), x)


def test_it_is_learned_where_an_edit_keeps_its_source(work: Path) -> None:
    detokenizer2_file = work / "seed_x.detokenizer2" / "weights.safetensors"
    if not detokenizer2_file.exists():
        run(detokenizer2.stage(SECOND, work), work)
    config = keeping.Config(
        detokenizer=replace(TWO, keep_width=8), bank=EDITS, batch=6, lr=2e-2, optim=replace(SHORT, steps=60)
    )
    stage = keeping.stage(config, work)
    held = load_file(detokenizer2_file)
    begun = stage.module.state_dict()
    assert all(torch.equal(begun[name], x) for name, x in held.items())  # of the second stage nothing changes
    names, result = run(stage, work)
    assert {name.split(".")[1] for name in names} == {"keep"}
    assert {"val/kept_psnr", "val/kept_psnr_without_source", "val/changed_psnr"} <= result.evals.keys()
    left = load_file(work / "seed_x.keeping" / "weights.safetensors")
    assert {name.split(".")[1] for name in left} == {"keep", "codec", "denoiser", "unclip"}  # all but keep are buffers
    with torch.no_grad():
        parts = stage.step(stage.module, np.arange(6)).parts
    assert parts["right"] > 0.8


def test_places_are_the_same_where_nothing_of_them_lies_in_the_mask() -> None:
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, 5, 9] = mask[1] = True
    same = keeping.same_places(mask, 16)
    assert same.shape == (2, 1, 16, 16) and not same[1].any()
    assert (same[0] == 0).nonzero().tolist() == [[0, 1, 2]]


@torch.no_grad()
def test_what_is_kept_is_the_sources_and_nothing_else_is() -> None:
    model = SeedXDetokenizer(replace(TWO, keep_width=8, steps=3)).eval()
    own = tiny.generator(2)
    for parameter in model.denoiser.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=own)
    sources = [PIL.Image.linear_gradient("L").convert("RGB").resize((64, 64)), None]
    x_ISC = torch.randn(2, 16, 192, generator=own)
    latents = model.source_latents(sources)
    through = model.codec.decode(latents[:1])
    answers = {}
    for sure in (-30.0, 30.0):
        nn.init.zeros_(model.keep.out.weight)
        nn.init.constant_(model.keep.out.bias, sure)
        answers[sure] = drawn(model, x_ISC, sources)
    torch.testing.assert_close(answers[30.0][:1], through.clamp(-1, 1), atol=0.02, rtol=0)
    assert not torch.allclose(answers[-30.0][0], answers[30.0][0], atol=0.1)
    torch.testing.assert_close(answers[-30.0][1], answers[30.0][1])  # nothing is kept of no source
    model.keep = None
    torch.testing.assert_close(drawn(model, x_ISC, sources), answers[-30.0], atol=0.02, rtol=0)
    with pytest.raises(RebusError, match="a network that says what is kept, and a source"):
        SeedXDetokenizer(replace(ONE, keep_width=8))


def test_psnr_is_over_the_mask_alone() -> None:
    one, two = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    two[0, :, 0] = 2.0
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0] = True
    assert masked_psnr(one, two, mask) == pytest.approx(0.0, abs=1e-4)
    assert masked_psnr(one, two, ~mask) == pytest.approx(80.0, abs=1e-3)


def test_stages_that_do_not_fit_are_refused(work: Path) -> None:
    with pytest.raises(RebusError, match="Train that with seed_x.detokenizer2"):
        detokenizer1.stage(replace(FIRST, detokenizer=TWO), work)
    with pytest.raises(RebusError, match="has no channels for one"):
        detokenizer2.stage(replace(SECOND, detokenizer=ONE), work)
    other = replace(ONE, denoiser=replace(ONE.denoiser, depth=2))
    with pytest.raises(RebusError, match="Use one shape for both"):
        detokenizer1.stage(replace(FIRST, detokenizer=other), work)
