"""What keeps the mini vision encoder, and the language models that read by it, from learning pictures by heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from rebus.document import Box, Document, Image, assistant, user
from rebus.mini import named, vision
from rebus.mini.bank import Bank
from rebus.mini.moving import Moved, moved, moved_picture
from rebus.mini.named import Named


def dot(x: int, y: int) -> PIL.Image.Image:
    """A black square of 16 on white."""
    picture = PIL.Image.new("RGB", (64, 64), "white")
    picture.paste("black", (x - 8, y - 8, x + 8, y + 8))
    return picture


def centre(picture: PIL.Image.Image) -> tuple[float, float]:
    """Where the dark lies, and what share of the picture it is."""
    dark = 255 - np.asarray(picture).mean(-1)
    assert dark.sum() > 0
    return float((dark.sum(0) * np.arange(64)).sum() / dark.sum()), float(
        (dark.sum(1) * np.arange(64)).sum() / dark.sum()
    )


def test_a_moved_picture_lies_near_where_it_lay_and_is_never_mirrored() -> None:
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(40):
        x, y = centre(moved_picture(dot(16, 32), generator))
        assert x < 32 and 14 < y < 50
        seen.append((x, y))
    assert np.std(seen, axis=0).min() > 1
    white = moved(torch.ones(8, 3, 64, 64), generator)
    torch.testing.assert_close(white, torch.ones(8, 3, 64, 64))  # around a picture all is white, tinted or not
    a, b = (moved(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.shape == b.shape == (2, 3, 8, 8)


class Fixed:
    """The same document everywhere."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def __getitem__(self, position: int, /) -> Document:
        return self.document


def test_only_what_is_read_is_moved_and_always_alike_at_one_position() -> None:
    shown, drawn = Image(dot(20, 20)), Image(dot(40, 40))
    pair = Document((user(shown, "and"), assistant(drawn)))
    documents = Moved(Fixed(pair), share=0.5, seed=3)
    pixels = [[np.asarray(image.pixels) for image in documents[k].images] for k in range(40)]
    changed = [not np.array_equal(read, np.asarray(shown.pixels)) for read, _ in pixels]
    assert 10 < sum(changed) < 30
    assert all(np.array_equal(written, np.asarray(drawn.pixels)) for _, written in pixels)
    again = [np.asarray(documents[k].images[0].pixels) for k in range(40)]
    assert all(np.array_equal(a, read) for a, (read, _) in zip(again, pixels, strict=True))
    assert len({read.tobytes() for read, _ in pixels}) == sum(changed) + 1  # each in its own way
    assert documents[0].messages[0].text == "and"
    boxed = Document((user(shown), assistant("here", Box(0.3, 0.3, 0.2, 0.2))))
    assert Moved(Fixed(boxed), share=1.0, seed=3)[0] is boxed


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Eight pictures with three names, and a bank of them."""
    places = [(16, 16), (48, 16), (32, 48)]
    images = np.stack([np.asarray(dot(*places[k % 3])) for k in range(8)])
    generator = torch.Generator().manual_seed(0)
    held = Named(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.arange(8) % 3,
        torch.randn(3, 384, generator=generator),
        ["one", "two", "three"],
    )
    bank = Bank(images, [f"a thing {k % 3}" for k in range(8)], ["single"] * 8)
    monkeypatch.setattr(vision, "load_named", lambda work, split: held)
    monkeypatch.setattr(vision, "load_bank", lambda work, split: bank)
    monkeypatch.setattr(vision, "caption_vectors", lambda work, bank, split: np.ones((8, 384), np.float16))
    return held


def test_names_are_learned_among_all_of_them(pictures: Named, tmp_path) -> None:
    config = replace(
        vision.Config(),
        vision=replace(
            vision.VisionConfig(), vit=replace(vision.MINI_VIT, depth=1, width=32, mlp_hidden=32), components=4
        ),
        batch=4,
        named=6,
    )
    stage = vision.stage(config, tmp_path)
    module, optimiser = stage.module, torch.optim.Adam(stage.module.parameters(), lr=3e-3)
    assert isinstance(module, vision.VisionTraining)
    first = stage.step(module, np.arange(4))
    assert first.parts["names"].item() == pytest.approx(np.log(3), abs=0.8)
    for _ in range(60):
        losses = stage.step(module, np.arange(4))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    figures = dict(stage.evals[0]())
    assert figures["val/named"] == 1.0
    total = losses.parts["contrast"] + losses.parts["patch_mse"] + 4 * losses.parts["component_mse"]
    torch.testing.assert_close(losses.total, total + config.name_weight * losses.parts["names"])
    without = vision.stage(replace(config, named=0), tmp_path)
    assert "names" not in without.step(without.module, np.arange(4)).parts
    assert "val/named" not in dict(without.evals[0]())


def test_pictures_are_named_by_their_concept(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    class Set:
        concept, concept_label = ("cat", "cat", "dog", "owl", "cat"), ("a cat", "a cat", "a dog", "an owl", "a cat")
        skin_tone, gender = ("", "", "", "", ""), ("", "", "", "", "man")
        split = ("train", "val", "train", "val", "train")

        def rows(self, split: str) -> list[int]:
            return [row for row, name in enumerate(self.split) if name == split]

        def image(self, row: int, size: int) -> PIL.Image.Image:
            return dot(20 + row, 20)

    def vectors(texts: list[str]) -> np.ndarray:
        assert texts == ["a cat", "a dog"]  # the trained names, each once
        return np.eye(2, dtype=np.float16)

    monkeypatch.setattr(named, "load_pictures", lambda folder: Set())
    monkeypatch.setattr(named, "sentence_vectors", vectors)
    train, val = (named.load_named(tmp_path, split) for split in ("train", "val"))
    assert train.name_N.tolist() == [0, 1] and val.name_N.tolist() == [0]  # nobody has learned what an owl is
    torch.testing.assert_close(val.vectors_QT, torch.eye(2))
    assert len(named.load_named(tmp_path, "pairs")) == 0
    assert train.pixels(torch.tensor([0])).shape == (1, 3, 64, 64) and train.pixels(torch.tensor([0])).max() == 1.0
