"""Pictures that remember: what is written is read again and drawn again; what a stranger writes is not believed."""

from __future__ import annotations

import base64
import json

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.PngImagePlugin import PngInfo
from tests import tiny

from rebus.apps import loading, memory
from rebus.apps.memory import fingerprint, note, open_drawing, read_drawing, recall, save_drawing
from rebus.apps.replay import difference, draw_again
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.images import note_of, open_image, to_png
from rebus.sampling import Sampling
from rebus.system import reply
from rebus.visual import Codes, Drawn, Features, ImageSampling

PIXELS = PIL.Image.new("RGB", (8, 6), (10, 20, 30))


def drew(paper: str, seed: int = 3) -> tuple[object, Image]:
    """A tiny system and a picture that it drew."""
    system = tiny.system(paper)
    stream = system.stream(
        Document((user(tiny.picture(), "Make it blue."),)),
        modality="image",
        sampling=Sampling(max_new_tokens=70, image=ImageSampling(steps=2)),
        generator=tiny.generator(seed),
    )
    (image,) = (part for part in stream if isinstance(part, Image))
    return system, image


def hostile(text: str, pixels: PIL.Image.Image = PIXELS) -> bytes:
    return to_png(pixels, text)


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_a_picture_is_drawn_again_bit_for_bit(paper, tmp_path):
    system, image = drew(paper)
    path = save_drawing(image, tmp_path / "drawn.png")
    opened, notice = open_drawing(path, system)
    assert notice is None and opened.drawn.sampling == ImageSampling(steps=2) and opened.drawn.model == f"{paper}:tiny"
    assert (opened.drawn.source is not None) == (paper == "seed_x")  # whose decoder edits
    (again,) = (piece for piece in draw_again(system, opened.generated, opened.drawn) if isinstance(piece, Image))
    assert difference(open_image(path), again.pixels) == "bit for bit the same"
    assert np.array_equal(np.asarray(again.pixels), np.asarray(image.pixels))
    other = draw_again(system, opened.generated, Drawn("", "", 99, opened.drawn.sampling, opened.drawn.source))
    *_, other = other
    assert "not quite the same" in difference(image.pixels, other.pixels)


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_a_chat_goes_on_from_its_tokens(paper, tmp_path):
    system, image = drew(paper)
    opened, _ = open_drawing(save_drawing(image, tmp_path / "drawn.png"), system)
    match image.generated:
        case Codes():
            assert opened.understood.ids_N.tolist() == opened.generated.ids_N.tolist() == image.generated.ids_N.tolist()
        case Features():
            assert torch.equal(opened.generated.x_WNC, image.generated.x_WNC) and opened.understood is None
    asked = Document((user(opened, "What is this?"),))
    assert list(system.stream(asked, modality="text", sampling=Sampling(max_new_tokens=3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vectors_of_any_precision_are_kept_exactly(dtype):
    features = Features(torch.randn(1, 4, 3, generator=tiny.generator(0)).to(dtype), "x")
    image = Image(PIXELS, generated=features, drawn=Drawn("seed_x:tiny", "w", 1, ImageSampling(size=(32, 64))))
    tokens, drawn = recall(note(image), PIXELS)
    assert tokens.x_WNC.dtype == dtype and torch.equal(tokens.x_WNC, features.x_WNC) and tokens.source == "x"
    assert drawn.sampling.size == (32, 64) and drawn.source is None


def test_only_what_was_drawn_remembers(tmp_path):
    assert note(Image(PIXELS)) is None and note(Image(PIXELS, generated=Codes(torch.arange(3), "x"))) is None
    assert note_of(save_drawing(Image(PIXELS), tmp_path / "sent.png").read_bytes()) is None
    drawn = Image(PIXELS, None, Codes(torch.arange(3), "x"), Drawn("m", "w", 1, ImageSampling()))
    assert note_of(save_drawing(drawn, tmp_path / "drawn.png").read_bytes()) is not None
    assert note_of(save_drawing(drawn, tmp_path / "drawn.jpg").read_bytes()) is None  # JPEG has no place for it
    with pytest.raises(RebusError, match="no pixels"):
        save_drawing(Image(generated=Codes(torch.arange(3), "x")), tmp_path / "none.png")


def test_the_best_of_several_is_drawn_again_bit_for_bit_too():
    """Several are drawn side by side; the one that is kept must not remember the company."""
    system = tiny.system("seed")
    sampling = Sampling(max_new_tokens=70, temperature=1.0, best_of=5, image=ImageSampling(steps=2))
    wish = Document((user("Draw a small red house."),))
    pieces = reply(system, wish, modality="image", sampling=sampling, generator=tiny.generator(1))
    (image,) = (piece for piece in pieces if isinstance(piece, Image))
    *_, again = draw_again(system, image.generated, image.drawn)
    assert difference(image.pixels, again.pixels) == "bit for bit the same"


# ------------------------------------------------------------------------------------------------ what strangers write


def fields(**others) -> dict:
    source = tiny.system("seed").grammar.source
    good = {
        "rebus": 1,
        "model": "seed:tiny",
        "weights": "random",
        "seed": 5,
        "settings": {"steps": 2},
        "tokens": {"source": source, "codes": [1, 2, 3, 4, 5, 6, 7, 8]},
        "pixels": fingerprint(PIXELS),
    }
    return good | others


HOSTILE = {
    "not JSON": "{" * 10,
    "deep": "[" * 100_000,
    "huge number": '{"rebus": ' + "9" * 10_000 + "}",
    "nothing": "",
    "a list": "[1]",
    "another form": fields() | {"rebus": 2},
    "a seed that is none": fields(seed=-1),
    "a seed that is true": fields(seed=True),
    "a seed too large": fields(seed=2**63),
    "no pixels": fields(pixels=None),
    "other pixels": fields(pixels=fingerprint(PIXELS.rotate(90, expand=True))),
    "an endless drawing": fields(settings={"steps": 10**9}),
    "guidance that is no number": fields(settings={"guidance": "x"}),
    "guidance that is not finite": json.dumps(fields(settings={"guidance": 1})).replace(
        '"guidance": 1', '"guidance": NaN'
    ),
    "a giant picture": fields(settings={"size": [10**6, 10**6]}),
    "an unknown setting": fields(settings={"__class__": 1}),
    "codes of another model": fields(tokens={"source": "lavit 1", "codes": [1] * 8}),
    "codes out of range": fields(tokens={"source": tiny.system("seed").grammar.source, "codes": [10**6] * 8}),
    "too few codes": fields(tokens={"source": tiny.system("seed").grammar.source, "codes": [1]}),
    "too many codes": fields(tokens={"source": tiny.system("seed").grammar.source, "codes": [1] * 70_000}),
    "negative codes": fields(tokens={"source": tiny.system("seed").grammar.source, "codes": [-1] * 8}),
    "codes that are none": fields(tokens={"source": tiny.system("seed").grammar.source, "codes": [{}] * 8}),
    "features that lie about their shape": fields(
        tokens={"source": "x", "shape": [1, 10**9, 10**9], "dtype": "float32", "features": "AAAA"}
    ),
    "features of an unknown type": fields(
        tokens={"source": "x", "shape": [1, 1, 1], "dtype": "object", "features": "AAAA"}
    ),
    "features that are not finite": fields(
        tokens={
            "source": "x",
            "shape": [1, 1, 1],
            "dtype": "float32",
            "features": base64.b64encode(np.float32(np.inf).tobytes()).decode(),
        }
    ),
    "a source that is no picture": fields(source=base64.b64encode(b"MZ\x90").decode()),
    "a source that is not text": fields(source=[1]),
    "a model that is not text": fields(model={"a": 1}),
    "a very long model": fields(model="m" * 10_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_note_is_passed_over_with_a_notice(name):
    text = HOSTILE[name] if isinstance(HOSTILE[name], str) else json.dumps(HOSTILE[name])
    image, notice = read_drawing(hostile(text), tiny.system("seed"), name="x.png")
    assert image.generated is None and image.understood is None and image.drawn is None
    assert image.pixels.getpixel((0, 0)) == (10, 20, 30)
    assert notice.startswith("x.png remembers how it was drawn, but this is not used.") and len(notice) < 400


def test_the_note_of_these_tests_would_be_believed_were_it_honest():
    image, notice = read_drawing(hostile(json.dumps(fields())), tiny.system("seed"), name="x.png")
    assert notice is None and image.generated.ids_N.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and image.drawn.seed == 5


def test_the_size_is_checked_before_anything_is_parsed(monkeypatch):
    monkeypatch.setattr(memory, "MAX_NOTE", 100)
    monkeypatch.setattr(memory.json, "loads", lambda text: pytest.fail("it was parsed"))
    _, notice = read_drawing(hostile(json.dumps(fields())), tiny.system("seed"), name="x.png")
    assert "more than the 100 that are read" in notice


def test_chunks_that_are_no_plain_text_are_no_notes():
    chunks = PngInfo()
    chunks.add_text("rebus", "a" * 5_000_000, zip=True)  # a bomb: Pillow refuses to unpack it
    import io

    buffer = io.BytesIO()
    PIXELS.save(buffer, format="PNG", pnginfo=chunks)
    assert len(buffer.getvalue()) < 10_000 and note_of(buffer.getvalue()) is None
    assert note_of(b"") is None and note_of(b"\x89PNG\r\n\x1a\n" + b"x" * 50) is None


# ------------------------------------------------------------------------------------------------ rebus replay


@pytest.fixture
def seed(monkeypatch):
    """`rebus.system.load` gives one seed:tiny; its calls are noted."""
    import rebus.system

    calls = []
    monkeypatch.setattr(rebus.system, "load", lambda name, **o: calls.append(name) or tiny.system("seed"))
    monkeypatch.setattr(loading, "fetch_base", lambda config, console: None)
    return calls


def test_replay(run, seed, tmp_path):
    _, image = drew("seed")
    path = save_drawing(image, tmp_path / "drawn.png")
    ran = run("replay", path, "-o", tmp_path / "again.png")
    assert ran.code == 0 and "bit for bit the same" in ran.out and seed == ["seed:tiny"]
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()  # which remembers too


@pytest.mark.parametrize(
    "note_fields, says",
    [
        (None, "does not remember"),
        (fields(model="os.path"), "which this library does not have"),
        (fields(model="mylab.emu:tiny"), "which this library does not have"),
        (fields(weights="others"), "was drawn by weights others"),
        (fields(pixels="x"), "was changed after it was drawn"),
        (fields(tokens={"source": "lavit", "codes": [1]}), "tokens are of 'lavit'"),
    ],
)
def test_replay_refuses(run, seed, tmp_path, note_fields, says):
    path = tmp_path / "x.png"
    path.write_bytes(to_png(PIXELS, None if note_fields is None else json.dumps(note_fields)))
    ran = run("replay", path, "-o", tmp_path / "again.png")
    assert ran.code == 2 and says in " ".join(ran.err.split()) and not (tmp_path / "again.png").exists()
    assert all(name.startswith("seed:") for name in seed)  # no name from a file reaches `load` unknown
