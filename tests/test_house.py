"""The source keeps the house rules of `house.py`, and each rule refuses what it should.

The last tests hand every rule something that breaks it, so that none of them passes by looking at nothing.
"""

from __future__ import annotations

import pytest
from tests.house import (
    MODULE_RULES,
    MODULES,
    ROOT,
    Module,
    at_most_400_lines,
    configs_documented,
    finished,
    foreign_in_one_place,
    imports_go_down,
    known_parts,
    named_for_what_it_is,
    no_circles,
    no_environment_below_apps,
    no_machine_paths,
    opens_with_docstring,
    repository_texts,
    silent_below_apps,
    stages_name_their_command,
)


def fail_with(offences: list[str]) -> None:
    if offences:
        pytest.fail(f"{len(offences)} against the house rules:\n" + "\n".join(offences), pytrace=False)


@pytest.mark.parametrize("rule", MODULE_RULES, ids=lambda rule: rule.__name__)
def test_source(rule):
    assert len(MODULES) > 10
    fail_with([offence for module in MODULES for offence in rule(module)])


def test_source_as_a_whole():
    fail_with(list(no_circles(MODULES)))


@pytest.mark.parametrize("rule", [opens_with_docstring, at_most_400_lines], ids=lambda rule: rule.__name__)
def test_tests(rule):
    files = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.read_text().strip()]
    modules = [Module("tests." + path.stem, path.read_text(), str(path.relative_to(ROOT))) for path in files]
    fail_with([offence for module in modules for offence in rule(module)])


def test_no_machine_paths():
    fail_with([offence for path, text in repository_texts() for offence in no_machine_paths(path, text)])


@pytest.mark.parametrize(
    ("rule", "name", "text", "words"),
    [
        (known_parts, "rebus.shiny", "", "no layer"),
        (imports_go_down, "rebus.nn.vit", "from rebus.document import Image", "layer 2"),
        (imports_go_down, "rebus.lm", "def f():\n    import rebus.system", "layer 4"),
        (imports_go_down, "rebus.data.loader", "from rebus.papers.seed import build", "layer 5"),
        (imports_go_down, "rebus.papers.seed.grammar", "from rebus.papers.lavit import x", "imports the paper lavit"),
        (imports_go_down, "rebus.papers.seed.grammar", "from ..lavit.grammar import x", "imports the paper lavit"),
        (imports_go_down, "rebus.papers.seed", "from rebus.apps import cli", "layer 6"),
        (imports_go_down, "rebus.lm", "from rebus import Document", "door"),
        (foreign_in_one_place, "rebus.papers.seed.detokenizer", "import diffusers", "whose place"),
        (foreign_in_one_place, "rebus.mini.vae", "from diffusers import AutoencoderKL", "whose place"),
        (foreign_in_one_place, "rebus.lm", "from transformers import Cache", "whose place"),
        (foreign_in_one_place, "rebus.apps.cli", "import gradio", "whose place"),
        (foreign_in_one_place, "rebus.apps.cli", "import ray", "whose place"),
        (foreign_in_one_place, "rebus.data.loader", "from ray import data", "whose place"),
        (foreign_in_one_place, "rebus.images", "import torchvision", "pins"),
        (foreign_in_one_place, "rebus.evals.draw", "import scipy", "no place yet"),
        (foreign_in_one_place, "rebus.evals.draw", "from torch.utils.tensorboard import SummaryWriter", "whose place"),
        (opens_with_docstring, "rebus.nn", "", "no docstring"),
        (at_most_400_lines, "rebus.nn.vit", "\n" * 401, "401 lines"),
        (named_for_what_it_is, "rebus.nn.utils", "", "says nothing"),
        (silent_below_apps, "rebus.lm", "print(1)", "calls print"),
        (silent_below_apps, "rebus.lm", "import sys\nsys.stderr.write('x')", "sys.stderr"),
        (no_environment_below_apps, "rebus.lm", "import os\nos.environ['A']", "os.environ"),
        (no_environment_below_apps, "rebus.lm", "from os import environ", "os.environ"),
        (finished, "rebus.lm", "x = 1  # TODO more", "leaves something"),
        (finished, "rebus.lm", "raise NotImplementedError", "NotImplementedError"),
        (
            configs_documented,
            "rebus.lm",
            "@dataclass(frozen=True)\nclass AConfig:\n    'Doc.'\n    x: int",
            "AConfig.x",
        ),
        (configs_documented, "rebus.lm", "@dataclass\nclass Config:\n    'Doc.'\n    x: int\n    'x'", "not frozen"),
        (stages_name_their_command, "rebus.papers.seed.stages.stage1", "'No.'\ndef stage(c): ...", "seed.stage1"),
        (stages_name_their_command, "rebus.papers.seed.stages.stage1", "'rebus train seed.stage1'", "no function"),
        (stages_name_their_command, "rebus.mini.vae", "'No.'\ndef stage(c): ...", "mini.vae"),
    ],
)
def test_each_rule_refuses(rule, name, text, words):
    assert any(words in offence for offence in rule(Module(name, text)))


def test_rules_allow_what_they_should():
    allowed = [
        Module("rebus.papers.seed.grammar", "'Doc.'\nfrom rebus.grammar import Grammar\nfrom rebus.mini.vae import x"),
        Module("rebus.apps.cli", "'Doc.'\nimport tyro\nprint(1)\nfrom rebus.papers.seed import build"),
        Module("rebus.packages", "'Doc.'\nimport os\nos.environ.get('A')"),
        Module("rebus.diffusion.vae", "'Doc.'\nfrom diffusers import AutoencoderKL\nfrom rebus.nn.vit import ViT"),
    ]
    assert not [offence for module in allowed for rule in MODULE_RULES for offence in rule(module)]


def test_circles_and_machine_paths_are_found():
    circle = [Module("rebus.a", "from rebus.b import x"), Module("rebus.b", "import rebus.a")]
    assert any("rebus.a → rebus.b → rebus.a" in offence for offence in no_circles(circle))
    lazy = [Module("rebus.a", "from rebus.b import x"), Module("rebus.b", "def f():\n    import rebus.a")]
    assert not list(no_circles(lazy))
    assert list(no_machine_paths("a.py", "open('/" + "home/me/x')"))
    assert not list(no_machine_paths("a.py", "see docs.org/home/page, ./work/x and a/root/b"))
