"""SEED's codes as chips: one of them is changed and the picture changes; what lies between two pictures is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import PIL.Image

from rebus.apps.inspecting import blended, changed, codes_at, encoded, facts, likeness
from rebus.apps.web import figures
from rebus.apps.web.models import Models
from rebus.apps.web.panel import WORKING, Panel, Update, drawn, kindly, model_note, opened, picture_input, waking
from rebus.errors import RebusError
from rebus.visual import Codes

STEPS = 5
"""Pictures from one to another, both included."""


def build_codes(models: Models, picture: Any) -> Panel:
    """The panel of SEED."""
    name = models.of_paper("seed")
    gr.HTML(model_note(models, "seed"))
    own, now = gr.State(None), gr.State(None)  # the picture's codes, and as they were changed
    told = gr.HTML(figures.note(figures.NOTHING) if name else "")
    with gr.Column(visible=False) as work:
        shown = gr.HTML("", elem_id="codes-shown")
        chips = gr.Radio([], label="Codes: choose one to change it", elem_id="chips", elem_classes="chips")
        with gr.Row():
            code = gr.Slider(0, 1, 0, step=1, label="The chosen code", elem_id="code", scale=4, min_width=280)
            reset = gr.Button("Undo all changes", size="sm", scale=1, min_width=140)
    with gr.Accordion("Between two pictures", open=False, visible=bool(name)):
        with gr.Row():
            second = picture_input("The other picture", height=200, scale=1, elem_id="second")
            with gr.Column(scale=3):
                blend = gr.Button("Draw what lies between", variant="primary", elem_id="blend")
                between = gr.HTML("", elem_id="between")
    outputs = [own, now, told, work, shown, chips, code]

    def chips_of(codes: Codes, before: Codes, place: int) -> Update:
        ids, old = codes.ids_N.tolist(), before.ids_N.tolist()
        choices = [
            (f"{new}" if new == was else f"{was} → {new}", n) for n, (new, was) in enumerate(zip(ids, old, strict=True))
        ]
        allowed = codes_at(models.get(name or ""), place)
        return {
            chips: gr.update(choices=choices, value=place),
            code: gr.update(
                minimum=allowed.start,
                maximum=allowed.stop - 1,
                value=ids[place],
                label=f"Code {place + 1} of {len(ids)}, {allowed.start} to {allowed.stop - 1}",
            ),
        }

    def look(path: str | None) -> Iterator[Update]:
        if name is None or path is None:
            yield {told: figures.note(figures.NOTHING) if name else "", work: gr.update(visible=False)}
            return
        pixels = opened(path)
        yield {told: waking(name)}
        system = models.get(name)
        codes = encoded(system, pixels).generated
        if not isinstance(codes, Codes):
            raise RebusError(f"{name} does not write pictures as codes. Name a SEED model when starting the page.")
        found = facts(codes, system)
        values = {"model": name, "codes": f"{found.count}", "bits": f"{found.bits:,.0f}"}
        first = {own: codes, now: codes, work: gr.update(visible=True)}
        yield {**first, **chips_of(codes, codes, 0), told: figures.facts(values)}
        for piece in drawn(system, [codes], lambda bar: {shown: bar}):
            if isinstance(piece, PIL.Image.Image):
                values["likeness"] = f"{likeness(pixels, piece):.1f} dB"
                picture_again = figures.figure(piece, "Drawn from its codes")
                yield {told: figures.facts(values), shown: figures.row([picture_again])}
            else:
                yield piece

    def choose(place: int | None, codes: Codes | None, before: Codes | None) -> Update:
        return {} if place is None or codes is None or before is None else {code: chips_of(codes, before, place)[code]}

    def alter(place: int | None, value: float, codes: Codes | None, before: Codes | None) -> Iterator[Update]:
        """A code is changed, unless the slider merely followed the choice of another."""
        if place is None or codes is None or before is None or int(codes.ids_N[place]) == int(value):
            yield {now: codes}
            return
        system = models.get(name or "")
        yield from redraw(changed(codes, place, int(value), system), before, place)

    def redraw(codes: Codes, before: Codes, place: int) -> Iterator[Update]:
        system = models.get(name or "")
        yield {now: codes, **chips_of(codes, before, place)}
        pictures = []
        for piece in drawn(system, [before, codes], lambda bar: {shown: bar}):
            if isinstance(piece, PIL.Image.Image):
                pictures.append(piece)
            else:
                yield piece
        count = int((codes.ids_N != before.ids_N).sum())
        captions = ("Drawn from its codes", f"With {count} code{'s' * (count != 1)} changed")
        yield {shown: figures.row([figures.figure(p, c) for p, c in zip(pictures, captions, strict=True)])}

    def undo_all(place: int | None, before: Codes | None) -> Iterator[Update]:
        if before is None:
            yield {now: None}
            return
        yield from redraw(before, before, place or 0)

    def mix(first: str | None, other: str | None) -> Iterator[Update]:
        if name is None or first is None or other is None:
            raise RebusError("Two pictures are needed. Choose one on the left and the other here.")
        yield {between: waking(name)}
        system = models.get(name)
        one, two = (encoded(system, opened(path)).generated for path in (first, other))
        if not isinstance(one, Codes) or not isinstance(two, Codes):
            raise RebusError(f"{name} does not write pictures as codes. Name a SEED model when starting the page.")
        shares = [n / (STEPS - 1) for n in range(STEPS)]
        pictures = []
        for piece in drawn(system, [blended(one, two, share, system) for share in shares], lambda bar: {between: bar}):
            if isinstance(piece, PIL.Image.Image):
                pictures.append(piece)
            else:
                yield piece
        captions = [f"{share:.0%} of the other" for share in shares]
        yield {between: figures.row([figures.figure(p, c) for p, c in zip(pictures, captions, strict=True)])}

    chips.input(choose, [chips, now, own], code, **WORKING)
    redrawing = [now, chips, code, shown]
    code.change(kindly(alter, shown), [chips, code, now, own], redrawing, trigger_mode="always_last", **WORKING)
    reset.click(kindly(undo_all, shown), [chips, own], redrawing, **WORKING)
    blend.click(kindly(mix, between), [picture, second], between, **WORKING)
    return Panel("codes", kindly(look, told), outputs)
