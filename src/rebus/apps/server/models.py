"""What a server answers for: the systems named when it was started, and the threads that run them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from rebus.apps.server.errors import ApiError
from rebus.apps.server.fetch import Allowed, is_public
from rebus.apps.server.incoming import Pictures
from rebus.apps.server.metrics import Meters
from rebus.apps.server.settings import ServerConfig
from rebus.apps.server.worker import Worker, by_base
from rebus.document import Document
from rebus.errors import RebusError
from rebus.grammar import Modality
from rebus.sampling import Sampling
from rebus.system import System
from rebus.visual import ImageSampling


class Models:
    """Systems by the names that requests call them by, and their workers. A name that is none of these is an error and
    nothing else: it is compared, never loaded, opened or imported."""

    def __init__(self, systems: Mapping[str, System], config: ServerConfig, *, allowed: Allowed = is_public) -> None:
        self.config, self.meters = config, Meters()
        self.created = int(time.time())
        self._allowed = allowed
        self._systems = dict(systems)
        self._workers: dict[str, Worker] = {}
        for name, system in self._systems.items():
            system.name = name
        for group in by_base(list(self._systems.values())):
            worker = Worker(group[0].name, config, self.meters)
            self._workers |= {system.name: worker for system in group}

    @property
    def names(self) -> list[str]:
        """What requests may name."""
        return list(self._systems)

    @property
    def alive(self) -> bool:
        """Do all the threads run?"""
        return all(worker.alive for worker in self._workers.values())

    def system(self, name: str) -> System:
        """The system of a name. Raises ApiError (404)."""
        if name not in self._systems:
            raise ApiError(
                404,
                f"There is no model of that name here. This server has {', '.join(self._systems)}.",
                code="model_not_found",
                param="model",
            )
        return self._systems[name]

    def worker(self, name: str) -> Worker:
        """The threads of a system."""
        return self._workers[self.system(name).name]

    def pictures(self) -> Pictures:
        """What opens a request's pictures, within the limits."""
        return Pictures(self.config, self._allowed)

    def entry(self, name: str) -> dict[str, Any]:
        """A system as /v1/models describes it."""
        system = self.system(name)
        outputs = ["text"] if system.detokenizer is None else ["text", "image"]
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "rebus",
            "context": min(self.config.context, system.lm.llm.max_length),
            "modalities": {"input": ["text"] if system.tokenizer is None else ["text", "image"], "output": outputs},
            "edits": system.edits,
        }

    def check(self, name: str, document: Document, modality: Modality, sampling: Sampling, count: int) -> System:
        """The system of a name, which can answer this. Raises ApiError for what no reply could be."""
        system, config = self.system(name), self.config
        if count > config.replies:
            raise ApiError(
                400,
                f"{count} replies were asked for, and a request may ask for {config.replies} here.",
                code="invalid_value",
                param="n",
            )
        if modality != "text" and system.detokenizer is None:
            raise ApiError(400, f"{name} does not draw. Ask for text.", code="unsupported", param="modalities")
        if document.images and system.tokenizer is None:
            raise ApiError(400, f"{name} does not see. Send text alone.", code="unsupported", param="messages")
        self.check_drawing(system, sampling.image)
        return system

    def check_drawing(self, system: System, sampling: ImageSampling) -> None:
        """Raises ApiError for settings that the system does not draw by, more steps than pictures get here, and sizes beyond
        the limits."""
        most = self.config.steps
        if sampling.steps is not None and sampling.steps > most:
            raise ApiError(
                400,
                f"{sampling.steps} steps were asked for, and a picture gets at most {most} here.",
                code="invalid_value",
                param="drawing.steps",
            )
        if sampling.size is not None:
            check_size(sampling.size, self.config, "drawing.size")
        try:
            system.check_drawing(sampling)
        except RebusError as error:
            raise ApiError(400, str(error), code="unsupported_parameter", param="drawing") from None

    def close(self) -> None:
        """End the threads."""
        for worker in set(self._workers.values()):
            worker.close()


def check_size(size: tuple[int, int], config: ServerConfig, param: str) -> None:
    """Raises ApiError for a side or an area that no picture has here."""
    one, other = size
    if min(size) < 8 or max(size) > 8192 or one * other > config.pixels:
        raise ApiError(
            400,
            f"A picture has sides of 8 to 8192 pixels and at most {config.pixels:,} pixels here, but {one} x {other} "
            "was asked for.",
            code="invalid_value",
            param=param,
        )


def new_seed() -> int:
    """A seed where a request has none."""
    return secrets.randbits(53)  # what JSON's numbers hold exactly
