"""Build the embedded pictures: fetch the emoji sets, render every drawing, find equal ones, write Parquet shards.

Rendering goes in parts of a few hundred drawings; finished parts stay on disk, so a build that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import PIL.Image

from rebus.data.emoji_sets import SETS, Dictionary, Drawing, drawings, licence_of
from rebus.data.parquet import column_names, read_columns, write_rows
from rebus.data.splits import SALT, split_of
from rebus.packages import PACKAGES, Progress

FORM = 1
"""Raised when labels, splits or pixels would come out differently, so that older folders are built again."""
PART = 256
"""Drawings rendered between two writes."""
SHARD = 2000
"""Pictures in one file."""

_SPLIT_ORDER = ("concepts", "pairs", "val", "train")
"""Of equal pictures, one that is held out wins, so that no training picture equals a held-out one."""


def build(folder: Path, cache: Path, progress: Progress | None = None, *, workers: int = 2) -> dict[str, Any]:
    """Build the pictures into `folder`; what was built is also written there as `pictures.json`.

    Returns counts per split and family. A folder that is complete is left as it is. Raises RebusError if a package
    cannot be fetched.
    """
    report = progress or (lambda what, done, of: None)
    done = folder / "pictures.json"
    recipe = {
        "form": FORM,
        "salt": SALT,
        "packages": {name: PACKAGES[name].sha256 for name in (*SETS, "emojibase-data")},
    }
    if done.exists():
        built = json.loads(done.read_text())
        if built["recipe"] == recipe:
            return built["counts"]
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = Dictionary(cache, progress)
    known = [d for d in drawings(cache, progress) if dictionary.meaning(d.hexcode) is not None]
    parts = _render_all(known, folder / "parts", report, workers)
    rows = _describe(parts, dictionary)
    for old in folder.glob("pictures-*.parquet"):
        old.unlink()
    shards = [rows[start : start + SHARD] for start in range(0, len(rows), SHARD)]
    for number, shard in enumerate(shards):
        report("writing shards", number, len(shards))
        write_rows(shard, folder / f"pictures-{number:03}-of-{len(shards):03}.parquet")
    counts = count(rows)
    scratch = done.with_suffix(".writing")
    scratch.write_text(json.dumps({"recipe": recipe, "counts": counts}, indent=1))
    scratch.replace(done)
    for part in parts:
        part.unlink()
    (folder / "parts").rmdir()
    report("built the pictures", len(rows), len(rows))
    return counts


def count(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many pictures, (concept, family) pairs and concepts each split has, and how many pictures of each family."""
    counts = {}
    for split in _SPLIT_ORDER:
        of_split = [row for row in rows if row["split"] == split]
        counts[split] = {
            "pictures": len(of_split),
            "pairs": len({(row["concept"], row["family"]) for row in of_split}),
            "concepts": len({row["concept"] for row in of_split}),
            "families": dict(Counter(row["family"] for row in of_split)),
        }
    return counts


# ---------------------------------------------------------------------------------------------- rendering


def _render_all(
    known: list[Drawing], folder: Path, report: Callable[[str, int, int], None], workers: int
) -> list[Path]:
    """Render what is not rendered yet; the paths of all parts, in order."""
    folder.mkdir(exist_ok=True)
    chunks = [known[start : start + PART] for start in range(0, len(known), PART)]
    names = hashlib.sha256("\n".join(f"{d.package}/{d.name}/{d.hexcode}" for d in known).encode()).hexdigest()[:8]
    paths = [folder / f"{names}-{number:03}.parquet" for number in range(len(chunks))]
    missing = [(chunk, path) for chunk, path in zip(chunks, paths, strict=True) if not path.exists()]
    finished = len(chunks) - len(missing)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(render_part, *zip(*missing, strict=True)) if missing else ():
            finished += 1
            report("rendering pictures", min(finished * PART, len(known)), len(known))
    return paths


def render_part(chunk: list[Drawing], path: Path) -> None:
    """Render some drawings and write them as one Parquet file."""
    rows = []
    for drawing in chunk:
        image_128 = _render(drawing)
        image_64 = image_128.reduce(2)
        rows.append(
            {
                "package": drawing.package,
                "name": drawing.name,
                "hexcode": drawing.hexcode,
                "pixels": hashlib.sha256(image_64.tobytes()).hexdigest(),
                "png_64": _png(image_64),
                "png_128": _png(image_128),
            }
        )
    write_rows(rows, path)


def _render(drawing: Drawing) -> PIL.Image.Image:
    """128 x 128 with alpha multiplied in (mode RGBa), which is the form in which pictures may be averaged."""
    if isinstance(drawing.source, Path):
        with PIL.Image.open(drawing.source) as opened:
            return opened.convert("RGBA").convert("RGBa").resize((128, 128), PIL.Image.Resampling.BOX)
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing.source, width=128, height=128))
    with PIL.Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGBA").convert("RGBa")
    if image.size == (128, 128):
        return image
    square = PIL.Image.new("RGBa", (128, 128))
    image.thumbnail((128, 128), PIL.Image.Resampling.BOX)
    square.paste(image, ((128 - image.width) // 2, (128 - image.height) // 2))
    return square


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGBA").save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------- what they show


def _describe(parts: list[Path], dictionary: Dictionary) -> list[dict[str, Any]]:
    """All distinct pictures with what is known of them, in a fixed order."""
    rows = []
    for path in parts:
        columns = read_columns(path, column_names(path))
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            meaning = dictionary.meaning(row["hexcode"])
            assert meaning is not None  # unknown ones were not rendered
            family, variant = SETS[row["package"]]
            rows.append(
                row
                | asdict(meaning)
                | {
                    "key": "/".join(part for part in (family, variant, row["name"]) if part),
                    "family": family,
                    "variant": variant,
                    "split": split_of(meaning.concept, family),
                    "licence": licence_of(row["package"]),
                }
            )
    rows = _distinct(rows)
    _weigh(rows)
    return rows


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each set of equal pictures: a held-out one if there is one, else the one with the plainest name."""
    equal = defaultdict(list)
    for number, row in enumerate(rows):
        equal[row.pop("pixels")].append(number)
    kept = []
    for numbers in equal.values():
        kept.append(
            min(
                numbers,
                key=lambda n: (
                    _SPLIT_ORDER.index(rows[n]["split"]),
                    bool(rows[n]["skin_tone"]),
                    bool(rows[n]["gender"]),
                    n,
                ),
            )
        )
    return [rows[number] for number in sorted(kept)]


def _weigh(rows: list[dict[str, Any]]) -> None:
    """Set `weight`: a (concept, family) weighs 1, or 1.5 if it has several pictures; its plain pictures share 1 of
    that when there are variants of skin tone, gender or direction beside them, which share the rest."""
    pictures = defaultdict(list)
    for row in rows:
        pictures[row["concept"], row["family"]].append(row)
    for together in pictures.values():
        plain = [
            row for row in together if not row["skin_tone"] and not row["gender"] and row["hexcode"] == row["concept"]
        ]
        plain = plain or [row for row in together if not row["skin_tone"]] or together
        variants = [row for row in together if not any(row is p for p in plain)]
        of_plain = 1.0 if variants or len(plain) == 1 else 1.5
        for row in plain:
            row["weight"] = of_plain / len(plain)
        for row in variants:
            row["weight"] = 0.5 / len(variants)
