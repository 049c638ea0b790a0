"""Edits of the embedded pictures: deterministic, of one split, and equal outside the mask, pixel by pixel."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

from rebus.data.edits import KINDS, MIX, Edit, Edits, Material
from rebus.data.line_art import build_line_art, load_line_art, outlined, render_lines
from rebus.data.pictures import Pictures, load_pictures
from rebus.data.selection import foreign_names
from rebus.errors import RebusError

SMALL = Path(__file__).parent / "data" / "pictures"
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><defs><path id="a" fill="red" d="M0 0h9v9z"/></defs>'
    '<rect x="3" y="3" width="30" height="30" style="fill: #f00; opacity: .5"/><g fill="none"><path d="M3 3l30 30"/></g></svg>'
)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return load_pictures(SMALL)


@pytest.fixture(scope="module")
def lines(pictures: Pictures) -> dict[str, np.ndarray]:
    return {key: render_lines(SVG) for key in pictures.key[::2]}


@pytest.fixture(scope="module")
def edits(pictures: Pictures, lines: dict) -> Edits:
    return Edits(pictures, "train", seed=3, lines=lines)


def check(edit: Edit, size: int) -> None:
    """What must hold of every edit."""
    source, target = np.asarray(edit.source), np.asarray(edit.target)
    assert source.shape == target.shape == (size, size, 3) and edit.mask_hw.shape == (size, size)
    np.testing.assert_array_equal(source[~edit.mask_hw], target[~edit.mask_hw], err_msg=edit.kind)
    assert edit.mask_hw.any() and edit.instruction[0].isupper() and edit.instruction[-1] in ".?!"


def test_every_kind_differs_within_its_mask_alone(edits: Edits) -> None:
    assert set(edits.kinds) >= set(KINDS) - {"skin_tone", "gender"}
    different = 0
    for kind in edits.kinds:
        for n in range(4):
            edit = KINDS[kind](edits.material, Random(f"{kind} {n}"))
            assert edit.kind == kind
            check(edit, edit.source.width)
            different += bool((np.asarray(edit.source) != np.asarray(edit.target)).any())
    assert different >= 0.9 * 4 * len(edits.kinds)


def test_the_same_arguments_give_the_same_edits(pictures: Pictures, lines: dict, edits: Edits) -> None:
    again, other = Edits(pictures, "train", seed=3, lines=lines), Edits(pictures, "train", seed=4, lines=lines)
    texts = []
    for i in (0, 1, 7):
        one, two = edits[i], again[i]
        check(one, 64)
        assert (one.kind, one.instruction, one.row) == (two.kind, two.instruction, two.row)
        for name in ("source", "target", "mask_hw"):
            np.testing.assert_array_equal(np.asarray(getattr(one, name)), np.asarray(getattr(two, name)))
        texts.append(one.instruction == other[i].instruction)
    assert not all(texts)
    check(Edits(pictures, "train", seed=3, lines=lines, size=128)[0], 128)
    document = edits[0].document
    assert document.messages[0].text == edits[0].instruction and len(document.images) == 2


def test_nothing_of_another_split_is_shown_or_named(pictures: Pictures, edits: Edits) -> None:
    own = set(pictures.rows("train").tolist())
    names = [name for name in foreign_names(pictures, "train") if name not in ("left arrow", "right arrow")]
    foreign = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b", re.I)
    m = edits.material
    assert {*m.styled, *m.drawn, *m.tones, *m.genders, *m.selection.things.rows} <= own
    assert {other for many in (*m.tones.values(), *m.genders.values()) for other in many} <= own
    for i in range(40):
        edit = edits[i]
        assert edit.row in own and not foreign.search(edit.instruction), edit.instruction


def test_variants_differ_in_what_is_asked_alone(pictures: Pictures) -> None:
    material = Material(pictures, "train")
    for pairs, of, fixed in ((material.tones, "skin_tone", "gender"), (material.genders, "gender", "skin_tone")):
        for row, others in pairs.items():
            for other in others:
                assert getattr(pictures, of)[row] != getattr(pictures, of)[other]
                assert getattr(pictures, fixed)[row] == getattr(pictures, fixed)[other]
                assert (pictures.concept[row], pictures.family[row]) == (
                    pictures.concept[other],
                    pictures.family[other],
                )


def test_lines_are_what_is_left_without_fills() -> None:
    text = outlined(SVG)
    assert "opacity" not in text and text.count("#ffffff") == 1 and 'fill="red"' in text  # in defs, which is not seen
    rgba_hw = render_lines(SVG)
    inside, edge = rgba_hw[20, 44], rgba_hw[5, 32]
    assert inside.tolist() == [255, 255, 255, 255] and edge[0] < 160 and rgba_hw[0, 0, 3] == 0
    assert rgba_hw[32, 32, 0] < 160  # the line across, which has no fill
    with pytest.raises(RebusError, match="no SVG with a view box"):
        outlined("<svg/>")


def test_line_drawings_are_written_once(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rebus.data import line_art
    from rebus.data.emoji_sets import Drawing

    row = next(r for r in range(len(pictures)) if pictures.package[r] != "fluent-emoji-3d")
    drawing = Drawing(pictures.package[row], pictures.name[row], pictures.hexcode[row], SVG)
    monkeypatch.setattr(line_art, "drawings", lambda cache, progress: iter([drawing]))
    path = build_line_art(pictures, tmp_path / "lines.npz", tmp_path)
    held = load_line_art(path)
    assert list(held) == [pictures.key[row]]
    np.testing.assert_array_equal(held[pictures.key[row]], render_lines(SVG))
    monkeypatch.setattr(line_art, "drawings", lambda cache, progress: iter([]))
    assert build_line_art(pictures, path, tmp_path) == path
    with pytest.raises(RebusError, match="holds no line drawings"):
        load_line_art(tmp_path / "none.npz")


def test_what_cannot_be_made_is_refused(pictures: Pictures) -> None:
    with pytest.raises(RebusError, match="has \\['shout'\\]"):
        Edits(pictures, mix={"shout": 1.0})
    with pytest.raises(RebusError, match="the size is 65"):
        Edits(pictures, size=65)
    with pytest.raises(RebusError, match="nothing in split 'train' for edits of the kinds line_art"):
        Edits(pictures, mix={"line_art": 1.0})
    assert "line_art" not in Edits(pictures, mix=MIX).kinds
