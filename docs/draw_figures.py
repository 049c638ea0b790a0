"""Draws the figures of `docs/concepts.md` from real runs of seed:mini and of SEED-X's views, into `docs/images`.

    python docs/draw_figures.py

About a minute on two cores. Needs the extra train (matplotlib) and the base language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import PIL.Image
import torch

from rebus import Document, Image, assistant, load, user
from rebus.images import open_image
from rebus.papers.seed_x import views
from rebus.sampling import Sampling
from rebus.system import System, encode
from rebus.visual import Codes, ImageSampling, Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
WISH = "Draw a red car in Noto style."


def picture(name: str) -> PIL.Image.Image:
    """One of the pictures in `examples/`."""
    return open_image(ROOT / "examples" / f"{name}.png")


def drawn(system: System, tokens: Sequence[Codes], seed: int = 0) -> list[PIL.Image.Image]:
    """Codes as pictures, all from one noise."""
    assert system.detokenizer is not None
    nothing = [None] * len(tokens)
    dice = [torch.Generator().manual_seed(seed) for _ in tokens]
    made = system.detokenizer.decode(
        tokens, sources=nothing, negatives=nothing, generators=dice, sampling=ImageSampling()
    )
    return [piece for piece in made if not isinstance(piece, Progress)]


def codes_of(system: System, names: Sequence[str]) -> list[Codes]:
    """The codes of pictures."""
    assert system.tokenizer is not None
    encoded = system.tokenizer.encode([Image(picture(name)) for name in names], {"generation"})
    return [image.generated for image in encoded if isinstance(image.generated, Codes)]


def show(axis: plt.Axes, image: PIL.Image.Image, title: str = "") -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def codes(system: System) -> None:
    """Pictures, their 32 codes, and what is drawn from these alone."""
    names = ("red-apple-noto", "penguin-fluent-3d", "rocket-noto", "scene-frog-next-to-mushroom")
    tokens = codes_of(system, names)
    figure, axes = plt.subplots(len(names), 3, figsize=(8, 6.4), width_ratios=(1, 3.2, 1))
    for row, (name, token, back) in enumerate(zip(names, tokens, drawn(system, tokens), strict=True)):
        first = row == 0
        show(axes[row, 0], picture(name), "picture" if first else "")
        axes[row, 1].imshow((token.ids_N % 64).view(4, 8), cmap="viridis", aspect="auto", vmin=0, vmax=63)
        for n, code in enumerate(token.ids_N.tolist()):
            axes[row, 1].text(n % 8, n // 8, str(code), ha="center", va="center", fontsize=7, color="white")
        axes[row, 1].axis("off")
        axes[row, 1].set_title("its 32 codes, in order of writing" if first else "", fontsize=8)
        show(axes[row, 2], back, "drawn from them" if first else "")
    save(figure, "concept-codes")


def sequence(system: System) -> None:
    """A document as the words that the language model sees, and which of them it learns."""
    document = Document((user(Image(picture("red-apple-noto")), "What is this?"), assistant("A red apple.")))
    assert system.tokenizer is not None
    (encoded,) = encode(system.tokenizer, [document], replies="generation")
    laid = system.grammar.serialize(encoded)
    special = {number: name for name, number in system.grammar.text.specials.items()}
    marks = {system.grammar.special.begin_image: "⟨image", system.grammar.special.end_image: "image⟩"}
    wide = 12
    rows = -(-len(laid.ids) // wide)
    figure, axis = plt.subplots(figsize=(9, 0.42 * rows))
    for n, (word, learned) in enumerate(zip(laid.ids, laid.target, strict=True)):
        x, y = n % wide, -(n // wide)
        if word in marks:
            text, colour = marks[word], "#f4a261"
        elif word >= system.grammar.text.words:
            text, colour = f"c{word - system.grammar.text.words}", "#8ecae6"
        elif word in special:
            text, colour = special[word].strip("<|>"), "#cccccc"
        else:
            text, colour = system.grammar.text.decode([word]).replace("\n", "⏎"), "#ffffff"
        box = {"boxstyle": "square,pad=0.3", "facecolor": colour, "linewidth": 2.0 if learned else 0.5}
        axis.text(x, y, text, ha="center", va="center", fontsize=7, bbox=box)
    axis.set_xlim(-0.7, wide - 0.3)
    axis.set_ylim(-rows + 0.3, 0.7)
    axis.axis("off")
    save(figure, "concept-sequence")


def drawing(system: System) -> None:
    """What a picture looks like while it is denoised, and the words it is drawn from."""
    stream = system.stream(
        Document((user(WISH),)),
        modality="image",
        sampling=Sampling(temperature=0.0),
        generator=torch.Generator().manual_seed(0),
    )
    pieces = list(stream)
    previews = [(p.step, p.of, p.preview) for p in pieces if isinstance(p, Progress) and p.preview is not None]
    final = next(p.pixels for p in pieces if isinstance(p, Image) and p.pixels is not None)
    chosen = [previews[i * (len(previews) - 1) // 5] for i in range(6)]
    figure, axes = plt.subplots(1, 7, figsize=(9, 1.7))
    for axis, (step, of, preview) in zip(axes, chosen, strict=False):
        show(axis, preview, f"step {step} of {of}")
    show(axes[6], final, "done")
    save(figure, "concept-drawing")


def prefixes(system: System) -> None:
    """Pictures drawn from the first codes of one image and the last of another."""
    one, two = codes_of(system, ("red-apple-noto", "sailboat-fluent-3d"))
    counts = (32, 28, 24, 16, 8, 4, 0)
    mixed = [Codes(torch.cat([one.ids_N[:n], two.ids_N[n:]]), one.source) for n in counts]
    figure, axes = plt.subplots(1, len(counts), figsize=(9, 1.7))
    for axis, n, image in zip(axes, counts, drawn(system, mixed), strict=True):
        show(axis, image, f"{n} + {32 - n}")
    save(figure, "concept-prefix")


def any_resolution() -> None:
    """How SEED-X cuts a tall picture: stretched to a grid of square tiles, and the whole as one more view."""
    tall = open_image(IMAGES / "demo.png")
    side = 448
    grid = views.choose_grid(tall.size, views.COMPREHENSION, side)
    made = views.cut(tall, grid, side)
    figure, axes = plt.subplots(1, len(made) + 1, figsize=(1.9 * (len(made) + 1), 2.6))
    show(axes[0], tall, f"{tall.width} x {tall.height}")
    for axis, view, (x, y) in zip(axes[1:], made, views.positions(grid).tolist(), strict=True):
        show(axis, view, f"at ({x:.2f}, {y:.2f})")
    figure.suptitle(
        f"grid of {grid[0]} x {grid[1]} tiles and the whole: {len(made)} views, 64 vectors each", fontsize=9, y=1.08
    )
    save(figure, "concept-views")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    system = load("seed:mini")
    codes(system)
    sequence(system)
    drawing(system)
    prefixes(system)
    any_resolution()


if __name__ == "__main__":
    main()
