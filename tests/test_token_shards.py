"""Shards of pictures become shards of tokens: what is stored is what the tokenizer gives, and the sources read it; damaged
samples are left out and named; a run that is broken off anywhere ends as one that was not."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from tests import tiny
from tests.picture_shards import chat, picture, sample, write_shard, write_shards

from rebus.data import manifest as manifest_module
from rebus.data import token_shards
from rebus.data.manifest import Manifest
from rebus.data.sets import open_set
from rebus.data.source_batches import Source, SourceBatches
from rebus.data.sources import Unreadable, open_source
from rebus.data.token_files import pack, unpack
from rebus.data.token_shards import Recipe, tokenize_shard
from rebus.document import Image
from rebus.errors import RebusError
from rebus.system import encode
from rebus.visual import Codes, Features, Patches, VisualTokens


class Mean:
    """Codes of a picture: the mean of each channel. Refuses black pictures; counts its batches."""

    source = "mean 1"

    def __init__(self, at: int | None = None) -> None:
        self.calls, self.at = 0, at

    def encode(self, images, purposes, *, generators=None):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        assert generators is not None and len(generators) == len(images)
        if any(image.pixels.getbbox() is None for image in images):
            raise RebusError("One is black.")
        means = [torch.tensor(image.pixels.resize((1, 1)).getpixel((0, 0))) for image in images]
        drawn = [torch.randint(9, (1,), generator=generator) for generator in generators]
        codes = [Codes(torch.cat(both), self.source) for both in zip(means, drawn, strict=True)]
        return [image.with_tokens(understood=c, generated=c) for image, c in zip(images, codes, strict=True)]


MEAN = Recipe("mean 1", batch=4)


def same(one: VisualTokens | None, other: VisualTokens | None, *, rounded: bool = False) -> bool:
    """Whether two are the same tokens; `rounded`: as half precision holds them."""

    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.equal(a, b.half().float() if rounded else b)

    match one, other:
        case Codes(), Codes():
            return torch.equal(one.ids_N, other.ids_N) and one.source == other.source
        case Features(), Features():
            places = [x.position_W2 for x in (one, other)]
            placed = places[0] is places[1] is None or torch.equal(*places)
            return near(one.x_WNC, other.x_WNC) and placed and one.source == other.source
        case Patches(), Patches():
            return near(one.x_NC, other.x_NC) and torch.equal(one.keep_N, other.keep_N) and one.source == other.source
    return one is other is None


@pytest.mark.parametrize("reading", ["both", "understanding", "generation"])
@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_what_is_stored_is_what_the_tokenizer_gives(paper: str, reading: token_shards.Reading, tmp_path: Path) -> None:
    """Of every paper, through a pair, a pair drawn, and a chat; documents of tokens are laid out as those of pictures."""
    system = tiny.system(paper)
    source = write_shard(tmp_path / "a.tar", [*sample(1), *sample(2), *chat(3)])
    (tmp_path / "out").mkdir()
    recipe = Recipe(system.tokenizer.source, reading, number="float32", batch=8)
    entry = tokenize_shard(source, tmp_path / "out/a.tar", system.tokenizer, recipe)
    assert (entry.samples, entry.images, entry.skipped) == (3, 4, ())
    seen, stored = open_source(source), open_source(tmp_path / "out")
    assert len(seen) == len(stored) == 3
    documents = [seen[i] for i in range(3)]
    pictures = [image for document in documents for image in document.images]
    files = ("00001.png", "00002.png", "00003.0.png", "00003.1.png")
    generators = [token_shards._generator(0, "a.tar", name) for name in files]
    wanted = system.tokenizer.encode(pictures, token_shards.PURPOSES[reading], generators=generators)
    tokens = [image for i in range(3) for image in stored[i].images]
    assert len(tokens) == len(wanted) == 4
    for ours, theirs in zip(tokens, wanted, strict=True):
        assert ours.pixels is None
        if reading != "generation":
            assert same(ours.understood, theirs.understood)
        if reading != "understanding":
            assert same(ours.generated, theirs.generated)
    if reading == "both":
        for i in range(3):
            dice = [generators[pictures.index(image)] for image in documents[i].images]
            dice = [torch.Generator().manual_seed(one.initial_seed()) for one in dice]
            pair = [
                encode(system.tokenizer, [d], replies="generation", generators=dice)[0]
                for d in (stored[i], documents[i])
            ]
            ids = [system.grammar.serialize(d, template="plain", loss="all") for d in pair]
            assert ids[0].ids == ids[1].ids and ids[0].target == ids[1].target
            assert len(ids[0].inputs) == len(ids[1].inputs)


def test_half_precision_rounds_and_refuses_what_it_cannot_hold() -> None:
    x_NC = torch.randn(5, 3, generator=tiny.generator(0)) * 100
    image = Image(understood=Patches(x_NC, torch.tensor([1, 0, 1, 0, 0], dtype=torch.bool), "p"))
    assert same(unpack(pack(image), "x").understood, image.understood, rounded=True)
    assert len(pack(image)) < len(pack(image, "float32")) and pack(image) == pack(image)
    large = Image(generated=Features(torch.full((1, 2, 3), 1e6), "p", torch.zeros(1, 2)))
    with pytest.raises(RebusError, match=r"up to 1e\+06 cannot be stored as float16\. Store them as bfloat16"):
        pack(large)
    assert same(unpack(pack(large, "float32"), "x").generated, large.generated)
    for broken in (b"", b"x" * 40, pack(image)[:-3], pack(image).replace(b"Patches", b"Potatos")):
        with pytest.raises(Unreadable, match="cat.jpg holds no tokens that can be read"):
            unpack(broken, "cat.jpg")


def test_training_sources_read_token_shards(tmp_path: Path) -> None:
    """The mixtures of stages 3 and 4 take a folder of them as a set, and word its pairs."""
    write_shards(tmp_path / "in", 2, 6)
    run(tmp_path)
    source = Source("pairs", ("SET",), 64, 4, 1.0, "caption", template="first")
    template = {"first": lambda record, rng: tiny.Document((tiny.user(*record.pictures(1), record.text("text")),))}
    assert len(open_set(tmp_path / "out")) == 10
    batches = SourceBatches([source], {"SET": tmp_path / "out"}, template, batch=5)
    found = [document for _, batch in zip(range(2), batches, strict=False) for document in batch.documents]
    assert len(found) == 10 and all(isinstance(d.images[0].understood, Codes) for d in found)
    said = {d.messages[0].text: d.images[0].understood.ids_N[:3].tolist() for d in found}
    for number in (0, 1, 3, 11):
        pixels = PIL.Image.open(__import__("io").BytesIO(picture(number))).resize((1, 1)).getpixel((0, 0))
        assert said[f"thing {number}"] == list(pixels)


def test_other_files_stay_as_they_are_and_where_they_are(tmp_path: Path) -> None:
    files = [
        ("d/7.txt", b"one"),
        ("d/7.JPG", picture(7)),
        ("d/7.cls", b"\0\1"),
        ("8.json", b'{"caption": "no picture"}'),
    ]
    source = write_shard(tmp_path / "a.tar", files)
    tokenize_shard(source, tmp_path / "b.tar", Mean(), MEAN)
    held = list(token_shards._members(tmp_path / "b.tar", []))
    assert [name for name, _ in held] == ["d/7.txt", "d/7.JPG.safetensors", "d/7.cls", "8.json"]
    assert [data for name, data in held if "safe" not in name] == [b"one", b"\0\1", b'{"caption": "no picture"}']


def test_damaged_samples_are_left_out_and_named(tmp_path: Path) -> None:
    black = sample(4)
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    black[0] = ("00004.png", (tmp_path / "black.png").read_bytes())
    files = [
        *sample(0),
        ("00001.png", picture(1)[:70]),
        sample(1)[1],
        *sample(2),
        ("00003.png", b""),
        *black,
        *sample(5),
    ]
    entry = tokenize_shard(write_shard(tmp_path / "a.tar", files), tmp_path / "b.tar", Mean(), MEAN)
    assert [one.member for one in entry.skipped] == ["00001.png", "00003.png", "00004.png"]
    assert "damaged or cut-off" in entry.skipped[0].why and entry.skipped[2].why == "One is black."
    assert (entry.samples, entry.images) == (3, 3)
    assert [d.messages[0].text or d.messages[1].text for d in open_source(tmp_path / "b.tar")] == [
        "thing 0", "thing 2", "thing 5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cut", "left"), [(0, 0), (100, 0), (700, 0), (2048, 0), (2300, 0), (4700, 1), (5200, 2), (6144, 2)]
)
def test_a_shard_that_breaks_off_gives_what_is_before_the_break(cut: int, left: int, tmp_path: Path) -> None:
    """A sample here has 2,048 bytes; the last one that can be read might have lost files, so it is not taken."""
    source = write_shard(tmp_path / "a.tar", [file for number in range(3) for file in sample(number)])
    source.write_bytes(source.read_bytes()[:cut])
    entry = tokenize_shard(source, tmp_path / "b.tar", Mean(), MEAN)
    assert entry.samples == left == len(open_source(tmp_path / "b.tar"))
    assert entry.skipped and entry.skipped[0].member == "" and entry.skipped[0].why.endswith("is lost")


def test_a_damaged_header_ends_a_shard_and_is_named(tmp_path: Path) -> None:
    source = write_shard(tmp_path / "a.tar", [file for number in range(4) for file in sample(number)])
    data = bytearray(source.read_bytes())
    data[2 * 2048 : 2 * 2048 + 100] = b"#" * 100
    source.write_bytes(data)
    entry = tokenize_shard(source, tmp_path / "b.tar", Mean(), MEAN)
    assert entry.samples == 1 and "damaged header at byte 4,096" in entry.skipped[0].why
    assert entry.skipped[1].member == "00001.txt"


# ------------------------------------------------------------------------------------------------ runs


def run(folder: Path, tokenizer: Mean | None = None, recipe: Recipe = MEAN, *, verify: bool = False) -> int:
    """What a worker does, shard after shard; returns how many were made."""
    manifest = Manifest(folder / "out")
    with manifest.alone():
        manifest.begin(recipe)
        shards = sorted((folder / "in").glob("*.tar"))
        there = manifest.done({shard.name: shard.stat().st_size for shard in shards}, verify=verify)
        made = 0
        for shard in shards:
            if shard.name not in there:
                manifest.commit(tokenize_shard(shard, folder / "out" / shard.name, tokenizer or Mean(), recipe))
                made += 1
        manifest.collect([shard.name for shard in shards])
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_broken_off_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    """Broken off at every batch, every move of a file into its place and every write to the disk."""
    whole = tmp_path / "whole"
    write_shards(whole / "in", 3, 9)
    assert run(whole) == 3
    wanted = contents(whole / "out")
    moments = 0
    for what in ("encode", "replace", "fsync"):
        for at in range(1, 40):
            folder = tmp_path / f"{what}{at}"
            (folder / "in").parent.mkdir()
            (folder / "in").symlink_to(whole / "in")
            calls = [0]

            def dying(*args, real, calls=calls, at=at):
                calls[0] += 1
                if calls[0] == at:
                    raise KeyboardInterrupt
                return real(*args)

            with monkeypatch.context() as patch:
                if what != "encode":
                    for module in (token_shards, manifest_module):
                        real = getattr(module.os, what)
                    patch.setattr(module.os, what, lambda *args, real=real: dying(*args, real=real))
                try:
                    run(folder, Mean(at if what == "encode" else None))
                except KeyboardInterrupt:
                    moments += 1
                else:
                    break
            there = {name for name in contents(folder / "out") if name.endswith(".tar")}
            assert all(contents(folder / "out")[name] == wanted[name] for name in there)
            (folder / "out/.00000.tar.dead.part").write_bytes(b"left by a process that had no time to clean up")
            run(folder)
            assert contents(folder / "out") == wanted
    assert moments > 20
    keys = [line for name in sorted(wanted) if name.endswith(".tar") for line in names(whole / "out" / name)]
    assert len(keys) == len(set(keys)) == 3 * 8 * 2


def names(shard: Path) -> list[str]:
    return [name for name, _ in token_shards._members(shard, [])]


def test_what_is_there_is_not_made_again_and_what_changed_is(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", 3, 4)
    assert run(tmp_path) == 3
    before = contents(tmp_path / "out")
    assert run(tmp_path) == 0 and contents(tmp_path / "out") == before
    assert [json.loads(line)["shard"] for line in before["manifest/shards.jsonl"].splitlines()] == [
        s.name for s in shards
    ]
    (tmp_path / "out/00001.tar").unlink()
    (tmp_path / "out/manifest/00002.tar.json").write_text("{")
    assert run(tmp_path) == 2 and contents(tmp_path / "out") == before
    damaged = bytearray(before["00000.tar"])
    damaged[600] ^= 1
    (tmp_path / "out/00000.tar").write_bytes(damaged)
    assert run(tmp_path) == 0 and run(tmp_path, verify=True) == 1 and contents(tmp_path / "out") == before
    write_shard(shards[1], [file for number in range(50, 60) for file in sample(number)])
    assert run(tmp_path) == 1 and len(open_source(tmp_path / "out")) == 3 + 10 + 3


def test_a_folder_of_another_recipe_and_a_second_run_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", 1, 3)
    run(tmp_path)
    with pytest.raises(RebusError, match=r"made otherwise: batch 4 there, 5 now; seed 0 there, 1 now\. Use the same"):
        run(tmp_path, recipe=Recipe("mean 1", batch=5, seed=1))
    with Manifest(tmp_path / "out").alone(), pytest.raises(RebusError, match="Another run is writing"):
        run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RebusError, match="file/out/manifest cannot be written: Not a directory"):
        Manifest(tmp_path / "file/out")
    with pytest.raises(RebusError, match=r"absent/a\.tar: No such file or directory\. Shards that were made before"):
        tokenize_shard(tmp_path / "in/00000.tar", tmp_path / "absent/a.tar", Mean(), MEAN)


def test_the_seed_draws_for_each_picture_by_its_name(tmp_path: Path) -> None:
    """What is drawn for a picture does not depend on what stands before it."""
    write_shard(tmp_path / "a.tar", [file for number in range(8) for file in sample(number)])
    (tmp_path / "b").mkdir()
    write_shard(tmp_path / "b/a.tar", [file for number in range(3, 8) for file in sample(number)])
    codes = []
    for shard, seed in ((tmp_path / "a.tar", 0), (tmp_path / "b/a.tar", 0), (tmp_path / "a.tar", 1)):
        tokenize_shard(shard, tmp_path / "c.tar", Mean(), Recipe("mean 1", batch=4, seed=seed))
        stored = open_source(tmp_path / "c.tar")
        codes.append([stored[i].images[0].understood.ids_N[3].item() for i in range(len(stored))])
    assert codes[0][3:] == codes[1] and codes[0] != codes[2]
