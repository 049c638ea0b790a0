"""Bulk runs on one machine: processes that each hold the model, and are replaced when they die."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rebus.apps.bulk_worker import ATTEMPTS, Died, Done, Event, Lost, Saw, Worker
from rebus.errors import RebusError

START = "spawn"
"""How processes begin: one that has used CUDA or threads cannot be forked."""


@dataclass(eq=False)
class _Member:
    """A process of the pool, and what it is at."""

    number: int
    process: Any
    connection: Connection
    shard: Path | None = None
    opened: bool = False
    """whether the model is loaded"""


def run_local(worker: Worker, shards: Sequence[Path], processes: int) -> Iterator[Event]:
    """Makes shards in `processes` processes. One that dies is replaced, and its shard begun again, at most ATTEMPTS times.

    Closing the iterator ends the processes. Raises RebusError for what a worker raises as such (every other shard would
    meet it too), and when workers die before they can begin.
    """
    context = multiprocessing.get_context(START)
    waiting, tried, stillborn = deque(shards), Counter[Path](), 0
    members: list[_Member] = []
    try:
        while waiting or any(member.shard for member in members):
            busy = sum(member.shard is not None for member in members)
            free = sorted(set(range(processes)) - {member.number for member in members})
            for number in free[: max(0, busy + len(waiting) - len(members))]:
                members.append(_start(context, worker, number))
            for member in members:
                if member.shard is None and waiting:
                    member.shard = waiting.popleft()
                    try:
                        member.connection.send(member.shard)
                    except OSError:
                        pass  # it has died, which is noticed below
            for ready in wait([member.connection for member in members]):
                member = next(member for member in members if member.connection is ready)
                try:
                    said = member.connection.recv()
                except (EOFError, OSError):
                    said = ("died", _how(member))
                match said:
                    case ("open",):
                        member.opened, stillborn = True, 0
                    case ("saw", int(images), int(size)):
                        yield Saw(images, size)
                    case ("done", entry):
                        member.shard = None
                        yield Done(entry)
                    case ("refused", str(why)):
                        raise RebusError(why)
                    case (_, str(why)):
                        members.remove(member)
                        _end(member)
                        shard, stillborn = member.shard, stillborn + (not member.opened)
                        if stillborn >= ATTEMPTS:
                            raise RebusError(
                                f"{stillborn} workers in a row ended before they could begin: {why}. "
                                "Free some memory, or use fewer processes."
                            )
                        if shard is None:
                            continue
                        tried[shard] += member.opened
                        if tried[shard] >= ATTEMPTS:
                            yield Lost(shard.name, why)
                        else:
                            waiting.appendleft(shard)
                            yield Died(shard.name, why)
    finally:
        for member in members:
            _end(member)


def _start(context: Any, worker: Worker, number: int) -> _Member:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, worker, number), daemon=True)
    process.start()
    theirs.close()
    return _Member(number, process, ours)


def _end(member: _Member) -> None:
    member.connection.close()
    member.process.terminate()
    member.process.join(10)


def _how(member: _Member) -> str:
    """How a process ended, in words."""
    member.process.join(10)
    code = member.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (" (memory that is full ends so)" if name == "SIGKILL" else "")
    return f"the process ended with code {code}"


def _serve(connection: Connection, worker: Worker, number: int) -> None:
    """The life of a worker. It ends when nobody is at the other end: `recv` or the next `send` then fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    try:
        make = worker.open(number)
        connection.send(("open",))
        while True:
            shard = connection.recv()
            entry = make(shard, lambda images, size: connection.send(("saw", images, size)))
            connection.send(("done", entry))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except RebusError as error:
        said = ("refused", str(error))
    except Exception as error:  # a fault of ours, or memory that is full: the state of the process cannot be trusted
        said = ("fault", " ".join(f"{type(error).__name__}: {error}".split())[:300])
    connection.send(said)
