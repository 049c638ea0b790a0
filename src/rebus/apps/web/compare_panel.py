"""One picture through all three systems, side by side: tokens, bits, what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import PIL.Image

from rebus.apps.inspecting import encoded, facts, likeness
from rebus.apps.web import figures
from rebus.apps.web.models import PAPERS, Models
from rebus.apps.web.panel import Panel, Update, drawn, kindly, opened, waking
from rebus.errors import RebusError


def build_compare(models: Models, picture: Any) -> Panel:
    """The panel of all papers."""
    del picture
    told = gr.HTML(figures.note(figures.NOTHING))
    shown = gr.HTML("", elem_id="compare-shown")

    def look(path: str | None) -> Iterator[Update]:
        if path is None:
            yield {told: figures.note(figures.NOTHING), shown: ""}
            return
        pixels = opened(path)
        original = _card(
            "The picture",
            figures.figure(pixels, f"{pixels.width} × {pixels.height} pixels"),
            {"bits": f"{pixels.width * pixels.height * 24:,}"},
        )
        cards = {paper: _card(title, waking("it"), {}) for paper, title in PAPERS.items()}

        def all_of_them() -> Update:
            return {told: "", shown: f'<div class="cards">{original}{"".join(cards.values())}</div>'}

        yield all_of_them()
        for paper, title in PAPERS.items():
            for card in _through(models, paper, title, pixels):
                cards[paper] = card
                yield all_of_them()

    return Panel("compare", kindly(look, told), [told, shown])


def _through(models: Models, paper: str, title: str, pixels: PIL.Image.Image) -> Iterator[str]:
    """The card of one system as it fills."""
    name = models.of_paper(paper)
    if name is None:
        yield _card(title, figures.note(models.missing(paper)), {})
        return
    try:
        system = models.get(name)
        tokens = encoded(system, pixels).generated
        assert tokens is not None
        found = facts(tokens, system)
        values = {"tokens": f"{found.count}", "bits": f"{found.bits:,.0f}"}
        for piece in drawn(system, [tokens], lambda bar: {0: bar}):
            if isinstance(piece, PIL.Image.Image):
                values["likeness"] = f"{likeness(pixels, piece):.1f} dB"
                yield _card(title, figures.figure(piece, name), values, name)
            else:
                yield _card(title, piece[0], values, name)
    except RebusError as error:
        yield _card(title, figures.note(str(error)), {})


def _card(title: str, body: str, values: dict[str, str], name: str = "") -> str:
    random = figures.note(figures.RANDOM) if name.endswith(":tiny") else ""
    return f'<section class="card"><h3>{title}</h3>{body}{figures.facts(values) if values else ""}{random}</section>'
