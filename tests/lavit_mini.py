"""What LaVIT's mini stages read, small and random: a bank of pictures with captions, the shared parts, and a system."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rebus.diffusion.draft import GridDraftConfig
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.document import Document
from rebus.mini import denoiser
from rebus.mini.vision import MINI_VIT, MiniVision, VisionConfig
from rebus.nn.patch_codes import PatchCodesConfig
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.lavit.decoder import DecoderConfig
from rebus.papers.lavit.language import LanguageConfig
from rebus.papers.lavit.language_training import LanguageTraining
from rebus.papers.lavit.merger import MergerConfig
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizerConfig
from rebus.papers.lavit.reconstruction import ReconstructionConfig
from rebus.papers.lavit.spelling import mini
from rebus.papers.lavit.tokenizer import LavitTokenizerConfig
from rebus.papers.lavit.variants import HALF, TINY, LavitConfig
from rebus.train import FitResult, Stage, fit
from rebus.visual import Patches

PICTURES = Path(__file__).parent / "data" / "pictures"
COUNT = {"train": 12, "val": 6}
MERGER = MergerConfig(width=192, depth=1, heads=4, mlp_hidden=64, grid=8, softmax="masked")
TOKENIZER = LavitTokenizerConfig(
    vision=MINI_VIT, merger=MERGER, codebook_size=32, code_width=8, selection="threshold", mean=HALF, std=HALF
)
DECODER = DecoderConfig(patches=64, code_width=8, width=192, depth=1, heads=4, mlp_hidden=64)
DRAFT = GridDraftConfig(widths=(16, 16), linear=True)
RECONSTRUCTION = ReconstructionConfig(
    tokenizer=TOKENIZER, decoder=DECODER, share_of="batch", gradient="decoder", draft=DRAFT, draft_weight=0.5
)
SYSTEM = LavitConfig(
    tokenizer=TOKENIZER,
    projector=MERGER,
    grammar=mini(262, 32, 64, fewest=2, most=60),
    language=LanguageConfig(
        base=TINY.language.base,
        new_words=34,
        lora_rank=2,
        lora_alpha=4,
        codes=PatchCodesConfig(
            begin=262,
            end=263,
            codes=32,
            width=8,
            draws=WordDrawingsConfig(words=3, rank=4, hidden=8, depth=1, choices=200, apart=2),
        ),
    ),
    detokenizer=MiniDetokenizerConfig(decoder=DECODER, codes=32, draft=DRAFT, steps=2),
    weights="lavit-mini",
    base="mini",
    words=WordReadingsConfig(grid=2, words=2, rank=8, names=128),
)
WIDE = replace(SYSTEM, grammar=replace(SYSTEM.grammar, visual_loss=True))


def write_work(work: Path) -> Path:
    """The bank under `work`, its captions as vectors, the weights of the shared parts, and the pictures."""
    rng = np.random.default_rng(0)
    for name in ("bank", "cache", "mini.vision", "mini.vae", "mini.denoiser"):
        (work / name).mkdir(parents=True)
    (work / "emoji").symlink_to(PICTURES)
    for split, count in COUNT.items():
        coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.save(work / "bank" / f"{split}.npy", coarse.repeat(8, 1).repeat(8, 2))
        about = {"captions": [f"a thing {n % 5}" for n in range(count)], "kinds": ["single"] * count}
        (work / "bank" / f"{split}.json").write_text(json.dumps(about))
        np.save(work / "cache" / f"captions.{split}.npy", rng.normal(size=(count, 4)).astype(np.float16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        parts = {
            "mini.vision": {f"vision.{k}": v for k, v in MiniVision(VisionConfig()).state_dict().items()},
            "mini.vae": {f"codec.{k}": v for k, v in LatentCodec(VaeConfig()).state_dict().items()},
            "mini.denoiser": denoiser.DenoiserTraining(denoiser.CONFIGS["mini"], caption_width=4).state_dict(),
        }
    for name, tensors in parts.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, work / name / "weights.safetensors")
    return work


def run(stage: Stage, work: Path) -> tuple[set[str], FitResult]:
    """What a run of the stage has changed, and what it says."""
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    result = fit(stage, work / stage.name, device="cpu")
    return changed(before, stage.module.state_dict()), result


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names of what is another."""
    return {name for name, x in after.items() if not torch.equal(before[name], x)}


def tops(names: set[str], depth: int = 2) -> set[str]:
    """How names begin."""
    return {".".join(name.split(".")[:depth]) for name in names}


def replaced(stage: Stage) -> Stage:
    """The stage without what measures it."""
    stage.evals = []
    return stage


def targets(module: LanguageTraining, document: Document) -> tuple[int, int]:
    """How many words are learned at the places of vectors, and elsewhere."""
    (words,) = module.sequences([document])
    ((start, stop),) = words.input_spans
    inside = sum(words.target[start:stop])
    assert isinstance(words.inputs[0], Patches) and int(words.inputs[0].keep_N.sum()) == stop - start
    return inside, sum(words.target) - inside
