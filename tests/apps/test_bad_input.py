"""Whatever strangers hand to the command line ends in one line and exit code 2, or is handled; never in a traceback."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def encoded(image: PIL.Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 50,000 × 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def rotated() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(PIL.Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif)


REFUSED = {
    "not-an-image.png": b"just some text",
    "empty.png": b"",
    "truncated.png": encoded(NOISE, "PNG")[:2_000],
    "truncated.jpg": encoded(NOISE, "JPEG")[:900],
    "bomb.png": bomb(),
}

HANDLED = {
    "animated.gif": encoded(NOISE, "GIF", save_all=True, append_images=[PIL.Image.new("RGB", (40, 40), "blue")]),
    "cmyk.jpg": encoded(NOISE.convert("CMYK"), "JPEG"),
    "sixteen.png": encoded(PIL.Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40), "PNG"),
    "rotated.jpg": rotated(),
    "alpha.webp": encoded(NOISE.convert("RGBA"), "WEBP"),
}


def one_line_error(ran) -> str:
    assert ran.code == 2, ran
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err + ran.out
    return ran.err


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("verb", ["see", "tokenize"])
def test_broken_pictures(run, tmp_path, verb, name):
    (tmp_path / name).write_bytes(REFUSED[name])
    ran = run(*(["see", tmp_path / name, "what?"] if verb == "see" else ["tokenize", "seed:mini", tmp_path / name]))
    assert name in one_line_error(ran)


@pytest.mark.parametrize("name", HANDLED)
def test_odd_pictures(run, system, tmp_path, name):
    (tmp_path / name).write_bytes(HANDLED[name])
    ran = run("see", tmp_path / name, "what?")
    assert ran.code == 0 and "with 1 pictures" in ran.out
    pixels = system.calls[-1]["document"].images[0].pixels
    assert pixels.mode == "RGB" and pixels.size == ((20, 40) if name == "rotated.jpg" else (40, 40))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["see", "absent.png", "what?"], "There is no file absent.png"),
        (["see", ".", "what?"], "is a folder"),
        (["tokenize", "seed:mini", "absent.png"], "There is no file absent.png"),
        (["draw", ""], "text is empty"),
        (["draw", "   "], "text is empty"),
        (["draw", "a cat", "--system", "gpt"], "There is no system 'gpt'"),
        (["draw", "a cat", "-o", "cat.txt"], "End it in .png"),
        (["draw", "a cat", "--device", "tpu9"], "is no device"),
        (["chat", "gpt:mini"], "There is no system 'gpt:mini'"),
        (["detokenize", "seed:mini", "absent.json"], "There is no file absent.json"),
        (["train", "seed.stage9"], "There is no stage 'seed.stage9'"),
        (["train", "nonsense"], "There is no stage 'nonsense'"),
        (["train", "rebus.images"], "is no stage"),
        (["train", "mini.vae", "--config", "huge"], "has no config 'huge'"),
        (["train", "mini.vae", "--config"], "--config"),
    ],
)
def test_bad_words(run, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in one_line_error(run(*words))
    assert not list(tmp_path.iterdir())


def test_empty_question(run, tmp_path):
    NOISE.save(tmp_path / "noise.png")
    assert "question is empty" in one_line_error(run("see", tmp_path / "noise.png", " "))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "is not JSON"),
        ("[1, 2]", "holds no images as codes"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "holds no images as codes"),
        ('{"messages": [{"content": [{"type": "image_codes", "codes": [1]}]}]}', "without source or codes"),
        ('{"messages": [{"content": [{"type": "image_codes", "source": "a", "codes": [1, "x"]}]}]}', "whole numbers"),
        ('{"messages": [{"content": [{"type": "image_codes", "source": "a", "codes": [-1]}]}]}', "whole numbers"),
    ],
)
def test_bad_codes(run, tmp_path, text, says):
    (tmp_path / "codes.json").write_text(text)
    assert says in one_line_error(run("detokenize", "seed:mini", tmp_path / "codes.json"))


@pytest.mark.parametrize(
    "words", [["paint"], ["see"], ["draw", "a cat", "--stile", "x"], ["draw", "cat", "--seed", "x"]]
)
def test_wrong_options_are_usage_errors(run, words):
    ran = run(*words)
    assert ran.code == 2 and "Traceback" not in ran.err


def test_ctrl_c_is_one_line(run, system, tmp_path):
    system.interrupt = True
    assert "stopped" in one_line_error(run("draw", "a cat", "-o", tmp_path / "cat.png"))
    assert system.closed == 1 and not list(tmp_path.iterdir())


def test_a_fault_of_ours_is_one_line_and_code_1(run, monkeypatch, tmp_path):
    import rebus.system

    def broken(name, **options):
        raise KeyError("weights")

    monkeypatch.setattr(rebus.system, "load", broken)
    ran = run("draw", "a cat")
    assert ran.code == 1 and ran.err.count("\n") == 1 and "--traceback" in ran.err
    with pytest.raises(KeyError):
        run("draw", "a cat", "--traceback")
