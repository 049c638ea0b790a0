"""How a wish for a picture is worded, for models that were trained on whole sentences."""

from __future__ import annotations

import re

from rebus.data.wording import STYLES

REQUEST = re.compile(r"(please|can|could|would|i|draw|paint|show|make|create|generate|give)\b", re.IGNORECASE)


def drawing_request(text: str, style: str | None = None) -> str:
    """What is wished for as one would ask for it: `a red car`, `noto` → `Draw a red car in Noto style.`"""
    text = text if REQUEST.match(text) else f"Draw {text}"
    text = text.rstrip(" .")
    if style:
        known = {name.lower(): name for name in STYLES.values()}
        text += f" in {known.get(style.lower(), style)} style"
    return text if text.endswith(("?", "!")) else text + "."
