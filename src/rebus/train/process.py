"""What training borrows from its process and gives back: torch's global random state, and the signals that stop it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def isolated_random(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's own generators (dropout draws from them) inside, and leave the caller's as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that gets the name of a signal that asks to stop. Outside the main thread no signal can be heard."""
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, _frame: object) -> None:
        heard.append(signal.Signals(number).name)
        if heard.count("SIGINT") > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def seed_of(seed: int, rank: int) -> int:
    """The seed of process `rank` of a run: the first has the run's own, so that one process alone is the first of many."""
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63
