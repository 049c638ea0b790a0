"""Every command and snippet of the documentation: Python is run, `rebus` is parsed and where cheap run, the rest is checked
on paper; names exist, the table of verbs is the command line's, the site builds.

There is no network here, so tiny models with random weights stand in for the minis: what is shown is known to run.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import openai
import pytest
from tests import serving, tiny
from tests.snippets import (
    PAGES,
    ROOT,
    SHOWN,
    Block,
    blocks,
    inline_verbs,
    named_modules,
    on_paper,
    runs,
    served,
    unprefixed,
)

import rebus.system
from rebus.apps import cli, loading
from rebus.apps.server.settings import ServerConfig

LOAD = rebus.system.load
SOURCE = ROOT / "src/rebus"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """What a reader has at hand: a folder with a picture, a report and a little data, and models that are there."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "examples/red-apple-noto.png", tmp_path / "photo.png")
    report = tmp_path / "rebus-eval/seed-mini-val"
    report.mkdir(parents=True)
    (report / "report.json").write_text(json.dumps({"recipe": {}, "figures": []}))

    talk = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.txt").write_text("a red apple")
    with tarfile.open(tmp_path / "shards/0.tar", "w") as shard:
        shard.add(tmp_path / "photo.png", "a.png")
        shard.add(tmp_path / "a.txt", "a.txt")

    def load(name, **options):
        return LOAD(str(name).replace(":mini", ":tiny"), **options)

    monkeypatch.setattr(rebus.system, "load", load)
    monkeypatch.setattr(loading, "fetch_base", lambda base, console: None)


@pytest.fixture
def answered(monkeypatch):
    """A server for what asks one on this machine; its seed:mini is a tiny one."""
    official = openai.OpenAI
    with serving.running({"seed:mini": tiny.fresh("seed")}) as server:

        def client(*, base_url, api_key):
            return official(base_url=base_url.replace("http://127.0.0.1:8000", server.url), api_key=api_key)

        monkeypatch.setattr(openai, "OpenAI", client)
        yield


def check_command(block: Block, words: list[str]) -> None:
    words = unprefixed(words)
    if words[0] != "rebus":
        wrong = on_paper(words)
        assert wrong is None, f"{block.place}: {' '.join(words)}: {wrong}"
        return
    try:
        cli.parse(words[1:])
    except SystemExit as end:
        assert end.code in (0, None), f"{block.place}: the command line refuses {' '.join(words)}"
    if runs(words[1:]):
        assert cli.main(words[1:]) == 0, f"{block.place}: {' '.join(words)} fails"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_works(page, reader, request):
    if page.name in ("server.md", "README.md"):
        request.getfixturevalue("answered")
    names: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        match block.language:
            case "sh":
                for words in block.commands():
                    check_command(block, words)
            case "python":
                code = compile(block.text, block.place, "exec")
                if block.why_not_run is None:
                    exec(code, names)
            case "json":
                json.loads(block.text)
            case language:
                assert language in SHOWN, f"{block.place}: a block of {language!r} that no test knows how to check"


def test_the_commands_of_stages_and_studies_are_options_that_exist(reader):
    files = [*SOURCE.glob("papers/*/stages/*.py"), *SOURCE.glob("mini/*.py"), *SOURCE.glob("studies/*.py")]
    said = {file: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    commands = [(file, line.strip()) for file, doc in said.items() for line in doc.splitlines()]
    commands = [(file, line) for file, line in commands if line.startswith("rebus ")]
    assert len(commands) > 20
    for file, line in commands:
        check_command(Block(file, 1, "sh", line, None), line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    assert inline_verbs(page) <= set(cli.VERBS)
    for name in named_modules(page):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for attribute in parts[cut:]:
            assert hasattr(found, attribute), f"{page.name} names {name}, and there is no {attribute}"
            found = getattr(found, attribute)


def test_the_tables_of_the_server_are_its_routes_and_limits():
    page = (ROOT / "docs/reference/server.md").read_text()
    routes = {path.replace(":path", "") for path in served()}
    assert set(re.findall(r"^\| `(?:GET|POST|DELETE) (\S+)`", page, re.M)) == routes
    for option, default in re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", page, re.M):
        assert str(getattr(ServerConfig(), option.replace("-", "_"))) == default


def test_the_table_of_verbs_is_the_command_line():
    page = (ROOT / "docs/reference/cli.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and "`--" not in line]
    said = dict(row.strip("| ").split(" | ", 1) for row in rows)
    verbs = {f"`{name}`": (verb.__doc__ or "").strip().splitlines()[0] for name, verb in cli.VERBS.items()}
    assert {name: said.get(name) for name in verbs} == verbs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rebus see photo.png --colour", "refuses"),
        ("rebus train seed.stage9", "no stage"),
        ("make coffee", "no target"),
        ("bash runs/nothing.sh", "there is no"),
        ("pip install -e '.[everything]'", "no extra"),
        ("rm -rf /", "no test knows"),
    ],
)
def test_a_wrong_command_is_found(text, words, reader):
    block = Block(ROOT / "README.md", 1, "sh", text, None)
    with pytest.raises((AssertionError, rebus.RebusError), match=words):
        check_command(block, next(block.commands()))


def test_blocks_are_found_with_their_reason(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```sh\nrebus list  # all\n```\n\n<!-- not run: the hub -->\n```python\nx = 1\n```\n```\nplain\n```\n"
    )
    shell, python, plain = blocks(page)
    assert list(shell.commands()) == [["rebus", "list"]] and shell.line == 3
    assert (python.language, python.why_not_run, python.text) == ("python", "the hub", "x = 1\n")
    assert plain.language not in SHOWN


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    site: Path = tmp_path / "site"
    assert "stage2_losses" in (site / "reference/papers/index.html").read_text()
    assert (site / "curves/seed.stage2_codebook.png").exists() and not list(site.rglob("*.py"))
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert not any(
        'src="http' in page or "fonts.googleapis" in page for page in pages
    )  # nothing is fetched by a reader
