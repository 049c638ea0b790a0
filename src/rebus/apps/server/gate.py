"""What stands before every route: who may ask, from where, how much, how long; and counting what was answered."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rebus.apps.server.errors import ApiError, broken, too_slow
from rebus.apps.server.metrics import Meters
from rebus.apps.server.outgoing import DEADLINE
from rebus.apps.server.settings import ServerConfig

OPEN = ("/health", "/openapi.json")
"""Routes that need no key."""

OWNER = "rebus.owner"
"""Where a request's scope says whose it is: a digest of the key that it bears."""

log = logging.getLogger("rebus.server")


class Gate:
    """The outermost part of the application."""

    def __init__(self, app: ASGIApp, config: ServerConfig, meters: Meters) -> None:
        self._app, self._config, self._meters = app, config, meters
        self._keys = [_digest(key) for key in config.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun, started = 500, time.monotonic(), False
        scope[DEADLINE] = asyncio.get_running_loop().time() + self._config.seconds
        refused: list[ApiError] = []

        async def noting(message: Message) -> None:
            nonlocal status, started
            if refused and not started:
                return  # what the route makes of half a body is not said
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        answer: Response | None = None
        try:
            self._check(scope)
            await self._app(scope, self._counted(scope, receive, refused), noting)
        except ApiError as error:
            answer = error.response()
        except Exception as error:  # the last place where it can become an answer
            if not refused:
                self._meters.faults.inc()
                log.error("a fault in %s", scope["path"], exc_info=error)
                answer = broken().response()
        if refused:
            answer = refused.pop().response()
        if answer is not None and not started:
            answer.headers.setdefault("Connection", "close")  # what the client may still be sending is not read
            await answer(scope, receive, noting)
        route = getattr(scope.get("route"), "path", "none")
        self._meters.requests.labels(route, str(status)).inc()
        self._meters.seconds.labels(route).observe(time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        headers, config = Headers(scope=scope), self._config
        host = headers.get("host", "")
        if config.hosts and _name(host) not in config.hosts:
            raise ApiError(
                421,
                "The server is not called that. Start it with --hosts to give it further names.",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in config.origins and urlsplit(origin).netloc != host:
            raise ApiError(
                403,
                "Pages of this origin may not ask. Start the server with --origins to allow some.",
                code="origin_not_allowed",
            )
        if self._keys and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            kind, _, key = headers.get("authorization", "").partition(" ")
            found = _digest(key.strip())
            if kind.lower() != "bearer" or not any([hmac.compare_digest(found, known) for known in self._keys]):
                raise ApiError(
                    401,
                    "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            scope[OWNER] = found.hex()
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > config.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than the {self._config.body_bytes:,} bytes that one may have. Send smaller pictures.",
            code="request_too_large",
        )

    def _counted(self, scope: Scope, receive: Receive, refused: list[ApiError]) -> Receive:
        """The request's body, until it is too large or too slow, which is then noted in `refused`."""
        size, whole = 0, False

        async def counted() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()  # from here on it can only be that the client goes away
            try:
                async with asyncio.timeout_at(scope[DEADLINE]):
                    message = await receive()
            except TimeoutError:
                refused.append(too_slow(self._config.seconds))
                raise refused[-1] from None
            size += len(message.get("body", b""))
            if size > self._config.body_bytes:
                refused.append(self._too_large())
                raise refused[-1]
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return counted


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(host: str) -> str:
    """A Host header without its port."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
