"""`rebus tokenize --shards`: workers that die, what is said of a run, and what cannot be asked."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import tiny
from tests.picture_shards import sample, write_shard, write_shards

from rebus.apps import bulk, bulk_local, bulk_worker
from rebus.apps.bulk import Meter, duration
from rebus.apps.bulk_local import run_local
from rebus.apps.bulk_worker import Died, Done, Lost, Saw
from rebus.data.manifest import Manifest
from rebus.data.sources import open_source
from rebus.data.token_shards import Entry, Recipe, tokenize_shard
from rebus.errors import RebusError
from rebus.visual import Codes


@pytest.fixture
def forked(monkeypatch) -> None:
    """Processes that need not import everything anew; the fakes here run nothing that a fork would break."""
    monkeypatch.setattr(bulk_local, "START", "fork")


class Sizes:
    """A tokenizer whose codes are the size of a picture."""

    source = "sizes"

    def encode(self, images, purposes, *, generators=None):
        codes = [Codes(tiny.torch.tensor(image.pixels.size), self.source) for image in images]
        return [image.with_tokens(understood=c, generated=c) for image, c in zip(images, codes, strict=True)]


@dataclass(frozen=True)
class Fragile:
    """A worker that is killed: the first `times` times that it comes to the moment `when` of the shard `at`."""

    out: Path
    at: str = ""
    when: str = ""
    times: int = 1
    raises: str = ""

    def open(self, number: int = 0):
        self.moment("", "open")
        manifest, recipe = Manifest(self.out), Recipe("sizes", batch=2)
        manifest.begin(recipe)

        def make(source: Path, seen) -> Entry:
            self.moment(source.name, "begin")

            def noting(images: int, size: int) -> None:
                seen(images, size)
                self.moment(source.name, "batch")

            entry = tokenize_shard(source, self.out / source.name, Sizes(), recipe, seen=noting)
            self.moment(source.name, "moved")
            manifest.commit(entry)
            self.moment(source.name, "done")
            return entry

        return make

    def moment(self, shard: str, when: str) -> None:
        if (shard, when) != (self.at, self.when):
            return
        marks = list(self.out.parent.glob("mark*"))
        if len(marks) < self.times:
            (self.out.parent / f"mark{len(marks)}").touch()
            if self.raises == "refused":
                raise RebusError("The disk is full. Really.")
            if self.raises:
                raise ValueError(self.raises)
            os.kill(os.getpid(), signal.SIGKILL)


def unbroken(folder: Path) -> dict[str, bytes]:
    (folder / "unbroken").mkdir()
    return made(folder, Fragile(folder / "unbroken/out"))[0]


def made(folder: Path, worker: Fragile, processes: int = 2):
    """The files that a run leaves, and its events."""
    shards = sorted((folder / "in").glob("*.tar"))
    events = list(run_local(worker, shards, processes))
    return {file.name: file.read_bytes() for file in worker.out.rglob("*.*") if file.name != ".lock"}, events


@pytest.mark.parametrize("when", ["open", "begin", "batch", "moved", "done"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_is_killed_loses_nothing_and_repeats_nothing(when, times, tmp_path, forked):
    write_shards(tmp_path / "in", 4, 6)
    wanted = unbroken(tmp_path)
    files, events = made(tmp_path, Fragile(tmp_path / "out", "" if when == "open" else "00001.tar", when, times))
    half = [name for name in files if name.endswith(".part")]  # the next run removes what a dead process left
    assert {name: data for name, data in files.items() if name not in half} == wanted
    assert len(half) == (times if when == "batch" else 0)
    done = [event.entry.shard for event in events if isinstance(event, Done)]
    assert sorted(done) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    died = [event for event in events if isinstance(event, Died)]
    assert len(died) == times and all("ended by SIGKILL (memory" in event.why for event in died)
    assert len(list(tmp_path.glob("mark*"))) == times


@pytest.mark.parametrize("raises", ["", "out of memory"])
def test_a_shard_that_kills_every_worker_is_given_up_and_the_others_are_made(raises, tmp_path, forked):
    write_shards(tmp_path / "in", 3, 4)
    _, events = made(tmp_path, Fragile(tmp_path / "out", "00001.tar", "batch", 99, raises))
    assert [event.shard for event in events if isinstance(event, Lost)] == ["00001.tar"]
    why = next(event.why for event in events if isinstance(event, Lost))
    assert why == "ValueError: out of memory" if raises else "SIGKILL" in why
    assert sorted(event.entry.shard for event in events if isinstance(event, Done)) == ["00000.tar", "00002.tar"]
    assert len(list(tmp_path.glob("mark*"))) == bulk_worker.ATTEMPTS


def test_workers_that_cannot_begin_or_refuse_end_the_run(tmp_path, forked):
    write_shards(tmp_path / "in", 3, 4)
    with pytest.raises(RebusError, match="3 workers in a row ended before they could begin.*fewer processes"):
        made(tmp_path, Fragile(tmp_path / "out", "", "open", 99))
    with pytest.raises(RebusError, match="The disk is full. Really."):
        made(tmp_path, Fragile(tmp_path / "out", "00001.tar", "batch", 99, "refused"))


def test_the_meter_says_rate_and_time_left():
    now = [100.0]
    meter = Meter(total=4000, shards=4, clock=lambda: now[0])
    assert meter.left is None and str(meter) == "0/4 shards  0 pictures  0.0/s"
    now[0] += 10
    meter.add(Saw(50, 500))
    meter.add(Saw(50, 500))
    assert (meter.rate, meter.left, meter.share) == (10.0, 30.0, 0.25)
    meter.add(Done(Entry("a", 1000, "", 1, "", 99, 99)))  # the batches counted until then are the shard's
    assert meter.images + meter._open_images == 100 and meter.share == 0.25
    meter.add(Died("b", "why"))
    now[0] += 10
    meter.add(Done(Entry("b", 1000, "", 1, "", 101, 101)))
    assert str(meter) == "2/4 shards  200 pictures  10.0/s  about 20 s left"
    assert [duration(s) for s in (0, 59.4, 61, 3599, 3700, 11_100, 200_000)] == [
        "0 s", "59 s", "1 min", "1 h 0 min", "1 h 2 min", "3 h 5 min", "2 d 7 h",
    ]  # fmt: skip


def test_the_command_makes_shards_and_goes_on(run, tmp_path, monkeypatch, forked):
    """In processes of its own, with a real tokenizer."""
    system = tiny.system("seed")
    monkeypatch.setattr("rebus.system.load", lambda name, **options: system)
    shards = write_shards(tmp_path / "in", 2, 4)
    words = ["tokenize", "seed:tiny", "--shards", tmp_path / "in", tmp_path / "out", "--processes", 1]
    ran = run(*words)
    assert ran.code == 0 and ran.out == "", ran.err
    lines = ran.err.splitlines()
    assert lines[0].startswith("2/2 shards  6 pictures") and lines[0].endswith("2 skipped")
    assert lines[1] == f"2 shards of 6 pictures in {tmp_path / 'out'}"
    assert lines[2].startswith(
        "2 left out, the first 00002.png of 00000.tar: 00002.png is a damaged or cut-off picture"
    )
    stored = open_source(tmp_path / "out")
    codes = [stored[i].images[0].understood for i in range(len(stored))]
    first = system.tokenizer.encode(open_source(shards[0])[0].images, {"generation"})[0].generated
    assert len(codes) == 6 and tiny.torch.equal(codes[0].ids_N, first.ids_N)
    assert run(*words).err.startswith("2 of 2 shards are there already\n2 shards of 6 pictures")
    assert "made otherwise: reading 'both' there, 'generation' now" in run_again(run, words, tmp_path)


def run_again(run, words, folder: Path) -> str:
    """What is said to a run of another recipe, which has a shard to make."""
    write_shard(folder / "in/00009.tar", sample(9))
    ran = run(*words, "--reading", "generation")
    assert ran.code == 2
    return " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shards", "absent", "out"], "absent holds no .tar file"),
        (["--shards", "in", "in"], "in is where the pictures are"),
        (["--shards", "in", "out", "--processes", "0"], "--processes is 0"),
        (["--shards", "in", "out", "--batch", "0"], "at least one of each: --threads 1, --batch 0"),
        (["cat.png", "--shards", "in", "out"], "Name the ones or the others"),
        (["cat.png", "--engine", "ray"], "--engine only matter with --shards"),
        ([], "no pictures were named"),
    ],
)
def test_what_cannot_be_asked_ends_in_one_line(words, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "in", 1, 1)
    ran = run("tokenize", "seed:tiny", *words)
    assert ran.code == 2 and ran.err.count("\n") == 1 and says.lower() in ran.err.lower()


def test_ray_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    worker = bulk_worker.Worker("seed:tiny", Path("out"))
    with pytest.raises(RebusError, match=r"needs Ray, which is not installed.*rebus-lm\[scale\]"):
        list(bulk.run_ray(worker, [Path("a.tar")], 1, None))
