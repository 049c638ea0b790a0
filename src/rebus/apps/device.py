"""Where models run: the one place that chooses a device."""

from __future__ import annotations

import torch

from rebus.errors import RebusError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first of cuda and mps that is there, else cpu. Raises RebusError for a device that is not there."""
    here = ["cpu"]
    here += ["cuda"] if torch.cuda.is_available() else []
    here += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if device in here))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RebusError(f"{name!r} is no device. Here are {', '.join(here)}; `auto` takes the best.") from None
    if device.type not in here or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise RebusError(
            f"The device {name} is not on this machine. Here are {', '.join(here)}; `auto` takes the best."
        )
    return device
