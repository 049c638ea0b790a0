"""A server on a loopback port, with tiny systems, and the official client for it."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import PIL.Image
import uvicorn
from tests import tiny

from rebus.apps.server.app import create_app
from rebus.apps.server.settings import ServerConfig
from rebus.apps.server.verb import listening
from rebus.system import System

QUICK = {"rows": 4, "context": 400, "queue": 8, "max_tokens": 60, "seconds": 60.0, "grace": 20.0}
"""Limits that a test can reach."""


@dataclass(frozen=True, eq=False)
class Running:
    """A server that runs."""

    app: Any
    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client, which does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)


@contextlib.contextmanager
def running(systems: dict[str, System], config: ServerConfig | None = None, **options: Any) -> Iterator[Running]:
    """A server for these systems, until the end of the block."""
    app = create_app(systems, config or ServerConfig(**QUICK), **options)
    with listening("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=20))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Running(app, f"http://127.0.0.1:{sock.getsockname()[1]}", server, thread)
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def png(colour: tuple[int, int, int] = (200, 30, 30), size: int = 40) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    pixels = tiny.picture(colour, size).pixels
    assert pixels is not None
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def url(data: bytes | None = None) -> str:
    """A picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png() if data is None else data).decode()


def opened(text: str) -> PIL.Image.Image:
    """The picture in base64, or in a data URL."""
    image = PIL.Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))
    image.load()
    return image


def ask(text: str = "hello", *pictures: str) -> list[dict]:
    """One user's message."""
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
