"""Pictures and streams of replies, as they leave."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

import PIL.Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rebus.apps.memory import remembering_png
from rebus.apps.server.errors import ApiError, broken, too_slow
from rebus.apps.server.settings import ServerConfig
from rebus.document import Image
from rebus.visual import Progress

DEADLINE = "rebus.deadline"
"""Where a request's scope says when its time is over, on the event loop's clock."""

FileFormat = Literal["png", "jpeg", "webp"]


async def base64_of(
    picture: Image | PIL.Image.Image, kind: FileFormat = "png", size: tuple[int, int] | None = None
) -> str:
    """The picture as a file in base64; `size` is the width and height that it is brought to. A PNG of a picture that was
    drawn, at the size in which it was, remembers how."""
    return await asyncio.to_thread(_base64_of, picture, kind, size)


def _base64_of(picture: Image | PIL.Image.Image, kind: FileFormat, size: tuple[int, int] | None) -> str:
    pixels = picture.pixels if isinstance(picture, Image) else picture
    assert pixels is not None  # a reply's pictures have been drawn
    if isinstance(picture, Image) and kind == "png" and size in (None, pixels.size):
        return base64.b64encode(remembering_png(picture)).decode()
    if size is not None and pixels.size != size:
        pixels = pixels.resize(size, PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, format=kind.upper())
    return base64.b64encode(buffer.getvalue()).decode()


def data_url(text: str, kind: FileFormat = "png") -> str:
    """A file in base64 as an URL."""
    return f"data:image/{kind};base64,{text}"


def new_id(kind: str) -> str:
    """A name that nobody guesses."""
    return f"{kind}-{secrets.token_hex(16)}"


class Previews:
    """Chooses which steps of a picture are shown: at most `count`, evenly spread, the finished picture not among them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.shown = 0

    def wants(self, progress: Progress) -> bool:
        """Is this one shown?"""
        if progress.preview is None or self.shown >= self._count or progress.step >= progress.of:
            return False
        if progress.step * (self._count + 1) < progress.of * (self.shown + 1):
            return False
        self.shown += 1
        return True


# ------------------------------------------------------------------------------------------------ while a client is there


async def unless_gone(request: Request, work: Awaitable[Any], config: ServerConfig) -> Any:
    """The result of the work, which is given up when the client goes away or time is over. Raises ApiError."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        left = seconds_left(request.scope, config)
        await asyncio.wait({doing, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise ApiError(499, "The client went away.", code="client_closed_request")
        raise too_slow(config.seconds)
    finally:
        await _stopped(doing, gone)


def seconds_left(scope: Scope, config: ServerConfig) -> float:
    """How long a request may still take: the gate wrote down when its time is over."""
    now = asyncio.get_running_loop().time()
    return max(scope.get(DEADLINE, now + config.seconds) - now, 0.0)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stopped(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ server-sent events

Frames = AsyncGenerator[dict[str, Any], None]


class EventStream(Response):
    """Server-sent events: each dictionary one `data:` line, with an `event:` line where it has a `type`.

    It ends, and with it what makes the events, when the client goes away or the time is over; an error on the way
    becomes an event of its own, since the status has been sent. `close` is called at the end in any case, even where the
    first event was never asked for; `done` says whether the last line is the one that chat completions end with.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: Frames,
        config: ServerConfig,
        *,
        fault: Callable[[Exception], None],
        close: Callable[[], None],
        done: bool = False,
    ) -> None:
        self.status_code, self.background = 200, None
        self.body = b""
        self._frames, self._config, self._fault, self._close, self._done = frames, config, fault, close, done
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    def init_headers(self, headers: Any = None) -> None:
        """The headers of a body whose length nobody knows."""
        super().init_headers(headers)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        left = seconds_left(scope, self._config)
        pump, gone = asyncio.ensure_future(self._pump(send, left)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _stopped(pump, gone)
            await self._frames.aclose()
            self._close()

    async def _pump(self, send: Send, left: float) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(left):
                await self._send_frames(send)
        except TimeoutError:
            await _send(send, _lines(too_slow(self._config.seconds).body, "error"))
        except ApiError as error:
            await _send(send, _lines(error.body, "error"))
        except Exception as error:  # the status is sent: all that is left is to say so in the stream
            self._fault(error)
            await _send(send, _lines(broken().body, "error"))
        await _send(send, b"data: [DONE]\n\n" if self._done else b"", more=False)

    async def _send_frames(self, send: Send) -> None:
        coming: asyncio.Future[dict[str, Any]] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._frames))
                done, _ = await asyncio.wait({coming}, timeout=self._config.ping)
                if not done:
                    await _send(send, b": still at it\n\n")
                    continue
                try:
                    frame = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                await _send(send, _lines(frame, frame.get("type")))
        finally:
            if coming is not None:
                await _stopped(coming)


def _lines(frame: dict[str, Any], event: str | None) -> bytes:
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(frame, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
