"""The one loop that drives the decoder, for a stream, for many documents at once and for a server: jobs wait for rows,
join and leave the running batch between steps, and every step says what became certain of which.

A running batch speaks with one system. Where several systems share one engine, because adapters of one base must not be
active at once, they take turns: whoever waits when a turn begins has a place in it, later ones only while no other system
waits, so that one adapter's jobs run together and nobody waits for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rebus.beams import Reply
from rebus.document import Part
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.grammar import Modality
from rebus.narrate import Finished
from rebus.sampling import Sampling
from rebus.sequence import Sequence

if TYPE_CHECKING:
    from rebus.system.parts import System

Said = Part | Finished | RebusError
"""What a step says of a job: a part of its reply (images as tokens), its end, or why it could not begin."""


@dataclass(eq=False)
class Job:
    """A reply that is to be decoded: by whom, to which prompt and how."""

    system: System
    prompt: Sequence
    modality: Modality
    sampling: Sampling
    generator: torch.Generator | None
    """what its words are drawn from"""
    reply: Reply | None = None
    """the reply, once it has rows"""

    @property
    def rows(self) -> int:
        """Rows that it needs."""
        return Decoder.rows_for(self.sampling)


class Engine:
    """Decodes jobs side by side, in `rows` rows of at most `capacity` words, prompt and reply together."""

    def __init__(self, *, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.waiting: list[Job] = []
        self.running: dict[Reply, Job] = {}
        self._system: System | None = None
        self._decoder: Decoder | None = None
        self._turn: set[Job] = set()

    @property
    def idle(self) -> bool:
        """Is there nothing to do?"""
        return not self.waiting and not self.running

    @property
    def busy_rows(self) -> int:
        """Rows that replies hold."""
        return sum(job.rows for job in list(self.running.values()))

    def join(self, job: Job) -> None:
        """Let a job wait for rows; nothing is computed before the next step."""
        self.waiting.append(job)

    def leave(self, job: Job) -> None:
        """Let a job go, its rows free at once. One that is over, or never came, has left already."""
        if job in self.waiting:
            self.waiting.remove(job)
        if job.reply in self.running and self._decoder is not None:
            self._decoder.cancel(job.reply)
            del self.running[job.reply]
        self._turn.discard(job)

    @torch.no_grad()
    def step(self) -> list[tuple[Job, Said]]:
        """One more word for every reply, after those that can have joined. A job that cannot begin, for its prompt or its
        settings, gets a RebusError and is over, as is one after `Finished`."""
        said: list[tuple[Job, Said]] = self._admit()
        if self._decoder is None:
            return said
        for reply, event in self._decoder.step():
            job = self.running[reply]
            said += [(job, part) for part in job.system.parts(event, job.prompt)]
            if isinstance(event, Finished):
                said.append((job, event))
                del self.running[reply]
        return said

    def drop(self) -> list[Job]:
        """Give everything up, after a step that failed: the jobs that were running. Those that wait go on waiting."""
        dropped, self.running = list(self.running.values()), {}
        self._system = self._decoder = None
        return dropped

    def _admit(self) -> list[tuple[Job, Said]]:
        refused: list[tuple[Job, Said]] = []
        while self.waiting:
            if not self.running and not any(job in self._turn for job in self.waiting):
                self._begin_turn(self.waiting[0].system)
            alone = all(job.system is self._system for job in self.waiting)
            job = next((job for job in self.waiting if alone or job in self._turn), None)
            if job is None or self._decoder is None or (self.running and self._decoder.free_rows < job.rows):
                break
            self.waiting.remove(job)
            self._turn.discard(job)
            try:
                job.reply = self._decoder.add(
                    job.prompt, modality=job.modality, sampling=job.sampling, generator=job.generator
                )
                self.running[job.reply] = job
            except RebusError as error:
                refused.append((job, error))
        return refused

    def _begin_turn(self, system: System) -> None:
        self._turn = {job for job in self.waiting if job.system is system}
        if system is not self._system or self._decoder is None:
            self._system, self._decoder = system, system.decoder(rows=self.rows, capacity=self.capacity)
