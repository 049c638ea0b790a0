"""The models that a page offers: which there are, which can be loaded, and each of them loaded once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.apps.loading import adapters as adapters_beside
from rebus.apps.loading import load_system, variants, where_weights
from rebus.apps.safety import check_drawings
from rebus.errors import RebusError

PAPERS = {"seed": "SEED", "lavit": "LaVIT", "seed_x": "SEED-X"}
"""The papers whose tokens the inspector knows how to show, by their names as people write them."""


@dataclass(frozen=True)
class Offer:
    """A model of the page."""

    name: str
    """`seed:mini`"""
    ready: bool
    """can it be loaded?"""
    says: str
    """where its weights are, or what is missing and how it is made"""

    @property
    def paper(self) -> str:
        return self.name.partition(":")[0]


def offer(name: str, weights: Path | None = None) -> Offer:
    """What there is of a model, without loading it. Raises RebusError for a name that nothing has."""
    if "." in name or weights is not None:
        return Offer(name, True, "one of your own" if weights is None else f"weights of {weights}")
    known = dict(variants())
    if name not in known:
        raise RebusError(f"There is no system {name!r}. Choose of `rebus list`: {', '.join(known)}.")
    where = where_weights(name, known[name])
    if where == "absent":
        made = f"runs/{known[name].weights.replace('-', '_')}.sh"
        return Offer(name, False, f"{name} has no weights here yet; {made} trains them.")
    if where.startswith("yours"):
        return Offer(name, False, f"{name} needs published weights: turn them into a folder with `rebus convert`.")
    return Offer(name, True, where)


def default_offers() -> list[Offer]:
    """Every mini, whether it can be loaded or not."""
    names = [name for name, config in variants() if config.weights is not None]
    return [offer(name) for name in names]


class Models:
    """The models of a page and their adapters. What was named at the start is all that is ever loaded."""

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        adapters: Mapping[str, Path] | None = None,
        weights: Path | None = None,
        safety: Path | None = None,
        device: str = "auto",
        console: Console | None = None,
    ) -> None:
        """Names none, and every mini is offered; adapters are those beside the weights, and those named. Raises RebusError for unknown names, when one that was named cannot be
        loaded, when none can, and for weights that could be several models'."""
        if weights is not None and len(names) != 1:
            raise RebusError(
                f"--weights names the weights of one model, but {len(names)} models are named. Name the one that they are of."
            )
        self.offers = [offer(name, weights) for name in names] or default_offers()
        lacking = [one for one in self.offers if not one.ready]
        if names and lacking:
            raise RebusError(f"{lacking[0].says} Leave it out, or name one that is there (`rebus list`).")
        if not self.ready:
            raise RebusError("No model has weights here, so there is nothing to show. See `rebus list`.")
        self._beside = {name: adapters_beside(name, weights) for name in self.ready}
        own = {adapter: adapter for found in self._beside.values() for adapter in found}
        self.adapters: dict[str, Path | str] = {**own, **(adapters or {})}
        self._weights, self._safety, self._device = weights, safety, device
        self._console = console or Console(stderr=True, highlight=False)
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    @property
    def ready(self) -> list[str]:
        """Names of the models that can be loaded."""
        return [one.name for one in self.offers if one.ready]

    def of_paper(self, paper: str) -> str | None:
        """The first model of a paper that can be loaded; None where there is none."""
        return next((one.name for one in self.offers if one.ready and one.paper == paper), None)

    def missing(self, paper: str) -> str:
        """In kind words, why no model of a paper can be loaded."""
        told = next((one.says for one in self.offers if one.paper == paper and not one.ready), None)
        return told or f"{PAPERS.get(paper, paper)} was not named when this page was started: `rebus web {paper}:mini`."

    def get(self, name: str, adapter: str = "") -> Any:
        """A model, loaded the first time; without an adapter as it is used elsewhere, with `chat` where its weights have that. Raises
        RebusError for one that the page does not offer, and as loading does."""
        if name not in self.ready:
            raise RebusError(f"This page does not offer {name!r:.80}. Choose of {', '.join(self.ready)}.")
        if adapter and adapter not in self.adapters:
            raise RebusError(
                f"This page has no adapter {adapter!r:.80}. Choose of {', '.join(self.adapters) or 'none'}."
            )
        adapter = adapter or next((one for one in self._beside[name] if one == "chat"), "")
        with self._lock:
            if (name, "") not in self._loaded:
                base = load_system(name, self._console, weights=self._weights, device=self._device)
                check_drawings(base, self._safety)
                self._loaded[name, ""] = base
            if (name, adapter) not in self._loaded:  # an adapter shares the weights of its base, and its image decoder
                self._loaded[name, adapter] = self._loaded[name, ""].with_adapter(self.adapters[adapter])
            return self._loaded[name, adapter]
