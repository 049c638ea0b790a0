"""`rebus convert` and `rebus export` on a tiny release; image decoders from the hub or a mirror."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import seed_release
from rebus.apps import convert as verbs
from rebus.checkpoint import load_system
from rebus.checkpoint.hub import HubFolder, hub_folder
from rebus.errors import RebusError
from rebus.papers.seed.variants import VARIANTS


def test_a_downloaded_folder_is_converted_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "v2-8b", seed_release.CONFIG)
    seed_release.release(tmp_path / "release")
    verbs.convert("seed:v2-8b", tmp_path / "release", output=tmp_path / "c", dtype="float32")
    saved = load_system(tmp_path / "c")
    assert set(saved.files) == {"tokenizer", "lm", "detokenizer", "text"}
    said = capsys.readouterr().out
    assert "computed from the config" in said and "seed:v2-8b is in" in " ".join(said.split())
    verbs.export(tmp_path / "c", output=tmp_path / "out")
    assert (tmp_path / "out/language/tokenizer.json").exists()
    with pytest.raises(RebusError, match="There is something at"):
        verbs.export(tmp_path / "c", output=tmp_path / "out")
    with pytest.raises(RebusError, match="no published SEED 'v9'"):
        verbs.convert("seed:v9", tmp_path / "release", output=tmp_path / "d")
    seed_release.write_language(tmp_path / "release/second")
    with pytest.raises(RebusError, match="several of config.json"):
        verbs.convert("seed:v2-8b", tmp_path / "release", output=tmp_path / "d")
    with pytest.raises(RebusError, match="no seed_quantizer.pt"):
        verbs.convert("seed:v2-8b", tmp_path / "release/unclip", output=tmp_path / "d")


def test_a_paper_without_published_weights() -> None:
    with pytest.raises(RebusError, match="Nothing is published"):
        verbs.convert("nobody:x", Path("a"), output=Path("b"))


def test_a_decoder_from_a_mirror_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    asked: dict[str, object] = {}

    def fetch(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    digest = hashlib.sha256(b"{}").hexdigest()
    assert verbs.decoder_folder("a/b", "mirror.example", (f"model_index.json={digest}",)) == tmp_path
    assert asked["repo"] == "a/b" and asked["endpoint"] == "mirror.example"
    with pytest.raises(RebusError, match="is not the file that was asked for"):
        verbs.decoder_folder("a/b", None, (f"model_index.json={'0' * 64}",))
    with pytest.raises(RebusError, match="not 64 digits"):
        verbs.decoder_folder("a/b", None, ("model_index.json=12",))
    with pytest.raises(RebusError, match="no id of the hub either"):
        verbs.decoder_folder("./nowhere", None, ())
    assert verbs.decoder_folder(str(tmp_path), None, ()) == tmp_path

    def gone(repo: str, **options: object) -> str:
        raise OSError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", gone)
    with pytest.raises(RebusError, match="name a mirror"):
        hub_folder(HubFolder("a/b"))
