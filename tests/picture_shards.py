"""Tar shards of small pictures with captions, some of them damaged: what bulk tokenising is tested on."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import PIL.Image


def picture(number: int, side: int = 24) -> bytes:
    """A picture that no other number has, as PNG."""
    image = PIL.Image.new("RGB", (side, side), (37 * number % 256, 91 * number % 256, 151 * number % 256))
    image.paste((255 - 13 * number % 256, 20, 7 * number % 256), (0, 0, side // 2, side // 3))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def write_shard(path: Path, files: list[tuple[str, bytes]]) -> Path:
    """A tar file with these members."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(data), 1_700_000_000
            tar.addfile(about, io.BytesIO(data))
    return path


def sample(number: int) -> list[tuple[str, bytes]]:
    """A picture and its caption."""
    return [(f"{number:05}.png", picture(number)), (f"{number:05}.txt", f"thing {number}".encode())]


def chat(number: int) -> list[tuple[str, bytes]]:
    """A question about a picture and an answer with another, as messages that name their files."""
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": "0.png"}, {"type": "text", "text": "More?"}]},
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "1.png"}}]},
    ]
    key = f"{number:05}"
    return [
        (f"{key}.0.png", picture(number)),
        (f"{key}.1.png", picture(number + 500)),
        (f"{key}.json", json.dumps({"messages": messages}).encode()),
    ]


def write_shards(folder: Path, shards: int, each: int) -> list[Path]:
    """Shards of `each` samples; the third picture of every shard is damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        files = [file for number in range(shard * each, (shard + 1) * each) for file in sample(number)]
        if each > 2:
            files[4] = (files[4][0], files[4][1][:60])
        paths.append(write_shard(folder / f"{shard:05}.tar", files))
    return paths
