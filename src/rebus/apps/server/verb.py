"""`rebus serve`: systems behind OpenAI's HTTP API, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from rebus.apps.options import Device
from rebus.apps.safety import Safety
from rebus.apps.server.settings import ServerConfig
from rebus.errors import RebusError

err = Console(stderr=True, highlight=False)

KEYS = "REBUS_API_KEYS"
"""The environment variable that may hold API keys, with commas between them."""

DEFAULTS = ServerConfig()

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def serve(
    systems: Positional[
        Annotated[
            tuple[str, ...],
            arg(metavar="SYSTEM [SYSTEM …]", help="which models: NAME:VARIANT, or NAME:VARIANT=FOLDER of weights"),
        ]
    ] = ("seed:mini",),
    *,
    adapters: Annotated[
        tuple[str, ...], arg(metavar="MODEL+NAME=FOLDER", help="adapters of these, models of their own to requests")
    ] = (),
    host: Annotated[str, arg(help="address to listen at; 0.0.0.0 is every one of this machine")] = "127.0.0.1",
    port: Annotated[int, arg(help="port to listen at; 0 takes a free one")] = 8000,
    key_file: Annotated[
        Path | None,
        arg(metavar="FILE", help=f"API keys, one a line; or with commas in ${KEYS}", help_behavior_hint="(none: open)"),
    ] = None,
    replicas: Annotated[int, arg(help="more than 1: so many copies on Ray Serve, behind one address")] = 1,
    ray_address: Annotated[
        str | None, arg(metavar="ADDRESS", help="of a Ray cluster", help_behavior_hint="(default: this machine)")
    ] = None,
    safety: Safety = None,
    device: Device = "auto",
    limits: Annotated[ServerConfig, arg(name="")] = DEFAULTS,
) -> None:
    """Answer OpenAI's HTTP API: chat, responses, images, codes."""
    from rebus.apps.server.loading import load_named, named

    try:
        import fastapi  # noqa: F401
        import httpcore  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RebusError(
            f"The server needs {error.name}, which is not installed. Run `pip install 'rebus-lm[serve]'`."
        ) from None
    models = named(systems, adapters)
    config = configured(limits, host, key_file)
    if replicas > 1:
        from rebus.apps.server.replicas import run_replicas

        run_replicas(
            models, config, host=host, port=port, count=replicas, address=ray_address, device=device, safety=safety
        )
        return
    from rebus.apps.server.app import create_app

    loaded = load_named(models, err, device, safety)
    with listening(host, port) as sock:
        _announce(list(loaded), sock, config)
        run(create_app(loaded, config), sock, config)


def configured(limits: ServerConfig, host: str, key_file: Path | None) -> ServerConfig:
    """The limits with the keys that are kept elsewhere, and where only this machine may ask, with its names."""
    keys = [*limits.keys, *os.environ.get(KEYS, "").split(",")]
    if key_file is not None:
        try:
            keys += key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RebusError(f"The keys in {key_file} cannot be read: {error}. Name a text file.") from None
    keys = [key.strip() for key in keys if key.strip()]
    if key_file is not None and not keys:
        raise RebusError(f"{key_file} holds no key, and without one anybody could ask. Write one on a line.")
    hosts = limits.hosts
    if not hosts and not keys and host in ("127.0.0.1", "localhost", "::1"):
        hosts = LOOPBACK  # a page elsewhere whose name is made to mean this machine is not answered
    return replace(limits, keys=tuple(keys), hosts=hosts)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises RebusError where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise RebusError(
            f"Nothing can listen at {host}, port {port}: {error}. Name another with --host or --port."
        ) from None


def run(app: Any, sock: socket.socket, config: ServerConfig) -> None:
    """Answer at the socket until SIGTERM or Ctrl-C, then finish what runs."""
    import uvicorn

    logging.getLogger("rebus.server").addHandler(logging.StreamHandler())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=max(1, round(config.grace)),
        )
    )
    # uvicorn hands the signal on once all is finished, which would end in an error where it was a wish
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(names: Sequence[str], sock: socket.socket, config: ServerConfig) -> None:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    err.print(f"{', '.join(names)} at http://{shown}:{port}/v1", soft_wrap=True)
    if not config.keys and not config.hosts:
        err.print("Anybody who reaches this address may ask: there are no API keys.", style="yellow", soft_wrap=True)
    err.print("Ctrl-C or SIGTERM ends it, once what runs is finished.", style="dim", soft_wrap=True)
