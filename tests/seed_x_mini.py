"""A SEED-X of the mini's kind, small and random: on the shared vision encoder, with a language model of bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import torch
from safetensors.torch import save_file
from tests import tiny

from lavit_mini import write_work
from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.diffusion.draft import GridDraftConfig
from rebus.document import Document, Image, assistant, user
from rebus.mini.pack import pack as pack_shared
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.seed_x.adapter import AdapterConfig
from rebus.papers.seed_x.build import build, own_tensors
from rebus.papers.seed_x.detokenizer import EDITOR, SeedXDetokenizer
from rebus.papers.seed_x.language import LanguageConfig, LoraConfig, ProjectorsConfig
from rebus.papers.seed_x.spelling import mini, new_words
from rebus.papers.seed_x.stages import instruct, pretrain
from rebus.papers.seed_x.variants import MINI, TINY
from rebus.train import Optim

DRAWER = replace(
    EDITOR,
    adapter=AdapterConfig(
        in_width=192, latents=4, width=16, depth=1, heads=2, head_width=8, mlp_ratio=1, widths=(96, 96), pooled=512
    ),
    draft=GridDraftConfig(token_width=8, widths=(8, 8)),
    steps=1,
    keep_width=8,
)
SYSTEM = replace(
    MINI,
    projectors=ProjectorsConfig(
        into=ResamplerConfig(grid=4, width=32, heads=2, source_width=192),
        out_of=ResamplerConfig(grid=4, width=192, heads=4, source_width=32),
        says=WordDrawingsConfig(rank=4, hidden=8, depth=1, choices=256),
        words=WordReadingsConfig(grid=2, rank=8, names=128),
    ),
    grammar=mini(262, 16, vectors=64, context=2048, locations=32),
    language=LanguageConfig(
        base=TINY.language.base, new_words=new_words(16, 32), lora=LoraConfig(rank=2, alpha=2, dropout=0.0)
    ),
    detokenizer=DRAWER,
)
SHORT = Optim(steps=3, precision="fp32")
PRETRAIN = replace(
    pretrain.CONFIGS["mini"],
    system=SYSTEM,
    projector_start="names",
    measured=1,
    batch=3,
    base_dtype="fp32",
    lr=1e-2,
    row_lr=1e-2,
    optim=SHORT,
)
LORA = LoraConfig(rank=2, alpha=4, dropout=0.0, targets=("q_proj", "v_proj"))
INSTRUCT = replace(
    instruct.CONFIGS["mini"], lora=LORA, measured=1, batch=3, base_dtype="fp32", lr=2e-2, replies=0.0, optim=SHORT
)


def write_decoder(work: Path) -> None:
    """Random weights of the image decoder's second stage, and of what keeps a source, under `work`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawer = SeedXDetokenizer(DRAWER)
        with torch.no_grad():  # a fresh denoiser says zero whatever it is told
            for parameter in drawer.denoiser.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    tensors = {f"detokenizer.{k}": v.contiguous() for k, v in drawer.state_dict().items()}
    for stage, own in (("seed_x.detokenizer2", False), ("seed_x.keeping", True)):
        (work / stage).mkdir()
        learned = {name: x for name, x in tensors.items() if name.startswith("detokenizer.keep.") == own}
        save_file(learned, work / stage / "weights.safetensors")


def write_all(folder: Path) -> Path:
    """A work folder with everything that pre-training needs, and what packing needs besides; the shared parts packed."""
    work = write_work(folder / "work")
    write_decoder(work)
    pack_shared(work, folder / "weights" / "mini")
    return work


def write_base(folder: Path, seed: int = 0, name: str = "seed_x-mini") -> Path:
    """A saved system of random weights that say something, beside the shared parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        system = build(replace(SYSTEM, weights=None), None, ("tokenizer", "lm", "detokenizer"), "cpu", torch.float32)
        tiny.liven(system.lm)
    parts = own_tensors(SYSTEM, system.tokenizer, system.lm, system.detokenizer)  # type: ignore[arg-type]
    about = SavedSystem("seed_x:mini", config_to_json(SYSTEM), base="mini")
    return save_system(folder / "weights" / name, about, {k: v for k, v in parts.items() if v}, overwrite=True).folder


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (64, 64)) -> Image:
    """A picture of one colour with a corner of another."""
    pixels = PIL.Image.new("RGB", size, colour)
    pixels.paste((20, 20, 220), (0, 0, max(1, size[0] // 3), max(1, size[1] // 2)))
    return Image(pixels)


def different() -> list[Document]:
    """Documents with no, one, two and three images, of one view and of several."""
    wide, square = picture((0, 120, 0), (128, 64)), picture((9, 90, 90), (128, 128))
    return [
        Document((user("Hello."), assistant("Good morning."))),
        Document((user(wide, "What is it?"), assistant("A field."))),
        Document((user("Draw a red house, please."), assistant(picture()))),
        Document((user(square, picture(), "Join them."), assistant("So: ", picture((4, 4, 99))))),
        Document((user(picture(), "Make it blue."), assistant(picture((1, 1, 80))), user("Greener."), assistant(wide))),
    ]
