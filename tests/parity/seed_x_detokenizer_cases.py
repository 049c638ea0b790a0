"""SEED-X's image decoder against numbers of the official modules: `KINDS` gives each kind of file its check.

Dimension key: I images · S latents · C width · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tests.parity.golden import Golden
from torch import Tensor, nn

from rebus.checkpoint import convert
from rebus.diffusion.editing import EditGuidance, noise_loss, sample_edit, widened
from rebus.diffusion.pipeline import DiffusionConfig, LatentDiffusion, Told, make_scheduler
from rebus.diffusion.sdxl import SDXL_SCHEDULER, whole_image
from rebus.nn.attention import attend
from rebus.papers.seed_x.adapter import Adapter, AdapterConfig
from rebus.papers.seed_x.convert_decoder import DECODER_RULES, adapter_rules

SMALL_VAE = {"block_out_channels": (4,), "norm_num_groups": 2}
"""No golden file asks anything of the VAE."""


def adapter_config(sizes: dict) -> AdapterConfig:
    return AdapterConfig(
        in_width=sizes["embedding_dim"],
        latents=sizes["num_queries"],
        width=sizes["dim"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        head_width=sizes["dim_head"],
        mlp_ratio=sizes["ff_mult"],
        widths=(sizes["output1_dim"], sizes["output2_dim"]),
        pooled=sizes["output2_dim"],
        normalize=sizes["normalize"],
    )


@torch.no_grad()
def check_resampler(golden: Golden) -> None:
    held = nn.ModuleDict({"adapter": Adapter(adapter_config(golden.config))}).eval()
    held.load_state_dict(convert(golden.state, adapter_rules(""), held.state_dict()).tensors)
    adapter: Adapter = held["adapter"]
    x_INC = golden.input("x16")
    golden.check("x16.proj_in", adapter.proj_in(x_INC), atol=1e-5, rtol=0)
    latents_ISC = adapter.latents_1SC.expand(len(x_INC), -1, -1)
    for n, layer in enumerate(adapter.layers):
        seen_ISC = layer.attention(latents_ISC, adapter.proj_in(x_INC))
        golden.check(f"x16.layer{n}.attn", seen_ISC, atol=1e-5, rtol=0)
        golden.check(f"x16.layer{n}.ff", layer.feed_forward(latents_ISC + seen_ISC), atol=1e-5, rtol=0)
        latents_ISC = layer(latents_ISC, adapter.proj_in(x_INC))
    golden.check("x16.norm_out", adapter.resample(x_INC), atol=1e-5, rtol=0)
    pool = adapter.head.pool
    all_ITC = pool.tokens(adapter.resample(x_INC))
    asked_ITC = pool.proj(attend(pool.query(all_ITC), pool.key(all_ITC), pool.value(all_ITC), pool.heads))
    golden.check("x16.attnpool_all_tokens", asked_ITC.transpose(0, 1), atol=1e-5, rtol=0)
    for length in ("x16", "x64"):
        x_INC = golden.input(length)
        tokens_ISC, pooled_IP = adapter(x_INC)
        golden.check(f"{length}.prompt_embeds", tokens_ISC, atol=1e-5, rtol=0)
        golden.check(f"{length}.pooled_prompt_embeds", pooled_IP, atol=1e-5, rtol=0)
        normal = Adapter(replace(adapter.config, normalize=True)).eval()
        normal.load_state_dict(adapter.state_dict())
        tokens_ISC, pooled_IP = normal(x_INC)
        golden.check(f"{length}.normalize_true.prompt_embeds", tokens_ISC, atol=1e-5, rtol=0)
        golden.check(f"{length}.normalize_true.pooled", pooled_IP, atol=1e-5, rtol=0)


class Parts(nn.Module):
    """Adapter and denoiser, as the published files hold them."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        sizes = golden.config
        unet = {**sizes["unet"], "in_channels": 8}
        self.adapter = Adapter(adapter_config(sizes["resampler"]))
        self.diffusion = LatentDiffusion(DiffusionConfig(unet, SDXL_SCHEDULER, SMALL_VAE))
        ours = {name: x for name, x in self.state_dict().items() if not name.startswith("diffusion.vae.")}
        filled = convert(golden.state, DECODER_RULES, ours).tensors
        self.load_state_dict({name: filled[name] for name in filled}, strict=False)
        self.eval()

    def told(self, x_INC: Tensor, sizes_I6: Tensor, extra_Iehw: Tensor | None) -> Told:
        tokens_ISC, pooled_IP = self.adapter(x_INC)
        return Told(tokens_ISC, pooled_IP=pooled_IP, sizes_I6=sizes_I6, extra_Iehw=extra_Iehw)


@torch.no_grad()
def check_adapter(golden: Golden) -> None:
    parts = Parts(golden)
    check_training(golden, parts)
    check_drawing(golden, parts)


def check_training(golden: Golden, parts: Parts) -> None:
    features, sizes, source = (golden.input(f"train.{name}") for name in ("image_embeds", "time_ids", "cond_latents"))
    tokens_ISC, pooled_IP = parts.adapter(features)
    golden.check("train.prompt_embeds", tokens_ISC, atol=1e-5, rtol=0)
    golden.check("train.pooled", pooled_IP, atol=1e-5, rtol=0)
    noisy, noise, times = (golden.input(f"train.{name}") for name in ("noisy_latents", "noise", "timesteps"))
    unet = parts.diffusion.unet
    narrow = nn.Conv2d(4, unet.conv_in.out_channels, 3, padding=1)
    narrow.load_state_dict(golden.part("in.conv_in4"))
    golden.check("widened_init.weight", widened(narrow, 4).weight, atol=0, rtol=0)
    assert torch.equal(widened(narrow, 4).bias, narrow.bias)  # the published bias is random
    cases = {"stage2": source, "stage2_zero_cond": torch.zeros_like(source), "stage1": None}
    for name, extra in cases.items():
        if extra is None:
            unet.conv_in, wide = narrow, unet.conv_in
        told = parts.told(features, sizes, extra)
        golden.check(f"{name}.noise_pred", parts.diffusion.predict(noisy, times, told), atol=2e-5, rtol=0)
        golden.check(f"{name}.loss", noise_loss(parts.diffusion, noisy, noise, times, told), atol=2e-5, rtol=0)
    unet.conv_in = wide


def check_drawing(golden: Golden, parts: Parts) -> None:
    scheduler = make_scheduler(SDXL_SCHEDULER)
    scheduler.set_timesteps(4)
    golden.check("sample.timesteps", scheduler.timesteps.float(), atol=1e-5, rtol=0)
    golden.check("sample.sigmas", scheduler.sigmas, atol=1e-5, rtol=0)
    golden.check("sample.init_noise_sigma", torch.as_tensor(float(scheduler.init_noise_sigma)), atol=1e-5, rtol=0)
    side, source = golden.config["side"], golden.input("sample.cond_latents")
    nothing, sizes = torch.zeros_like(source), whole_image(1, (side, side), source.device)
    runs = {
        "edit_gs7.5_ig1.5": (source, EditGuidance(7.5, 1.5)),
        "noimage_gs7.5_ig1.5": (nothing, EditGuidance(7.5, 1.5)),
        "edit_gs3_ig1": (source, EditGuidance(3.0, 1.0)),
        "noguidance": (source, EditGuidance(1.0, 1.5)),
        "edit_rescale0.7": (source, EditGuidance(7.5, 1.5, rescale=0.7)),
    }
    for name, (extra, guidance) in runs.items():
        steps = sample_edit(
            parts.diffusion,
            golden.input("sample.initial_noise"),
            parts.told(golden.input("sample.image_embeds"), sizes, extra),
            parts.told(golden.input("sample.negative_image_embeds"), sizes, extra),
            guidance=guidance,
            steps=4,
            generators=[torch.Generator()],
        )
        latents = torch.stack([x for _, _, x in steps])
        golden.check(f"sample.{name}.latents_per_step", latents, atol=5e-4, rtol=0)
        golden.check(f"sample.{name}.final_latents", latents[-1], atol=5e-4, rtol=0)


KINDS: dict[str, Callable[[Golden], None]] = {
    "seed_x_adapter": check_adapter,
    "seed_x_sdxl_resampler": check_resampler,
}


def check_file(kind: str, path: Path) -> None:
    """One file, all of whose outputs must have been compared."""
    golden = Golden(path)
    KINDS[kind](golden)
    golden.assert_all_checked()


CASES: dict[str, Callable[[Path], None]] = {kind: partial(check_file, kind) for kind in KINDS}
"""The same for those that have a path."""
