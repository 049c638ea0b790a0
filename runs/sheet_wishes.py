"""Draws a sheet of wishes by a model: below each its likeliest drawing, and the best of eight by its own reading; with
`--pictures` instead pictures of `val` and `train` and what is drawn from their own tokens.

    python runs/sheet_wishes.py seed:mini weights/sheets/seed_mini_wishes.png
    python runs/sheet_wishes.py seed:v1-mini weights/sheets/seed_v1_mini_rebuilt.png --weights DIR --pictures state/emoji
"""

from __future__ import annotations

import argparse
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import torch

from rebus.data.pictures import load_pictures
from rebus.document import Document, Image, user
from rebus.sampling import Sampling
from rebus.system import System, load, reply
from rebus.visual import ImageSampling

WISHES = (
    "a snowman",
    "a rose",
    "a red apple",
    "a cat",
    "a fish",
    "a house",
    "a blue car",
    "a pig",
    "a rocket",
    "a banana",
    "an evergreen tree",
    "a sun",
    "a red heart",
    "a dog",
    "a pizza",
    "a frog",
    "a ghost",
    "a mushroom",
    "grapes",
    "a key",
    "a violin",
    "a flag of Japan",
    "a hamburger",
    "a wolf",
)
ACROSS = 12
SIDE = 96


def drawings(system: System, best_of: int) -> list[list[PIL.Image.Image]]:
    """For each wish the likeliest drawing and the best of several."""
    settings = [
        Sampling(max_new_tokens=128, guidance=1.5),
        Sampling(max_new_tokens=128, guidance=1.5, temperature=0.8, best_of=best_of),
    ]
    columns = []
    for wish in WISHES:
        document = Document((user(f"Draw {wish}."),))
        column = []
        for sampling in settings[: 1 if best_of == 1 else 2]:
            generator = torch.Generator().manual_seed(0)
            parts = reply(system, document, modality="image", sampling=sampling, generator=generator)
            (drawn,) = [part.pixels for part in parts if isinstance(part, Image) and part.pixels is not None][-1:]
            column.append(drawn)
        columns.append(column)
    return columns


def rebuilt(system: System, folder: Path) -> list[list[PIL.Image.Image]]:
    """Pictures, half of split `val` and half of `train`, above what is drawn from their tokens."""
    pictures = load_pictures(folder)
    found = []
    for split in ("val", "train"):
        rows = [row for row in pictures.rows(split) if not pictures.skin_tone[row] and not pictures.gender[row]]
        step = len(rows) // (len(WISHES) // 2)
        found += [Image(pictures.image(row, 64)) for row in rows[::step][: len(WISHES) // 2]]
    tokens = [image.generated for image in system.tokenizer.encode(found, {"generation"})]
    generators = [torch.Generator().manual_seed(number) for number in range(len(found))]
    nothing = [None] * len(found)
    made = system.detokenizer.decode(
        tokens, sources=nothing, negatives=nothing, generators=generators, sampling=ImageSampling()
    )
    drawn = [image for image in made if isinstance(image, PIL.Image.Image)]
    return [[image.pixels, again] for image, again in zip(found, drawn, strict=True)]


def main(args: argparse.Namespace) -> None:
    """Writes the sheet."""
    system = load(args.model, weights=args.weights, adapter=args.adapter)
    columns = rebuilt(system, args.pictures) if args.pictures else drawings(system, args.best_of)
    rows = len(columns[0])
    high = rows * (SIDE + 4) + 16
    sheet = PIL.Image.new("RGB", (ACROSS * (SIDE + 4), -(-len(columns) // ACROSS) * high), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        x, y = number % ACROSS * (SIDE + 4), number // ACROSS * high
        if not args.pictures:
            pen.text((x + 2, y), WISHES[number], fill="black")
        for k, picture in enumerate(column):
            sheet.paste(picture.resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST), (x, y + 14 + k * (SIDE + 4)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("output", type=Path)
    options.add_argument("--weights", type=Path)
    options.add_argument("--adapter", help="a speciality of SEED-X")
    options.add_argument(
        "--pictures", type=Path, help="the embedded pictures, to rebuild some instead of drawing wishes"
    )
    options.add_argument("--best-of", type=int, default=8)
    main(options.parse_args())
