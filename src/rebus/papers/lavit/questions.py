"""How a question about an image is cleaned before LaVIT's published evaluation asks it.

Dimension key: none
"""

from __future__ import annotations

REMOVED = str.maketrans("", "", '.!"()*#:;~')
MOST_WORDS = 50


def clean_question(question: str) -> str:
    """Lower case, without `. ! " ( ) * # : ; ~` and spaces at the end, at most 50 words."""
    return " ".join(question.lower().translate(REMOVED).rstrip(" ").split(" ")[:MOST_WORDS])
