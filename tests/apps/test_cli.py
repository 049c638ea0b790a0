"""The verbs of the command line, with a System that answers at once."""

from __future__ import annotations

import json

import PIL.Image
import pytest

from rebus.apps import cli
from rebus.apps.files import read_codes


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (12, 10), (200, 100, 0)).save(path)
    return path


def test_see_streams_text_and_nothing_else(run, system, cat):
    ran = run("see", cat, "what is it?")
    assert (ran.code, ran.out, ran.err) == (0, "You said “what is it?” with 1 pictures.\n", "")
    assert system.calls[0]["load"] == "seed:mini"
    assert system.calls[1]["modality"] == "text"


def test_see_asks_of_itself(run, system, cat):
    assert run("see", cat, "--system", "seed:tiny", "--max-tokens", "9").code == 0
    assert system.calls[0]["load"] == "seed:tiny"
    assert system.calls[1]["sampling"].max_new_tokens == 9


def test_draw_saves_a_picture(run, system, tmp_path):
    ran = run(
        "draw", "a red car.", "-o", tmp_path / "new" / "car.png", "--style", "noto", "--steps", "3", "--seed", "5"
    )
    assert ran.code == 0 and str(tmp_path / "new" / "car.png") in ran.out
    assert PIL.Image.open(tmp_path / "new" / "car.png").size == (64, 64)
    call = system.calls[1]
    assert call["modality"] == "image" and call["document"].messages[0].text == "Draw a red car in Noto style."
    assert call["sampling"].image.steps == 3 and call["generator"].initial_seed() == 5


def test_draw_keeps_the_best_of_several(run, system, tmp_path):
    car = tmp_path / "car.png"
    assert run("draw", "a red car", "-o", car, "--best-of", "4", "--temperature", "0.8").code == 0
    assert system.calls[1]["sampling"].best_of == 4 and car.exists()
    ran = run("draw", "a red car", "-o", tmp_path / "other.png", "--best-of", "4")
    assert ran.code == 2 and "at temperature 0 they are all the same" in ran.err
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    ("text", "style", "request_"),
    [
        ("a cat", None, "Draw a cat."),
        ("Please draw a cat.", None, "Please draw a cat."),
        ("Can you draw a cat?", None, "Can you draw a cat?"),
        ("a cat", "fluent 3d", "Draw a cat in Fluent 3D style."),
        ("a cat", "emojione", "Draw a cat in EmojiOne style."),
        ("an icon", None, "Draw an icon."),
    ],
)
def test_a_wish_becomes_a_request(text, style, request_):
    assert cli.drawing_request(text, style) == request_


def test_tokenize_prints_codes(run, cat):
    assert run("tokenize", "seed:mini", cat).out == "12 10 200 100\n"
    assert run("tokenize", "seed:mini", cat, cat).out == f"{cat}: 12 10 200 100\n" * 2


def test_tokenize_and_detokenize_through_a_document(run, cat, tmp_path):
    document = tmp_path / "codes.json"
    assert run("tokenize", "seed:mini", cat, cat, "-o", document).code == 0
    part = json.loads(document.read_text())["messages"][0]["content"][1]
    assert part == {"type": "image_codes", "source": "fake:1", "codes": [12, 10, 200, 100]}
    assert [codes.source for codes in read_codes(str(document))] == ["fake:1", "fake:1"]
    assert run("detokenize", "seed:mini", document, "-o", tmp_path / "back.png").code == 0
    assert PIL.Image.open(tmp_path / "back-2.png").getpixel((0, 0)) == (12, 10, 200)


def test_detokenize_takes_typed_codes(run, tmp_path):
    assert run("detokenize", "seed:mini", "1, 2 3", "-o", tmp_path / "a.png").code == 0
    assert PIL.Image.open(tmp_path / "a.png").getpixel((0, 0)) == (1, 2, 3)


def test_list_says_where_weights_are(run, monkeypatch):
    ran = run("list")
    assert ran.code == 0
    tiny = next(line for line in ran.out.splitlines() if "seed:tiny" in line)
    assert "random" in tiny
    mini = next(line for line in ran.out.splitlines() if "seed:mini" in line)
    assert "embedded" in mini or "absent" in mini


def test_published_models_need_weights(run, cat):
    ran = run("see", cat, "--system", "seed:v2-8b")
    assert ran.code == 2 and "rebus convert" in ran.err and ran.err.count("\n") == 1
    assert run("see", cat, "--system", "seed:v2-8b", "--weights", cat.parent).code == 0


def test_weights_of_ones_own(run, system, tmp_path):
    assert run("draw", "a cat", "-o", tmp_path / "cat.png", "--weights", tmp_path, "--device", "cpu").code == 0
    assert system.calls[0]["weights"] == tmp_path and str(system.calls[0]["device"]) == "cpu"


def test_data_is_built_where_it_is_told(run, monkeypatch, tmp_path):
    from rebus.data import emoji_build

    def build(folder, cache, progress, *, workers):
        progress("rendering", 1, 2)
        progress("rendering", 2, 2)
        assert (folder, workers) == (tmp_path, 3)
        return {"train": {"pictures": 1234, "pairs": 5, "concepts": 7, "families": {"noto": 1200, "fluent": 34}}}

    monkeypatch.setattr(emoji_build, "build", build)
    ran = run("data", "emoji", "-o", tmp_path, "--workers", 3)
    assert ran.code == 0 and "noto" in ran.out and "1,234" in ran.out and str(tmp_path) in ran.out


def test_version_names_what_matters(run):
    ran = run("version")
    assert ran.code == 0 and all(name in ran.out for name in ("rebus-lm", "torch", "python", "device", "cache"))


@pytest.mark.parametrize("verb", [[], *([verb] for verb in cli.VERBS)])
def test_help_reads_well(run, verb):
    ran = run(*verb, "--help")
    assert ran.code == 0 and "usage: rebus" in ran.out
    assert "default: None" not in ran.out and "{None}" not in ran.out, ran.out


def test_no_words_show_the_help(run):
    ran = run()
    assert ran.code == 0 and all(verb in ran.out for verb in cli.VERBS)


def test_every_verb_says_what_it_does():
    assert all((verb.__doc__ or "").strip().endswith(".") for verb in cli.VERBS.values())
