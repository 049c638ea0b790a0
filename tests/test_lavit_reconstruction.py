"""How LaVIT's tokenizer learns: the choice with a gradient, kept rows alone against all rows, losses, the codebook."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.quantize import UnitQuantizer
from rebus.papers.lavit.decoder import Decoder, DecoderConfig
from rebus.papers.lavit.reconstruction import Reconstruction, ReconstructionConfig
from rebus.papers.lavit.selector import gumbel_noise, keep_likely, keep_sampled, keep_straight_through
from rebus.papers.lavit.variants import TINY

DECODER = DecoderConfig(patches=16, code_width=8, width=32, depth=2, heads=2, mlp_hidden=48)
CONFIG = ReconstructionConfig(tokenizer=replace(TINY.tokenizer, selection="threshold"), decoder=DECODER)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(images: int = 6) -> Tensor:
    return torch.randn(images, 16, 32, generator=generator(1))


def reconstruction(config: ReconstructionConfig = CONFIG, **options) -> Reconstruction:
    module = Reconstruction(config, generator=generator(), **options)
    with torch.no_grad():  # a selector that has learned nothing finds all patches alike
        for layer in module.tokenizer.selector.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(20)
    return module


# ------------------------------------------------------------------------------------------------ the choice


def test_the_choice_is_hard_forwards_and_soft_backwards() -> None:
    scores_IN2 = torch.randn(5, 9, 2, generator=generator(2)).requires_grad_()
    logp_IN2 = scores_IN2.log_softmax(-1)
    noise_IN2 = gumbel_noise(9, [generator(n) for n in range(5)])
    keep_IN = keep_straight_through(logp_IN2, noise_IN2)
    assert torch.equal(keep_IN.detach() > 0, keep_sampled(logp_IN2, noise_IN2))
    assert set(keep_IN.detach().unique().tolist()) == {0.0, 1.0}
    (slope_IN2,) = torch.autograd.grad(keep_IN.sum(), scores_IN2)
    p_IN = (logp_IN2 + noise_IN2).softmax(-1)[..., 0]
    torch.testing.assert_close(slope_IN2[..., 0], p_IN * (1 - p_IN))


def test_without_noise_it_is_the_choice_without_dice_and_never_none() -> None:
    logp_IN2 = torch.randn(5, 9, 2, generator=generator(2)).log_softmax(-1)
    silent = torch.zeros_like(logp_IN2)
    assert torch.equal(keep_straight_through(logp_IN2, silent) > 0, keep_likely(logp_IN2))
    none = torch.tensor([[[-9.0, 0.0], [-8.0, 0.0], [-9.0, 0.0]]])
    assert keep_straight_through(none, torch.zeros_like(none)).tolist() == [[0, 1, 0]]


def test_a_share_of_the_images_keeps_another_number_of_the_likeliest() -> None:
    module = reconstruction(replace(CONFIG, other_counts=0.5), selector_learns=False)
    x_INC = features(400)
    own_IN = module.tokenizer.undiced(module.tokenizer.selector(x_INC))
    p_IN = module.tokenizer.selector(x_INC)[..., 0].exp()
    assert torch.equal(module.eval().choice(x_INC, generator(), 0.0) > 0, own_IN)
    keep_IN = module.train().choice(x_INC, generator(), 0.0) > 0
    counts_I = keep_IN.sum(1)
    assert 0.3 < (counts_I != own_IN.sum(1)).float().mean() < 0.55
    assert counts_I[counts_I != own_IN.sum(1)].unique().tolist() == list(range(2, 12))  # of 16 patches
    least_I = p_IN.masked_fill(~keep_IN, 2).amin(1)
    assert (p_IN.masked_fill(keep_IN, -1).amax(1) <= least_I).all()


# ------------------------------------------------------------------------------------------------ rebuilding


def test_a_mask_weighs_codes_as_leaving_them_out_does() -> None:
    decoder = Decoder(DECODER, generator()).eval()
    z_IME = torch.randn(3, 16, 8, generator=generator(3))
    keep_IM = torch.rand(3, 16, generator=generator(4)) > 0.6
    dense = decoder.weighed(z_IME, keep_IM.float())
    torch.testing.assert_close(dense, decoder(z_IME[keep_IM], keep_IM.sum(1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gradient", ["merger", "decoder"])
def test_all_rows_or_kept_rows_alone_rebuild_the_same(gradient: str) -> None:
    x_INC = features()
    learns = reconstruction(replace(CONFIG, gradient=gradient)).eval()
    rests = reconstruction(replace(CONFIG, gradient=gradient), selector_learns=False).eval()
    keep_IN = learns.choice(x_INC, generator(5), 1.0).detach()
    assert 0 < keep_IN.mean() < 1
    torch.testing.assert_close(
        learns.rebuild(x_INC, keep_IN)[0], rests.rebuild(x_INC, keep_IN)[0], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("gradient", ["merger", "decoder"])
def test_the_selector_learns_from_what_is_rebuilt(gradient: str) -> None:
    module = reconstruction(replace(CONFIG, gradient=gradient, share_weight=0.0))
    module.losses(features(), generator(5)).total.backward()
    assert module.tokenizer.selector.score[-1].weight.grad.abs().sum() > 0
    rests = reconstruction(replace(CONFIG, share_weight=0.0), selector_learns=False)
    rests.losses(features(), generator(5)).total.backward()
    assert not rests.tokenizer.selector.score[-1].weight.grad.any()  # only the share's term knows it, weighed by zero
    assert rests.tokenizer.merger.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_the_share_is_an_images_own_or_the_batchs() -> None:
    x_INC, shares = features(), {}
    for share_of in ("per_image", "batch"):
        module = reconstruction(replace(CONFIG, share_of=share_of, share=0.25))
        keep_IN = module.choice(x_INC, generator(5), 1.0).detach()
        shares[share_of] = module.losses(x_INC, generator(5)).parts["share"].item()
    assert shares["per_image"] == pytest.approx((0.25 - keep_IN.mean(1)).square().mean().item())
    assert shares["batch"] == pytest.approx((0.25 - keep_IN.mean()).square().item())
    assert shares["per_image"] > shares["batch"]


def test_the_losses_are_the_papers_equation() -> None:
    module = reconstruction()
    losses = module.losses(features(), generator(5))
    parts = losses.parts
    torch.testing.assert_close(losses.total, parts["cosine"] + 2 * parts["share"])
    assert 0.8 < parts["cosine"].item() < 1.2  # nothing has been learned
    pinned = {"cosine": 0.996325, "share": 0.026693, "kept": 7.166667}
    assert {name: round(torch.as_tensor(parts[name]).item(), 6) for name in pinned} == pytest.approx(pinned, abs=2e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RebusError, match="there are 16 patches, the decoder has 64"):
        Reconstruction(replace(CONFIG, decoder=replace(DECODER, patches=64)))
    with pytest.raises(RebusError, match="the draft is none with weight 0.5"):
        Reconstruction(replace(CONFIG, draft_weight=0.5))


# ------------------------------------------------------------------------------------------------ the codebook


def unit(count: int, width: int = 4, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(count, width, generator=generator(seed)), dim=-1)


def test_rows_keep_length_one_and_follow_what_is_assigned() -> None:
    book = UnitQuantizer(8, 4, decay=0.5, generator=generator())
    x_TC = unit(64)
    book.start_from(x_TC, generator(1))
    before = book.codebook_KC.clone()
    quantized = book(x_TC)
    book.update(x_TC, quantized.ids)
    torch.testing.assert_close(book.codebook_KC.norm(dim=1), torch.ones(8))
    sum_KC = torch.zeros(8, 4).index_add_(0, quantized.ids, x_TC)
    wanted = nn.functional.normalize(0.5 * 0.1 * before + 0.5 * sum_KC, dim=-1)
    torch.testing.assert_close(book.codebook_KC, wanted)
    hits_K = torch.bincount(quantized.ids, minlength=8)
    torch.testing.assert_close(book.hits_K, 0.05 + 0.5 * hits_K)
    losses = []
    for _ in range(20):
        quantized = book(x_TC)
        book.update(x_TC, quantized.ids)
        losses.append(quantized.loss.item())
    assert losses[-1] <= losses[0]


def test_rows_that_nothing_hits_move_onto_data_and_begin_again() -> None:
    book = UnitQuantizer(8, 4, generator=generator())
    x_TC = unit(3, seed=2)
    for _ in range(200):
        book.update(x_TC, book.encode(x_TC))
    dead_K = book.hits_K < 0.03
    assert 5 <= dead_K.sum() < 8
    moved = book.revive(dead_K, x_TC, generator(1))
    assert moved == dead_K.sum() and torch.equal(book.hits_K[dead_K], torch.full((moved,), 0.1))
    distance = torch.cdist(book.codebook_KC[dead_K], x_TC).amin(1)
    torch.testing.assert_close(distance, torch.zeros(moved), atol=1e-3, rtol=0)
