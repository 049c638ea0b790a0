"""Servers for the tests: one that all share, and systems that do what a test needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests import tiny
from tests.serving import Running, running
from tests.toy import ToyGrammar, toy_lm

from rebus.system import System


@pytest.fixture(scope="session")
def served() -> dict[str, System]:
    """Systems that a server has: one that draws from codes, one that edits."""
    return {f"{paper}:tiny": tiny.fresh(paper) for paper in ("seed", "seed_x")}


@pytest.fixture(scope="session")
def server(served: dict[str, System]) -> Iterator[Running]:
    """A server that all tests share, with limits that they can reach."""
    with running(served) as one:
        yield one


class Turnstile:
    """Lets the language model read only while it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reads = 0


class Letters(ToyGrammar):
    """Letters without end, until there is no room."""

    def next(self, reply, modality, left):
        return self.allow(*[word for word in self.letters if word != self.special.eos])


@pytest.fixture
def endless() -> tuple[System, Turnstile]:
    """A system that never ends of itself, and what holds it up."""
    lm, gate = toy_lm(), Turnstile()
    read = lm.read

    def waiting(*args):
        assert gate.open.wait(60)
        gate.reads += 1
        return read(*args)

    lm.read = waiting  # type: ignore[method-assign]
    return System(Letters(), lm), gate
