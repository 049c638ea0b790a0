"""A conversation as one self-contained web page: text and pictures in bubbles, light and dark, for any width."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import PIL.Image

from rebus.document import Box, Document, Image, Message, Part
from rebus.visual import Codes

SMALL = 160
"""Pictures narrower than this many pixels are enlarged in whole steps, with their pixels kept sharp."""

STYLE = """
:root { color-scheme: light dark; --page: #f4f2ee; --paper: #ffffff; --ink: #22201d; --faint: #77716a;
        --user: #2f5d8a; --user-ink: #ffffff; --line: #e3ded6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17161a; --paper: #232127; --ink: #ebe7e1; --faint: #9a948c;
          --user: #38648f; --user-ink: #f6f8fa; --line: #35323a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 17px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
header { margin-bottom: 2rem; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; }
header p, footer { color: var(--faint); font-size: .92rem; margin: .4rem 0 0; }
ol { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; gap: .9rem; }
li { max-width: 85%; padding: .65rem .9rem; border-radius: 1.1rem; overflow-wrap: anywhere; }
li.assistant { align-self: flex-start; background: var(--paper); border: 1px solid var(--line);
               border-bottom-left-radius: .3rem; }
li.user { align-self: flex-end; background: var(--user); color: var(--user-ink); border-bottom-right-radius: .3rem; }
li.system { align-self: center; color: var(--faint); font-size: .9rem; text-align: center; }
li p { margin: 0; white-space: pre-wrap; }
li > :is(p, img) + :is(p, img) { margin-top: .55rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .6rem; background: #ffffff; }
img.small { image-rendering: pixelated; }
.gone { font-style: italic; opacity: .75; }
.who { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
hr { border: 0; border-top: 1px solid var(--line); margin: 1.8rem auto; width: 40%; }
footer { margin-top: 2.5rem; }
code { font-size: .92em; }
""".strip()


def render(
    conversations: Sequence[Document], *, title: str = "A conversation in words and pictures", about: str = ""
) -> str:
    """The conversations, one below the other, as HTML text; pictures are inside it, so that one file is all there is."""
    lists = ["\n".join(_message(message) for message in document.messages) for document in conversations]
    body = "\n<hr>\n".join(f"<ol>\n{messages}\n</ol>" for messages in lists)
    about = f"<p>{escape(about)}</p>" if about else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1>{about}</header>
{body}
<footer>Made by <code>rebus</code>.</footer>
</main>
</body>
</html>
"""


def _message(message: Message) -> str:
    who = {"user": "You:", "assistant": "The model:", "system": "Setting:"}[message.role]
    parts = "".join(_part(part, message.role) for part in message.content) or '<p class="gone">(an empty reply)</p>'
    return f'<li class="{message.role}"><span class="who">{who}</span>{parts}</li>'


def _part(part: Part, role: str) -> str:
    match part:
        case str():
            return f"<p>{escape(part.strip())}</p>" if part.strip() else ""
        case Box():
            return f"<p><code>box {part.cx:.2f} {part.cy:.2f} {part.w:.2f} {part.h:.2f}</code></p>"
        case Image(pixels=None):
            what = f"{len(part.generated.ids_N)} codes" if isinstance(part.generated, Codes) else "tokens"
            return f'<p class="gone">(an image of {what}, not drawn)</p>'
        case Image():
            assert part.pixels is not None
            return _img(
                part.pixels, "A picture that the model drew" if role == "assistant" else "A picture that was sent"
            )


def _img(image: PIL.Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    times = max(1, -(-SMALL // image.width)) if image.width < SMALL else 1
    width, height, small = image.width * times, image.height * times, ' class="small"' if times > 1 else ""
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img{small} src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{alt}">'
