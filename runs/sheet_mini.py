"""Draws the sheet of what each part of seed:mini keeps of pictures of split `val`, and prints its figures.

    python runs/sheet_mini.py state weights/sheets/seed_mini_chain.png

Columns: the picture; the latent codec alone; what the draft makes of the true image embedding; the denoiser from there;
the draft from codes; the denoiser from codes. Dimension key: I images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from rebus.mini.denoiser import load_denoiser, psnr
from rebus.mini.frozen import Frozen
from rebus.papers.seed.bank import bank_codes, read_vision
from rebus.papers.seed.detokenizer import SeedDetokenizer, SeedDetokenizerConfig
from rebus.papers.seed.stages.stage2_codebook import load_tokenizer
from rebus.papers.seed.variants import MINI_TOKENIZER
from rebus.train.packing import gather
from rebus.visual import Codes, ImageSampling

SHOWN = 24


@torch.no_grad()
def main(work: Path, output: Path) -> None:
    data = Frozen(work)
    weights = [work / f"seed.{name}" / "weights.safetensors" for name in ("stage1_qformer", "stage2_codebook")]
    tokenizer = load_tokenizer(MINI_TOKENIZER, *weights).eval()
    read_vision(tokenizer, data.vision)
    model = SeedDetokenizer(SeedDetokenizerConfig(), tokenizer).eval()
    model.codec.load_state_dict(data.codec.state_dict())
    chosen = np.linspace(0, len(data.bank("val")) - 1, SHOWN).astype(int)
    pixels, (embedding,) = data.bank("val").pixels(chosen), data.rows("val", chosen, "embeddings")
    codes = torch.from_numpy(np.array(bank_codes(data, "val", tokenizer)[chosen]))
    columns = {"picture": pixels, "codec": data.codec.decode(data.codec.encode(pixels))}
    denoiser, draft = load_denoiser(work / "mini.denoiser" / "weights.safetensors")
    for network, part in ((model.denoiser, denoiser), (model.draft, draft)):
        network.load_state_dict(part.state_dict())
    columns |= drawn(model, embedding, "embedding")
    own = gather(work, {"d": [("seed.detokenizer", "detokenizer.")]})["d"]
    for name, network in (("denoiser.", model.denoiser), ("draft.", model.draft)):
        network.load_state_dict({k.removeprefix(name): x for k, x in own.items() if k.startswith(name)})
    columns["codes, draft"] = drawn(model, tokenizer.image_embedding(codes), "codes")["codes, draft"]
    columns["codes"] = sampled(model, [Codes(ids, tokenizer.source) for ids in codes])
    for name, rebuilt in columns.items():
        if name != "picture":
            print(f"{name}: {psnr(rebuilt, pixels):.2f} dB")
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(list(columns.values())).save(output)


def drawn(model: SeedDetokenizer, embedding_ID: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """What draft and denoiser make of image embeddings: pixels [I, 3, 64, 64] each."""
    from rebus.diffusion.flow import noise_like, sample

    condition = model.condition(embedding_ID, 0, torch.zeros_like(embedding_ID))
    blank = model.denoiser.blank(len(embedding_ID), like=embedding_ID)
    generators = [torch.Generator().manual_seed(k) for k in range(len(embedding_ID))]
    noise = noise_like(condition.extra_Iehw.shape[1:], generators, like=embedding_ID)
    c = model.config
    *_, (_, latents) = sample(
        model.denoiser, noise, condition, blank, steps=c.steps, guidance=c.guidance, shift=c.shift
    )
    return {f"{name}, draft": model.codec.decode(condition.extra_Iehw), name: model.codec.decode(latents)}


def sampled(model: SeedDetokenizer, codes: list[Codes]) -> torch.Tensor:
    """The same through the detokenizer's own interface."""
    images = model.decode(
        codes,
        sources=[None] * len(codes),
        negatives=[None] * len(codes),
        generators=[torch.Generator().manual_seed(k) for k in range(len(codes))],
        sampling=ImageSampling(),
    )
    pixels = [np.asarray(image) for image in images if isinstance(image, PIL.Image.Image)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def sheet(columns: list[torch.Tensor], blocks: int = 3) -> PIL.Image.Image:
    """Pictures of one row beside each other, in `blocks` blocks."""
    size, rows = columns[0].shape[-1] + 4, -(-len(columns[0]) // blocks)
    page = PIL.Image.new("RGB", (blocks * (len(columns) * size + 12), rows * size), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column):
            image = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
            place = (y // rows * (len(columns) * size + 12) + x * size, y % rows * size)
            page.paste(PIL.Image.fromarray(image), place)
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
