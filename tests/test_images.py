"""Opening whatever people send, and the way from pictures to tensors and back.

Dimension key: I images · h w height and width in pixels
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from rebus.errors import RebusError
from rebus.images import CLIP_MEAN, CLIP_STD, HALF, decode_image, open_image, prepare, save_image, to_pil


def png(image: PIL.Image.Image, **options) -> bytes:
    return encoded(image, "PNG", **options)


def encoded(image: PIL.Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


RED = PIL.Image.new("RGB", (8, 6), (250, 10, 10))
NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"hello, this is text", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png(NOISE)[:-600], "cut-off"),
        (png(NOISE)[:30], "not a picture"),
        (encoded(NOISE, "JPEG")[:900], "cut-off"),
        (png_header(50_000, 50_000), "64,000,000 pixels"),
        (png_header(9_000, 9_000), "9,000 × 9,000"),
    ],
)
def test_bad_data_is_one_error_that_names_the_file(data, words):
    with pytest.raises(RebusError, match=words) as caught:
        decode_image(data, name="photo.png")
    assert "photo.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    with pytest.raises(RebusError, match="There is no file"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(RebusError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(RebusError, match="cannot be read"):
        open_image("a\0b.png")
    with pytest.raises(RebusError, match="cannot be read"):
        open_image("x" * 5_000)


def test_no_warning_on_the_way_to_a_refusal(recwarn):
    with pytest.raises(RebusError):
        decode_image(png_header(10_000, 10_000), name="big.png")
    assert not recwarn.list


@pytest.mark.parametrize("keep", range(0, 1_400, 37))
def test_every_cut_of_a_file_is_a_rebus_error(keep):
    whole = encoded(PIL.Image.fromarray(np.asarray(NOISE)[:24, :24]), "GIF")
    with pytest.raises(RebusError):
        decode_image(whole[: min(keep, len(whole) - 30)], name="cut.gif")


# ---------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(file_format):
    image = decode_image(encoded(RED, file_format), name="red")
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - [250, 10, 10]).max() <= 3


def test_animation_gives_its_first_frame():
    frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data, name="film").getpixel((3, 3)) == (255, 0, 0)


def test_stereo_photo_gives_its_first_picture():
    data = encoded(RED, "MPO", save_all=True, append_images=[PIL.Image.new("RGB", (8, 6), "blue")])
    assert decode_image(data, name="stereo.jpg").getpixel((3, 3))[0] > 240


def test_cmyk():
    image = decode_image(encoded(RED.convert("CMYK"), "JPEG"), name="print.jpg")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[3, 3].astype(int) - [250, 10, 10]).max() <= 6


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp_hw = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    image = decode_image(png(PIL.Image.fromarray(ramp_hw)), name="scan.png")
    assert np.abs(np.asarray(image)[..., 0].astype(float) - ramp_hw / 257).max() <= 1


def test_float_grey():
    ramp_hw = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    image = decode_image(encoded(PIL.Image.fromarray(ramp_hw), "TIFF"), name="depth.tiff")
    assert np.abs(np.asarray(image)[..., 0] / 255 - ramp_hw).max() < 0.01


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode):
    clear = PIL.Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 6))
    image = decode_image(png(clear.quantize() if mode in ("P", "PA") else clear.convert(mode)), name="icon.png")
    assert image.getpixel((1, 1)) == (0, 0, 0)
    assert image.getpixel((6, 1)) == (255, 255, 255)


def test_exif_rotation_is_applied():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right to see it
    left_red = PIL.Image.new("RGB", (32, 16), "blue")
    left_red.paste("red", (0, 0, 16, 16))
    image = decode_image(encoded(left_red, "JPEG", exif=exif, quality=95), name="phone.jpg")
    assert image.size == (16, 32)
    assert image.getpixel((8, 4))[0] > 200 and image.getpixel((8, 28))[2] > 200


# ---------------------------------------------------------------------------------------------- tensors


def test_prepare_and_back():
    pixels_I3hw = prepare([NOISE, NOISE], (64, 48), mean=CLIP_MEAN, std=CLIP_STD)
    assert pixels_I3hw.shape == (2, 3, 64, 48) and pixels_I3hw.dtype == torch.float32
    back = to_pil(pixels_I3hw, mean=CLIP_MEAN, std=CLIP_STD)
    assert all(np.array_equal(np.asarray(image), np.asarray(NOISE)) for image in back)


def test_normalisation():
    white_I3hw = prepare([PIL.Image.new("RGB", (4, 4), "white")], 4, mean=HALF, std=HALF)
    assert white_I3hw.eq(1).all()
    clip_I3hw = prepare([PIL.Image.new("RGB", (4, 4), "black")], 4, mean=CLIP_MEAN, std=CLIP_STD)
    expected_3 = torch.tensor([-1.7922626, -1.7520971, -1.4802198])
    assert torch.allclose(clip_I3hw[0, :, 0, 0], expected_3, atol=1e-6)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", ["none", "centre"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (3, 200), (1, 1), (5, 7)])
def test_every_shape_fits(resize, crop, size):
    image = PIL.Image.new("RGB", size, (40, 80, 120))
    pixels_I3hw = prepare([image], 32, resize=resize, crop=crop)
    assert pixels_I3hw.shape == (1, 3, 32, 32)
    assert torch.allclose(pixels_I3hw[0, :, 16, 16] * 255, torch.tensor([40.0, 80.0, 120.0]), atol=0.5)


def test_centre_crop_keeps_the_middle():
    wide = PIL.Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    assert prepare([wide], 32, crop="centre")[0, 2].eq(1).all()


def test_the_two_filters_differ():
    assert not torch.equal(prepare([NOISE], 32, resize="bilinear"), prepare([NOISE], 32, resize="bicubic"))


def test_no_pictures():
    assert prepare([], 16).shape == (0, 3, 16, 16)
    assert to_pil(torch.zeros(0, 3, 16, 16)) == []


def test_prepare_takes_any_mode():
    assert prepare([NOISE.convert("L"), NOISE.convert("RGBA")], 16).shape == (2, 3, 16, 16)


def test_values_outside_are_clipped_and_no_number_is_refused():
    assert to_pil(torch.full((1, 3, 2, 2), 3.0))[0].getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(RebusError, match="float32"):
        to_pil(torch.full((1, 3, 2, 2), float("nan")))


# ---------------------------------------------------------------------------------------------- writing


def test_save_makes_folders_and_leaves_no_parts(tmp_path):
    path = save_image(RED, tmp_path / "new" / "red.png")
    assert open_image(path).size == (8, 6)
    assert [file.name for file in path.parent.iterdir()] == ["red.png"]


@pytest.mark.parametrize("name", ["red", "red.txt", "red.mp4", "red.eps"])
def test_save_refuses_other_endings(tmp_path, name):
    with pytest.raises(RebusError, match="End it in .png"):
        save_image(RED, tmp_path / name)
    assert not list(tmp_path.iterdir())
