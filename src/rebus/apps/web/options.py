"""The sampling options of the page, in the order in which `session.sampling_of` takes them, the seed last."""

from __future__ import annotations

from typing import Any

import gradio as gr


def build_options() -> list[Any]:
    """Lays the options out where one is and returns them."""
    return [
        gr.Slider(0, 1.5, 0, step=0.05, label="Temperature", info="0 takes the likeliest word; about 1 is free"),
        gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="words beyond this share of probability are left out"),
        gr.Slider(32, 1024, 256, step=8, label="Longest reply", info="in tokens, those of pictures included"),
        gr.Slider(1, 5, 1.5, step=0.1, label="Guidance of a picture's words", info="1 is off; more keeps to the wish"),
        gr.Slider(0, 50, 0, step=1, label="Drawing steps", info="0 leaves it to the model"),
        gr.Slider(0, 15, 0, step=0.1, label="Guidance while drawing", info="0 leaves it to the model"),
        gr.Slider(0, 5, 0, step=0.1, label="Keeping the source of a change", info="0 leaves it to the model"),
        gr.Number(None, label="Seed", precision=0, info="empty: a new one each time", placeholder="new each time"),
    ]
