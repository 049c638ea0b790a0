"""The commands and snippets of the Markdown files, and how each is checked: run, parsed, or checked on paper.

A block is a fenced one with a language. What has none of these checks is an offence, so that nothing goes unlooked at.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").glob("*.md")]
    if path.name != "CHANGELOG.md"
)
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>.+) -->\n)?```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
SHOWN = ("text", "json", "toml")
"""Languages of blocks that show something and are not to be run."""

RUN = {"list", "plan", "doctor", "version", "see", "draw", "tokenize", "detokenize", "--help"}
"""Verbs whose commands are run, with tiny models; `train`, `study` and `export` in some forms, see `runs`."""
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its fence, from 1."""
    language: str
    text: str
    why_not_run: str | None
    """What the page says about a Python block that is only compiled."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a shell block, comments left out, lines that go on joined."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text[: found.start("language")].count("\n") + 1, found["language"], found["text"], found["why"])
        for found in FENCE.finditer(text)
    ]


def unprefixed(words: list[str]) -> list[str]:
    """The command without the variables that are set in front of it."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


def runs(words: list[str]) -> bool:
    """Whether a command of `rebus` is cheap enough to be run; else it is only parsed."""
    verb, *rest = words
    if "--help" in words or (verb in ("train", "study") and not rest):
        return True
    if verb == "export":
        return "hub" in rest
    # a tiny model with random weights points at nothing, which is an error; shards are the reader's own
    wants = any(word.startswith(("--weights", "--boxes", "--shards")) or word == "cuda" for word in rest)
    return verb in RUN and not wants


def on_paper(words: list[str]) -> str | None:
    """What is wrong with a command that is not one of `rebus`; None where what it names exists. Nothing is run."""
    match words:
        case ["make", *rest]:
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
            asked = [word for word in rest if "=" not in word and word != "…"]
            return None if asked and set(asked) <= set(targets) else f"the Makefile has no target {asked}"
        case ["bash", script, *_] | ["python" | "python3", script, *_] if script.endswith((".sh", ".py", "/run")):
            return None if (ROOT / script).is_file() else f"there is no {script}"
        case ["curl", *_, address]:
            path = re.sub(r"https?://[^/]+", "", address)
            return None if path in served() else f"the server has no route {path}"
        case ["source", ".venv/bin/activate"] | ["python3", "-m", "venv", ".venv"]:
            return None
        case [".venv/bin/pip" | "pip", "install", *rest]:
            named = {extra for word in rest for extra in re.findall(r"\[([\w,]+)\]", word)}
            files = [after for flag, after in zip(rest, rest[1:], strict=False) if flag == "-c"]
            missing = [file for file in files if not (ROOT / file).is_file()]
            return None if named <= EXTRAS and not missing else f"no extra {named - EXTRAS} or no file {missing}"
    return "no test knows how to check this command"


def served() -> set[str]:
    """The paths of the server's routes."""
    texts = [file.read_text() for file in (ROOT / "src/rebus/apps/server").glob("*.py")]
    return {path for text in texts for path in re.findall(r'@\w+\.(?:get|post|delete)\("([^"]+)"', text)}


def named_modules(page: Path) -> set[str]:
    """The dotted names of this library that a page puts in code font."""
    return set(re.findall(r"`(rebus(?:\.\w+)+)`", FENCE.sub("", page.read_text())))


def inline_verbs(page: Path) -> set[str]:
    """The verbs of commands that stand in a page's running text; those in capitals stand for any."""
    found = re.findall(r"`rebus ([\w-]+)[^`]*`", FENCE.sub("", page.read_text()))
    return {verb for verb in found if not verb.isupper()}
