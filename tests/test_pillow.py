"""The Pillow plugin: lichen streams as any other picture file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

import lichen
import lichen.pillow
from lichen import api

SAMPLE = Path(__file__).parent / "samples" / "kodim23.webp"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    with Image.open(SAMPLE) as photograph:
        return photograph.convert("RGB").crop((300, 100, 364, 148))


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Record each decoding."""
    done: list[int] = []
    plain = api.Codec.decode

    def decode(self: api.Codec, data: bytes, **options: int) -> lichen.Picture:
        done.append(len(data))
        return plain(self, data, **options)

    monkeypatch.setattr(api.Codec, "decode", decode)
    return done


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "LICHEN", **options)
    return file.getvalue()


def test_save_and_open(tmp_path: Path, image: Image.Image, decodings: list[int]) -> None:
    path = tmp_path / "x.lic"
    image.save(path, quality=80)
    assert path.read_bytes() == lichen.encode(image, quality=80)
    with Image.open(path) as opened:
        assert (opened.format, opened.mode, opened.size) == ("LICHEN", "RGB", (64, 48))
        assert opened.get_format_mimetype() == "image/x-lichen"
        assert not decodings  # opening is quick
        pixels = np.asarray(opened)
        assert opened.getpixel((3, 4)) == tuple(pixels[4, 3])
    assert len(decodings) == 1
    assert np.array_equal(pixels, np.asarray(lichen.decode(path.read_bytes())))


def test_an_open_file_is_left_open(image: Image.Image) -> None:
    file = io.BytesIO(saved(image))
    Image.open(file).load()
    assert not file.closed


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes(image: Image.Image, mode: str) -> None:
    source = image.convert(mode)
    opened = Image.open(io.BytesIO(saved(source)))
    assert opened.mode == mode
    assert opened.resize((9, 9)).mode == mode
    if mode.endswith("A"):
        assert opened.getchannel("A").tobytes() == source.getchannel("A").tobytes()


def test_options(image: Image.Image) -> None:
    assert len(saved(image, quality=10)) < len(saved(image, quality=90))
    middle = (len(saved(image, quality=10)) + len(saved(image, quality=90))) // 2
    assert 0.9 * middle < len(saved(image, target_bytes=middle)) <= middle
    assert len(saved(image, digest=True)) == len(saved(image)) + 22
    for wrong in ({"quality": 101}, {"target_bytes": 5}, {"quality": 1, "target_bytes": 900}):
        with pytest.raises(ValueError, match=r"asked for|not"):
            saved(image, **wrong)


def test_metadata(image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    data = saved(image, exif=exif, icc_profile=b"icc", xmp="<x/>")
    opened = Image.open(io.BytesIO(data))
    assert opened.info["icc_profile"] == b"icc"
    assert opened.info["xmp"] == b"<x/>"
    assert opened.getexif()[0x0112] == 6
    assert ImageOps.exif_transpose(opened).size == (48, 64)
    again = Image.open(io.BytesIO(saved(opened)))
    assert again.info == opened.info
    bare = Image.open(io.BytesIO(saved(opened, exif=b"", icc_profile=None, xmp=b"")))
    assert bare.info == {}
    for file_format in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        opened.save(file, file_format, exif=opened.info["exif"])
        assert Image.open(file).getexif()[0x0112] == 6


def test_not_a_stream() -> None:
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\x8aLIX" + bytes(60)))
    with pytest.raises(SyntaxError, match="not a lichen stream"):
        lichen.pillow.LichenImageFile(io.BytesIO(b"GIF89a"))


def test_damaged_stream(image: Image.Image) -> None:
    data = saved(image)
    with pytest.raises(OSError, match="cut off"):
        Image.open(io.BytesIO(data[:-9]))
    with pytest.raises(OSError, match="damaged"):
        Image.open(io.BytesIO(data[:50] + b"?" + data[51:]))
    with pytest.raises(OSError, match="newer lichen"):
        Image.open(io.BytesIO(data[:4] + b"\2" + data[5:]))


def test_file_that_changes_while_it_is_open(image: Image.Image) -> None:
    file = io.BytesIO(saved(image))
    opened = Image.open(file)
    file.seek(0)
    file.write(saved(image.crop((0, 0, 48, 64))))
    file.truncate()
    with pytest.raises(OSError, match="was changed"):
        opened.load()


def test_decompression_bombs(
    monkeypatch: pytest.MonkeyPatch, image: Image.Image, decodings: list[int]
) -> None:
    file = io.BytesIO(saved(image))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", image.width * image.height // 3)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", image.width * image.height - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", image.width * image.height)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.open(file)
    assert not decodings


def test_verify(image: Image.Image) -> None:
    with Image.open(io.BytesIO(saved(image))) as opened:
        opened.verify()


def test_a_picture_that_no_stream_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "wide.lic"
    with pytest.raises(ValueError, match="65535"):
        Image.new("L", (65536, 1)).save(path)
    assert not path.exists()
