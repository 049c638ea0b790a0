"""Which number format a device multiplies fast: bfloat16 only where the hardware has instructions for it."""

from __future__ import annotations

from typing import Literal

import torch

BaseNumbers = Literal["fp32", "bf16", "auto"]
"""Number format of what is frozen of a base model; auto is bf16 where `fast_dtype` says so, else fp32."""


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on GPUs and CPUs that multiply it natively (AMX, AVX-512 BF16), else float32.

    Elsewhere bfloat16 is emulated: on a CPU with AVX2 alone its matrix products are a hundred times slower.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def dtype_of_base(numbers: BaseNumbers) -> torch.dtype:
    """The number format in which a base model is read. A stage builds its model before it knows its device: `auto` asks the
    GPU where there is one, else the CPU."""
    if numbers == "auto":
        return fast_dtype("cuda" if torch.cuda.is_available() else "cpu")
    return torch.bfloat16 if numbers == "bf16" else torch.float32
