"""The state of a bulk run on a disk: which shards are done, and what they hold. Made so that it can be killed anywhere.

    OUT/00000.tar                    a shard of tokens, moved here when it is whole
    OUT/manifest/recipe.json         what all shards of this folder were made with
    OUT/manifest/00000.tar.json      the manifest line of a shard, moved here after the shard: a shard that has one is done
    OUT/manifest/shards.jsonl        all lines, by name, written when a run ends

A run that dies between the two moves makes the shard again, to the same bytes; so every shard is there exactly once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from rebus.data.token_shards import Entry, Recipe, as_json, file_hash
from rebus.errors import RebusError

FOLDER = "manifest"
LINES = "shards.jsonl"


class Manifest:
    """What is known of the shards in a folder. Raises RebusError where the folder cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.folder = folder, folder / FOLDER
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def begin(self, recipe: Recipe) -> None:
        """Notes what the shards are made with. Raises RebusError where others were made otherwise."""
        path = self.folder / "recipe.json"
        ours = dataclasses.asdict(recipe)
        if not path.exists():
            _write(path, json.dumps(ours, indent=1) + "\n")
            return
        theirs = json.loads(path.read_text())
        if other := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            said = "; ".join(f"{name} {theirs.get(name)!r} there, {ours.get(name)!r} now" for name in other)
            raise RebusError(
                f"{self.shards} holds shards that were made otherwise: {said}. Use the same settings to go on, or another "
                "folder."
            )

    def commit(self, entry: Entry) -> None:
        """Notes that a shard is done, once it is in its place."""
        _write(self._line(entry.shard), json.dumps(as_json(entry), ensure_ascii=False) + "\n")

    def done(self, sizes: dict[str, int], *, verify: bool = False) -> dict[str, Entry]:
        """The entries of those shards, of which `sizes` are the names and the bytes before, that need not be made. A shard
        counts only if it has the size that its entry says, and came of one of the size that is there now; with `verify`,
        also its hash is read again."""
        found = {}
        for name, size in sizes.items():
            entry, shard = self._read(name), self.shards / name
            if entry is None or entry.read_bytes != size:
                continue
            if not shard.exists() or shard.stat().st_size != entry.bytes:
                continue
            if verify and file_hash(shard) != entry.sha256:
                continue
            found[name] = entry
        return found

    def collect(self, names: list[str]) -> list[Entry]:
        """Writes `shards.jsonl`, the lines of those of the shards that are done; returns them."""
        entries = [entry for name in sorted(names) if (entry := self._read(name)) is not None]
        lines = (json.dumps(as_json(entry), ensure_ascii=False) + "\n" for entry in entries)
        _write(self.folder / LINES, "".join(lines))
        return entries

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For one run at a time; half-written files of runs that died are removed. Raises RebusError while another runs."""
        with _writing(self.folder):
            lock = (self.folder / ".lock").open("w")
        with lock:
            try:
                with contextlib.suppress(ImportError):  # where there are no such locks, two runs only do the work twice
                    import fcntl

                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RebusError(
                    f"Another run is writing into {self.shards}, and two would do the same work. Wait for it, or name "
                    "another folder."
                ) from None
            for place in (self.shards, self.folder):
                for part in place.glob(".*.part"):
                    part.unlink(missing_ok=True)
            yield

    def _line(self, shard: str) -> Path:
        return self.folder / f"{shard}.json"

    def _read(self, shard: str) -> Entry | None:
        try:
            return Entry.read(json.loads(self._line(shard).read_text()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # an entry that cannot be read is none
            return None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RebusError(
            f"{path} cannot be written: {error.strerror or error}. What was made before is whole; free some space or choose "
            "another folder, and the same command goes on."
        ) from None


def _write(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with _writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
