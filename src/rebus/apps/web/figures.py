"""Pieces of HTML that the inspector is made of: pictures with captions, figures with their names, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import PIL.Image

from rebus.apps.web.transcript import SMALL, plain_url, safe


def figure(pixels: PIL.Image.Image, caption: str) -> str:
    """A picture with a caption, which is also what it is to those who cannot see it."""
    small = ' class="small"' if max(pixels.size) < SMALL else ""
    return f'<figure><img{small} src="{plain_url(pixels)}" alt="{safe(caption)}"><figcaption>{safe(caption)}</figcaption></figure>'


def row(figures: Sequence[str]) -> str:
    """Figures beside each other, as many as there is room for."""
    return f'<div class="figures">{"".join(figures)}</div>'


def facts(values: Mapping[str, str]) -> str:
    """Names and values."""
    pairs = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{pairs}</dl>'


def note(text: str) -> str:
    """Something the visitor should know."""
    return f'<p class="note">{safe(text)}</p>'


def drawing(step: int, of: int, preview: PIL.Image.Image | None = None) -> str:
    """A bar, and what is drawn so far."""
    said = f"drawing, step {step} of {of}"
    seen = "" if preview is None else f'<img class="small" src="{plain_url(preview)}" alt="The picture so far">'
    return (
        f'<figure class="drawing">{seen}<progress max="{of}" value="{step}" aria-label="{said}"></progress>'
        f"<figcaption>{said}</figcaption></figure>"
    )


RANDOM = "These are random weights, for tests: the panel works, but what it shows means nothing."
"""What is said of a tiny model."""
NOTHING = "Choose a picture on the left, or one of the examples."
