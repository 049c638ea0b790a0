"""Sources, mixtures and loaders: what is written is read, what is broken is skipped and counted, and a position is a state."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rebus.data.loader import Loader
from rebus.data.mixture import BLOCK, Mixture, shuffled
from rebus.data.parquet import write_rows
from rebus.data.sources import Unreadable, open_source
from rebus.document import Document, Image, assistant, to_json, user
from rebus.errors import RebusError
from rebus.train.stage import Resumable


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def shade(document: Document) -> int:
    return document.images[0].pixels.getpixel((0, 0))[0]


def text(document: Document) -> str:
    return "".join(message.text for message in document.messages)


class Numbers:
    """Documents that say their number; those in `broken` cannot be read."""

    def __init__(self, name: str, count: int, broken: tuple[int, ...] = ()) -> None:
        self.name, self.count, self.broken = name, count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Document:
        if index in self.broken:
            raise Unreadable(f"{self.name}{index} is broken")
        return Document((user(f"{self.name}{index}"), assistant("yes")))


def said(documents) -> list[str]:
    return [document.messages[0].text for document in documents]


# ---------------------------------------------------------------------------------------------- sources


def test_json_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10))
    lines = [
        json.dumps(
            to_json(Document((user(Image(PIL.Image.new("RGB", (4, 4), (20, 0, 0)))), assistant("a red square"))))
        ),
        "",
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}]}),
        "{ not json",
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "gone.png"}]}]}),
        json.dumps({"messages": []}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "box", "box": [0, 0, "wide", None]}]}]}),
        json.dumps({"messages": [{"role": "user", "content": "ü"}]}, ensure_ascii=False),
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = open_source(tmp_path / "chats.jsonl")
    assert len(source) == 7
    assert shade(source[0]) == 20 and text(source[0]) == "a red square"
    assert shade(source[1]) == 10
    assert text(source[6]) == "ü"
    for index in (2, 3, 4, 5):
        with pytest.raises(Unreadable):
            source[index]


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def samples(count: int) -> dict[str, bytes]:
    files = {}
    for n in range(count):
        files |= {f"{n:04}.png": png(n), f"{n:04}.txt": f"number {n}".encode()}
    return files


def test_tar(tmp_path):
    chat = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "png"}]}]}
    files = samples(2) | {
        "2.png": png(2),
        "2.json": json.dumps({"caption": "number 2"}).encode(),
        "3.png": png(3),
        "3.json": json.dumps(chat).encode(),
        "4.png": b"\x89PNG, but no more",
        "4.txt": b"broken",
        "5.txt": b"no picture",
    }
    tar(tmp_path / "shard.tar", files)
    source = open_source(tmp_path / "shard.tar", "caption")
    assert len(source) == 6
    assert [(shade(source[n]), text(source[n])) for n in range(3)] == [(n, f"number {n}") for n in range(3)]
    assert shade(source[3]) == 3 and len(source[3].messages) == 1
    for index in (4, 5):
        with pytest.raises(Unreadable):
            source[index]


def test_order_says_what_comes_first(tmp_path):
    tar(tmp_path / "shard.tar", samples(2))
    first = {order: [bool(open_source(tmp_path / "shard.tar", order)[n].messages[0].images) for n in range(2)]
             for order in ("caption", "draw", "both")}  # fmt: skip
    assert first == {"caption": [True, True], "draw": [False, False], "both": [True, False]}


def test_a_tar_that_breaks_off_gives_what_came_before(tmp_path):
    tar(tmp_path / "whole.tar", samples(20))
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: 512 * 41 + 100])
    source = open_source(tmp_path / "cut.tar", "caption")
    assert 8 <= len(source) <= 11
    assert [text(source[n]) for n in range(8)] == [f"number {n}" for n in range(8)]
    with pytest.raises(Unreadable):
        [source[n] for n in range(len(source))]


def test_parquet(tmp_path):
    rows = [{"image": {"bytes": png(n), "path": None}, "text": f"number {n}"} for n in range(5)]
    rows.append({"image": {"bytes": b"no picture", "path": None}, "text": "broken"})
    rows.append({"image": None, "text": "none"})
    write_rows(rows, tmp_path / "pairs.parquet")
    source = open_source(tmp_path / "pairs.parquet", "draw")
    assert len(source) == 7
    assert [(shade(source[n]), text(source[n])) for n in range(5)] == [(n, f"number {n}") for n in range(5)]
    for index in (5, 6):
        with pytest.raises(Unreadable):
            source[index]
    with pytest.raises(IndexError):
        source[7]


def test_parquet_of_messages(tmp_path):
    document = Document((user("hello"), assistant(Image(PIL.Image.new("RGB", (4, 4), (9, 0, 0))))))
    messages = json.dumps(to_json(document)["messages"])
    write_rows([{"messages": messages}, {"messages": "[{"}], tmp_path / "chats.parquet")
    source = open_source(tmp_path / "chats.parquet")
    assert text(source[0]) == "hello" and shade(source[0]) == 9
    with pytest.raises(Unreadable):
        source[1]


def test_a_folder_is_its_files_one_after_the_other(tmp_path):
    tar(tmp_path / "b.tar", samples(3))
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "first"}]}\n')
    (tmp_path / "notes.txt").write_text("not data")
    source = open_source(tmp_path, "caption")
    assert [text(source[n]) for n in range(len(source))] == ["first", "number 0", "number 1", "number 2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.jsonl", None, "cannot be opened"),
        ("gone.tar", None, "no file"),
        ("gone.parquet", None, "no file"),
        ("a.csv", b"a,b", "ends in .csv"),
        ("a.tar", b"not a tar, not at all, " * 50, "not a tar file"),
        ("a.parquet", b"not parquet", "not a Parquet file"),
    ],
)
def test_bad_files_are_errors_that_say_so(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RebusError, match=says):
        open_source(tmp_path / name)


def test_an_empty_folder_and_missing_columns(tmp_path):
    with pytest.raises(RebusError, match="holds no"):
        open_source(tmp_path)
    write_rows([{"picture": b"", "caption": "x"}], tmp_path / "a.parquet")
    with pytest.raises(RebusError, match="picture, caption, but not image, text"):
        open_source(tmp_path / "a.parquet")


# ---------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1000])
def test_shuffled_is_a_permutation(count):
    order = [shuffled(index, count, "key") for index in range(count)]
    assert sorted(order) == list(range(count))
    assert count < 7 or order != list(range(count))
    assert count < 7 or order != [shuffled(index, count, "another") for index in range(count)]


def test_mixture_keeps_weights_exactly_and_goes_through_every_source():
    sources = {"a": Numbers("a", 300), "b": Numbers("b", 50), "c": Numbers("c", 9)}
    mixture = Mixture(sources, {"a": 0.6, "b": 0.3999, "c": 0.0001}, seed=1)
    places = [mixture.place(position) for position in range(2 * BLOCK)]
    for block in (places[:BLOCK], places[BLOCK:]):
        counts = Counter(place.source for place in block)
        assert counts["c"] == 1 and counts["a"] in (599, 600) and sum(counts.values()) == BLOCK
    for name, source in sources.items():
        mine = [place for place in places if place.source == name]
        for epoch in range(len(mine) // len(source)):
            indices = [place.index for place in mine if place.epoch == epoch]
            assert sorted(indices) == list(range(len(source)))
    first, second = ([p.index for p in places if p.source == "a" and p.epoch == epoch] for epoch in (0, 1))
    assert first != second


def test_an_endless_source_is_never_repeated():
    class Endless(Numbers):
        endless = True

    mixture = Mixture({"a": Endless("a", 10), "b": Numbers("b", 10)}, {"a": 1, "b": 1})
    seen = [mixture.place(p).index for p in range(BLOCK) if mixture.place(p).source == "a"]
    assert sorted(seen) == list(range(BLOCK // 2))


def test_mixture_is_a_function_of_seed_and_position():
    def make(seed: int) -> Mixture:
        return Mixture({"a": Numbers("a", 70), "b": Numbers("b", 30)}, {"a": 2, "b": 1}, seed)

    assert said(make(1)[p] for p in (5, 2000, 7)) == said(make(1)[p] for p in (5, 2000, 7))
    assert said(itertools.islice(make(1), 100)) == said(make(1)[p] for p in range(100))
    assert said(itertools.islice(make(1), 100)) != said(itertools.islice(make(2), 100))


def test_mixture_resumes():
    def make() -> Mixture:
        return Mixture({"a": Numbers("a", 70, broken=(3, 8)), "b": Numbers("b", 30)}, seed=4)

    unbroken = said(itertools.islice(make(), 400))
    mixture = make()
    before = said(itertools.islice(mixture, 150))
    state = json.loads(json.dumps(mixture.state_dict()))
    after = make()
    after.load_state_dict(state)
    assert before + said(itertools.islice(after, 250)) == unbroken
    assert after.skipped["a"] > mixture.skipped["a"] > 0 and not after.skipped["b"]
    assert not {"a3", "a8"} & set(unbroken)


def test_mixture_gives_up_on_nothing_but_broken_members():
    with pytest.raises(RebusError, match="in a row could not be read.*a0 is broken|in a row"):
        next(iter(Mixture({"a": Numbers("a", 3, broken=(0, 1, 2))})))


@pytest.mark.parametrize("weights", [{"a": 1, "c": 1}, {"a": -1, "b": 2}, {"a": 0, "b": 0}])
def test_mixture_refuses_weights(weights):
    with pytest.raises(RebusError, match="weight"):
        Mixture({"a": Numbers("a", 1), "b": Numbers("b", 1)}, weights)


def test_mixture_refuses_empty_sources():
    with pytest.raises(RebusError, match="b hold no documents"):
        Mixture({"a": Numbers("a", 1), "b": Numbers("b", 0)})


# ---------------------------------------------------------------------------------------------- loaders


def batches(loader: Loader, count: int) -> list[list[str]]:
    return [said(batch) for batch in itertools.islice(loader, count)]


def make_mixture() -> Mixture:
    return Mixture({"a": Numbers("a", 70, broken=(3,)), "b": Numbers("b", 30)}, seed=4)


def test_loader_is_resumable():
    assert isinstance(Loader(make_mixture(), 4), Resumable)
    unbroken = batches(Loader(make_mixture(), 4), 60)
    loader = Loader(make_mixture(), 4)
    before = batches(loader, 25)
    after = Loader(make_mixture(), 4)
    after.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert before + batches(after, 35) == unbroken
    assert after.skipped >= 2
    assert said(after[7]) == unbroken[7]
    assert "a3" not in itertools.chain(*unbroken)


def test_workers_change_nothing():
    loader = Loader(make_mixture(), 4, workers=2)
    assert batches(loader, 30) == batches(Loader(make_mixture(), 4), 30)
    assert loader.position == 30


def test_processes_share_the_positions_without_overlap():
    whole = [make_mixture().place(p) for p in range(4 * 3 * 5)]
    mixture = make_mixture()
    seen = []
    for step in range(5):
        for rank in range(3):
            seen.append(said(Loader(mixture, 4, rank=rank, world=3)[step]))
    expected = [f"{place.source}{place.index}" for place in whole if (place.source, place.index) != ("a", 3)]
    assert list(itertools.chain(*seen)) == expected


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 1, "workers": -1}, {"batch_size": 1, "rank": 2}])
def test_loader_refuses(options):
    with pytest.raises(RebusError, match="loader needs"):
        Loader(make_mixture(), **options)


def test_loader_gives_up_on_nothing_but_broken_members():
    with pytest.raises(RebusError, match="in a row"):
        next(iter(Loader(Numbers("a", 10**9, broken=tuple(range(4000))), 64)))


def test_images_survive_workers(tmp_path):
    tar(tmp_path / "shard.tar", samples(8))
    loader = Loader(Mixture({"shard": open_source(tmp_path / "shard.tar", "caption")}), 8, workers=1)
    batch = next(iter(loader))
    assert sorted(shade(document) for document in batch) == list(range(8))
    assert all(np.asarray(document.images[0].pixels).shape == (4, 4, 3) for document in batch)
