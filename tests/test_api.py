"""The Python interface on a photograph, and on every damage to a small stream."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lichen
from lichen import api, container, entropy
from lichen import model as models
from lichen.api import Codec
from lichen.executors import ReferenceExecutor
from lichen.picture import Picture, from_array

SAMPLE = Path(__file__).parent / "samples" / "kodim23.webp"
CODEC = Codec()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.asarray(Image.open(SAMPLE).convert("RGB"))


@pytest.fixture(scope="module")
def small(photograph: np.ndarray) -> np.ndarray:
    return photograph[100:148, 300:340]


@pytest.fixture(scope="module")
def stream(small: np.ndarray) -> bytes:
    """A small stream that has a chunk of each kind."""
    rgba = np.dstack([small, small[..., 0]])
    picture = replace(from_array(rgba), icc=b"icc", exif=b"exif", xmp=b"xmp")
    return CODEC.encode(picture, digest=True).data


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_photograph(photograph: np.ndarray) -> None:
    data = lichen.encode(Image.fromarray(photograph), quality=50)
    image = lichen.decode(data)
    assert image.mode == "RGB"
    assert image.size == (768, 512)
    assert len(data) < photograph.size / 8
    assert psnr(photograph, np.asarray(image)) > 28


def test_rate_and_fidelity_rise_with_quality(photograph: np.ndarray) -> None:
    streams = [lichen.encode(photograph, quality=q) for q in range(0, 101, 10)]
    sizes = [len(data) for data in streams]
    assert sizes == sorted(set(sizes))
    first, last = (np.asarray(lichen.decode(streams[i])) for i in (0, -1))
    assert psnr(photograph, last) > psnr(photograph, first) + 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_target_size(photograph: np.ndarray, share: float) -> None:
    low, high = (len(lichen.encode(photograph, quality=q)) for q in (0, 100))
    target = round(low + share * (high - low))
    for digest in (False, True):
        data = lichen.encode(photograph, target_bytes=target, digest=digest)
        assert 0.98 * target <= len(data) <= target


def test_search_finds_the_best_that_fits() -> None:
    for target in (100, 101, 499, 900, 1234):
        assert api._search(lambda position: 100 + position, target) == min(target - 100, 800)
    # Neighbours may be out of order by a few bytes: still fits, and is near the best.
    rippled = [100 + position + 3 * (position % 2) for position in range(801)]
    for target in range(101, 1000, 7):
        found = api._search(rippled.__getitem__, target)
        best = max(i for i, size in enumerate(rippled) if size <= target)
        assert rippled[found] <= target
        assert best - 3 <= found <= best


def test_target_that_cannot_be_met(small: np.ndarray) -> None:
    with pytest.raises(lichen.TargetError, match="more than the 9 asked for"):
        CODEC.encode(from_array(small), target_bytes=9)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (63, 65), (64, 128), (1, 4000)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sizes(size: tuple[int, int], channels: int) -> None:
    shape = size if channels == 1 else (*size, channels)
    array = np.linspace(0, 255, int(np.prod(shape))).astype(np.uint8).reshape(shape)
    back = np.asarray(lichen.decode(lichen.encode(array, quality=90, digest=True)))
    assert back.shape == array.shape
    if channels == 4:
        assert np.array_equal(back[..., 3], array[..., 3])


def test_threads_and_stripes_do_not_change_pixels(photograph: np.ndarray) -> None:
    picture = from_array(photograph)
    plain = CODEC.decode(CODEC.encode(picture).data).pixels
    for stripe in (1, 3, 1024):
        data = Codec(threads=2).encode(picture, stripe=stripe).data
        assert container.read_header(data).stripes == -(-8 // stripe)
        assert np.array_equal(CODEC.decode(data).pixels, plain)
        assert np.array_equal(Codec(threads=2).decode(data).pixels, plain)


def test_one_codec_serves_threads(photograph: np.ndarray) -> None:
    parts = [photograph[i * 60 : i * 60 + 97, : 100 + 50 * i] for i in range(8)]
    alone = [CODEC.encode(from_array(part)).data for part in parts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda p: CODEC.encode(from_array(p)).data, parts)) == alone


def test_reference_executor_agrees(small: np.ndarray) -> None:
    """The definition in NumPy makes the same stream and the same picture."""
    slow = Codec(executor=ReferenceExecutor())
    data = CODEC.encode(from_array(small)).data
    assert slow.encode(from_array(small)).data == data
    assert np.array_equal(slow.decode(data).pixels, CODEC.decode(data).pixels)


def test_arguments() -> None:
    grey = np.zeros((8, 8), np.uint8)
    with pytest.raises(lichen.LichenError, match=r"0\.\.100"):
        lichen.encode(grey, quality=100.5)
    with pytest.raises(lichen.LichenError, match="not both"):
        lichen.encode(grey, quality=1, target_bytes=100)
    with pytest.raises(lichen.LichenError, match="threads"):
        lichen.encode(grey, threads=0)


@pytest.mark.parametrize(
    "picture",
    [
        Picture(np.zeros((4, 5, 3))),
        Picture(np.zeros((4, 5, 2), np.uint8)),
        Picture(np.zeros((4, 5), np.uint8)),
        Picture(np.zeros((0, 5, 3), np.uint8)),
        Picture(np.zeros((4, 65536, 1), np.uint8)),
        Picture(np.zeros((4, 5, 3), np.uint8), alpha=np.zeros((5, 4), np.uint8)),
        Picture(np.zeros((4, 5, 3), np.uint8), alpha=np.zeros((4, 5))),
        Picture(np.zeros((4, 5, 3), np.uint8), icc="text"),  # type: ignore[arg-type]
    ],
)
def test_pictures_that_no_stream_can_hold(picture: Picture) -> None:
    with pytest.raises(lichen.ImageError, match="must be"):
        CODEC.encode(picture)


def test_too_many_threads_are_refused_not_slow() -> None:
    with pytest.raises(lichen.DeviceError, match=r"1\.\.256"):
        Codec(threads=257)


def test_bytes_of_any_kind_decode(stream: bytes) -> None:
    expected = CODEC.decode(stream).pixels
    for kind in (bytearray, memoryview):
        assert np.array_equal(CODEC.decode(kind(stream)).pixels, expected)  # type: ignore[arg-type]


def test_limit_of_pixels_is_checked_before_decoding(stream: bytes) -> None:
    with pytest.raises(lichen.StreamError, match="limit of 1919"):
        lichen.decode(stream, max_pixels=48 * 40 - 1)
    assert lichen.decode(stream, max_pixels=48 * 40).size == (40, 48)


def test_large_alpha_passes_pillows_limit(monkeypatch: pytest.MonkeyPatch, stream: bytes) -> None:
    """Our limit is higher than Pillow's own; the header has passed it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert lichen.decode(stream).mode == "RGBA"


def test_gains_are_interpolated_without_overflow() -> None:
    """Exact at the rows, between them in between; NumPy 1 and 2 widen integers differently."""
    model = models.default()
    high = replace(model, gain=np.full_like(model.gain, 32767))
    for position in (0, 1, 15, 16, 399, 799, 800):
        assert (high.gains(position)["gain"] == 32767).all()
    for row, position in enumerate(range(0, 801, 16)):
        assert np.array_equal(model.gains(position)["gain"], model.gain[row])
    middle = model.gain[:2].astype(int).sum(axis=0) / 2
    assert np.abs(model.gains(8)["gain"] - middle).max() <= 0.5


def test_models(stream: bytes) -> None:
    model = models.default()
    assert models.find(model.digest).digest == model.digest
    assert models.named(models.installed()[0].stem).digest == model.digest
    encoder, decoder = models.kmac_per_pixel(model)
    assert 0.1 < encoder < 1000
    assert 0.1 < decoder < 1000
    with pytest.raises(lichen.ModelError, match="installed are"):
        models.named("nothing")
    parsed = container.read(stream)
    foreign = replace(parsed, header=replace(parsed.header, weights=b"foreign!"))
    for codec in (CODEC, Codec(model)):
        with pytest.raises(lichen.ModelError, match=b"foreign!".hex()):
            codec.decode(container.write(foreign))


# Damage


def refused(data: bytes) -> bool:
    try:
        CODEC.decode(data)
    except lichen.StreamError:
        return True
    return False


def test_every_changed_byte_is_seen(stream: bytes, small: np.ndarray) -> None:
    """CRC32C finds every change within 32 bits: all 255 of each byte of a tiny stream."""
    tiny = CODEC.encode(from_array(small[:8, :8]), quality=0).data
    for data, others in ((tiny, range(1, 256)), (stream, (1, 0x20, 0x80, 0xFF))):
        for position, byte in enumerate(data):
            head, tail = data[:position], data[position + 1 :]
            for other in others:
                assert refused(head + bytes([byte ^ other]) + tail), (position, other)


def test_every_truncation_is_seen(stream: bytes) -> None:
    assert all(refused(stream[:length]) for length in range(len(stream)))
    assert refused(stream + b"\0")


def test_damage_behind_the_checksums_is_seen(stream: bytes) -> None:
    """Payloads changed by one bit, with right CRCs: the coder's own end state shows it."""
    parsed = container.read(stream)
    pixels = CODEC.decode(stream).pixels
    (z, y), *rest = parsed.stripes
    for position in range(len(z) + len(y)):
        for bit in range(8):
            both = bytearray(z + y)
            both[position] ^= 1 << bit
            damaged = (bytes(both[: len(z)]), bytes(both[len(z) :]))
            data = container.write(replace(parsed, stripes=(damaged, *rest)))
            assert refused(data) or np.array_equal(CODEC.decode(data).pixels, pixels)


def test_other_pixels_fail_the_digest_loudly(stream: bytes) -> None:
    parsed = container.read(stream)
    position = parsed.header.position + 5  # of the same tables of z
    louder = replace(parsed, header=replace(parsed.header, position=position))
    for wrong in (louder, replace(parsed, digest=bytes(16))):
        with pytest.raises(lichen.DigestError, match="the stream says"):
            CODEC.decode(container.write(wrong))


def test_wrong_headers_with_right_checksums(stream: bytes) -> None:
    parsed = container.read(stream)
    for changes in (
        {"width": 39},
        {"width": 65},
        {"height": 1},
        {"height": 65},
        {"width": 65535, "height": 4000},
        {"channels": 1},
        {"position": 0},
        {"order": container.FACTORISED},
        {"order": container.CHANNEL_WISE},
    ):
        header = replace(parsed.header, **changes)
        z = b"" if header.order == container.FACTORISED else parsed.stripes[0][0]
        stripes = ((z, parsed.stripes[0][1]),) * header.stripes
        with pytest.raises(lichen.StreamError):
            CODEC.decode(container.write(replace(parsed, header=header, stripes=stripes)))


def test_stripes_of_other_lengths(stream: bytes) -> None:
    parsed = container.read(stream)
    (z, y), *_ = parsed.stripes
    stripes = [(z[:length], y) for length in range(len(z))]
    stripes += [(z, y[:length]) for length in range(len(y))]
    stripes += [(z + bytes(more), y) for more in (1, 2, 4, 100)]
    stripes += [(z, y + bytes(more)) for more in (1, 2, 4, 100)]
    for stripe in stripes:
        assert refused(container.write(replace(parsed, stripes=(stripe,)))), stripe


@pytest.mark.parametrize("kind", ["nothing", "text", "truncated", "size", "mode"])
def test_damaged_alpha(stream: bytes, kind: str) -> None:
    parsed = container.read(stream)
    file = io.BytesIO()
    Image.new("RGB" if kind == "mode" else "L", (9, 48) if kind == "size" else (40, 48)).save(
        file, "PNG"
    )
    payload = {
        "nothing": b"\0",
        "text": b"this is no picture" * 9,
        "truncated": parsed.alpha[:-40],
    }.get(kind, file.getvalue())
    with pytest.raises(lichen.StreamError, match="alpha"):
        CODEC.decode(container.write(replace(parsed, alpha=payload)))


def test_extreme_symbols_decode(stream: bytes) -> None:
    """Any symbols that the coder can carry: the arithmetic saturates, nothing overflows."""
    parsed = container.read(stream)
    model = models.default()
    tables = model.tables_at(parsed.header.position)
    size = parsed.header.width, parsed.header.height
    count = len(tables) * int(np.prod([-(-side // model.reduction) for side in size]))
    indices = np.resize(tables, count)
    for value in (-128, 127):
        symbols = np.full(count, value, np.int16)
        z = entropy.encode(symbols, indices, model.tables, lanes=1)
        bad = container.write(replace(parsed, stripes=((z, parsed.stripes[0][1]),)))
        with pytest.raises(lichen.StreamError):
            CODEC.decode(bad)
    symbols = np.full(count, 128, np.int16)
    z = entropy.encode(symbols, indices, model.tables, lanes=1)
    with pytest.raises(lichen.StreamError, match="hyper-latent"):
        CODEC.decode(container.write(replace(parsed, stripes=((z, parsed.stripes[0][1]),))))
