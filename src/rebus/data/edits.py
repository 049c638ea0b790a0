"""Edits: a picture, what to change in it, the picture as it should be, and where the two may differ.

`Edits(pictures, split, seed)[i]` is a pure function of its arguments, and shows and names nothing of another split. Outside
the mask the two pictures agree pixel by pixel, so that a model's edit can be measured: changed within, kept outside.

Dimension key: h w height and width in pixels
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from rebus.data.backdrops import COLOURS, SIDE, random_backdrop
from rebus.data.line_art import LineArt
from rebus.data.pictures import Pictures, over
from rebus.data.scenes import PLACES, Layout, Placed, Scene, cutout, random_scene, render
from rebus.data.selection import Selection
from rebus.data.wording import article
from rebus.document import Document, Image, Shown, assistant, user
from rebus.errors import RebusError

Mask = NDArray[np.bool_]
HUES = {"red": 0, "orange": 20, "yellow": 38, "green": 85, "turquoise": 125, "blue": 155, "purple": 195, "pink": 230}
"""Hues that things are recoloured to, of Pillow's 256."""
TALKED: tuple[Layout, ...] = ("beside", "stacked", "row", "corners")
"""Scenes of things that are all different, so that each can be named."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit; both pictures are RGB and of one size."""

    kind: str
    """One of KINDS."""
    source: PIL.Image.Image
    """What is there."""
    target: PIL.Image.Image
    """What is asked for."""
    instruction: str
    """What is asked, as one would say it."""
    mask_hw: Mask
    """True where the pictures may differ."""
    row: int
    """The picture, among `Pictures`, that the edit is about, as it looks afterwards (removed: as it looked)."""
    shows: Shown | None = None
    """What the target shows, where it is one thing."""

    @property
    def document(self) -> Document:
        """Source and instruction, answered by the target."""
        return Document((user(Image(self.source), self.instruction), assistant(Image(self.target, shows=self.shows))))


class Material:
    """What edits of a split are made of."""

    def __init__(self, pictures: Pictures, split: str, lines: LineArt | None = None) -> None:
        self.pictures, self.lines = pictures, lines
        self.selection = Selection(pictures, split)
        self.tones, self.genders = self._variants("skin_tone"), self._variants("gender")
        self.tones = {row: others for row, others in self.tones.items() if " " not in pictures.skin_tone[row]}
        self.drawn = [] if lines is None else [row for row in self.selection.rows if pictures.key[row] in lines]
        self.styled = [row for row in self.selection.rows if self._other_styles(row)]

    def _other_styles(self, row: int) -> bool:
        return self.selection.in_other_style(row, Random(0)) is not None

    def _variants(self, of: str) -> dict[int, list[int]]:
        """Rows and those that differ from them in `of` alone ("skin_tone" | "gender")."""
        p = self.pictures
        fixed = p.gender if of == "skin_tone" else p.skin_tone
        own = getattr(p, of)
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row in self.selection.rows:
            # what is told in words must be told by one word
            if " and " not in own[row] and (of == "skin_tone" or own[row]):
                groups[p.family[row], p.variant[row], p.concept[row], fixed[row]].append(row)
        found = {r: [o for o in rows if own[o] != own[r]] for rows in groups.values() for r in rows}
        return {row: others for row, others in found.items() if others}


# ------------------------------------------------------------------------------------------------ one picture


def _single(kind: str, rgba: tuple[NDArray[np.uint8], NDArray[np.uint8]], text: str, row: int, rng: Random) -> Edit:
    """An edit between two pictures of transparent background, on one plain colour; they differ where either is seen."""
    colour = np.array(COLOURS["white" if rng.random() < 0.7 else rng.choice(list(COLOURS))], np.uint8)
    source, target = (PIL.Image.fromarray(over(pixels, colour)) for pixels in rgba)
    return Edit(kind, source, target, text, (rgba[0][..., 3] > 0) | (rgba[1][..., 3] > 0), row)


def style(material: Material, rng: Random) -> Edit:
    """The same thing as another hand draws it."""
    row = rng.choice(material.styled)
    other = material.selection.in_other_style(row, rng)
    assert other is not None
    name = material.selection.style(other)
    text = rng.choice((f"Draw it in {name} style.", f"Change the style to {name}.", f"Make it {name} style."))
    rgba_N = material.pictures.rgba_N
    edit = _single("style", (rgba_N[row], rgba_N[other]), text, other, rng)
    return replace(edit, shows=material.selection.shown(other))


def skin_tone(material: Material, rng: Random) -> Edit:
    """The same person with another skin tone."""
    row = rng.choice(list(material.tones))
    other = rng.choice(material.tones[row])
    tone = material.pictures.skin_tone[other]
    if tone:
        said = (f"Give it {article(tone)} skin tone.", f"Change the skin tone to {tone}.", f"Make the skin {tone}.")
    else:
        said = ("Remove the skin tone.", "Make the skin yellow.", "Give it the usual yellow skin.")
    text = rng.choice(said)
    rgba_N = material.pictures.rgba_N
    edit = _single("skin_tone", (rgba_N[row], rgba_N[other]), text, other, rng)
    return replace(edit, shows=material.selection.shown(other))


def gender(material: Material, rng: Random) -> Edit:
    """A man becomes a woman, or the reverse."""
    row = rng.choice(list(material.genders))
    other = rng.choice(material.genders[row])
    old, new = material.pictures.gender[row], material.pictures.gender[other]
    text = rng.choice((f"Turn the {old} into a {new}.", f"Make it a {new}.", f"Change the {old} to a {new}."))
    rgba_N = material.pictures.rgba_N
    edit = _single("gender", (rgba_N[row], rgba_N[other]), text, other, rng)
    return replace(edit, shows=material.selection.shown(other))


def line_art(material: Material, rng: Random) -> Edit:
    """A coloured picture becomes a line drawing, or the reverse."""
    assert material.lines is not None
    row = rng.choice(material.drawn)
    pair = (material.pictures.rgba_N[row], material.lines[material.pictures.key[row]])
    if rng.random() < 0.5:
        text = rng.choice(
            ("Turn it into a line drawing.", "Take the colours away and keep the lines.", "Make it line art.")
        )
        return _single("line_art", pair, text, row, rng)
    text = rng.choice(("Colour it in.", "Colour this drawing.", "Add the colours."))
    return _single("line_art", pair[::-1], text, row, rng)


# ------------------------------------------------------------------------------------------------ scenes


def seen(material: Material, placed: Placed) -> Mask:
    """Where one thing of a scene is seen through at most in part."""
    canvas = PIL.Image.new("L", (SIDE, SIDE))
    picture, corner = cutout(material.pictures, placed)
    canvas.paste(255, corner, picture.getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
    return np.asarray(canvas) > 0


def between(
    kind: str, material: Material, scenes: tuple[Scene, Scene], text: str, changed: list[Placed], row: int
) -> Edit:
    """An edit that turns one scene into another, which differ where one of the things `changed` is seen."""
    mask_hw = np.logical_or.reduce([seen(material, placed) for placed in changed])
    source, target = (render(material.pictures, scene) for scene in scenes)
    return Edit(kind, source, target, text, mask_hw, row)


def _scene(material: Material, rng: Random) -> tuple[Scene, int]:
    """A scene of different things, and which of them the edit is about. Small sets may not have enough different ones:
    then there are fewer."""
    scene = random_scene(material.selection.things, rng, rng.choice(TALKED))
    own = {material.pictures.label[placed.row]: placed for placed in scene.placed}
    scene = replace(scene, placed=tuple(own.values()))
    return scene, rng.randrange(len(scene.placed))


def _without(scene: Scene, number: int) -> Scene:
    return replace(scene, placed=scene.placed[:number] + scene.placed[number + 1 :])


def _with(scene: Scene, number: int, placed: Placed) -> Scene:
    return replace(scene, placed=(*scene.placed[:number], placed, *scene.placed[number + 1 :]))


def place_of(placed: Placed) -> str:
    """Where it is, in words: `in the top left corner`."""
    return min(PLACES, key=lambda words: (PLACES[words][0] - placed.x) ** 2 + (PLACES[words][1] - placed.y) ** 2)


def towards(placed: Placed) -> str:
    """Where it is to go, in words: `to the top left corner`."""
    return place_of(placed).replace("in the", "to the").replace("at the", "to the").replace("on the", "to the")


def remove(material: Material, rng: Random) -> Edit:
    """A thing goes away."""
    scene, number = _scene(material, rng)
    placed = scene.placed[number]
    name = material.pictures.label[placed.row]
    text = rng.choice((f"Remove the {name}.", f"Take the {name} away.", f"Delete the {name}."))
    return between("remove", material, (scene, _without(scene, number)), text, [placed], placed.row)


def add(material: Material, rng: Random) -> Edit:
    """A thing comes to a place that is named."""
    scene, number = _scene(material, rng)
    placed = scene.placed[number]
    name = article(material.pictures.label[placed.row])
    text = rng.choice(("Add {} {}.", "Put {} {}.", "Draw {} {}.")).format(name, place_of(placed))
    return between("add", material, (_without(scene, number), scene), text, [placed], placed.row)


def replaced(material: Material, rng: Random) -> Edit:
    """Another thing stands where one was."""
    scene, number = _scene(material, rng)
    old = scene.placed[number]
    labels = {material.pictures.label[placed.row] for placed in scene.placed}
    new = replace(old, row=material.selection.things.pick_other(labels, rng))
    one, other = material.pictures.label[old.row], article(material.pictures.label[new.row])
    text = rng.choice((f"Replace the {one} with {other}.", f"Change the {one} into {other}."))
    return between("replace", material, (scene, _with(scene, number, new)), text, [old, new], new.row)


def move(material: Material, rng: Random) -> Edit:
    """The only thing of a scene, or one of two, goes to another place."""
    corners = [spot for words, spot in PLACES.items() if "corner" in words]
    alone = rng.random() < 0.5
    spots = rng.sample(list(PLACES.values()) if alone else corners, 2 if alone else 3)
    side = rng.randint(44, 60)
    rows = material.selection.things.pick(rng, 1 if alone else 2)
    old, *others = (Placed(row, *spot, side) for row, spot in zip(rows, spots, strict=False))
    new = replace(old, x=spots[-1][0], y=spots[-1][1])
    scene = Scene("one" if alone else "corners", (old, *others), random_backdrop(rng))
    text = f"Move the {material.pictures.label[old.row]} {towards(new)}."
    return between("move", material, (scene, _with(scene, 0, new)), text, [old, new], old.row)


def recolour(material: Material, rng: Random) -> Edit:
    """A thing gets another colour; light and dark stay."""
    scene, number = _scene(material, rng)
    placed = scene.placed[number]
    colour = rng.choice(list(HUES))
    hue, saturation, value = (np.asarray(band) for band in render(material.pictures, scene).convert("HSV").split())
    saturation = np.maximum(saturation, np.minimum(value, 150))
    wished = PIL.Image.merge(
        "HSV", [PIL.Image.fromarray(band) for band in (np.full_like(hue, HUES[colour]), saturation, value)]
    ).convert("RGB")
    mask_hw = seen(material, placed)
    for other in scene.placed[number + 1 :]:
        mask_hw &= ~seen(material, other)  # what stands before it
    source = render(material.pictures, scene)
    target = PIL.Image.fromarray(np.where(mask_hw[..., None], np.asarray(wished), np.asarray(source)))
    name = material.pictures.label[placed.row]
    text = rng.choice((f"Make the {name} {colour}.", f"Colour the {name} {colour}.", f"Paint the {name} {colour}."))
    return Edit("recolour", source, target, text, mask_hw, placed.row)


def background(material: Material, rng: Random) -> Edit:
    """What is behind the things changes."""
    scene, number = _scene(material, rng)
    behind = random_backdrop(rng, white=0.15, plain=0.45)
    while behind == scene.backdrop:
        behind = random_backdrop(rng, white=0.0, plain=0.6)
    opaque_hw = np.zeros((SIDE, SIDE), bool)
    for placed in scene.placed:
        canvas = PIL.Image.new("L", (SIDE, SIDE))
        picture, corner = cutout(material.pictures, placed)
        canvas.paste(picture.getchannel("A"), corner)
        opaque_hw |= np.asarray(canvas) == 255
    text = rng.choice((f"Change the background to {behind.words}.", f"Put it on {behind.words}."))
    source, target = (render(material.pictures, s) for s in (scene, replace(scene, backdrop=behind)))
    return Edit("background", source, target, text, ~opaque_hw, scene.placed[number].row)


# ------------------------------------------------------------------------------------------------ all of them

KINDS: dict[str, Callable[[Material, Random], Edit]] = {
    "style": style,
    "skin_tone": skin_tone,
    "gender": gender,
    "line_art": line_art,
    "add": add,
    "remove": remove,
    "replace": replaced,
    "move": move,
    "recolour": recolour,
    "background": background,
}
MIX: Mapping[str, float] = {
    "style": 0.14,
    "skin_tone": 0.08,
    "gender": 0.06,
    "line_art": 0.1,
    "add": 0.12,
    "remove": 0.12,
    "replace": 0.12,
    "move": 0.08,
    "recolour": 0.09,
    "background": 0.09,
}
"""How often each kind occurs; kinds of which a split has no material are left out."""


class Edits:
    """Edits of one split; index-addressable and endless in kind, `len` is one epoch. `size` is the side of the pictures in
    pixels, 64 or 128. Raises RebusError for a split without pictures, an unknown kind, and where nothing can be made."""

    endless = True

    def __init__(
        self,
        pictures: Pictures,
        split: str = "train",
        seed: int = 0,
        mix: Mapping[str, float] = MIX,
        *,
        size: int = 64,
        length: int | None = None,
        lines: LineArt | None = None,
    ) -> None:
        unknown = [kind for kind in mix if kind not in KINDS]
        if unknown or not mix or size not in (64, 128):
            raise RebusError(
                f"A mix names kinds of edits and pictures have 64 or 128 pixels, but the mix has {unknown or list(mix)} and "
                f"the size is {size}. Choose from {', '.join(KINDS)}."
            )
        self.material = Material(pictures, split, lines)
        m = self.material
        lacking = {
            kind
            for kind, held in {
                "style": m.styled,
                "skin_tone": m.tones,
                "gender": m.genders,
                "line_art": m.drawn,
            }.items()
            if not held
        }
        lacking |= set(KINDS) - {"style", "skin_tone", "gender", "line_art"} if not m.selection.things.rows else set()
        self.kinds = [kind for kind in mix if kind not in lacking]
        if not self.kinds:
            raise RebusError(
                f"These pictures have nothing in split {split!r} for edits of the kinds {', '.join(mix)}. Build the whole "
                "set, or ask for other kinds."
            )
        self._weights = list(accumulate(mix[kind] for kind in self.kinds))
        self.split, self.seed, self.size = split, seed, size
        self.length = length or len(m.selection.rows)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Edit:
        if index < 0:
            raise IndexError(f"edits are counted from 0, not {index}")
        rng = Random(f"edits {self.split}/{self.seed}/{index}")
        kind = rng.choices(self.kinds, cum_weights=self._weights)[0]
        return resized(KINDS[kind](self.material, rng), self.size)


def resized(edit: Edit, size: int) -> Edit:
    """The same edit at another size; a pixel may differ where one of those that it is made of may."""
    if edit.source.width == size:
        return edit
    if edit.source.width == 2 * size:
        mask_hw = np.asarray(edit.mask_hw.reshape(size, 2, size, 2).any((1, 3)))
        return replace(edit, source=edit.source.reduce(2), target=edit.target.reduce(2), mask_hw=mask_hw)
    larger = [picture.resize((size, size), PIL.Image.Resampling.NEAREST) for picture in (edit.source, edit.target)]
    return replace(edit, source=larger[0], target=larger[1], mask_hw=edit.mask_hw.repeat(2, 0).repeat(2, 1))
