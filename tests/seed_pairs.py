"""What SEED's first two stages read on real data, tiny: shards of pairs, BERT's tokenizer, CLIP's image encoder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import tokenizers
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
THINGS = ("cat", "dog", "house", "tree")


def write_pairs(folder: Path, count: int = 16, *, side: int = 24) -> Path:
    """A shard of pictures and captions; a picture has the colour that its caption names."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(count):
            colour = list(COLOURS)[number % len(COLOURS)]
            add(tar, f"{number:04}.png", png(COLOURS[colour], side))
            said = {"caption": f"A {colour} {THINGS[number // 4 % 4]}!", "similarity": number / count}
            add(tar, f"{number:04}.json", json.dumps(said).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def png(colour: tuple[int, int, int], side: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_bert(folder: Path) -> Path:
    """A tokenizer in BERT's manner that knows the words of the captions."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *COLOURS, *THINGS]
    model = tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:4])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_clip(folder: Path, *, size: int = 16, width: int = 32) -> Path:
    """A CLIP image encoder."""
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=size,
        patch_size=8,
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder
