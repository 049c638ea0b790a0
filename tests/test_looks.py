"""What drawn pictures look like, as a loss."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.flow import flow_loss
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.errors import RebusError
from rebus.mini.looks import Looks, LooksConfig, Shown, drawing_losses, flow_ends, load_looks, weighed
from rebus.nn.efficientnet import EfficientNet

TINY = TransformerConfig(side=8, heads=1, head_width=16, depth=1, token_width=8, vector_width=6)


@pytest.fixture(scope="module")
def looks() -> Looks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Looks(EfficientNet())


def drawer() -> tuple[Denoiser, LatentCodec]:
    torch.manual_seed(0)
    codec = LatentCodec(VaeConfig(unshuffle=2, channels=(32, 32))).requires_grad_(False)
    return Denoiser(TINY), codec


def test_pictures_are_as_unlike_as_what_is_seen_of_them(looks: Looks) -> None:
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    assert looks(one, one).item() == pytest.approx(0, abs=1e-5)
    drawn = other.clone().requires_grad_(True)
    loss = looks(drawn, one)
    assert loss > looks(one + 0.3 * (other - one), one) > 0
    loss.backward()
    assert drawn.grad.abs().max() > 0 and all(p.grad is None for p in looks.parameters())
    assert not looks.network.training


def test_where_nobody_looks_the_loss_is_the_velocitys(looks: Looks) -> None:
    denoiser, codec = drawer()
    x, told = torch.randn(3, 4, 8, 8), torch.tensor([True, False, True])
    shown, blank = Shown(x, torch.rand(3, 3, 32, 32), told), denoiser.blank(3, like=x)
    torch.manual_seed(1)
    total, parts = drawing_losses(denoiser, codec, None, LooksConfig(), shown, blank, shift=1.5)
    torch.manual_seed(1)
    assert torch.equal(total, flow_loss(denoiser, x, blank, shift=1.5)) and parts == {"flow": total}
    assert load_looks(LooksConfig()) is None


def test_looks_teach_the_denoiser_by_those_that_are_told(looks: Looks) -> None:
    denoiser, codec = drawer()
    x, told = torch.randn(3, 4, 8, 8), torch.tensor([True, False, True])
    pixels, blank = torch.rand(3, 3, 32, 32) * 2 - 1, denoiser.blank(3, like=x)
    config = LooksConfig(weight=2.0, first=0.5)

    def parts(real: torch.Tensor) -> dict[str, float]:
        torch.manual_seed(3)
        total, parts = drawing_losses(denoiser, codec, looks, config, Shown(x, real, told), blank, shift=1.5)
        torch.testing.assert_close(total, parts["flow"] + 2 * parts["looks"])
        return {name: value.item() for name, value in parts.items()}

    before = parts(pixels)
    other = pixels.clone()
    other[1] = 0
    assert parts(other) == before  # nothing is told of it
    other[0] = 0
    assert parts(other)["looks"] != before["looks"] and parts(other)["flow"] == before["flow"]
    total, _ = drawing_losses(denoiser, codec, looks, config, Shown(x, pixels, told), blank, shift=1.5)
    total.backward()
    assert denoiser.net.proj_out.weight.grad.abs().max() > 0 and all(p.grad is None for p in codec.parameters())


def test_where_a_picture_is_expected_to_end() -> None:
    denoiser, _ = drawer()
    x = torch.randn(64, 4, 8, 8)
    torch.manual_seed(2)
    with torch.no_grad():
        error, end, first = flow_ends(denoiser, x, denoiser.blank(64, like=x), shift=1.5, first=0.25)
    assert 6 <= int(first.sum()) <= 28
    # a denoiser that has learned nothing says that nothing changes: what begins as noise ends as noise
    assert (end[first] * x[first]).mean().abs() < 0.1 and end[first].std() == pytest.approx(1, abs=0.05)
    assert ((end - x)[~first] * x[~first]).mean() < 0 and error.shape == (64,) and 1.5 < error.mean() < 2.5

    class Knows(torch.nn.Module):
        """Says the velocity by what it is told, the picture itself."""

        def forward(self, noisy: torch.Tensor, time: torch.Tensor, told: Condition) -> torch.Tensor:
            sigma = (time / 1000).view(-1, 1, 1, 1)
            return (noisy - told.extra_Iehw) / sigma

    blank = denoiser.blank(64, like=x)
    error, end, _ = flow_ends(Knows(), x, Condition(blank.tokens_ISC, blank.vector_ID, x), shift=1.5, first=0.5)
    torch.testing.assert_close(end, x, atol=1e-4, rtol=1e-4)
    assert error.max() < 1e-4


def test_pictures_of_one_thing_come_more_often() -> None:
    singles = np.array([1, 4])
    data = SimpleNamespace(bank=lambda split: range(6), singles=lambda split, n: singles)
    assert np.bincount(weighed(data, 3)).tolist() == [1, 3, 1, 1, 3, 1] and len(weighed(data, 1)) == 6
    with pytest.raises(RebusError, match="at least 1"):
        weighed(data, 0)
