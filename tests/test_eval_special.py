"""Pointing, small things, edits and stories, asked of systems of which the answer is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import PIL.Image
import pytest
from tests.oracle import CONFIG, PICTURES, Detokenizer, Oracle, Tokenizer, deaf, exam_of, figures, key

from rebus.data.edit_chains import chain
from rebus.data.edits import Edits, resized
from rebus.data.emoji_pointing import small_scene
from rebus.data.emoji_stories import make_story, pictures_of
from rebus.data.scenes import render
from rebus.data.selection import Selection
from rebus.data.wording import article
from rebus.document import Box, Image, assistant
from rebus.evals.editing import ROUNDS, kept, within
from rebus.evals.ground import MIDDLE, overlap, things
from rebus.evals.run import TASKS
from rebus.evals.story import COUNT

SELECTION = Selection(PICTURES, "train")


class Boxes:
    """A grammar that knows boxes."""

    def serialize(self, document: object, **_: object) -> list[int]:
        return [0]


# ------------------------------------------------------------------------------------------------ pointing


def test_overlap_is_what_both_cover_of_what_either_does() -> None:
    one = Box(0.25, 0.5, 0.5, 1)
    assert overlap(one, one) == 1 and overlap(None, one) == 0 and overlap(one, Box(0.75, 0.5, 0.5, 1)) == 0
    assert overlap(one, Box(0.5, 0.5, 0.5, 1)) == pytest.approx(1 / 3) == overlap(Box(0.5, 0.5, 0.5, 1), one)
    assert overlap(one, Box(0.5, 0.5, 1, 1)) == pytest.approx(0.5)
    assert overlap(Box(0.5, 0.5, 0, 0), Box(0.5, 0.5, 0, 0)) == 0


def test_pointing_is_right_where_boxes_overlap_by_half() -> None:
    asked = things(exam_of(None))
    table = {(f"Where is the {i.name}?", (key(i.image),)): ("There: ", i.box) for i in asked}
    oracle = Oracle(table)
    oracle.grammar = Boxes()
    found = figures("ground", exam_of(oracle))
    assert found["ground/iou_50"].value == found["ground/iou"].value == found["ground/iou"].ceiling == 1
    assert found["ground/iou_50"].chance < 0.6 and found["ground/iou"].shuffled < 0.6
    lazy = Oracle({}, lambda document, dice: (MIDDLE,))
    lazy.grammar = Boxes()
    found = figures("ground", exam_of(lazy))
    assert found["ground/iou"].value == pytest.approx(found["ground/iou"].chance)
    mute = Oracle({})
    mute.grammar = Boxes()
    assert figures("ground", exam_of(mute))["ground/iou"].value == 0


# ------------------------------------------------------------------------------------------------ small things


@dataclass
class Views:
    """A tokenizer that can be told to read whole."""

    grids: tuple[tuple[int, int], ...] = ((2, 2),)

    def with_grids(self, grids: tuple[tuple[int, int], ...]) -> Views:
        return Views(grids)


@dataclass
class Near:
    """Sees small things in views alone."""

    tokenizer: Views
    table: dict[Any, str] = field(default_factory=dict)

    def generate(self, documents: list, **_: object) -> list:
        asked = [(d.messages[-1].text, key(d.images[0].pixels)) for d in documents]
        return [assistant(self.table[one] if self.tokenizer.grids else "A thing.") for one in asked]


def test_small_things_are_asked_of_views_and_of_the_whole() -> None:
    rng = Random(f"small {CONFIG.split} {CONFIG.choice}")
    made = [small_scene(SELECTION, rng) for _ in range(CONFIG.n)]
    table = {
        (f"What is {place}?", key(render(PICTURES, scene))): f"It is {article(PICTURES.label[placed.row])}."
        for scene, (place, placed) in made
    }
    found = figures("small", exam_of(Near(Views(), table)))
    assert found["small/any_res"].value == found["small/any_res"].ceiling == 1 and found["small/one_view"].value == 0
    assert not list(TASKS["small"](exam_of(Near(Views(()), table)))) and not list(TASKS["small"](exam_of(Oracle({}))))
    assert all(22 <= placed.side <= 30 for scene, _ in made for placed in scene.placed)


# ------------------------------------------------------------------------------------------------ edits


class Editing(Detokenizer):
    """Draws a picture as it is with a source in view, and noisy without."""

    edits = True

    def decode(self, tokens, *, sources, **settings):
        drawn = [d for d in super().decode(tokens, sources=sources, **settings) if isinstance(d, PIL.Image.Image)]
        for image, source in zip(drawn, sources, strict=True):
            yield image if source is not None else image.point(lambda value: 255 - abs(value - 30))


def editor(table: dict) -> Oracle:
    """Replies of pictures that have codes, which the decoder can draw again."""
    oracle = Oracle({})
    oracle.tokenizer = Tokenizer()
    oracle.detokenizer = Editing(oracle.tokenizer)
    for asked, target in table.items():
        [image] = oracle.tokenizer.encode([Image(target)], {"generation"})
        oracle.table[asked] = (image,)
    return oracle


def test_a_perfect_edit_is_changed_within_and_kept_without() -> None:
    made = [Edits(PICTURES, CONFIG.split, seed=CONFIG.choice)[i] for i in range(CONFIG.n)]
    table = {(edit.instruction, (key(edit.source),)): edit.target for edit in made}
    found = figures("edits", exam_of(editor(table)))
    assert found["edit/changed"].value == found["edit/changed"].ceiling and found["edit/changed"].chance == 0
    assert found["edit/kept_psnr"].value == found["edit/kept_psnr"].ceiling == 60
    assert found["edit/kept_psnr_unseen"].value < 40
    assert found["edit/named"].value >= found["edit/named"].ceiling  # which leaves the asked picture itself out
    stays = {(edit.instruction, (key(edit.source),)): edit.source for edit in made}
    assert figures("edits", exam_of(editor(stays)))["edit/changed"].value == 0
    assert not list(TASKS["edits"](exam_of(Oracle({}))))
    for edit in made:
        assert kept(edit.target, edit) == 60 or edit.mask_hw.all()
        assert within(edit.source, edit).width == within(edit.source, edit).height


def test_the_subject_is_named_after_five_edits() -> None:
    material = Edits(PICTURES, CONFIG.split).material
    table = {}
    for i in range(CONFIG.n):
        steps = chain(material, Random(f"in a row {CONFIG.split} {CONFIG.choice} {i}"), ROUNDS)
        seen = [resized(steps[0].edit, 64).source]
        for step in steps:
            after = resized(step.edit, 64).target
            table[step.edit.instruction, tuple(key(image) for image in seen)] = after
            seen.append(after)
    found = figures("edits_in_a_row", exam_of(editor(table)))["edits_in_a_row/recognised"]
    assert found.value >= found.ceiling > found.chance
    assert not list(TASKS["edits_in_a_row"](exam_of(Oracle({}))))


# ------------------------------------------------------------------------------------------------ stories


def test_a_story_is_told_where_its_character_is_in_every_picture() -> None:
    table, some = {}, {"n": 6, "seeds": (0,)}
    for i in range(some["n"]):
        one = make_story(SELECTION, Random(f"story {CONFIG.split} {CONFIG.choice} {i}"), COUNT)
        parts = [
            p for text, image in zip(one.sentences, pictures_of(SELECTION, one, 64), strict=True) for p in (text, image)
        ]
        table[f"Tell a story about {article(one.name)} in five pictures.", ()] = tuple(parts)
    found = figures("story", exam_of(Oracle(table), **some))
    assert found["story/identity"].value == pytest.approx(found["story/identity"].ceiling)
    assert found["story/count"].value == 1 and found["story/identity"].chance < found["story/identity"].value
    assert figures("story", exam_of(Oracle({}, deaf), **some))["story/count"].value == 0
    assert figures("story", exam_of(Oracle({}), **some))["story/identity"].value == 0
