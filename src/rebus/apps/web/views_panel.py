"""SEED-X's views of a picture of any shape, and boxes: regions of it as words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import PIL.Image

from rebus.apps.inspecting import boxes_over, encoded, facts, likeness, views_over
from rebus.apps.web import figures
from rebus.apps.web.models import Models
from rebus.apps.web.panel import WORKING, Panel, Update, drawn, kindly, model_note, opened, waking
from rebus.document import Box, Image


def build_views(models: Models, picture: Any) -> Panel:
    """The panel of SEED-X."""
    name = models.of_paper("seed_x")
    gr.HTML(model_note(models, "seed_x"))
    told = gr.HTML(figures.note(figures.NOTHING) if name else "")
    shown = gr.HTML("", elem_id="views-shown")
    with gr.Accordion("A region as words", open=True, visible=bool(name)):
        with gr.Row():
            sliders = [
                gr.Slider(0, 1, value, step=0.01, label=label, min_width=140)
                for label, value in (("centre, across", 0.5), ("centre, down", 0.5), ("width", 0.4), ("height", 0.4))
            ]
        region = gr.HTML("", elem_id="region")
    outputs = [told, shown, region]

    def look(path: str | None) -> Iterator[Update]:
        if name is None or path is None:
            yield {told: figures.note(figures.NOTHING) if name else "", shown: "", region: ""}
            return
        from rebus.papers.seed_x.views import cut

        pixels = opened(path)
        yield {told: waking(name)}
        system = models.get(name)
        tokenizer = system.tokenizer
        grid = tokenizer.grid(Image(pixels))
        views = cut(pixels, grid, tokenizer.config.vision.trunk.image_size)
        captions = [*(f"View {n}" for n in range(1, len(views))), "The whole"]
        own = [figures.figure(view, caption) for view, caption in zip(views, captions, strict=True)]
        whole = figures.figure(views_over(pixels, grid), f"Cut into {grid[0]} × {grid[1]}" if grid else "Read whole")
        yield {shown: figures.row([whole, *own]), region: over(pixels, Box(0.5, 0.5, 0.4, 0.4))}
        image = encoded(system, pixels)
        assert image.generated is not None
        found = facts(image.generated, system)
        slots = system.grammar.config.slots
        values = {
            "model": name,
            "views": f"{len(views)}",
            "slots to read it": f"{slots * len(views)}",
            "vectors to draw it": f"{found.count}",
        }
        yield {told: figures.facts(values)}
        for piece in drawn(system, [image.generated], lambda bar: {shown: figures.row([whole, *own, bar])}):
            if isinstance(piece, PIL.Image.Image):
                again = figures.figure(piece, f"Drawn from its {found.count} vectors")
                values["likeness"] = f"{likeness(pixels, piece):.1f} dB"
                yield {told: figures.facts(values), shown: figures.row([whole, *own, again])}
            else:
                yield piece

    def over(pixels: PIL.Image.Image, box: Box) -> str:
        system = models.get(name or "")
        return figures.row([figures.figure(boxes_over(pixels, [box]), words(box, system))])

    def point(path: str | None, cx: float, cy: float, w: float, h: float) -> Iterator[Update]:
        yield {region: "" if path is None or name is None else over(opened(path), Box(cx, cy, w, h))}

    for slider in sliders:
        slider.change(kindly(point, region), [picture, *sliders], region, trigger_mode="always_last", **WORKING)
    return Panel("views", kindly(look, told), outputs)


def words(box: Box, system: Any) -> str:
    """A box as the model writes it."""
    from rebus.papers.seed_x.boxes import box_words

    config = system.grammar.config
    places = [word - config.first_location for word in box_words(box, config)[1:-1]]
    return "<box_start>" + "".join(f"<loc-{place}>" for place in places) + "<box_end>"
