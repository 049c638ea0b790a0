"""Latent diffusion: what the sampler does with a known velocity, seeds, guidance, conditions, the codec's statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import DraftConfig, DraftDecoder, GridDraft, GridDraftConfig
from rebus.diffusion.flow import flow_loss, noise_like, sample
from rebus.diffusion.vae import LatentCodec, VaeConfig

TINY = TransformerConfig(side=8, heads=2, head_width=8, depth=2, token_width=6, vector_width=10, extra_channels=4)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Exact(nn.Module):
    """Knows the data: the velocity of the straight path to `goal` from wherever it stands."""

    def __init__(self, goal: Tensor) -> None:
        super().__init__()
        self.goal = goal

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        sigma = (time / 1000).view(-1, 1, 1, 1)
        return (x - self.goal * condition.vector_ID[:, :1, None, None]) / sigma


def told(images: int, value: float = 1.0) -> Condition:
    return Condition(torch.zeros(images, 1, 6), torch.full((images, 10), value), torch.zeros(images, 4, 8, 8))


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_sampling_follows_the_straight_path_to_the_data(steps: int) -> None:
    goal = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = noise_like((4, 8, 8), generators(1, 2), like=goal)
    finals = list(sample(Exact(goal), noise, told(2), told(2, 0.0), steps=steps, guidance=1.0, shift=1.5))
    assert [k for k, _ in finals] == list(range(1, steps + 1))
    for _, final in finals:
        torch.testing.assert_close(final, goal, atol=1e-4, rtol=1e-4)


def test_guidance_extrapolates_from_the_empty_condition() -> None:
    goal = torch.ones(1, 4, 8, 8)
    noise = noise_like((4, 8, 8), generators(1), like=goal)
    *_, (_, final) = sample(Exact(goal), noise, told(1), told(1, 0.0), steps=3, guidance=2.0)
    torch.testing.assert_close(final, 2 * goal, atol=1e-4, rtol=1e-4)  # empty goes to 0, told to 1: 0 + 2 (1 − 0)


def test_an_image_depends_on_its_own_seed_alone() -> None:
    torch.manual_seed(0)
    denoiser = nudged(Denoiser(TINY)).eval()
    like = torch.zeros(1)

    def draw(seeds: list[int]) -> Tensor:
        noise = noise_like((4, 8, 8), generators(*seeds), like=like)
        condition = denoiser.blank(len(seeds), like=like)
        *_, (_, final) = sample(denoiser, noise, condition, condition, steps=2, guidance=1.5)
        return final

    together = draw([7, 8, 9])
    torch.testing.assert_close(together[1:2], draw([8]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def nudged(module: Denoiser) -> Denoiser:
    """Without the zero start, which answers zero to everything."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return module


def test_every_kind_of_condition_reaches_the_denoiser() -> None:
    torch.manual_seed(0)
    denoiser = nudged(Denoiser(TINY)).eval()
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0])
    blank = denoiser.blank(2, 3, like=x)
    plain = denoiser(x, time, blank)
    for name in ("tokens_ISC", "vector_ID", "extra_Iehw"):
        parts = {k: getattr(blank, k) for k in ("tokens_ISC", "vector_ID", "extra_Iehw")}
        full = Condition(**parts | {name: torch.ones_like(parts[name])})
        half = denoiser(x, time, full.where(torch.tensor([True, False]), name))
        assert not torch.allclose(half[0], plain[0]), name
        torch.testing.assert_close(half[1], plain[1], msg=name)


def test_the_denoiser_starts_at_zero_and_learns_from_the_flow_loss() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    x = torch.randn(4, 4, 8, 8)
    assert denoiser(x, torch.full((4,), 300.0), denoiser.blank(4, like=x)).abs().max() == 0
    loss = flow_loss(denoiser, x, denoiser.blank(4, like=x))
    assert 1.5 < loss.item() < 2.5  # of noise − data, both standard normal, guessed as zero
    loss.backward()
    assert denoiser.net.proj_out.weight.grad.abs().max() > 0


def test_the_codec_standardises_what_it_was_measured_on() -> None:
    torch.manual_seed(0)
    codec = LatentCodec(VaeConfig(unshuffle=4, channels=(32,))).eval()
    pixels = torch.rand(8, 3, 32, 32) * 2 - 1
    codec.measure(pixels)
    with torch.no_grad():
        latents = codec.encode(pixels)
        raw, _ = codec.posterior(pixels)
        torch.testing.assert_close(codec.decode(latents), codec.decode_raw(raw).clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert latents.shape == (8, 4, 8, 8)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_the_draft_has_the_shape_of_the_latent() -> None:
    draft = DraftDecoder(DraftConfig(vector_width=12, latent_channels=4, start=4, widths=(16, 16, 8)))
    assert draft(torch.randn(3, 12)).shape == (3, 4, 16, 16)


def test_a_draft_that_is_fitted_reads_what_is_linear_and_convolutions_begin_as_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    draft = DraftDecoder(DraftConfig(vector_width=12, latent_channels=4, start=4, widths=(16, 8), linear=True))
    vectors = torch.randn(400, 12, generator=generator)
    latents = (vectors @ torch.randn(12, 256, generator=generator) + 2).view(400, 4, 8, 8)
    draft.fit_linear(vectors, latents, ridge=1e-6)
    torch.testing.assert_close(draft(vectors), latents, atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="no linear reading"):
        DraftDecoder(DraftConfig(vector_width=12, widths=(16, 8))).fit_linear(vectors, latents)


def test_a_draft_of_a_grid_reads_each_patch_where_it_lies() -> None:
    generator = torch.Generator().manual_seed(0)
    config = GridDraftConfig(token_width=12, grid=3, latent_channels=2, widths=(16, 8), linear=True)
    draft = GridDraft(config)
    features = torch.randn(100, 9, 12, generator=generator)
    numbers = features @ torch.randn(12, 8, generator=generator) + 2
    latents = numbers.view(100, 3, 3, 2, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(100, 2, 6, 6)
    draft.fit_linear(features, latents, ridge=1e-6)
    torch.testing.assert_close(draft(features), latents, atol=1e-2, rtol=0)
    assert torch.equal(latents[0, 1, 2:4, 4:], numbers[0, 5].view(2, 2, 2)[1])
    with pytest.raises(ValueError, match="no linear reading"):
        GridDraft(replace(config, linear=False)).fit_linear(features, latents)
