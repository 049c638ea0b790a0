"""Documents and banks of the embedded pictures: deterministic, balanced, and never a held-out picture or name in training.

They run on the small set of `tests/data`; those marked `pictures` run on the whole set too where it has been built.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from random import Random

import numpy as np
import pytest

from rebus.data.backdrops import Backdrop, draw_backdrop
from rebus.data.bank import KINDS as BANK_KINDS
from rebus.data.bank import bank
from rebus.data.emoji import INSTRUCT, KINDS, PRETRAIN, EmojiDocuments
from rebus.data.emoji_scenes import ask_about
from rebus.data.pictures import Pictures, load_pictures, over
from rebus.data.scenes import Placed, Scene, Things, describe, random_scene, render
from rebus.data.selection import Selection, foreign_names
from rebus.data.splits import split_of
from rebus.data.wording import article, countable, is_plural, named, noun, plural
from rebus.document import Document
from rebus.errors import RebusError

SMALL = Path(__file__).parent / "data" / "pictures"
WHOLE = Path(__file__).parents[1] / "state" / "emoji"


@pytest.fixture(scope="module")
def small() -> Pictures:
    return load_pictures(SMALL)


@pytest.fixture(scope="module", params=["small", "whole"])
def pictures(request) -> Pictures:
    if request.param == "small":
        return load_pictures(SMALL)
    if not (WHOLE / "pictures.json").exists():
        pytest.skip("the whole set has not been built (`rebus data emoji`)")
    return load_pictures(WHOLE)


def spoken(document: Document) -> str:
    return " | ".join(message.text for message in document.messages)


def same(a: Document, b: Document) -> bool:
    pixels = ([np.asarray(image.pixels) for image in document.images] for document in (a, b))
    return (
        [m.role for m in a.messages] == [m.role for m in b.messages]
        and spoken(a) == spoken(b)
        and all(np.array_equal(x, y) for x, y in zip(*pixels, strict=True))
    )


def seen(rgba_hw: np.ndarray) -> bytes:
    """A digest of what is seen of a picture: colours under full transparency do not count."""
    packed_hw = rgba_hw.view(np.uint32)[..., 0]
    return blake2b(np.where(packed_hw >> 24, packed_hw, 0).tobytes(), digest_size=16).digest()


# ---------------------------------------------------------------------------------------------- splits


def test_split_column_can_be_recomputed(pictures):
    for row in range(len(pictures)):
        assert pictures.split[row] == split_of(pictures.concept[row], pictures.family[row])


def test_splits_share_no_concept_no_pair_and_no_pixels(pictures):
    rows = {split: pictures.rows(split) for split in ("train", "val", "pairs", "concepts")}
    concepts = {split: {pictures.concept[row] for row in rows[split]} for split in rows}
    pairs = {split: {(pictures.concept[row], pictures.family[row]) for row in rows[split]} for split in rows}
    shown = {split: {seen(pictures.rgba_N[row]) for row in rows[split]} for split in rows}
    assert sum(map(len, rows.values())) == len(pictures)
    assert not concepts["concepts"] & (concepts["train"] | concepts["val"] | concepts["pairs"])
    for one, two in [(one, two) for one in rows for two in rows if one < two]:
        assert not pairs[one] & pairs[two]
        assert not shown[one] & shown[two]
    assert sum(map(len, shown.values())) == len(pictures)


def test_weights(pictures):
    if len(pictures) < 1000:
        pytest.skip("the small set is a part, whose weights are those of the whole")
    total: Counter[tuple[str, str]] = Counter()
    for concept, family, weight in zip(pictures.concept, pictures.family, pictures.weight, strict=True):
        total[concept, family] += weight
    assert min(total.values()) == pytest.approx(1) and max(total.values()) <= 1.5 + 1e-9


# ---------------------------------------------------------------------------------------------- what is said and shown


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w'!*#-]+", text.lower()))


def assert_names_nothing_held_out(pictures: Pictures, texts: list[str]) -> None:
    """No name of what only other splits show occurs, except as a part of the longer name of something of this split
    (`heart` in `heart with ribbon`)."""
    rows = pictures.rows("train").tolist()
    names = {pictures.label[row] for row in rows} | {pictures.concept_label[row] for row in rows}
    own = {words_of(name) for label in names for name in (label, plural(label), article(label))}
    own |= {words_of(named(pictures, row)) for row in rows}
    foreign = {words_of(name) for name in foreign_names(pictures, "train")}
    assert foreign
    longest = max(map(len, own | foreign))
    for text in texts:
        words, at = words_of(text), 0
        while at < len(words):
            runs = [words[at : at + length] for length in range(longest, 0, -1)]
            known = next((run for run in runs if run in own), ())
            held_out = next((run for run in runs if run in foreign), ())
            assert len(held_out) <= len(known), f"{' '.join(held_out)!r} in {text!r}"
            at += max(1, len(known))


def test_training_documents_name_nothing_held_out(pictures):
    documents = EmojiDocuments(pictures, "train", seed=3, mix=dict.fromkeys(KINDS, 1.0))
    assert_names_nothing_held_out(pictures, [spoken(documents[i]) for i in range(500)])


def test_training_banks_name_nothing_held_out(pictures):
    _, captions, _ = bank(pictures, "train", 1000, 5, shares=dict.fromkeys(BANK_KINDS, 0.2))
    assert_names_nothing_held_out(pictures, captions)


def test_training_documents_show_nothing_held_out(small):
    """Every single picture of a training document is, on its background, one of the training pictures."""
    white_N = over(small.rgba_N, np.full(3, 255, np.uint8))
    train = {white_N[row].tobytes() for row in small.rows("train")}
    documents = EmojiDocuments(small, "train", seed=4, mix={"describe": 1, "album": 1, "two_pictures": 1})
    for i in range(100):
        for image in documents[i].images:
            assert np.asarray(image.pixels).tobytes() in train


def test_training_scenes_show_nothing_held_out(pictures):
    things, rng = Things(pictures, "train"), Random(0)
    placed = {placed.row for _ in range(500) for placed in random_scene(things, rng).placed}
    assert placed <= set(pictures.rows("train").tolist())


def test_documents_are_a_pure_function_of_seed_and_index(small):
    mix = dict.fromkeys(KINDS, 1.0)
    one, two = EmojiDocuments(small, "train", 7, mix), EmojiDocuments(small, "train", 7, mix)
    forwards = [one[i] for i in range(40)]
    backwards = [two[i] for i in reversed(range(40))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    other = EmojiDocuments(small, "train", 8, mix)
    assert not all(spoken(one[i]) == spoken(other[i]) for i in range(40))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_with_the_assistant(small, kind):
    documents = EmojiDocuments(small, "train", mix={kind: 1})
    for i in range(40):
        roles = [message.role for message in documents[i].messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message.content and all(part != "" for part in message.content) for message in documents[i].messages)
        parts = [part for message in documents[i].messages for part in message.content if isinstance(part, str)]
        assert not any("{" in part or "  " in part for part in parts)


def test_mixes_are_kept(small):
    for mix in (PRETRAIN, INSTRUCT):
        documents = EmojiDocuments(small, mix=mix)
        kinds = Counter(documents.kind(i) for i in range(4000))
        total = sum(mix.values())
        assert all(kinds[kind] / 4000 == pytest.approx(share / total, abs=0.03) for kind, share in mix.items())


def test_yes_and_no_are_balanced(small):
    selection = Selection(small, "train")
    rng = Random(1)
    answers: dict[str, Counter[str]] = {"Is there": Counter(), "Is the": Counter()}
    for _ in range(3000):
        asked, answer = ask_about(selection, random_scene(selection.things, rng), rng)
        if asked.startswith("Is the"):
            answers["Is there" if asked.startswith("Is there") else "Is the"][answer.rstrip(".")] += 1
    documents = EmojiDocuments(small, mix={"question": 1})
    replies = [documents[i].messages[1].text for i in range(2000)]
    yes = sum(reply.startswith(("Yes.", "Yes,")) for reply in replies)
    no = sum(reply.startswith(("No.", "No,")) for reply in replies)
    assert yes / (yes + no) == pytest.approx(0.5, abs=0.05)
    for counts in answers.values():
        assert counts["Yes"] / counts.total() == pytest.approx(0.5, abs=0.05)


def test_answers_are_true(small):
    """A scene's own record answers the questions about it."""
    selection = Selection(small, "train")
    cat, key = (next(r for r in selection.rows if small.label[r] == label) for label in ("cat", "key"))
    scene = Scene("beside", (Placed(cat, 34, 64, 50), Placed(key, 94, 64, 50)), Backdrop("plain", "pink"))
    truth = {
        "How many things are in the picture?": "Two.",
        "How many cats are there?": "One.",
        "Is there a cat in the picture?": "Yes.",
        "What is on the left?": "A cat.",
        "What is on the right?": "A key.",
        "Is the cat left of the key?": "Yes.",
        "Is the cat right of the key?": "No.",
        "Is the key left of the cat?": "No.",
        "Is the key right of the cat?": "Yes.",
        "What colour is the background?": "Pink.",
    }
    rng = Random(0)
    asked = dict(ask_about(selection, scene, rng) for _ in range(400))
    assert all(asked[question] == answer for question, answer in truth.items())
    assert all(a == "No." for q, a in asked.items() if q.startswith("Is there") and "cat" not in q and "key" not in q)


def test_the_same_in_another_style_is_the_same_thing(small):
    selection = Selection(small, "train")
    rng = Random(0)
    found = 0
    for row in selection.rows:
        other = selection.in_other_style(row, rng)
        if other is not None:
            found += 1
            assert small.label[other] == small.label[row] and selection.style(other) != selection.style(row)
            assert small.split[other] == "train"
    assert found > 20
    dog = next(row for row in range(len(small)) if small.label[row] == "dog" and small.split[row] == "train")
    assert selection.in_other_style(dog, rng) is None  # the other dog is held out


def test_people_may_ask_with_everyday_words(small):
    selection, rng = Selection(small, "train"), Random(0)
    car = next(row for row in selection.rows if small.label[row] == "automobile")
    assert {selection.wish(car, rng) for _ in range(50)} == {"an automobile", "a car"}
    rocket = next(row for row in selection.rows if small.label[row] == "rocket")
    assert {selection.wish(rocket, rng) for _ in range(50)} == {"a rocket"}


# ---------------------------------------------------------------------------------------------- scenes


def test_scene_is_where_its_boxes_say(small):
    apple = next(row for row in range(len(small)) if small.key[row] == "noto/red-apple")
    scene = Scene("one", (Placed(apple, 92, 36, 40),), Backdrop())
    image = np.asarray(render(small, scene)).astype(int)
    assert image.shape == (128, 128, 3)
    y, x = np.nonzero((image != 255).any(-1))
    box = scene.placed[0].box
    left, right = (box.cx - box.w / 2) * 128, (box.cx + box.w / 2) * 128
    top, bottom = (box.cy - box.h / 2) * 128, (box.cy + box.h / 2) * 128
    assert left <= x.min() and x.max() < right and top <= y.min() and y.max() < bottom
    assert x.max() - x.min() > 30
    assert describe(small, scene, Random(0)) == "a red apple in the top right corner"


def test_boxes_are_cut_at_the_edges():
    box = Placed(0, 10, 120, 40).box
    assert box.cx - box.w / 2 == pytest.approx(0) and box.cy + box.h / 2 == pytest.approx(1)
    assert box.w == pytest.approx(30 / 128)


@pytest.mark.parametrize("layout", ["one", "beside", "stacked", "row", "same", "counts", "corners"])
def test_layouts(small, layout):
    things, rng = Things(small, "train"), Random(2)
    for _ in range(30):
        scene = random_scene(things, rng, layout)
        text = describe(small, scene, rng)
        assert 1 <= len(scene.placed) <= 4
        for placed in scene.placed:
            assert small.label[placed.row] in text or plural(small.label[placed.row]) in text
        assert render(small, scene).size == (128, 128)
        xs, ys = [p.x for p in scene.placed], [p.y for p in scene.placed]
        assert layout not in ("beside", "row") or xs == sorted(xs)
        assert layout != "stacked" or ys == sorted(ys)


@pytest.mark.parametrize("pattern", ["plain", "striped", "chequered", "dotted", "gradient", "speckled"])
def test_backdrops(pattern):
    backdrop = Backdrop(pattern, "white", "black", 16)
    image = draw_backdrop(backdrop, 64)
    assert image.shape == (64, 64, 3)
    assert image[..., 0].max() > 230 and (pattern == "plain" or image[..., 0].min() < 40)
    assert backdrop.words.endswith("background")


# ---------------------------------------------------------------------------------------------- banks


def test_bank(small):
    images, captions, kinds = bank(small, "train", 300, seed=1)
    assert images.shape == (300, 64, 64, 3) and images.dtype == np.uint8
    assert len(captions) == len(kinds) == 300 and all(captions)
    shares = Counter(kinds)
    assert set(shares) == set(BANK_KINDS) and shares["single"] / 300 == pytest.approx(0.6, abs=0.08)
    assert len({image.tobytes() for image in images}) > 250
    again = bank(small, "train", 300, seed=1)
    assert np.array_equal(images, again[0]) and captions == again[1]
    assert not np.array_equal(images, bank(small, "train", 300, seed=2)[0])


def test_bank_at_128(small):
    images, captions, _ = bank(small, "val", 20, seed=1, size=128)
    assert images.shape == (20, 128, 128, 3) and len(captions) == 20


def test_bank_draws_singles_by_weight(small):
    _, captions, _ = bank(small, "train", 1500, seed=1, shares={"single": 1.0})
    count = Counter("dark skin" in caption for caption in captions)
    rows = small.rows("train")
    dark = sum(small.weight[row] for row in rows if small.skin_tone[row] == "dark") / sum(small.weight[r] for r in rows)
    assert count[True] / 1500 == pytest.approx(dark, abs=0.015)


@pytest.mark.parametrize(("split", "size"), [("trian", 64), ("train", 48)])
def test_bank_refuses(small, split, size):
    with pytest.raises(RebusError, match="split|64 or 128"):
        bank(small, split, 1, 0, size=size)


def test_documents_refuse(small):
    with pytest.raises(RebusError, match="no split 'test'"):
        EmojiDocuments(small, "test")
    with pytest.raises(RebusError, match="capton"):
        EmojiDocuments(small, mix={"capton": 1})
    with pytest.raises(IndexError):
        EmojiDocuments(small)[-1]


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "a red apple"),
        ("elephant", "an elephant"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("OK hand", "an OK hand"),
        ("SOS button", "an SOS button"),
        ("FREE button", "a FREE button"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("people hugging", "people hugging"),
        ("man lifting weights", "a man lifting weights"),
        ("rightwards pushing hand", "a rightwards pushing hand"),
        ("man's shoe", "a man's shoe"),
        ("bread", "bread"),
        ("locked", "a locked padlock"),
        ("milky way", "the milky way"),
    ],
)
def test_article(label, said):
    assert article(label) == said


def test_nouns_of_groups():
    assert noun("flag of Japan", "flags", "country-flag") == "the flag of Japan"
    assert noun("flag of United Kingdom", "flags", "country-flag") == "the flag of the United Kingdom"
    assert noun("three o'clock", "travel-places", "time") == "a clock showing three o'clock"
    assert noun("Leo", "symbols", "zodiac") == "the zodiac sign Leo"
    assert noun("no smoking", "symbols", "warning") == "the no smoking symbol"
    assert noun("play button", "symbols", "av-symbol") == "a play button"


def test_plural_and_countable():
    expected = {"mouse": "mice", "fish": "fish", "ferry": "ferries", "toothbrush": "toothbrushes", "snowman": "snowmen"}
    assert {label: plural(label) for label in expected} == expected
    assert is_plural("grapes") and plural("grapes") == "grapes"
    assert countable("red apple") and not any(map(countable, ("grapes", "bread", "cat with wry smile", "milky way")))
