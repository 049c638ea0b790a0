"""Concepts, splits and the building of the embedded pictures, on a handful of drawings made here."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

from rebus.data import emoji_build
from rebus.data.emoji_sets import Dictionary, Drawing, readable
from rebus.data.parquet import read_columns
from rebus.data.pictures import load_pictures, over
from rebus.data.splits import concept_of, split_of
from rebus.errors import RebusError


@pytest.mark.parametrize(
    ("hexcode", "concept"),
    [
        ("1f34e", "1f34e"),  # red apple
        ("1f469-1f3fd-200d-1f692", "1f9d1-200d-1f692"),  # woman firefighter, medium skin
        ("1f468-200d-1f692", "1f9d1-200d-1f692"),  # man firefighter
        ("1f9d1-200d-1f692", "1f9d1-200d-1f692"),  # firefighter
        ("1f3c3-1f3ff-200d-2640-fe0f", "1f3c3"),  # woman running, dark skin
        ("1F3C3-200D-2642-FE0F-200D-27A1-FE0F", "1f3c3"),  # man running, facing right
        ("2764-fe0f", "2764"),  # red heart
        ("2764-fe0f-200d-1f525", "2764-200d-1f525"),  # heart on fire
        ("1f478-1f3fb", "1fac5"),  # princess
        ("1f468-200d-1f469-200d-1f467-200d-1f466", "1f46a"),  # family
        ("1f468-1f3fb-200d-2764-fe0f-200d-1f48b-200d-1f468-1f3ff", "1f48f"),  # kiss
        ("1faf1-1f3fb-200d-1faf2-1f3fe", "1f91d"),  # handshake of two tones
        ("1f1eb-1f1f7", "1f1eb-1f1f7"),  # flag of France
        ("1f3f3-fe0f-200d-26a7-fe0f", "1f3f3-200d-26a7"),  # transgender flag: not a gender variant of the white flag
        ("0031-fe0f-20e3", "0031-20e3"),  # keycap 1
    ],
)
def test_concept(hexcode, concept):
    assert concept_of(hexcode) == concept
    assert concept_of(concept) == concept


def test_splits_are_fixed_for_ever():
    """The numbers that anyone must get who recomputes the splits: changing them would leak what was held out."""
    known = {
        ("1f34e", "noto"): "train",  # red apple
        ("1f418", "noto"): "concepts",  # elephant
        ("1f418", "twemoji"): "concepts",
        ("1f431", "fluent"): "val",  # cat face
        ("1f415", "noto"): "pairs",  # dog
        ("1f415", "fluent"): "train",
        ("1f334", "noto"): "val",  # palm tree
    }
    assert {pair: split_of(*pair) for pair in known} == known


def test_splits_have_the_right_size():
    concepts = [f"1f{n:03x}" for n in range(4000)]
    splits = [split_of(concept, "noto") for concept in concepts]
    assert splits.count("concepts") / 4000 == pytest.approx(0.148, abs=0.015)
    assert splits.count("pairs") / 4000 == pytest.approx(0.05 * 0.816, abs=0.01)
    assert splits.count("val") / 4000 == pytest.approx(0.036 + 0.02 * 0.816, abs=0.01)
    held_out = {c for c, s in zip(concepts, splits, strict=True) if s == "concepts"}
    assert held_out == {c for c in concepts if split_of(c, "fluent") == "concepts"}  # whoever draws it


def test_readable_labels():
    assert readable("flag: France") == "flag of France"
    assert readable("man: bald") == "bald man"
    assert readable("person: red hair") == "person with red hair"
    assert readable("person walking: facing right") == "person walking, facing right"
    assert readable("kiss: woman, man") == "kiss, woman and man"
    assert readable("twelve o’clock") == "twelve o'clock"


# ---------------------------------------------------------------------------------------------- a small build

LABELS = {
    "1F34E": "red apple",
    "1F418": "elephant",
    "1F680": "rocket",
    "1F9D1-200D-1F692": "firefighter",
    "1F469-200D-1F692": "woman firefighter",
}


def svg(colour: str, width: int = 32) -> str:
    shape = f'<rect x="4" y="4" width="{width - 8}" height="24" fill="{colour}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 32">{shape}</svg>'


def small_set() -> list[Drawing]:
    firefighters = [
        Drawing("noto", f"firefighter-{n}", code, svg(f"#0000{n}{n}"))
        for n, code in enumerate(
            ["1f9d1-200d-1f692", "1f469-200d-1f692", "1f9d1-1f3fb-200d-1f692", "1f469-1f3ff-200d-1f692"]
        )
    ]
    return [
        Drawing("noto", "red-apple", "1f34e", svg("red")),
        Drawing("twemoji", "red-apple", "1f34e", svg("red")),  # the same pixels
        Drawing("fluent-emoji-flat", "red-apple", "1f34e", svg("#f00020")),
        Drawing("noto", "elephant", "1f418", svg("gray")),
        Drawing("noto", "rocket", "1f680", svg("gray")),  # looks like the held-out elephant
        Drawing("noto", "wide-rocket", "1f680", svg("green", width=64)),
        Drawing("noto", "unknown", "1faff", svg("black")),
        Drawing("noto", "tone", "1f3fb", svg("brown")),
        *firefighters,
    ]


@pytest.fixture
def emojibase(tmp_path, monkeypatch):
    folder = tmp_path / "emojibase"
    (folder / "meta").mkdir(parents=True)
    (folder / "en").mkdir()
    entries = [
        {"hexcode": h, "label": n, "tags": [n.split()[-1]], "group": 3, "subgroup": 34} for h, n in LABELS.items()
    ]
    (folder / "en" / "data.json").write_text(json.dumps(entries))
    names = {"groups": {"3": "animals-nature"}, "subgroups": {"34": "animal-mammal"}}
    (folder / "meta" / "groups.json").write_text(json.dumps(names))
    monkeypatch.setattr("rebus.data.emoji_sets.fetch", lambda name, cache, progress: folder)


def rendered_here(monkeypatch):
    """Render in this process: a pool of processes would import everything again."""

    class Here:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, function, *arguments):
            return map(function, *arguments)

    monkeypatch.setattr(emoji_build, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(emoji_build, "drawings", lambda cache, progress: iter(small_set()))


def test_build(tmp_path, monkeypatch, emojibase):
    rendered_here(monkeypatch)
    monkeypatch.setattr(emoji_build, "PART", 4)
    counts = emoji_build.build(tmp_path / "out", tmp_path)
    pictures = load_pictures(tmp_path / "out")
    by_key = {key: row for row, key in enumerate(pictures.key)}

    # equal pixels are one picture; of train and held-out copies the training one is dropped; swatches are no pictures
    assert set(by_key) == {
        "noto/red-apple",
        "fluent/flat/red-apple",
        "noto/elephant",
        "noto/wide-rocket",
        *(f"noto/firefighter-{n}" for n in range(4)),
    }
    assert counts["concepts"]["pictures"] == 1 and sum(c["pictures"] for c in counts.values()) == len(pictures)

    # variants share half a picture's weight
    weights = [pictures.weight[by_key[f"noto/firefighter-{n}"]] for n in range(4)]
    assert weights == pytest.approx([1.0, 1 / 6, 1 / 6, 1 / 6])
    row = by_key["noto/firefighter-3"]
    assert (pictures.label[row], pictures.concept_label[row]) == ("woman firefighter", "firefighter")
    assert (pictures.skin_tone[row], pictures.gender[row]) == ("dark", "woman")

    # pixels: both sizes agree, alpha is straight, a wide drawing is centred and keeps its shape
    apple = by_key["noto/red-apple"]
    assert pictures.rgba_N[apple][32, 32].tolist() == [255, 0, 0, 255]
    assert pictures.rgba_N[apple][0, 0, 3] == 0
    assert pictures.rgba_128(apple).shape == (128, 128, 4)
    alpha = pictures.rgba_N[by_key["noto/wide-rocket"]][..., 3]
    assert alpha[:16].max() == 0 and alpha[48:].max() == 0 and alpha[32, 32] == 255
    assert pictures.image(apple, 128, (0, 0, 255)).getpixel((1, 1)) == (0, 0, 255)

    # a second call does nothing, another recipe builds again
    (tmp_path / "out" / "pictures-000-of-001.parquet").touch()
    monkeypatch.setattr(emoji_build, "drawings", lambda *_: pytest.fail("built twice"))
    assert emoji_build.build(tmp_path / "out", tmp_path) == counts


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch, emojibase):
    rendered_here(monkeypatch)
    monkeypatch.setattr(emoji_build, "PART", 4)
    rendered: list[str] = []
    render_part = emoji_build.render_part

    def until_cut_off(chunk, path):
        if rendered:
            raise KeyboardInterrupt
        rendered.append(path.name)
        render_part(chunk, path)

    monkeypatch.setattr(emoji_build, "render_part", until_cut_off)
    with pytest.raises(KeyboardInterrupt):
        emoji_build.build(tmp_path / "out", tmp_path)
    with pytest.raises(RebusError, match="no pictures"):
        load_pictures(tmp_path / "out")
    again: list[str] = []
    monkeypatch.setattr(emoji_build, "render_part", lambda c, p: (again.append(p.name), render_part(c, p)))
    emoji_build.build(tmp_path / "out", tmp_path)
    assert again and not set(again) & set(rendered)
    assert len(load_pictures(tmp_path / "out")) == 8
    assert not (tmp_path / "out" / "parts").exists()


def test_dictionary_knows_what_it_does_not_know(tmp_path, emojibase):
    dictionary = Dictionary(tmp_path)
    assert dictionary.meaning("1faff") is None
    assert dictionary.meaning("1f3fb") is None
    meaning = dictionary.meaning("1f468-1f3fb-200d-1f692")
    assert meaning is not None and meaning.gender == "man" and meaning.skin_tone == "light"


def test_over():
    half_red = np.array([[[255, 0, 0, 128]]], np.uint8)
    assert over(half_red, np.array([255, 255, 255], np.uint8)).tolist() == [[[255, 127, 127]]]
    opaque = np.full((2, 2, 4), 255, np.uint8)
    assert PIL.Image.fromarray(over(opaque, np.zeros(3, np.uint8))).getpixel((0, 0)) == (255, 255, 255)


def test_damaged_pictures_are_an_error(tmp_path):
    with pytest.raises(RebusError, match="no pictures.*rebus data emoji"):
        load_pictures(tmp_path)
    (tmp_path / "pictures-000-of-001.parquet").write_bytes(b"not parquet")
    with pytest.raises(RebusError, match="not a Parquet file"):
        load_pictures(tmp_path)


def test_columns_of_the_small_set_are_read(tmp_path, monkeypatch, emojibase):
    rendered_here(monkeypatch)
    emoji_build.build(tmp_path / "out", tmp_path)
    table = read_columns(next((tmp_path / "out").glob("*.parquet")), ["png_64", "png_128", "licence"])
    assert set(table["licence"]) == {"Apache-2.0", "MIT"}
    assert all(png.startswith(b"\x89PNG") for png in table["png_64"] + table["png_128"])
