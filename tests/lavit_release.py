"""A LaVIT release in the published layout, tiny and random: pickled tokenizer and decoders, sharded language model with
its way in, both image decoders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import seed_release
from rebus.checkpoint import Rule, export
from rebus.nn.vit import ViTConfig
from rebus.papers.lavit.convert import DECODER_RULES, ENCODER_RULES, PROJECTOR_RULES, vision_rules
from rebus.papers.lavit.decoder import DecoderConfig
from rebus.papers.lavit.detokenizer import HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.merger import MergerConfig
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.spelling import LavitGrammarConfig
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig
from rebus.papers.lavit.variants import TINY, LavitConfig

CODES, WORDS, LLM_WIDTH = seed_release.CODES, seed_release.WORDS, 16
MERGER = MergerConfig(width=16, depth=2, heads=2, mlp_hidden=24)
DECODER = DecoderConfig(patches=4, code_width=8, width=16, depth=1, heads=2, mlp_hidden=24)
_DRAWING = TINY.detokenizer.diffusion
_PLAIN = {k: v for k, v in _DRAWING.unet.items() if not k.startswith(("addition", "projection"))}
HIGHRES = HighresConfig(DECODER, CODES, _DRAWING, widths=(8, 16), size=(16, 16), steps=2, batch=2)
LOWRES = LowresConfig(
    DECODER, CODES, replace(_DRAWING, unet={**_PLAIN, "cross_attention_dim": 8}), 8, 3, size=(16, 16), steps=2, batch=2
)
CONFIG = LavitConfig(
    tokenizer=LavitTokenizerConfig(
        vision=ViTConfig(image_size=16, patch=8, width=16, depth=2, heads=2, mlp_hidden=24),
        merger=MERGER,
        codebook_size=CODES,
        code_width=8,
    ),
    projector=MERGER,
    grammar=LavitGrammarConfig(
        codes=CODES, patches=4, fewest=1, most=3, begin_image=WORDS, end_image=WORDS + 1, first_code=WORDS + 2
    ),
    detokenizer=HIGHRES,
)


@dataclass
class Release:
    """What was written."""

    tokenizer: LavitTokenizer
    language: LlamaForCausalLM
    way_in: LavitInputProjector
    highres: LavitDetokenizer
    lowres: LavitDetokenizer


def release(folder: Path) -> Release:
    """All files of a release, in its folders; the modules that they hold."""
    seeing, language = folder / "visual_tokenizer", folder / "language_model"
    seeing.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tokenizer, way_in = LavitTokenizer(CONFIG.tokenizer).eval(), LavitInputProjector(MERGER, LLM_WIDTH).eval()
        highres, lowres = LavitDetokenizer(HIGHRES).eval(), LavitDetokenizer(LOWRES).eval()
        lowres.empty_1SC.normal_()
        for module in (tokenizer, way_in, highres.decoder, highres.head, lowres.decoder, lowres.head):
            for parameter in module.parameters():  # nothing is left that another tensor could stand for
                parameter.data += 0.1 * torch.randn_like(parameter)
    held = tokenizer.state_dict()
    vision = {name: x for name, x in held.items() if name.startswith("visual_encoder.")}
    leftovers = {"norm.weight": torch.ones(16), "norm.bias": torch.ones(16)}
    leftovers |= {"head.weight": torch.ones(5, 16), "head.bias": torch.ones(5)}
    _pickle(vision, vision_rules(""), seeing / "eva_vitg_psz14.bin", leftovers)
    _pickle({k: x for k, x in held.items() if k not in vision}, ENCODER_RULES, seeing / "tokenizer_encoder.bin")
    model = seed_release.write_language(language)
    _pickle(way_in.state_dict(), PROJECTOR_RULES, language / "visual_weight.bin")
    for made, file, pixels in (
        (highres, "highres_tokenizer_decoder.bin", "highres_pixel_decoding"),
        (lowres, "tokenizer_decoder.bin", "pixel_decoding"),
    ):
        made.codebook_KE.copy_(tokenizer.quantizer.codebook_KC.detach())
        _pickle(nn.ModuleDict({"decoder": made.decoder, "head": made.head}).state_dict(), DECODER_RULES, seeing / file)
        made.diffusion.unet.save_pretrained(folder / pixels / "unet")
        made.diffusion.vae.save_pretrained(folder / pixels / "vae", safe_serialization=False)
        stored = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        diffusers.EulerDiscreteScheduler(**stored).save_pretrained(folder / pixels / "scheduler")
    torch.save(lowres.empty_1SC, folder / "pixel_decoding" / "uncond_embeddings.bin")
    return Release(tokenizer, model, way_in, highres, lowres)


def _pickle(
    ours: dict[str, Tensor], rules: tuple[Rule, ...], path: Path, more: dict[str, Tensor] | None = None
) -> None:
    theirs = export(ours, rules)
    torch.save({name: theirs[name].clone() for name in theirs} | (more or {}), path)
