"""Records, web pages, frames, filters and codes as training data; what is broken is skipped and named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from random import Random

import PIL.Image
import pytest

from rebus.data.filters import Keep
from rebus.data.interleaved import Pages, rearrange
from rebus.data.lines import Unreadable
from rebus.data.records import Record, Records, pair
from rebus.data.sets import open_set
from rebus.data.sources import open_source
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.visual import Codes
from seed_pairs import add, png

RED = (200, 0, 0)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def said(document: Document) -> list[str]:
    """Texts as they are, images as `I` and the number of their first code or their width."""
    parts = [part for message in document.messages for part in message.content]
    return [part if isinstance(part, str) else f"I{number(part)}" for part in parts]


def number(image: Image) -> int:
    tokens = image.understood
    return int(tokens.ids_N[0]) if isinstance(tokens, Codes) else image.pixels.width


# ------------------------------------------------------------------------------------------------ records


def test_a_record_has_pictures_or_codes(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (9, 9), RED).save(tmp_path / "a.png")
    file = write(tmp_path / "r.jsonl", {"images": ["a.png", [5, 6]], "codes_of": "seed x", "text": " a cat "})
    record = Records(file)[0]
    assert [number(image) for image in record.images] == [9, 5]
    assert record.images[1].understood.source == record.images[1].generated.source == "seed x"
    assert record.text("text") == "a cat"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "record 1 is not JSON"),
        ([1], "no object whose `images` are a list"),
        ({"images": ["none.png"]}, "There is no file"),
        ({"images": [[1, "2"]]}, "codes are not whole numbers"),
        ({"images": [[]]}, "codes are not whole numbers"),
        ({"images": [7]}, "neither a path nor a list of codes: 7"),
    ],
)
def test_a_record_that_cannot_be_read(tmp_path: Path, line: object, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        Records(write(tmp_path / "r.jsonl", line))[0]


def test_what_a_template_lacks_is_named() -> None:
    with pytest.raises(Unreadable, match="A record has answer, but no text 'question'"):
        Record((), {"answer": "a"}).text("question")
    with pytest.raises(Unreadable, match="needs 2 images here, but has 0"):
        Record((), {}).pictures(2)


def test_pairs_are_records_and_chats_are_not() -> None:
    image = Image(PIL.Image.new("RGB", (4, 4)))
    assert pair(Document((user(image), assistant("a cat")))).fields == {"text": "a cat"}
    for other in ((user("What?", image), assistant("a cat")), (user("a cat"), assistant(image)), (user(image),)):
        assert pair(Document(other)) is None


# ------------------------------------------------------------------------------------------------ pages


def test_pages_of_both_forms(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (9, 9), RED).save(tmp_path / "a.png")
    obelics = {"texts": ["One.", None, None, "Two."], "images": [None, "a.png", [7, 8], None]}
    mmc4 = {
        "text_list": ["One.", "Two."],
        "image_info": [
            {"image_name": "a.png", "matched_text_index": 1, "matched_sim": 0.3},
            {"codes": [3], "matched_text_index": 0, "matched_sim": 0.1},
        ],
    }
    file = write(tmp_path / "p.jsonl", obelics, mmc4)
    assert [said(page) for page in (Pages(file)[0], Pages(file)[1])] == [
        ["One.", "I9", "I7", "Two."],
        ["I3", "One.", "I9", "Two."],
    ]
    assert said(Pages(file, Keep(similarity=0.2))[1]) == ["One.", "I9", "Two."]
    assert {message.role for message in Pages(file)[0].messages} == {"assistant"}  # all of it is learned


def test_pages_that_cannot_be_read(tmp_path: Path) -> None:
    lost = {"texts": [None], "images": ["lost.png"]}
    file = write(tmp_path / "p.jsonl", "{", {"texts": ["a"], "images": []}, lost, {"texts": ["a"], "images": [None]})
    for index, words in enumerate(("is not JSON", "neither `texts` and `images` of one length", "1 entries, none of")):
        with pytest.raises(Unreadable, match=words):
            Pages(file)[index]
    assert said(Pages(file)[3]) == ["a"]


def test_images_change_places_and_are_counted() -> None:
    images = [Image(PIL.Image.new("RGB", (width, 4))) for width in (5, 6, 7)]
    page = Document((assistant("One.", images[0], "Two.", images[1], "Three.", images[2]),))
    assert said(rearrange(page, Random(0), images=2)) == ["One.", "I5", "Two.", "I6", "Three."]
    assert said(rearrange(page, Random(0), swap=1.0)) == ["One.", "Two.", "I5", "Three.", "I6", "I7"]
    swapped = [said(rearrange(page, Random(seed), swap=0.5))[1] == "Two." for seed in range(200)]
    assert 70 < sum(swapped) < 130


# ------------------------------------------------------------------------------------------------ frames, filters, kinds


def test_frames_of_a_video_are_images_in_order(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        for frame in (10, 2, 0, 1):
            add(tar, f"clip.{frame}.png", png(RED, 8 + frame))
        add(tar, "clip.txt", b"a man rides")
    for order in ("caption", "draw", "both"):  # a video is never written
        assert said(open_source(tmp_path / "v.tar", order)[0]) == ["I8", "I9", "I10", "I18", "a man rides"]


@pytest.mark.parametrize(
    ("size", "similarity", "words"),
    [
        ((7, 9), 0.9, "7 × 9, narrower than 8"),
        ((20, 9), 0.9, "20 × 9, more oblong"),
        ((9, 9), 0.1, "similarity of 0.100"),
    ],
)
def test_filters_say_what_disagrees(tmp_path: Path, size: tuple[int, int], similarity: float, words: str) -> None:
    keep = Keep(similarity=0.25, side=8, aspect=0.5)
    PIL.Image.new("RGB", size).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, "a.png", (tmp_path / "a.png").read_bytes())
        add(tar, "a.json", json.dumps({"caption": "a", "similarity": similarity}).encode())
    record = {"images": ["a.png"], "similarity": similarity, "text": "a"}
    with pytest.raises(Unreadable, match=words):
        open_source(tmp_path / "t.tar", keep=keep)[0]
    with pytest.raises(Unreadable, match=words):
        Records(write(tmp_path / "r.jsonl", record), keep)[0]
    assert len(open_source(tmp_path / "t.tar")[0].messages) == 2


def test_a_set_is_what_its_files_hold(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    codes = {"type": "image_codes", "source": "seed x", "codes": [4, 2]}
    shard = {"messages": [{"role": "user", "content": [codes, {"type": "text", "text": "What?"}]}]}
    write(tmp_path / "1.jsonl", chat, shard)
    write(tmp_path / "2.jsonl", {"texts": ["page"], "images": [None]})
    write(tmp_path / "3.jsonl", {"text": "record"})
    items = open_set(tmp_path)
    assert [said(items[n]) for n in range(3)] == [["Hi", "Hello"], ["I4", "What?"], ["page"]]
    assert isinstance(items[3], Record) and len(items) == 4
    assert items[1].images[0].generated.source == "seed x"  # a shard of codes
    write(tmp_path / "4.jsonl", "not json")
    with pytest.raises(RebusError, match="does not begin with a JSON object"):
        open_set(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RebusError, match=r"holds no \.jsonl"):
        open_set(tmp_path / "empty")
