"""`rebus edit` and `rebus data lines`, with a System that answers at once."""

from __future__ import annotations

import PIL.Image
import pytest

from rebus.data import line_art


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (12, 10), (200, 100, 0)).save(path)
    return path


def test_edit_saves_a_picture(run, system, cat, tmp_path):
    system.detokenizer.edits = True
    words = ("--steps", 3, "--text-guidance", 4, "--image-guidance", 1.5, "--seed", 5)
    ran = run("edit", cat, " make it blue ", "-o", tmp_path / "new" / "cat.png", *words)
    assert ran.code == 0 and str(tmp_path / "new" / "cat.png") in ran.out.replace("\n", "")
    assert PIL.Image.open(tmp_path / "new" / "cat.png").size == (64, 64)
    assert system.calls[0]["load"] == "seed_x:mini" and system.calls[0]["adapter"] == "edit"  # the one for this
    call = system.calls[1]
    (message,) = call["document"].messages
    assert call["modality"] == "image" and message.text == "make it blue" and message.images[0].pixels.size == (12, 10)
    drawing = call["sampling"].image
    assert (drawing.steps, drawing.guidance, drawing.image_guidance) == (3, 4.0, 1.5)
    assert call["generator"].initial_seed() == 5


def test_a_model_that_does_not_edit_is_refused(run, system, cat, tmp_path):
    for edits in (None, False):
        if edits is not None:
            system.detokenizer.edits = edits
        ran = run("edit", cat, "make it blue", "-o", tmp_path / "out.png", "--system", "seed:mini")
        assert ran.code == 2 and "seed:mini draws every picture anew" in ran.err.replace("\n", " ")
    assert not (tmp_path / "out.png").exists()


def test_what_cannot_be_edited_is_refused_before_anything_is_loaded(run, system, cat, tmp_path):
    assert run("edit", cat, "  ").code == 2 and run("edit", tmp_path / "no.png", "blue").code == 2
    assert not system.calls


def test_line_drawings_are_made_beside_the_pictures(run, monkeypatch, tmp_path):
    from rebus.data import pictures

    monkeypatch.setattr(pictures, "load_pictures", lambda folder: ["pictures", folder])

    def build(held, path, cache, progress):
        assert held == ["pictures", tmp_path] and path == tmp_path / line_art.FILE
        return path

    monkeypatch.setattr(line_art, "build_line_art", build)
    ran = run("data", "lines", "-o", tmp_path)
    assert ran.code == 0 and "line drawings are in" in ran.out
