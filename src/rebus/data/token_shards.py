"""A tar shard of pictures becomes a tar shard of tokens: a pure function, with a manifest line that says what came of it.

Samples and their files stay as they are and where they are; a picture `0001.jpg` becomes the file of its tokens,
`0001.jpg.safetensors`, which `rebus.data.sources` reads in its place. The same shard, tokenizer and recipe give the same
bytes, so that a shard may be made again at any time and by anybody.

Dimension key: none; tensors are made by the tokenizer
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import torch

from rebus.data import token_files
from rebus.data.sources import PICTURES, key_and_ending
from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import decode_image
from rebus.visual import Purpose, VisualTokenizer

Reading = Literal["both", "understanding", "generation"]
"""Which of an image's two readings are stored."""
PURPOSES: dict[Reading, set[Purpose]] = {
    "both": {"understanding", "generation"},
    "understanding": {"understanding"},
    "generation": {"generation"},
}


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a shard, beside the shard. Number formats and sizes of batches too: sums of other orders
    may round otherwise, and a code may then be its neighbour."""

    source: str
    """the tokenizer and its weights, as its tokens carry it"""
    reading: Reading = "both"
    """which readings are stored"""
    number: token_files.Number = "float16"
    """number format of vectors; codes are whole numbers"""
    tokens: int | None = None
    """tokens of every image, of a tokenizer that chooses; none: as it sees fit"""
    seed: int = 0
    """of what a tokenizer draws; every image has a stream of its own, by the names of its shard and file"""
    batch: int = 32
    """pictures encoded together"""
    device: str = "cpu"
    """kind of device"""
    threads: int = 1
    """threads of a process"""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, or the part of a shard that could not be read."""

    member: str
    """the file that is to blame; empty where it is the shard"""
    why: str
    """what is wrong with it"""


@dataclass(frozen=True)
class Entry:
    """A line of the manifest. Holds no times: an unbroken run and one that was not give the same lines."""

    shard: str
    """name of the shard, before and after"""
    read_bytes: int
    """size of the shard of pictures"""
    read_sha256: str
    """hash of it"""
    bytes: int
    """size of the shard of tokens"""
    sha256: str
    """hash of it"""
    samples: int
    """samples in it"""
    images: int
    """pictures that became tokens"""
    skipped: tuple[Skipped, ...] = ()
    """what was left out"""

    @classmethod
    def read(cls, held: dict[str, Any]) -> Entry:
        """From JSON; `dataclasses.asdict` is the way there. Raises KeyError or TypeError for anything else."""
        return cls(**{**held, "skipped": tuple(Skipped(**one) for one in held["skipped"])})


@dataclass
class Sample:
    """The files of one sample in order; pictures are decoded."""

    key: str
    files: list[tuple[str, bytes | Image]] = field(default_factory=list)
    size: int = 0
    """bytes that its files have in the shard"""

    @property
    def images(self) -> list[tuple[str, Image]]:
        """The names and pictures."""
        return [(name, held) for name, held in self.files if isinstance(held, Image)]


def tokenize_shard(
    source: Path,
    target: Path,
    tokenizer: VisualTokenizer,
    recipe: Recipe,
    *,
    seen: Callable[[int, int], None] = lambda images, read: None,
) -> Entry:
    """Writes `target`, whole or not at all. `seen(pictures, bytes)` is told after every batch what it took in.

    A sample with a picture that cannot be read is left out and listed; of a shard that breaks off the samples before the
    break are kept. Raises RebusError where files cannot be read or written, which is not the sample's fault.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    skipped: list[Skipped] = []
    samples = images = 0
    try:
        read_sha256 = file_hash(source)
        with part.open("wb") as file:
            written = _Hashed(file)
            with tarfile.open(fileobj=written, mode="w|", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
                for group in _groups(_samples(source, skipped), recipe.batch):
                    taken = sum(len(sample.images) for sample in group), sum(sample.size for sample in group)
                    for sample in _encoded(group, tokenizer, recipe, source.name, skipped):
                        _add(tar, sample, recipe)
                        samples, images = samples + 1, images + len(sample.images)
                    seen(*taken)
            file.flush()
            os.fsync(file.fileno())
        size = source.stat().st_size
        entry = Entry(target.name, size, read_sha256, written.size, written.digest, samples, images, tuple(skipped))
        os.replace(part, target)
    except OSError as error:
        raise RebusError(
            f"{source} could not be made into {target}: {error.strerror or error}. Shards that were made before are whole; "
            "free some space or correct the paths, and the same command goes on."
        ) from None
    finally:
        try:
            part.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is gone or cannot be written, which has been said
    return entry


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashed:
    """A file that is written once through, and its hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    @property
    def digest(self) -> str:
        return self.hash.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def _samples(path: Path, skipped: list[Skipped]) -> Iterator[Sample]:
    """The samples of a shard one after the other, as webdataset groups them; those with a damaged picture are noted."""
    current: Sample | None = None
    damaged: set[str] = set()
    broken: list[str] = []
    for name, data in _members(path, broken):
        key, ending = key_and_ending(name)
        if current is not None and key != current.key:
            yield from () if current.key in damaged else (current,)
            current = None
        current = current or Sample(key)
        held: bytes | Image = data
        if ending.rpartition(".")[2] in PICTURES and key not in damaged:
            try:
                held = Image(decode_image(data, name=name))
            except RebusError as error:
                damaged.add(key)
                skipped.append(Skipped(name, str(error)))
        current.files.append((name, held))
        current.size += len(data)
    if broken:
        last = "" if current is None else current.files[-1][0]
        skipped.append(Skipped("", f"{broken[0]}; what follows {last or 'the beginning'} is lost"))
        # it may have had more files; with what there is it would pass for a sample
        skipped += [] if current is None or current.key in damaged else [Skipped(last, "the shard breaks off after it")]
    elif current is not None and current.key not in damaged:
        yield current


def _members(path: Path, broken: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a tar shard; notes in `broken` why it ends before its end."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    held = tar.extractfile(member)
                    assert held is not None  # it is a file
                    yield member.name, held.read()
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            mark = tar.fileobj.read(tarfile.BLOCKSIZE)  # a header that cannot be read ends the loop without a word
            if mark != bytes(tarfile.BLOCKSIZE):
                broken.append(
                    f"the shard {'has a damaged header' if mark else 'has no end mark'} at byte {tar.offset:,}"
                )
    except (tarfile.TarError, ValueError) as error:
        broken.append(f"the shard cannot be read on ({error})")


def _groups(samples: Iterator[Sample], batch: int) -> Iterator[list[Sample]]:
    """Samples with at least `batch` pictures together, but for the last."""
    group: list[Sample] = []
    images = 0
    for sample in samples:
        group.append(sample)
        images += len(sample.images)
        if images >= batch:
            yield group
            group, images = [], 0
    if group:
        yield group


# ------------------------------------------------------------------------------------------------ encoding and writing


def _encoded(
    group: Sequence[Sample], tokenizer: VisualTokenizer, recipe: Recipe, shard: str, skipped: list[Skipped]
) -> list[Sample]:
    """The samples with tokens in the place of pictures. Where a picture is refused, each sample is encoded by itself, so
    that one does not take the others along."""
    named = [pair for sample in group for pair in sample.images]
    if not named:
        return list(group)
    generators = [_generator(recipe.seed, shard, name) for name, _ in named]
    try:
        encoded = tokenizer.encode([image for _, image in named], PURPOSES[recipe.reading], generators=generators)
    except RebusError as error:
        if len(group) == 1:
            skipped.append(Skipped(named[0][0], str(error)))
            return []
        return [made for one in group for made in _encoded([one], tokenizer, recipe, shard, skipped)]
    tokens = iter(encoded)
    return [
        Sample(sample.key, [(n, next(tokens) if isinstance(held, Image) else held) for n, held in sample.files])
        for sample in group
    ]


def _generator(seed: int, shard: str, member: str) -> torch.Generator:
    """The random stream of one picture."""
    digest = hashlib.sha256(f"{seed}\0{shard}\0{member}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _add(tar: tarfile.TarFile, sample: Sample, recipe: Recipe) -> None:
    for name, held in sample.files:
        if isinstance(held, Image):
            name, held = f"{name}.{token_files.ENDING}", token_files.pack(held, recipe.number)
        about = tarfile.TarInfo(name)
        about.size = len(held)
        tar.addfile(about, io.BytesIO(held))


def as_json(entry: Entry) -> dict[str, Any]:
    """A line of the manifest as JSON holds it."""
    return dataclasses.asdict(entry)
