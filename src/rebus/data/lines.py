"""Lines of a text file by number, none of them held in memory; and the error of a member that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from rebus.errors import RebusError


class Unreadable(RebusError):
    """One member of a source cannot be read; the others may be fine."""


class Lines:
    """The lines of a file that are not blank, as bytes. Raises RebusError when the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: list[int] = []
        with opened(path) as file:
            position = 0
            for line in file:
                if line.strip():
                    self._starts.append(position)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        with opened(self.path) as file:
            file.seek(self._starts[index])
            return file.readline()


def opened(path: Path) -> BinaryIO:
    """The file, open for reading bytes. Raises RebusError when it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise RebusError(f"{path} cannot be opened: {error.strerror}. Check the path of the data.") from None
