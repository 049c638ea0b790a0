"""LaVIT's tokenizer: how patches are chosen, kept rows alone against all rows, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import PIL.Image
import pytest
import torch
from torch import nn

from rebus.document import Image
from rebus.errors import RebusError
from rebus.nn.positions import cosine_grid
from rebus.nn.vit import ViT
from rebus.papers.lavit.merger import Merger, MergerConfig
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.selector import (
    KEEP,
    at_least_one,
    gumbel_noise,
    keep_best,
    keep_expected,
    keep_likely,
    keep_sampled,
)
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import TINY
from rebus.visual import Codes, Features, Patches

CONFIG = replace(TINY.tokenizer, selection="threshold")
MERGER = MergerConfig(width=32, depth=3, heads=4, mlp_hidden=48, softmax="masked")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokenizer() -> LavitTokenizer:
    model = LavitTokenizer(CONFIG, source="lavit:test 1", generator=generator()).eval()
    with torch.no_grad():  # a selector that has learned nothing finds all patches alike
        for layer in model.selector.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(20)
        logp_IN2 = model.selector(model.features(model.pixels([picture(10), picture(80)])))
        model.selector.score[-1].bias[KEEP] -= (logp_IN2[..., 0] - logp_IN2[..., 1]).median()
    return model


def picture(turn: int) -> Image:
    return Image(PIL.Image.linear_gradient("L").rotate(turn).convert("RGB"))


def livened(merger: Merger) -> Merger:
    """Weights that make a difference, norms and biases as well."""
    with torch.no_grad():
        for parameter in merger.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(3)) * 0.15)
    return merger.eval()


def features(images: int = 4, patches: int = 20) -> torch.Tensor:
    return torch.randn(images, patches, 32, generator=generator(1))


def mask(*counts: int, patches: int = 20) -> torch.Tensor:
    """As many kept patches as said, at random places."""
    rows = [torch.rand(patches, generator=generator(count)).argsort() < count for count in counts]
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------ choosing


def test_a_draw_keeps_a_patch_as_often_as_its_probability_says() -> None:
    logp_IN2 = torch.randn(1, 6, 2, generator=generator(2)).log_softmax(-1)
    draws = keep_sampled(logp_IN2, gumbel_noise(6, [generator(seed) for seed in range(4000)]))
    # four deviations of a mean of 4,000 fair draws
    torch.testing.assert_close(draws.float().mean(0), logp_IN2[0, :, KEEP].exp(), atol=0.032, rtol=0)


def test_a_draw_is_its_own_generators() -> None:
    both = gumbel_noise(5, [generator(1), generator(2)])
    assert torch.equal(both[1:], gumbel_noise(5, [generator(2)])) and not torch.equal(both[0], both[1])


def test_a_budget_keeps_the_likeliest_patches() -> None:
    logp_IN2 = torch.randn(3, 9, 2, generator=generator(5)).log_softmax(-1)
    for budget in (1, 4, 9):
        keep_IN = keep_best(logp_IN2, budget)
        assert (keep_IN.sum(1) == budget).all()
        kept, dropped = (logp_IN2[..., KEEP].masked_fill(~m, fill) for m, fill in ((keep_IN, 9.0), (~keep_IN, -9.0)))
        assert (kept.amin(1) >= dropped.amax(1)).all()
    same = torch.zeros(1, 9, 2)
    assert keep_best(same, 3)[0].nonzero().flatten().tolist() == [0, 1, 2]


def test_the_expected_number_is_what_draws_keep_on_average_and_the_likeliest() -> None:
    p_IN = torch.tensor([[0.9, 0.2, 0.6, 0.3], [0.01, 0.02, 0.01, 0.01], [0.99, 0.99, 0.98, 0.99]])
    logp_IN2 = torch.stack([p_IN, 1 - p_IN], -1).log()
    assert keep_expected(logp_IN2).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]
    coin_IN2 = torch.tensor([1 / 3, 2 / 3]).log().expand(2, 64, 2)
    assert keep_expected(coin_IN2).sum(1).tolist() == [21, 21] and not keep_likely(coin_IN2).any()
    decided_IN2 = torch.tensor([[1 - 1e-6, 1e-6], [1e-6, 1 - 1e-6]]).log()[[0, 1, 1, 0]].expand(1, 4, 2)
    assert torch.equal(keep_expected(decided_IN2), keep_likely(decided_IN2))


def test_an_image_keeps_at_least_its_likeliest_patch() -> None:
    logp_IN2 = torch.tensor([[[-2.0, -0.1], [-1.0, -0.5], [-3.0, -0.05]]])
    assert not keep_likely(logp_IN2).any()
    assert at_least_one(keep_likely(logp_IN2), logp_IN2).tolist() == [[False, True, False]]


@pytest.mark.parametrize("budget", [0, -3, 17, 10_000])
def test_a_budget_that_cannot_be_is_refused(budget: int) -> None:
    model = tokenizer()
    with pytest.raises(RebusError, match=f"1 to 16 can be kept, but the budget is {budget}"):
        model.choose("topk", budget)
    with pytest.raises(RebusError, match="the budget is 0"):
        LavitTokenizer(replace(CONFIG, selection="topk", budget=0))
    assert model.selection == "threshold"
    model.choose("topk", 5)
    assert len(model.encode([picture(10)], {"generation"})[0].generated.ids_N) == 5


@pytest.mark.parametrize(("selection", "budget"), [("threshold", 4), ("sample", 4), ("best", None)])
def test_a_choice_that_makes_no_sense_is_refused(selection: str, budget: int | None) -> None:
    with pytest.raises(RebusError, match=f"'{selection}' with a budget of {budget}"):
        tokenizer().choose(selection, budget)  # type: ignore[arg-type]


def test_only_sampling_is_random_and_then_by_the_images_own_generator() -> None:
    model, images = tokenizer(), [picture(10), picture(80)]

    def kept(*seeds: int) -> list[list[bool]]:
        encoded = model.encode(images, {"understanding"}, generators=[generator(seed) for seed in seeds])
        return [image.understood.keep_N.tolist() for image in encoded]

    assert kept(1, 2) == kept(3, 4)
    model.choose("sample")
    first = kept(1, 2)
    assert kept(1, 2) == first and kept(3, 2)[1] == first[1] and kept(3, 2)[0] != first[0]
    torch.manual_seed(5)
    assert kept(1, 2) == first
    with pytest.raises(RebusError, match="2 images and 1 generators"):
        kept(1)


# ------------------------------------------------------------------------------------------------ encoding


def test_patches_and_codes_are_of_one_choice() -> None:
    model = tokenizer().train()
    first, second = model.encode([picture(10), picture(80)], {"understanding"})
    assert model.training
    for image in (first, second):
        patches, codes = image.understood, image.generated
        assert isinstance(patches, Patches) and isinstance(codes, Codes)
        assert patches.x_NC.shape == (16, 32) and patches.keep_N.dtype == torch.bool
        assert len(codes.ids_N) == patches.keep_N.sum() > 0 and patches.source == codes.source == "lavit:test 1"
        assert torch.equal(codes.ids_N, model.eval().ids(patches.x_NC[None], patches.keep_N[None]))
    assert len(first.generated.ids_N) != len(second.generated.ids_N)  # as many tokens as the image needs


def test_what_an_image_has_is_not_made_again() -> None:
    model = tokenizer()
    (whole,) = model.encode([picture(10)], {"generation"})
    assert (
        model.encode([replace(whole, pixels=None)], {"understanding", "generation"})[0].understood is whole.understood
    )
    (read,) = model.encode([Image(generated=whole.generated)], {"understanding"})  # codes can be read too
    assert read.understood is whole.generated
    foreign = Image(generated=Codes(torch.tensor([1]), "other"))
    with pytest.raises(RebusError, match="Image 2 of 2 has no pixels and lacks the tokens for understanding"):
        model.encode([whole, foreign], {"understanding"})


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RebusError, match="33 against 32"):
        LavitTokenizer(replace(CONFIG, merger=replace(CONFIG.merger, width=33)))
    with pytest.raises(RebusError, match="is not the one its config describes"):
        LavitTokenizer(CONFIG, visual_encoder=ViT(replace(CONFIG.vision, depth=2)))
    with pytest.raises(RebusError, match="5 heads share its width of 32"):
        Merger(replace(MERGER, heads=5))


# ------------------------------------------------------------------------------------------------ kept rows alone


COUNTS = [(7, 6, 8, 3), (20, 1, 12, 19), (20, 20, 20, 20), (1, 1, 1, 1)]


@pytest.mark.parametrize("counts", COUNTS)
def test_kept_rows_alone_are_the_kept_rows_of_all(counts: tuple[int, ...]) -> None:
    merger, x_INC, keep_IN = livened(Merger(MERGER)), features(), mask(*counts)
    torch.testing.assert_close(merger.packed(x_INC, keep_IN), merger(x_INC, keep_IN)[keep_IN], atol=1e-4, rtol=1e-4)


def test_a_merger_that_is_told_of_places_tells_equal_patches_apart() -> None:
    blind, told = (livened(Merger(replace(MERGER, grid=grid), generator())) for grid in (0, 4))
    assert set(blind.state_dict()) == set(told.state_dict())
    x_INC, keep_IN = torch.ones(2, 16, 32), mask(5, 5, patches=16)
    rows = told.packed(x_INC, keep_IN)
    torch.testing.assert_close(rows, told(x_INC, keep_IN)[keep_IN], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows, blind.packed(x_INC + cosine_grid(4, 32), keep_IN))
    assert (rows[0] - rows[1]).abs().max() > 0.1
    torch.testing.assert_close(*blind.packed(x_INC[:1], keep_IN[:1])[:2])


def test_gradients_of_kept_rows_alone_are_those_of_all() -> None:
    merger, keep_IN = livened(Merger(MERGER)), mask(7, 20, 1, 12)
    upstream = torch.randn(int(keep_IN.sum()), 32, generator=generator(8))
    grads = []
    for packed in (True, False):
        x_INC = features().requires_grad_()
        out_TC = merger.packed(x_INC, keep_IN) if packed else merger(x_INC, keep_IN)[keep_IN]
        grads.append(torch.autograd.grad((out_TC * upstream).sum(), [x_INC, *merger.parameters()]))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("softmax", ["masked", "policy_eps"])
def test_the_mask_is_learned_through_all_rows(softmax: str) -> None:
    merger = livened(Merger(replace(MERGER, softmax=softmax)))  # type: ignore[arg-type]
    keep_IN = mask(7, 6, 8, 3).float().requires_grad_()
    (grad_IN,) = torch.autograd.grad(merger(features(), keep_IN)[keep_IN.bool()].square().sum(), keep_IN)
    assert grad_IN.isfinite().all() and (grad_IN != 0).float().mean() > 0.9


def test_a_kept_row_does_not_know_what_is_kept_after_it() -> None:
    merger, keep_IN = livened(Merger(MERGER)), mask(9, 9, 9, 9)
    x_INC = features()
    last_I = torch.tensor([int(row.nonzero()[-1]) for row in keep_IN])
    changed = x_INC.clone()
    changed[torch.arange(4), last_I, ::2] += 1  # the same in every channel, a norm would take it out again
    before, after = (merger.packed(x, keep_IN).split(9) for x in (x_INC, changed))
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[:-1], two[:-1]) and (one[-1] - two[-1]).abs().max() > 1e-3


def test_rows_do_not_touch_other_images() -> None:
    merger, keep_IN, x_INC = livened(Merger(MERGER)), mask(7, 20, 1, 12), features()
    together = merger.packed(x_INC, keep_IN).split(keep_IN.sum(1).tolist())
    for i, rows in enumerate(together):
        torch.testing.assert_close(rows, merger.packed(x_INC[i : i + 1], keep_IN[i : i + 1]), atol=1e-5, rtol=1e-5)


def test_the_projector_gives_a_vector_for_each_kept_patch_and_refuses_others() -> None:
    projector = LavitInputProjector(MERGER, 12).eval()
    keep_IN, x_INC = mask(7, 6, 8, 3), features()
    inputs = [Patches(x_NC, keep_N, "here") for x_NC, keep_N in zip(x_INC, keep_IN, strict=True)]
    assert projector(inputs).shape == (24, 12)
    torch.testing.assert_close(projector(inputs)[7:13], projector(inputs[1:2]), atol=1e-5, rtol=1e-5)
    means = LavitInputProjector(MERGER, 12, running_mean=True).eval()
    means.load_state_dict(projector.state_dict())
    second_TD = projector(inputs)[7:13]
    for t, x_D in enumerate(means(inputs)[7:13], 1):
        torch.testing.assert_close(x_D, second_TD[:t].mean(0), atol=1e-5, rtol=1e-5)
    with pytest.raises(RebusError, match="image 2 of 2 is Features"):
        projector([inputs[0], Features(x_INC[:1], "here")])
    with pytest.raises(RebusError, match=r"width 32, but image 1 of 1 is \[20, 30\]"):
        projector([Patches(x_INC[0, :, :30], keep_IN[0], "here")])
