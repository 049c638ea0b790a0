"""The same application on Ray Serve: copies of it behind one address, on one machine or a cluster."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.apps.server.loading import Named, load_named
from rebus.apps.server.settings import ServerConfig
from rebus.errors import RebusError

err = Console(stderr=True, highlight=False)

NAME = "rebus"


def deployment(
    models: Sequence[Named], config: ServerConfig, *, count: int, device: str = "auto", safety: Path | None = None
) -> Any:
    """An application for `ray.serve.run`: so many copies, each with all of the models, loaded where it runs.

    Copies share nothing, so none of them keeps responses that a next request would look for in another: clients send
    the conversation itself. Raises RebusError when Ray is not installed.
    """
    serve = _ray_serve()
    models, config = tuple(models), replace(config, responses=0)

    def build() -> Any:
        from rebus.apps.server.app import create_app  # in the copy, where the threads have to live

        console = Console(stderr=True, highlight=False)  # one that is shared would have to travel with the function
        return create_app(load_named(models, console, device, safety), config)

    import torch

    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    copies = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        num_replicas=count,
        max_ongoing_requests=config.rows + config.queue,
        graceful_shutdown_timeout_s=config.grace,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if gpu else 0},
    )
    return copies.bind()


def run_replicas(
    models: Sequence[Named],
    config: ServerConfig,
    *,
    host: str,
    port: int,
    count: int,
    address: str | None = None,
    device: str = "auto",
    safety: Path | None = None,
) -> None:
    """Serve copies until SIGTERM or Ctrl-C, then finish what runs. Raises RebusError when Ray is not installed."""
    start(models, config, host=host, port=port, count=count, address=address, device=device, safety=safety)
    names = ", ".join(model.name for model in models)
    err.print(f"{names} at http://{host}:{port}/v1, {count} replicas on Ray Serve", soft_wrap=True)
    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        over.wait()
    finally:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    models: Sequence[Named],
    config: ServerConfig,
    *,
    host: str,
    port: int,
    count: int,
    address: str | None = None,
    device: str = "auto",
    safety: Path | None = None,
    **options: Any,
) -> None:
    """Start the copies and return once all of them answer; `options` are those of `ray.init`."""
    serve = _ray_serve()
    import ray

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, **options)
    serve.start(http_options={"host": host, "port": port})
    serve.run(deployment(models, config, count=count, device=device, safety=safety), name=NAME, route_prefix="/")


def stop() -> None:
    """Let the copies finish and end them, and what was started of Ray."""
    serve = _ray_serve()
    import ray

    serve.shutdown()
    ray.shutdown()


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise RebusError(
            "Replicas run on Ray Serve, which is not installed. Run `pip install 'rebus-lm[serve,scale]'`."
        ) from None
    return serve
