"""A conversation as the HTML of the page: bubbles of text and pictures, whose buttons say what they do in `data-` attributes.

Whatever anyone wrote is escaped, also for the templates that the page's library may see in it.
"""

from __future__ import annotations

import base64
import io
import weakref
from collections.abc import Sequence
from html import escape

import PIL.Image

from rebus.apps.conversation import Exchange
from rebus.apps.inspecting import boxes_over
from rebus.apps.memory import remembering_png
from rebus.apps.web.session import Reply
from rebus.document import Box, Image, Message, Part
from rebus.visual import Codes

THUMBNAIL = 512
"""The longest side of a picture on the page, in pixels."""

SMALL = 160
"""Pictures whose sides are shorter are enlarged with their pixels kept sharp."""

_SHOWN: weakref.WeakKeyDictionary[Image, str] = weakref.WeakKeyDictionary()


def safe(text: str) -> str:
    """Text for the inside of an element or an attribute: neither HTML nor a template's."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def data_url(image: Image) -> str:
    """A picture as a `data:` URL of at most THUMBNAIL pixels a side. One that is not larger remembers how it was drawn."""
    if image not in _SHOWN:
        assert image.pixels is not None
        large = max(image.pixels.size) > THUMBNAIL
        _SHOWN[image] = plain_url(image.pixels) if large else _url(remembering_png(image), "png")
    return _SHOWN[image]


def plain_url(pixels: PIL.Image.Image) -> str:
    """Any picture as a `data:` URL of at most THUMBNAIL pixels a side."""
    if max(pixels.size) > THUMBNAIL:
        pixels = pixels.copy()
        pixels.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return _url(buffer.getvalue(), "png")


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


# ------------------------------------------------------------------------------------------------ the conversation


def render_path(path: Sequence[Exchange], chosen: Image | None = None) -> str:
    """The exchanges of a conversation, of whose pictures one may be `chosen`."""
    turns = []
    seen: list[Image] = []
    for number, exchange in enumerate(path, 1):
        asked = _message(exchange.asked, seen, chosen)
        answered = _message(exchange.answered, seen, chosen)
        tools = (
            f'<div class="tools"><button type="button" data-do="again" data-turn="{number}" '
            f'aria-label="Try turn {number} again">Try again</button>'
            f'<button type="button" data-do="branch" data-turn="{number}" '
            f'aria-label="Branch from turn {number}">Branch from here</button></div>'
        )
        turns.append(f'<li class="turn">{asked}{answered}{tools}</li>')
    return f'<ol class="talk" aria-label="Conversation">{"".join(turns)}</ol>' if turns else ""


def render_pending(asked: Message, reply: Reply, seen: Sequence[Image] = (), waits_for: str = "thinking") -> str:
    """A question and as much of its reply as there is; `seen` are the pictures before it, `waits_for` what the visitor is
    told while there is nothing."""
    seen = list(seen)
    question = _message(asked, seen, None)
    body = _parts(Message("assistant", reply.parts), seen, None)
    if reply.progress is not None:
        body += _drawing(reply)
    elif not body:
        body = f'<p class="waiting"><i></i><i></i><i></i><span>{safe(waits_for)}</span></p>'
    return f'<div class="turn pending">{question}<div class="said model">{body}</div></div>'


def _message(message: Message, seen: list[Image], chosen: Image | None) -> str:
    who, name = ("user", "You") if message.role == "user" else ("model", "The model")
    body = _parts(message, seen, chosen) or '<p class="gone">(an empty reply)</p>'
    return f'<div class="said {who}"><span class="visually-hidden">{name}:</span>{body}</div>'


def _parts(message: Message, seen: list[Image], chosen: Image | None) -> str:
    """The HTML of a message's parts. `seen` are the pictures before them, in the order of their numbers, and grows by
    theirs; boxes are shown over the last of them."""
    out = []
    boxes = [part for part in message.content if isinstance(part, Box)]
    before = seen[-1] if seen else None
    for part in message.content:
        if isinstance(part, Image) and part.pixels is not None:
            number = next((n for n, image in enumerate(seen, 1) if image is part), None)
            if number is None:
                seen.append(part)
                number = len(seen)
            out.append(_picture(part, number, part is chosen, message.role))
        else:
            out.append(_words(part))
    if boxes and before is not None and before.pixels is not None:
        url = plain_url(boxes_over(before.pixels, boxes))
        out.append(f'<figure><img src="{url}" alt="The picture with the regions that were named"></figure>')
    return "".join(out)


def _words(part: Part) -> str:
    match part:
        case str():
            return f"<p>{safe(part.strip())}</p>" if part.strip() else ""
        case Box():
            return f"<p><code>box {part.cx:.2f} {part.cy:.2f} {part.w:.2f} {part.h:.2f}</code></p>"
    what = f"{len(part.generated.ids_N)} codes" if isinstance(part.generated, Codes) else "tokens"
    return f'<p class="gone">(an image of {what}, not drawn)</p>'


def _picture(image: Image, number: int, chosen: bool, role: str) -> str:
    assert image.pixels is not None
    drawn = role == "assistant"
    small = ' class="small"' if max(image.pixels.size) < SMALL else ""
    what = "A picture that the model drew" if drawn else "A picture that was sent"
    img = f'<img{small} src="{data_url(image)}" alt="{what}">'
    pressed = "true" if chosen else "false"
    label = f"Picture {number}, {'drawn' if drawn else 'sent'}: choose it"
    return (
        f'<figure><button type="button" class="picture" data-do="choose" data-picture="{number}" aria-pressed="{pressed}" '
        f'aria-label="{label}">{img}</button><figcaption>Picture {number}</figcaption></figure>'
    )


def _drawing(reply: Reply) -> str:
    """A bar, and what the picture looks like so far."""
    progress = reply.progress
    assert progress is not None
    preview = ""
    if progress.preview is not None:
        small = ' class="small"' if max(progress.preview.size) < SMALL else ""
        preview = f'<img{small} src="{plain_url(progress.preview)}" alt="The picture so far">'
    said = f"drawing, step {progress.step} of {progress.of}"
    return (
        f'<figure class="drawing">{preview}<progress max="{progress.of}" value="{progress.step}" aria-label="{said}">'
        f"</progress><figcaption>{said}</figcaption></figure>"
    )


# ------------------------------------------------------------------------------------------------ what stands around it


def render_empty(starters: Sequence[tuple[str, Image | None]]) -> str:
    """What an empty conversation shows: things to begin with, as (text, picture)."""
    buttons = []
    for number, (text, image) in enumerate(starters):
        picture = f'<img src="{data_url(image)}" alt="">' if image is not None else ""
        buttons.append(
            f'<button type="button" data-do="start" data-start="{number}">{picture}<span>{safe(text)}</span></button>'
        )
    return (
        '<div class="empty"><h2>Talk in words and pictures</h2>'
        "<p>Ask about a picture, wish for one, or have one changed. To begin with:</p>"
        f'<div class="starters">{"".join(buttons)}</div></div>'
    )


def render_chosen(image: Image, number: int | None, editing: bool, edits: bool, model: str) -> str:
    """The picture that was chosen, and what the next message will do with it."""
    name = f"Picture {number}" if number else "The picture"
    if not editing:
        says = "Your next message is about it."
    elif edits:
        says = "Your next message changes it; the rest of it is kept."
    else:
        says = f"Your next message changes it. {model} draws it anew, so that only what its tokens say is kept."
    return f'<div class="chosen"><img src="{data_url(image)}" alt=""><p><b>{name}</b><br><span>{safe(says)}</span></p></div>'
