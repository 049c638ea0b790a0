"""Gives every parity test its golden files as cases; see `golden.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.parity.golden import cases

HERE = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        folders = [Path(folder) for folder in metafunc.config.getoption("--goldens") or [HERE.parent / "goldens"]]
        suffix = getattr(metafunc.module, "SUFFIX", ".safetensors")
        metafunc.parametrize("golden", cases(metafunc.module.KINDS, metafunc.module.NAMES, suffix, folders))
