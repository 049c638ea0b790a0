"""The threads of a model and how the event loop talks to them.

Three threads share the work: one encodes the pictures of requests and lays prompts out, one decodes with the engine
(`rebus.system.engine`), which every request joins and leaves between steps, and one draws. The event loop hands in what
is asked and gets an `Answer` for each reply: an asynchronous iterator of what `System.stream` yields, in its order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch

from rebus.apps.server.artist import Artist, Drawing
from rebus.apps.server.errors import ApiError, broken, refusal
from rebus.apps.server.metrics import Meters
from rebus.apps.server.settings import ServerConfig
from rebus.document import Box, Document, Image
from rebus.errors import RebusError
from rebus.grammar import Modality
from rebus.narrate import Finished
from rebus.sampling import Sampling
from rebus.sequence import Sequence as Words
from rebus.system import Dice, Engine, Job, System
from rebus.system.parts import last_picture
from rebus.visual import Progress

log = logging.getLogger("rebus.server")


@dataclass(frozen=True, eq=False)
class Order:
    """What is asked of a system."""

    system: System
    document: Document
    modality: Modality
    sampling: Sampling
    seed: int
    source: PIL.Image.Image | None = None
    """the picture that an edit starts from; None: the document's last"""
    previews: bool = False
    """whether pictures are looked at while they are drawn"""


class Answer:
    """One reply as it comes. Iterate over it once; `cancel` whenever nobody listens any more."""

    def __init__(self, worker: Worker, order: Order, prompt: Words, dice: Dice) -> None:
        self._worker, self._order, self._dice = worker, order, dice
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._drawings: list[Drawing] = []
        self._source = order.source or last_picture(order.document)
        self.job = Job(order.system, prompt, order.modality, order.sampling, dice.words)
        self.read = len(prompt)
        """words of the prompt"""
        self.ending: str | None = None
        """why the reply ended, once it has"""
        self.begun = time.monotonic()
        self.over = False

    @property
    def written(self) -> int:
        """Words of the reply so far."""
        return 0 if self.job.reply is None else len(self.job.reply.ids)

    async def __aiter__(self) -> AsyncIterator[str | Box | Image | Progress]:
        """What the system says. Raises ApiError where it cannot, after which nothing comes."""
        model, meters = self.job.system.name, self._worker.meters
        first = True
        try:
            while True:
                said = await self._said.get()
                if first:
                    meters.first.labels(model).observe(time.monotonic() - self.begun)
                    first = False
                if isinstance(said, asyncio.Queue):  # a picture: what comes after it waits until it is there
                    async for piece in _drawn(said):
                        yield piece
                    meters.pictures.labels(model).inc()
                elif isinstance(said, Finished):
                    self.ending = said.reason
                    return
                elif isinstance(said, Exception):
                    raise _told(said)
                else:
                    yield said
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Free the row, and stop drawing. For the event loop's thread."""
        if not self.over:
            self.over = True
            self._worker.done(self)
            for drawing in self._drawings:
                drawing.cancelled = True

    def take(self, said: Any) -> None:
        """Pass on what the engine says; called in the decoding thread."""
        if not isinstance(said, Image):
            self._post(self._said, said)
            return
        coming: asyncio.Queue[Any] = asyncio.Queue()
        self._post(self._said, coming)
        order = self._order
        drawing = Drawing(
            order.system,
            said,
            self._source,
            self._dice.image(),
            order.system.as_written(order.sampling.image),
            order.previews,
            tell=lambda piece: self._post(coming, piece),
        )
        self._drawings.append(drawing)
        drawing.cancelled = self.over
        self._worker.artist.ask(drawing)

    def _post(self, where: asyncio.Queue[Any], said: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(where.put_nowait, said)


async def _drawn(coming: asyncio.Queue[Any]) -> AsyncIterator[Progress | Image]:
    while True:
        piece = await coming.get()
        if isinstance(piece, Exception):
            raise _told(piece)
        yield piece
        if isinstance(piece, Image):
            return


def _told(error: Exception) -> ApiError:
    """The error for a client; a fault was logged in the thread where it happened."""
    return refusal(error) if isinstance(error, RebusError) else broken()


class Worker:
    """Answers for one system, or for several that share a base and take turns."""

    def __init__(self, name: str, config: ServerConfig, meters: Meters) -> None:
        self.name, self.config, self.meters = name, config, meters
        self.artist = Artist(name, self.fault)
        self._answers: dict[Job, Answer] = {}
        self._pending = 0
        self._mean_seconds = 1.0
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix=f"{name} encodes")
        self._engine = Engine(rows=config.rows, capacity=config.context)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        meters.rows.labels(name).set_function(lambda: self._engine.busy_rows)
        meters.waiting.labels(name).set_function(lambda: len(self._engine.waiting))
        self._thread = threading.Thread(target=self._decode, name=f"{name} decodes", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Do the threads run?"""
        return self._thread.is_alive() and self.artist.alive

    # ------------------------------------------------------------------------------------------ the event loop's side

    async def ask(self, prepare: Callable[[], Awaitable[Order]], count: int = 1) -> list[Answer]:
        """So many replies to what `prepare` says is asked, which is prepared once there is a place in the queue. Raises
        ApiError: 429 where too many wait, 400 where the system cannot."""
        with self.place(count) as keep:
            order = await prepare()
            wanted = Job(order.system, Words([], []), order.modality, order.sampling, None).rows
            if wanted > self.config.rows:
                raise ApiError(
                    400,
                    f"A reply with these settings needs {wanted} rows of the decoder, and there are {self.config.rows}. "
                    "Ask without guidance.",
                    code="invalid_value",
                )
            dice = Dice(torch.Generator().manual_seed(order.seed))
            prompt = await self.run(lambda: self._prompt(order, dice))
            answers = [Answer(self, order, prompt, one) for one in dice.split(count)]
            keep()
        for answer in answers:
            self._inbox.put(lambda answer=answer: self._join(answer))  # type: ignore[misc]
        return answers

    @contextlib.contextmanager
    def place(self, count: int = 1) -> Any:
        """A place in the queue, given back at the end of the block unless what it yields is called before.

        Raises ApiError with Retry-After where the queue is full.
        """
        most = self.config.rows + self.config.queue
        if self._pending + count > most:
            self.meters.turned_away.inc()
            ahead = max(self._pending - self.config.rows, 0)
            wait = min(max(1, math.ceil(self._mean_seconds * (ahead + 1) / self.config.rows)), 120)
            raise ApiError(
                429,
                f"{self._pending} replies are under way or wait, and {count} more are not taken on: the limit is {most}. "
                f"Try again in {wait} s.",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )
        self._pending += count
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        try:
            yield keep
        finally:
            if not kept:
                self._pending -= count

    async def run(self, work: Callable[[], Any]) -> Any:
        """Have the encoding thread do something. What the library refuses becomes an ApiError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoder, work)
        except RebusError as error:
            raise refusal(error) from None

    async def draw(self, drawing: Callable[[Callable[[Any], None]], Drawing]) -> AsyncIterator[Progress | Image]:
        """Have a picture drawn that no reply waits for; `drawing` is given what to tell."""
        loop, coming = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def tell(piece: Any) -> None:
            loop.call_soon_threadsafe(coming.put_nowait, piece)

        asked = drawing(tell)
        self.artist.ask(asked)
        try:
            async for piece in _drawn(coming):
                yield piece
        finally:
            asked.cancelled = True

    def done(self, answer: Answer) -> None:
        """An answer is over or given up."""
        self._pending -= 1
        self._mean_seconds += 0.1 * (time.monotonic() - answer.begun - self._mean_seconds)
        self.meters.words.labels(answer.job.system.name, "read").inc(answer.read)
        self.meters.words.labels(answer.job.system.name, "written").inc(answer.written)
        self._inbox.put(lambda: self._leave(answer))

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        self._inbox.put(None)
        self._thread.join()
        self.artist.close()
        self._encoder.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------ the encoding thread

    @torch.no_grad()
    def _prompt(self, order: Order, dice: Dice) -> Words:
        prompt = order.system.prompts([order.document], [dice], "chat", order.modality)[0]
        capacity = min(self.config.context, order.system.lm.llm.max_length)
        room = capacity - len(prompt)
        if room < 1:
            raise too_long(len(prompt), capacity)
        # asking now lets an image that does not fit be refused before the reply begins
        order.system.grammar.next([], order.modality, min(order.sampling.max_new_tokens, room))
        return prompt

    # ------------------------------------------------------------------------------------------ the decoding thread

    def _join(self, answer: Answer) -> None:
        if not answer.over:
            self._answers[answer.job] = answer
            self._engine.join(answer.job)

    def _leave(self, answer: Answer) -> None:
        self._answers.pop(answer.job, None)
        self._engine.leave(answer.job)

    def _decode(self) -> None:
        while self._take_in():
            if self._engine.idle:
                continue
            try:
                said = self._engine.step()
            except Exception as error:  # whatever it is, the thread goes on for those that wait
                self.fault(error)
                self._give_up(error)
                continue
            if self._engine.running:
                self.meters.batch.observe(len(self._engine.running))
            for job, what in said:
                self._tell(job, what)

    def _take_in(self) -> bool:
        """Does what the event loop asked for, waiting for something where there is nothing to decode. Is there more?"""
        while True:
            try:
                ask = self._inbox.get(block=self._engine.idle)
            except queue.Empty:
                return True
            if ask is None:
                return False
            ask()

    def _tell(self, job: Job, said: Any) -> None:
        answer = self._answers.get(job)
        if answer is not None:
            answer.take(said)
            if isinstance(said, Finished | Exception):
                del self._answers[job]

    def _give_up(self, error: Exception) -> None:
        """After a step that failed: its jobs are over; where none ran, the one that should have begun."""
        lost = self._engine.drop() or self._engine.waiting[:1]
        for job in lost:
            self._engine.leave(job)
            self._tell(job, error)

    def fault(self, error: Exception) -> None:
        """Count and log a fault of our own."""
        self.meters.faults.inc()
        log.error("a fault in %s", self.name, exc_info=error)


def too_long(words: int, context: int) -> ApiError:
    """A prompt that does not fit."""
    return ApiError(
        400,
        f"The request has {words:,} words, but this server reads {context:,} with the reply. "
        "Shorten it, for instance by leaving out its first turns or pictures.",
        code="context_length_exceeded",
        param="messages",
    )


def by_base(systems: Sequence[System]) -> list[list[System]]:
    """Systems in groups that share a language model: adapters of one base, of which one may be active at a time."""
    groups: dict[int, list[System]] = {}
    for system in systems:
        groups.setdefault(id(system.lm.llm.base), []).append(system)
    return list(groups.values())
