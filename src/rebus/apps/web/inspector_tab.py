"""The page's inspector: one picture, and a panel for each way of looking at its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from rebus.apps.web.codes_panel import build_codes
from rebus.apps.web.compare_panel import build_compare
from rebus.apps.web.models import Models
from rebus.apps.web.panel import WORKING, Panel, Update, picture_input
from rebus.apps.web.patches_panel import build_patches
from rebus.apps.web.views_panel import build_views

PANELS = (
    ("Codes · SEED", build_codes),
    ("Patches · LaVIT", build_patches),
    ("Views · SEED-X", build_views),
    ("Side by side", build_compare),
)


def build_inspector(models: Models, examples: Sequence[Path]) -> gr.Image:
    """Lays the inspector out and connects it; returns where its picture is put."""
    with gr.Row(elem_id="inspector", equal_height=False):
        with gr.Column(scale=2, min_width=260):
            picture = picture_input("Picture", height=260, elem_id="picture")
            if examples:
                gr.Examples(
                    [[str(path)] for path in examples],
                    [picture],
                    label="Pictures to try",
                    examples_per_page=12,
                    elem_id="examples",
                )
        with gr.Column(scale=7, min_width=320):
            active = gr.State("codes")
            with gr.Tabs(elem_id="panels"):
                for title, build in PANELS:
                    with gr.Tab(title) as tab:
                        panel = build(models, picture)
                    _connect(panel, tab, picture, active)
    return picture


def _connect(panel: Panel, tab: Any, picture: gr.Image, active: gr.State) -> None:
    """A panel looks when it is opened, and at another picture while it is open."""

    def opened(path: str | None) -> Iterator[Update]:
        yield {active: panel.name}
        yield from panel.look(path)

    def changed(path: str | None, name: str) -> Iterator[Update]:
        if name == panel.name:
            yield from panel.look(path)
        else:
            yield {panel.outputs[0]: gr.skip()}

    tab.select(opened, picture, [active, *panel.outputs], **WORKING)
    picture.change(changed, [picture, active], list(panel.outputs), **WORKING)
