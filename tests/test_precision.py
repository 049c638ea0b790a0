"""Which number format is fast, and in which a frozen base model is read."""

from __future__ import annotations

import pytest
import torch

from rebus.nn.precision import dtype_of_base, fast_dtype

MACHINES = {
    "AMX": (True, True, torch.bfloat16),
    "AVX-512 BF16": (False, True, torch.bfloat16),
    "AVX2": (False, False, torch.float32),
}


@pytest.mark.parametrize("amx, avx512, fast", MACHINES.values(), ids=list(MACHINES))
def test_bfloat16_only_where_a_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, fast: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fast_dtype("cpu") == fast
    assert dtype_of_base("auto") == fast
    # what is asked for is given, fast or not
    assert dtype_of_base("bf16") == torch.bfloat16
    assert dtype_of_base("fp32") == torch.float32


def test_a_base_on_a_gpu_is_read_in_what_the_gpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, fast in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert dtype_of_base("auto") == fast
