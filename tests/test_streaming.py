"""Converting holds one tensor at a time in memory, whatever the size of the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rebus.checkpoint import Move, SavedSystem, convert, read_tensors, save_system

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1])


@pytest.mark.skipif(not RESET.exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_peak_memory_of_converting_a_shard(tmp_path: Path, dtype: torch.dtype | None) -> None:
    sizes = {f"model.{n}.weight": torch.ones(1024, 4096, dtype=torch.float16) for n in range(12)}
    torch.save(sizes, tmp_path / "pytorch_model.bin")
    sizes.clear()
    shard = (tmp_path / "pytorch_model.bin").stat().st_size
    theirs = read_tensors(tmp_path / "pytorch_model.bin")
    ours = {name.replace("model", "base"): x for name, x in theirs.meta.items()}
    before = kilobytes("VmRSS")
    RESET.write_text("5")
    converted = convert(theirs, [Move("model.{rest*}", "base.{rest*}")], ours)
    saved = save_system(tmp_path / "c", SavedSystem("seed:v2-8b", {}), {"lm": converted.tensors}, dtype=dtype)
    peak = (kilobytes("VmHWM") - before) * 1024
    assert peak < 0.6 * shard, f"{peak / shard:.2f} of the shard's {shard} bytes"
    read = saved.tensors("lm")
    assert read.keys() == ours.keys() and all((x == 1).all() and x.shape == (1024, 4096) for x in read.values())
