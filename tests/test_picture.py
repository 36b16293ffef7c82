"""Pictures: every mode of Pillow on its way in, and what comes back."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lichen.errors import ImageError
from lichen.picture import (
    ImageNotice,
    Picture,
    from_array,
    from_image,
    grey_of_rgb,
    to_image,
)

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (5, 7, 4), np.uint8)


def quiet(image: Image.Image) -> Picture:
    """Take an image for which no notice is due."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_image(image)


def png16(samples: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel; Pillow cannot write one in colour."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    fields = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, payload in ((b"IHDR", fields), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        crc = zlib.crc32(kind + payload)
        out += struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)
    return out


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_that_streams_hold(mode: str) -> None:
    image = Image.fromarray(RGBA).convert(mode)
    picture = quiet(image)
    assert picture.pixels.shape == (5, 7, 1 if mode[0] == "L" else 3)
    assert (picture.alpha is not None) == mode.endswith("A")
    assert (picture.width, picture.height) == (7, 5)
    back = to_image(picture)
    assert back.mode == mode
    assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("1", "L"), ("P", "RGB"), ("PA", "RGBA"), ("RGBX", "RGB"), ("YCbCr", "RGB"), ("La", "LA")],
)
def test_modes_that_are_converted(mode: str, becomes: str) -> None:
    source = Image.fromarray(RGBA)
    if mode == "PA":
        source = source.convert("P")
    if mode == "La":
        source = source.convert("LA")
    if mode in ("1", "P", "RGBX", "YCbCr"):
        source = source.convert("RGB")
    image = source.convert(mode)
    back = to_image(quiet(image))
    assert back.mode == becomes
    assert np.array_equal(np.asarray(back), np.asarray(image.convert(becomes)))


def test_transparent_colour() -> None:
    """A colour of a PNG or GIF that stands for "transparent" becomes alpha."""
    for source, mode in (("P", "RGBA"), ("L", "LA"), ("RGB", "RGBA"), ("1", "LA")):
        array = np.array([[0, 255], [255, 255]], np.uint8)
        image = Image.fromarray(array).convert("RGB").convert(source)
        key = image.getpixel((0, 0))
        file = io.BytesIO()
        image.save(file, "PNG", transparency=key)
        picture = quiet(Image.open(file))
        assert to_image(picture).mode == mode, source
        assert picture.alpha is not None
        assert (picture.alpha == array).all(), source


def test_palette_with_alpha() -> None:
    image = Image.fromarray(RGBA).quantize(16, method=Image.Quantize.FASTOCTREE)
    assert image.mode == "P"
    assert image.palette.mode == "RGBA"
    assert to_image(quiet(image)).mode == "RGBA"


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits(channels: int) -> None:
    samples = RNG.integers(0, 65536, (5, 7, channels), np.uint16)
    with pytest.warns(ImageNotice, match="8 bits"):
        picture = from_image(Image.open(io.BytesIO(png16(samples))))
    assert picture.pixels.shape == (5, 7, channels)
    assert np.abs(picture.pixels - samples / 257.0).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 1.0, np.nan]], [0, 255, 0]),
        ([[0.0, 300.0, 100.4]], [0, 255, 100]),
        ([[0.0, np.inf, -5.0]], [0, 255, 0]),
    ],
)
def test_floats(values: list[list[float]], expected: list[int]) -> None:
    with pytest.warns(ImageNotice, match="8 bits"):
        picture = from_image(Image.fromarray(np.array(values, np.float32)))
    assert picture.pixels.ravel().tolist() == expected


def test_cmyk_loses_its_profile_with_a_notice() -> None:
    image = Image.fromarray(RGBA[..., :3]).convert("CMYK")
    image.info["icc_profile"] = b"for four colours"
    with pytest.warns(ImageNotice, match="CMYK"):
        picture = from_image(image)
    assert picture.icc == b""
    assert picture.pixels.shape == (5, 7, 3)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.warns(ImageNotice, match="first"):
        picture = from_image(Image.open(file))
    assert (picture.pixels == 10).all()


def test_metadata_that_follows_the_pixels_is_found() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGBA).save(file, "PNG", exif=exif)
    data = file.getvalue()
    begin = data.index(b"eXIf") - 4
    length = int.from_bytes(data[begin : begin + 4], "big") + 12
    end = data.index(b"IEND") - 4
    chunk = data[begin : begin + length]
    moved = data[:begin] + data[begin + length : end] + chunk + data[end:]
    picture = quiet(Image.open(io.BytesIO(moved)))
    assert picture.exif == exif.tobytes().removeprefix(b"Exif\0\0")


def test_streams_hold_exif_without_its_prefix() -> None:
    image = Image.fromarray(RGBA)
    image.info |= {"exif": b"Exif\0\0MM\0*", "icc_profile": b"icc", "xmp": "text"}
    picture = quiet(image)
    assert (picture.exif, picture.icc, picture.xmp) == (b"MM\0*", b"icc", b"text")
    back = to_image(picture).info
    assert back == {"exif": b"Exif\0\0MM\0*", "icc_profile": b"icc", "xmp": b"text"}


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, np.uint8)
    picture = from_array(array)
    assert picture.pixels.shape[2] == (3 if shape[-1] in (3, 4) else 1)
    assert (picture.alpha is None) == (shape[-1] != 4)
    assert np.array_equal(np.asarray(to_image(picture)), array.squeeze())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7), np.float32),
        np.zeros((5, 7), np.uint16),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros((1, 65536), np.uint8),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="must"):
        from_array(array)


def test_grey_rounds_as_the_stream_defines() -> None:
    rgb = RNG.integers(0, 256, (9, 9, 3), np.uint8)
    r, g, b = (rgb[..., i].astype(int) for i in range(3))
    assert np.array_equal(grey_of_rgb(rgb)[..., 0], (r + 2 * g + b + 2) // 4)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.array_equal(grey_of_rgb(grey), grey[..., :1])
