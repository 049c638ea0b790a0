"""LaVIT's patches: which of a picture's are kept, by its own choice or by a budget, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import PIL.Image

from rebus.apps.inspecting import facts, likeness
from rebus.apps.patches import kept_over
from rebus.apps.web import figures
from rebus.apps.web.models import Models
from rebus.apps.web.panel import WORKING, Panel, Update, drawn, kindly, model_note, opened, waking
from rebus.document import Image
from rebus.errors import RebusError
from rebus.visual import Codes

OWN, BUDGET = "own", "budget"


def budgets(models: Models) -> tuple[int, int]:
    """The fewest and the most patches that a picture may keep, as far as that is known before a model is loaded."""
    from rebus.apps.loading import variants

    config = dict(variants()).get(models.of_paper("lavit") or "")
    if config is None:
        return 1, 256
    return config.grammar.fewest, min(config.grammar.most, config.tokenizer.vision.grid**2)


def build_patches(models: Models, picture: Any) -> Panel:
    """The panel of LaVIT."""
    name = models.of_paper("lavit")
    gr.HTML(model_note(models, "lavit"))
    fewest, most = budgets(models)
    told = gr.HTML(figures.note(figures.NOTHING) if name else "")
    with gr.Row(visible=bool(name)):
        how = gr.Radio(
            [("as many as it needs", OWN), ("a budget", BUDGET)],
            value=OWN,
            label="Patches that are kept",
            elem_id="how",
        )
        budget = gr.Slider(fewest, most, (fewest + most) // 3, step=1, label="Budget, in patches", elem_id="budget")
    shown = gr.HTML("", elem_id="patches-shown")
    outputs = [told, shown]

    def look(path: str | None, choice: str, count: float) -> Iterator[Update]:
        if name is None or path is None:
            yield {told: figures.note(figures.NOTHING) if name else "", shown: ""}
            return
        pixels = opened(path)
        yield {told: waking(name)}
        system = models.get(name)
        image = chosen(system, pixels, None if choice == OWN else int(count))
        mask = figures.figure(kept_over(image, name), "What is kept; the rest is grey")
        codes = image.generated
        if not isinstance(codes, Codes):
            raise RebusError(f"{name} does not write pictures as codes. Name a LaVIT model when starting the page.")
        found = facts(codes, system)
        values = {"model": name, "tokens": f"{found.count}", "bits": f"{found.bits:,.0f}"}
        yield {told: figures.facts(values), shown: figures.row([mask])}
        for piece in drawn(system, [codes], lambda bar: {shown: figures.row([mask, bar])}):
            if isinstance(piece, PIL.Image.Image):
                values["likeness"] = f"{likeness(pixels, piece):.1f} dB"
                again = figures.figure(piece, f"Drawn from its {found.count} codes")
                yield {told: figures.facts(values), shown: figures.row([mask, again])}
            else:
                yield piece

    def on_budget(path: str | None, choice: str, count: float) -> Iterator[Update]:
        if choice == BUDGET:
            yield from look(path, choice, count)
        else:
            yield {told: gr.skip()}

    inputs = [picture, how, budget]
    how.input(kindly(look, told), inputs, outputs, **WORKING)
    budget.change(kindly(on_budget, told), inputs, outputs, trigger_mode="always_last", **WORKING)
    return Panel("patches", kindly(lambda path: look(path, OWN, fewest), told), outputs)


def chosen(system: Any, pixels: PIL.Image.Image, budget: int | None) -> Image:
    """The picture with the patches that are kept and the codes of these; the model's way of choosing stays as it was."""
    tokenizer = system.tokenizer
    before = (tokenizer.selection, tokenizer.budget)
    try:
        if budget is not None:
            tokenizer.choose("topk", budget)
        (image,) = tokenizer.encode([Image(pixels)], {"understanding", "generation"})
    finally:
        tokenizer.choose(*before)
    return image
