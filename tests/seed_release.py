"""A SEED release in the published layout, tiny and random: pickled tokenizer, sharded language model, image decoder."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
)

from rebus.checkpoint import export
from rebus.diffusion.pipeline import DiffusionConfig
from rebus.nn.vit import ViTConfig
from rebus.papers.seed.convert import RULES
from rebus.papers.seed.language import CodebookInit
from rebus.papers.seed.published import Published
from rebus.papers.seed.published_decoder import TextLikeConfig
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.spelling import SeedGrammarConfig, official
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import V1, V2_8B, SeedConfig

CODES, PER_IMAGE, WIDTH = 16, 4, 32
TOKENIZER = SeedTokenizerConfig(
    vision=ViTConfig(image_size=16, patch=8, width=16, depth=1, heads=2, mlp_hidden=32),
    qformer=QFormerConfig(queries=PER_IMAGE, width=16, depth=2, heads=2, mlp_hidden=32, source_width=16, dropout=0.0),
    codebook_size=CODES,
    code_width=8,
    decoder_depth=1,
    decoder_heads=2,
    decoder_hidden=32,
    head_widths=(8, 4),
    image_width=WIDTH,
)
CONFIG: SeedConfig = replace(V2_8B, tokenizer=TOKENIZER, grammar=SeedGrammarConfig(codes=CODES, per_image=PER_IMAGE))
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
}
LABELLED = {**UNET, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("▁c", -1.0, 1),
    ("at", -2.0, 1),
    ("▁cat", -3.0, 1),
    *((letter, -4.0, 1) for letter in "▁cat"),
]
WORDS = len(PIECES)


def sentencepiece() -> bytes:
    """A SentencePiece file of PIECES."""
    out = b""
    for piece, score, kind in PIECES:
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        out += b"\x0a" + bytes([len(body)]) + body
    return out


def added_tokens() -> dict[str, int]:
    """As published: the codes, then the two marks."""
    names = [*(f"<img_{code:05d}>" for code in range(CODES)), "<img>", "</img>"]
    return {name: WORDS + number for number, name in enumerate(names)}


def write_tokenizer(folder: Path, config: SeedTokenizerConfig = TOKENIZER) -> SeedTokenizer:
    """`seed_quantizer.pt` and `eva_vit_g.pth`, leftovers included; the tokenizer that they hold."""
    tokenizer = SeedTokenizer(config, generator=torch.Generator().manual_seed(1))
    theirs = export(tokenizer.state_dict(), RULES["tokenizer"])
    seen = {name.removeprefix("visual_encoder."): theirs[name] for name in theirs if name.startswith("visual_encoder.")}
    seen |= {name.replace("blocks.0.", "blocks.39."): x for name, x in seen.items() if name.startswith("blocks.0.")}
    rest = {name: theirs[name].clone() for name in theirs if not name.startswith("visual_encoder.")}
    rest["Qformer.bert.embeddings.position_ids"] = torch.arange(16)[None]
    rest["Qformer.bert.encoder.layer.0.intermediate.dense.weight"] = torch.ones(3, 3)
    torch.save(rest, folder / "seed_quantizer.pt")
    torch.save({"model": seen}, folder / "eva_vit_g.pth")
    return tokenizer


def write_language(folder: Path, *, dtype: torch.dtype = torch.float16, safetensors: bool = False) -> LlamaForCausalLM:
    """A sharded LLaMA with the leftovers of old versions and the 8B release's wrong ids, and its tokenizer. Returns the
    model with the same weights in float32."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=WORDS + CODES + 2,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    state |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    if safetensors:
        copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size="20KB")
    else:
        names, where = list(state), {}
        for number, shard in enumerate((names[::2], names[1::2]), 1):
            file = f"pytorch_model-{number:05}-of-00002.bin"
            torch.save({name: state[name].clone() for name in shard}, folder / file)
            where |= dict.fromkeys(shard, file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
        held = config.to_dict() | {"pad_token_id": -1, "torch_dtype": "float16"}
        (folder / "config.json").write_text(json.dumps(held))
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    (folder / "added_tokens.json").write_text(json.dumps(added_tokens()))
    return model


def write_decoder(folder: Path, *, unclip: bool = True) -> diffusers.DiffusionPipeline:
    """A Stable unCLIP pipeline, or without `unclip` a Stable Diffusion one, random; what was written."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = diffusers.UNet2DConditionModel.from_config(LABELLED if unclip else UNET)
        vae = diffusers.AutoencoderKL.from_config(VAE)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=516,
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                bos_token_id=512,
                eos_token_id=513,
                pad_token_id=513,
            )
        ).eval()
        seeing = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                image_size=8,
                patch_size=8,
                projection_dim=WIDTH,
            )
        )
    tokenizer = clip_tokenizer(folder / "vocab")
    shared = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet.eval(), "vae": vae.eval()}
    sampler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
    if unclip:
        normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(WIDTH)
        normalizer.mean.data, normalizer.std.data = torch.full((1, WIDTH), 0.1), torch.full((1, WIDTH), 2.0)
        scheduler = diffusers.PNDMScheduler(**sampler, prediction_type="v_prediction", steps_offset=1)
        pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
            **shared,
            scheduler=scheduler,
            feature_extractor=CLIPImageProcessor(),
            image_encoder=seeing,
            image_normalizer=normalizer,
            image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        )
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **shared,
            scheduler=diffusers.DDIMScheduler(**{k: v for k, v in sampler.items() if k != "skip_prk_steps"}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer in CLIP's files: bytes, bytes that end a word, and the two marks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir()
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def release(folder: Path) -> Published:
    """All files of a release."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_language(folder / "seed_llama_8b")
    write_decoder(folder / "unclip")
    return Published(
        quantizer=folder / "seed_quantizer.pt",
        vision=folder / "eva_vit_g.pth",
        language=folder / "seed_llama_8b",
        decoder=folder / "unclip",
    )


OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
BYTES = 262
V1_CONFIG: SeedConfig = replace(
    V1,
    tokenizer=replace(TOKENIZER, head="reverse", reverse_queries=8, reverse_depth=2),
    grammar=replace(
        official("v1"),
        codes=CODES,
        per_image=PER_IMAGE,
        first_code=BYTES,
        begin_image=BYTES + CODES,
        end_image=BYTES + CODES + 1,
        pad="<unk>",  # the byte tokenizer has no <pad>
    ),
    language=replace(
        V1.language, base=OPT, new_words=CODES + 2, rows=CodebookInit(CODES, 8, 0.5), lora_rank=2, lora_dropout=0.0
    ),
    detokenizer=TextLikeConfig(
        DiffusionConfig(unet=UNET, vae=VAE, scheduler={"_class_name": "DDIMScheduler"}), prompt=(8, WIDTH), steps=2
    ),
)
"""SEED v1 with another language model of OPT's kind."""
