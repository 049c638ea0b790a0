"""Edits one after the other: a picture, five wishes, each carried out on what the one before left; and edits of two pictures.

The subject, the first thing of every scene, stays what it is: it is moved and drawn by another hand, things come and go
around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

import numpy as np

from rebus.data import phrases as p
from rebus.data.backdrops import COLOURS, Backdrop
from rebus.data.edits import MIX, Edit, Edits, Material, between, place_of, resized, towards
from rebus.data.line_art import LineArt
from rebus.data.pictures import Pictures
from rebus.data.scenes import PLACES, Placed, Scene
from rebus.data.wording import article
from rebus.document import Document, Image, Message, assistant, user
from rebus.errors import RebusError

CORNERS = [spot for words, spot in PLACES.items() if "corner" in words]
SHAPES = ("edit", "edits", "wear")
"""Documents of one edit, of several in a row, and of two pictures that become one."""


@dataclass(frozen=True, eq=False)
class Step:
    """One edit of a chain, and where the subject is afterwards."""

    edit: Edit
    subject: Placed


def chain(material: Material, rng: Random, count: int) -> list[Step]:
    """`count` edits of one scene; the source of each is the target of the one before."""
    first = material.selection.things.pick(rng, 1)[0]
    plain = rng.choice(("white", "white", "light blue", "beige", "light green"))
    scene = Scene("one", (Placed(first, 64, 64, 56),), Backdrop("plain", plain))
    steps = []
    for _ in range(count):
        kinds = ["background", "add", "move"]
        if len(scene.placed) > 1:
            kinds += ["remove", "replace"]
        if len(scene.placed) > 3:
            kinds.remove("add")
        if material.selection.in_other_style(scene.placed[0].row, rng) is not None:
            kinds.append("style")
        scene, edit = _step(material, rng, scene, rng.choice(kinds))
        steps.append(Step(edit, scene.placed[0]))
    return steps


def _step(material: Material, rng: Random, scene: Scene, kind: str) -> tuple[Scene, Edit]:
    subject, *others = scene.placed
    label = material.pictures.label
    match kind:
        case "background":
            colour = rng.choice([c for c in COLOURS if c not in (scene.backdrop.first, "black")])
            after = replace(scene, backdrop=Backdrop("plain", colour))
            text, changed = f"Change the background to {after.backdrop.words}.", []
        case "add":
            taken = {(other.x, other.y) for other in others} | {(subject.x, subject.y)}
            spot = rng.choice([corner for corner in CORNERS if corner not in taken])
            new = Placed(material.selection.things.pick_other({label[o.row] for o in scene.placed}, rng), *spot, 36)
            after, changed = replace(scene, placed=(*scene.placed, new)), [new]
            text = f"Add {article(label[new.row])} {place_of(new)}."
        case "remove":
            gone = rng.choice(others)
            after, changed = replace(scene, placed=tuple(o for o in scene.placed if o != gone)), [gone]
            text = f"Remove the {label[gone.row]}."
        case "replace":
            old = rng.choice(others)
            new = replace(old, row=material.selection.things.pick_other({label[o.row] for o in scene.placed}, rng))
            after = replace(scene, placed=tuple(new if o == old else o for o in scene.placed))
            text, changed = f"Replace the {label[old.row]} with {article(label[new.row])}.", [old, new]
        case "style":
            row = material.selection.in_other_style(subject.row, rng)
            assert row is not None
            new = replace(subject, row=row)
            after, changed = replace(scene, placed=(new, *others)), [subject, new]
            text = f"Draw the {label[row]} in {material.selection.style(row)} style."
        case _:
            free = [(64, 64), (34, 64), (94, 64), (64, 34), (64, 94)]
            x, y = rng.choice([spot for spot in free if spot != (subject.x, subject.y)])
            new = replace(subject, x=x, y=y)
            after, changed = replace(scene, placed=(new, *others)), [subject, new]
            text = f"Move the {label[subject.row]} {towards(new)}."
    edit = between(kind, material, (scene, after), text, changed or list(scene.placed), after.placed[0].row)
    if kind == "background":
        edit = replace(edit, mask_hw=np.ones_like(edit.mask_hw))
    return after, edit


def wear(material: Material, rng: Random, size: int) -> Document:
    """A picture of a thing, a picture of someone, and the wish that the one be put on the other (as clothes are tried on).
    The one that is changed comes last."""
    one, item = material.selection.things.pick(rng, 2)[:2] if len(material.selection.things.rows) > 1 else (0, 0)
    plain = Backdrop("plain", rng.choice(("white", "white", "light blue", "beige")))
    body = Placed(one, 64, 64, 96)
    spot = rng.choice(CORNERS)
    worn = Placed(item, *spot, 44)
    scenes = (Scene("one", (body,), plain), Scene("one", (body, worn), plain))
    text = rng.choice(p.ASK_WEAR).format(
        item=material.pictures.label[item], one=material.pictures.label[one], place=place_of(worn)
    )
    edit = resized(between("wear", material, scenes, text, [worn], item), size)
    item_image = material.selection.image(item, size)
    return Document((user(item_image, Image(edit.source), text), assistant(Image(edit.target))))


class EditDocuments:
    """Edits of one split as Documents, index-addressable and endless in kind. `mix` says how often each of SHAPES occurs,
    `kinds` how often each kind of single edit; `size` is 64 or 128. Raises RebusError as `Edits` does, and for a shape
    that does not exist."""

    endless = True

    def __init__(
        self,
        pictures: Pictures,
        split: str = "train",
        seed: int = 0,
        mix: Mapping[str, float] | None = None,
        *,
        kinds: Mapping[str, float] = MIX,
        size: int = 64,
        lines: LineArt | None = None,
    ) -> None:
        mix = {"edit": 1.0} if mix is None else mix
        if not mix or (unknown := [name for name in mix if name not in SHAPES]):
            raise RebusError(
                f"A mix names shapes of documents, but has {unknown if mix else 'none'}. Choose from {', '.join(SHAPES)}."
            )
        self.edits = Edits(pictures, split, seed, kinds, size=size, lines=lines)
        self.split, self.seed, self.size = split, seed, size
        self._names, self._weights = list(mix), list(accumulate(mix.values()))

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, index: int) -> Document:
        if index < 0:
            raise IndexError(f"documents are counted from 0, not {index}")
        rng = Random(f"edit documents {self.split}/{self.seed}/{index}")
        match rng.choices(self._names, cum_weights=self._weights)[0]:
            case "edit":
                return self.edits[index].document
            case "wear":
                return wear(self.edits.material, rng, self.size)
        steps = [resized(step.edit, self.size) for step in chain(self.edits.material, rng, rng.randint(2, 5))]
        return in_a_row(steps)


def in_a_row(edits: list[Edit]) -> Document:
    """A conversation in which each picture is changed into the next."""
    messages: list[Message] = []
    for edit in edits:
        asked = user(edit.instruction) if messages else user(Image(edit.source), edit.instruction)
        messages += [asked, assistant(Image(edit.target))]
    return Document(tuple(messages))
