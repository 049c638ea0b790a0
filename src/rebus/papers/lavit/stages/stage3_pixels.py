"""LaVIT stage 3: a latent diffusion model learns to draw from the features that codes give back (2309.04669 section 3.1,
equation 5).

The paper fine-tunes the UNet of Stable Diffusion 1.5 for 20,000 steps on the tokenizer's pictures; the released highres
decoder begins with SDXL in the same way. The mini fine-tunes the mini base denoiser, and the draft that stage 1 began.

    rebus train lavit.stage3_pixels --config mini --work state
    rebus train lavit.stage3_pixels --config paper --work state --data pairs --vision eva_vitg_psz14.bin --pixels sd15

With `--data`, a folder of tar shards of pictures, it is trained on these, from stage 1's weights under `--work`; `--pixels`
is a diffusers folder (`--config highres`: of SDXL).

Dimension key: I images · N patches · S prompt tokens · C width · c latent channels · h w sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.checkpoint import load_module
from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import PairBatch, needed
from rebus.diffusion.editing import noise_loss
from rebus.diffusion.pipeline import Told, noising_alphas, read_diffusion
from rebus.mini.bank import IndexBatches
from rebus.mini.denoiser import load_denoiser, psnr
from rebus.mini.frozen import Frozen
from rebus.mini.looks import Looks, LooksConfig, Shown, drawing_losses, load_looks, weighed
from rebus.mini.named_stage import read_stage
from rebus.nn.text_encoder import prompt_states
from rebus.papers.lavit.bank import bank_codes, bank_tokenizer, stage_files, unpadded
from rebus.papers.lavit.detokenizer import HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizer, MiniDetokenizerConfig
from rebus.papers.lavit.pictures import picture_batches, published_vision
from rebus.papers.lavit.reconstruction import load_tokenizer, stage_weights
from rebus.papers.lavit.selector import Selection
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig
from rebus.papers.lavit.variants import HALF, MINI
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes, ImageSampling

NAME = "lavit.stage3_pixels"


@dataclass(frozen=True)
class Config:
    """Stage 3; the steps are the paper's, which gives no other number: the optimiser is Stable Diffusion's."""

    tokenizer: LavitTokenizerConfig = field(default_factory=LavitTokenizerConfig)
    """The tokenizer whose codes are drawn from."""
    detokenizer: LowresConfig | HighresConfig | MiniDetokenizerConfig = field(default_factory=LowresConfig)
    """The image decoder; of a real one UNet, VAE and sampler are the given folder's."""
    selection: Selection = "sample"
    """How patches are chosen while training."""
    untold: float = 0.1
    """Share of pictures that are told nothing, for classifier-free guidance: zeros, or the empty prompt (lowres). The paper
    does not say; the published decoders are used with such guidance."""
    true_share: float = 0.0
    """Mini only: share of the batches that are told the vision encoder's own features."""
    looks: LooksConfig = LooksConfig()
    """Mini only: how much it counts what pictures look like."""
    singles: int = 1
    """Mini only: how many times as often as others pictures of one thing come."""
    begin: str | None = None
    """Mini only: a run of this stage under the work folder whose weights it goes on from; none: the base denoiser's and stage 1's."""
    keep: Keep = KEEP_ALL
    """Pairs only: which pictures are good enough."""
    batch: int = 2048
    """Pictures of one step, over all processes."""
    lr: float = 1e-5
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=20_000, warmup=500, schedule="constant", weight_decay=0.01, ema=0.9999)
    )
    """Optimiser and schedule."""
    seed: int = 0
    """Order of the pictures."""


CONFIGS = {
    "paper": Config(),
    "highres": Config(detokenizer=HighresConfig()),
    "mini": Config(
        tokenizer=MINI.tokenizer,
        detokenizer=MiniDetokenizerConfig(),
        selection="expected",
        true_share=0.1,
        batch=48,
        lr=6e-4,
        optim=Optim(steps=1000, warmup=50, weight_decay=0.01, ema=0.998, min_lr_ratio=0.05),
    ),
}


# ------------------------------------------------------------------------------------------------ on real pictures


class PixelTraining(nn.Module):
    """A published latent diffusion model, told what codes give back."""

    alphas_T: Tensor

    def __init__(
        self, config: Config, tokenizer: LavitTokenizer, detokenizer: LavitDetokenizer, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config, self.generator = config, generator
        self.tokenizer, self.detokenizer = tokenizer, detokenizer
        alphas_T = noising_alphas(detokenizer.config.diffusion.scheduler)
        self.register_buffer("alphas_T", alphas_T, persistent=False)

    @torch.no_grad()
    def rebuilt(self, pixels_I3hw: Tensor) -> Tensor:
        """Pictures in −1..1 of the size that is drawn → features x_INC through the codes."""
        tokenizer, drawn = self.tokenizer, self.detokenizer
        side, mean, std = (getattr(tokenizer.config, name) for name in ("vision", "mean", "std"))
        small = F.interpolate(pixels_I3hw, size=(side.image_size,) * 2, mode="bicubic", antialias=True)
        centre, width = (torch.tensor(x).to(small).view(3, 1, 1) for x in (mean, std))
        x_INC = tokenizer.features(((small / 2 + 0.5).clamp(0, 1) - centre) / width)
        seeds = torch.randint(2**62, (len(x_INC),), generator=self.generator).tolist()
        keep_IN = tokenizer.keep(x_INC, [torch.Generator().manual_seed(seed) for seed in seeds])
        z_TE = F.embedding(tokenizer.ids(x_INC, keep_IN), drawn.codebook_KE)
        return drawn.decoder(z_TE, keep_IN.sum(1))

    def losses(self, batch: PairBatch) -> Losses:
        """Squared error of the predicted noise."""
        pixels_I3hw, drawn, generator = batch.pixels_I3hw, self.detokenizer, self.generator
        height, width = pixels_I3hw.shape[-2:]
        told = drawn.told(self.rebuilt(pixels_I3hw), (height, width))
        told_I = torch.rand(len(pixels_I3hw), generator=generator) >= self.config.untold
        told = mixed(told, drawn.untold(told), told_I.to(pixels_I3hw.device))
        with torch.no_grad():
            latents = drawn.diffusion.latents(pixels_I3hw) * drawn.diffusion.vae.config.scaling_factor
        time_I = torch.randint(len(self.alphas_T), (len(latents),), generator=generator).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = self.alphas_T[time_I].view(-1, 1, 1, 1).to(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return Losses(noise_loss(drawn.diffusion, noisy, noise, time_I, told))


def mixed(told: Told, untold: Told, told_I: Tensor) -> Told:
    """Of each image what is told, or what stands for nothing."""
    names = [name for name in vars(told) if getattr(told, name) is not None]
    rows = {
        name: torch.where(
            told_I.view(-1, *[1] * (getattr(told, name).ndim - 1)), getattr(told, name), getattr(untold, name)
        )
        for name in names
    }
    return Told(**rows)


def on_pictures(config: Config, work: Path, data: Path, vision: Path | None, pixels: Path | None) -> Stage:
    """Stage 3 on the pictures under `data`."""
    assert not isinstance(config.detokenizer, MiniDetokenizerConfig)  # it is trained on the bank
    generator = torch.Generator().manual_seed(config.seed)
    seeing = published_vision(config.tokenizer, vision)
    tokenizer = load_tokenizer(config.tokenizer, seeing, *stage_files(work))
    tokenizer.choose(config.selection)
    folder = needed("pixels", pixels, "the latent diffusion model to begin with, a diffusers folder")
    diffusion, networks = read_diffusion(folder)
    sizes = replace(config.detokenizer, diffusion=diffusion)
    detokenizer = LavitDetokenizer(sizes, generator=generator)
    if isinstance(sizes, LowresConfig):
        detokenizer.empty_1SC = prompt_states(folder, [""])
    load_module(detokenizer.diffusion, networks, dtype=torch.float32)
    load_module(detokenizer.decoder, decoder_weights(work), dtype=torch.float32)
    detokenizer.codebook_KE.copy_(tokenizer.quantizer.codebook_KC)
    module = PixelTraining(config, tokenizer, detokenizer, generator)
    drawn = replace(
        config.tokenizer, vision=replace(config.tokenizer.vision, image_size=sizes.size[0]), mean=HALF, std=HALF
    )
    return Stage(
        name=NAME,
        module=module,
        step=lambda module, batch: module.losses(batch),
        trainable=[Trainable(f"detokenizer.{part}.*", config.lr) for part in ("diffusion.unet", "head")],
        data=picture_batches(data, config.batch, drawn, seed=config.seed, keep=config.keep),
        optim=config.optim,
        config=config,
        generators={"noise": generator},
    )


def decoder_weights(work: Path, part: str = "decoder.") -> dict[str, Tensor]:
    """What stage 1 left of what rebuilds features (`decoder.`) or draws from them (`draft.`)."""
    found, prefix = stage_weights(*stage_files(work)), f"detokenizer.{part}"
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------ the mini


class MiniPixelTraining(nn.Module):
    """The mini's image decoder, told features."""

    def __init__(self, config: Config, detokenizer: MiniDetokenizer, looks: Looks | None = None) -> None:
        super().__init__()
        self.config = config
        self.detokenizer = detokenizer
        self.looks = looks

    def losses(self, latents: Tensor, x_INC: Tensor, pixels: Tensor) -> Losses:
        """Velocity error, the draft's error, and where it counts what the pictures look like."""
        model = self.detokenizer
        condition = model.condition(x_INC)
        draft = F.mse_loss(condition.extra_Iehw.float(), latents)
        told_I = torch.rand(len(latents), device=latents.device) >= self.config.untold
        for part in ("tokens_ISC", "extra_Iehw"):
            condition = condition.where(told_I, part)
        drawn, parts = drawing_losses(
            model.denoiser,
            model.codec,
            self.looks,
            self.config.looks,
            Shown(latents, pixels, told_I),
            condition.detach(),
            shift=model.config.shift,
        )
        return Losses(drawn + draft, {**parts, "draft": draft})


def begun(config: Config, data: Frozen, tokenizer: LavitTokenizer) -> MiniPixelTraining:
    """The base denoiser, with the decoder and the draft of stage 1."""
    assert isinstance(config.detokenizer, MiniDetokenizerConfig)
    model = MiniDetokenizer(config.detokenizer, source=tokenizer.source)
    model.decoder.load_state_dict(decoder_weights(data.work))
    model.draft.load_state_dict(decoder_weights(data.work, "draft."))
    model.denoiser.load_state_dict(load_denoiser(data.work / "mini.denoiser" / "weights.safetensors")[0].state_dict())
    model.codec.load_state_dict(data.codec.state_dict())
    model.norm.load_state_dict(data.vision.norm.state_dict())
    model.codebook_KE.copy_(tokenizer.quantizer.codebook_KC)
    module = MiniPixelTraining(config, model, load_looks(config.looks))
    if config.begin is not None:
        read_stage(module, data.work / config.begin)
    return module


def on_bank(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vae, mini.vision, mini.denoiser and both phases of stage 1 under `work`."""
    torch.manual_seed(config.seed)
    data = Frozen(work)
    tokenizer = bank_tokenizer(config.tokenizer, data)
    tokenizer.choose(config.selection)
    module = begun(config, data, tokenizer)
    model = module.detokenizer

    codes_of = cache(lambda split: bank_codes(data, split, tokenizer))  # to ask for them is to hash the tokenizer

    def coded(split: str, i: np.ndarray) -> list[Codes]:
        return [Codes(ids_N, tokenizer.source) for ids_N in unpadded(codes_of(split)[i])]

    order = weighed(data, config.singles)

    def step(module: MiniPixelTraining, numbers: np.ndarray) -> Losses:
        i = order[numbers]
        latents, tokens = data.rows("train", i, "latents", "tokens")
        pixels = data.bank("train").pixels(i)
        if torch.rand(()) < config.true_share:
            return module.losses(latents, tokens[:, 1:], pixels)
        with torch.no_grad():
            x_INC = model.features(coded("train", i))
        return module.losses(latents, x_INC, pixels)

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = data.singles("val", 64)
        pixels, codes = data.bank("val").pixels(singles), coded("val", singles)
        drawing = model.decode(
            codes,
            sources=[None] * len(codes),
            negatives=[None] * len(codes),
            generators=[torch.Generator().manual_seed(k) for k in range(len(codes))],
            sampling=ImageSampling(),
        )
        images = [np.asarray(image) for image in drawing if isinstance(image, PIL.Image.Image)]
        yield "val/codes_psnr", psnr(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1, pixels)
        drafted = model.draft(model.norm(model.features(codes)))
        yield "val/codes_draft_psnr", psnr(model.codec.decode(drafted), pixels)

    return Stage(
        name=NAME,
        module=module,
        step=step,
        trainable=[Trainable(f"detokenizer.{part}.*", config.lr) for part in ("denoiser", "draft")],
        data=IndexBatches(len(order), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )


def stage(
    config: Config, work: Path, data: Path | None = None, vision: Path | None = None, pixels: Path | None = None
) -> Stage:
    """On the pictures under `data` with the files that `on_pictures` needs, from stage 1's weights under `work`; without
    them on the bank under `work`."""
    return on_bank(config, work) if data is None else on_pictures(config, work, data, vision, pixels)
