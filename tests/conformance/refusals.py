"""Streams that every decoder must refuse, each with one fault and everything else right."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from forge import MAGIC, chunk, forge, header_of, parts_of, sealed, start, varint

from lichen.entropy import rans
from lichen.executors import Executor
from lichen.model import Model

WIDTH, HEIGHT = 5, 3
Refusal = tuple[str, str, bytes]  # name, error, stream


def refusals(model: Model, executor: Executor) -> Iterator[Refusal]:
    """Give the refused streams of the model `micro`."""
    header = header_of(model, WIDTH, HEIGHT, digest=True)
    data = forge(model, executor, header, np.array([1]), np.array([0, 1, -2]))
    yield from _starts(model, data)
    yield from _headers(model, data)
    yield from _chunks(model, executor, data)
    yield from _alphas(model, executor)
    yield from _substreams(model, data)


def _starts(model: Model, data: bytes) -> Iterator[Refusal]:
    parts = parts_of(data)
    rest = b"".join(parts[1:])
    fields = parts[0][6:-4]

    def started(name: str, first: bytes) -> Refusal:
        return name, "StreamError", first + rest

    yield "empty", "StreamError", b""
    yield "magic-alone", "StreamError", MAGIC
    yield started("wrong-magic", start(fields, magic=b"\x8aLIB"))
    yield started("png-magic", start(fields, magic=b"\x89PNG"))
    yield started("version-0", start(fields, version=0))
    yield started("version-2", start(fields, version=2))
    yield started("version-255", start(fields, version=255))
    yield started("header-crc", parts[0][:-1] + bytes([parts[0][-1] ^ 1]))
    yield started("header-one-byte-more", start(fields + b"\0"))
    yield started("header-one-byte-less", start(fields[:-1]))
    yield started("header-empty", start(b""))
    long = MAGIC + b"\1" + varint(len(fields), 2) + fields
    yield started("header-length-not-shortest", sealed(long))
    huge = MAGIC + b"\1" + varint(2**32 - 1) + fields
    yield started("header-length-4-gib", sealed(huge))
    six = MAGIC + b"\1" + b"\x8f\x80\x80\x80\x80\x00" + fields
    yield started("header-length-of-6-bytes", sealed(six))


def _headers(model: Model, data: bytes) -> Iterator[Refusal]:
    parts = parts_of(data)
    rest = b"".join(parts[1:])

    def made(
        name: str, error: str = "StreamError", flags: int = 9, order: int = 1,
        weights: bytes = b"", width: bytes = varint(WIDTH), height: bytes = varint(HEIGHT),
        position: bytes = varint(400), stripe: bytes = varint(8),
    ) -> Refusal:  # fmt: skip
        fields = bytes([flags, order]) + (weights or model.digest) + width + height
        return name, error, start(fields + position + stripe) + rest

    assert made("", "")[2] == data, "without a fault it must be the valid stream"
    yield made("colour-2", flags=10)
    yield made("colour-3", flags=11)
    for bit in (4, 5, 6, 7):
        yield made(f"flag-bit-{bit}", flags=9 | 1 << bit)
    yield made("alpha-flag-without-alpha", flags=13)
    yield made("no-digest-flag-but-digest", flags=1)
    yield made("order-of-another-model", order=0)
    yield made("order-channel-wise", order=2)
    yield made("order-3", order=3)
    yield made("order-255", order=255)
    yield made("unknown-weights", "ModelError", weights=bytes(8))
    for side in ("width", "height"):
        yield made(f"{side}-0", **{side: varint(0)})  # type: ignore[arg-type]
        yield made(f"{side}-65536", **{side: varint(65536)})  # type: ignore[arg-type]
    yield made("pixels-over-the-limit", width=varint(65535), height=varint(65535))
    yield made("position-801", position=varint(801))
    yield made("position-2-to-the-32", position=b"\x80\x80\x80\x80\x10")
    yield made("stripe-0", stripe=varint(0))
    yield made("stripe-1025", stripe=varint(1025))
    yield made("width-not-shortest", width=varint(WIDTH, 2))
    yield made("stripe-not-shortest", stripe=varint(8, 5))
    yield made("grey-flag-other-digest", "DigestError", flags=8)
    yield made("other-position-other-digest", "DigestError", position=varint(800))
    yield made("other-width-other-digest", "DigestError", width=varint(WIDTH + 1))
    yield made("larger-than-its-substreams", width=varint(65))
    yield made("taller-than-its-substreams", height=varint(65))
    yield made("taller-than-its-stripes", height=varint(513))


def _chunks(model: Model, executor: Executor, data: bytes) -> Iterator[Refusal]:
    first, stripe, digest, end = parts_of(data)

    def made(name: str, *parts: bytes, error: str = "StreamError") -> Refusal:
        return name, error, b"".join(parts)

    icc, exif = chunk(b"I", b"profile"), chunk(b"E", b"II*\0")
    yield made("no-chunks", first)
    yield made("no-end", first, stripe, digest)
    yield made("end-alone", first, end)
    yield made("bytes-after-end", first, stripe, digest, end, b"\0")
    yield made("two-ends", first, stripe, digest, end, end)
    yield made("chunk-after-end", first, stripe, digest, end, chunk(b"a", b""))
    yield made("end-with-payload", first, stripe, digest, chunk(b"Z", b"\0"))
    yield made("chunk-crc", first, stripe[:-1] + bytes([stripe[-1] ^ 128]), digest, end)
    yield made("skipped-chunk-crc", first, chunk(b"a", b"x")[:-1] + b"\0", stripe, digest, end)
    yield made("unknown-critical-chunk", first, chunk(b"Q", b"x"), stripe, digest, end)
    yield made("type-not-a-letter", first, chunk(b"1", b"x"), stripe, digest, end)
    yield made("type-not-ascii", first, chunk(b"\xe9", b"x"), stripe, digest, end)
    yield made("metadata-after-stripe", first, stripe, icc, digest, end)
    yield made("metadata-swapped", first, exif, icc, stripe, digest, end)
    yield made("metadata-twice", first, icc, icc, stripe, digest, end)
    yield made("metadata-empty", first, chunk(b"I", b""), stripe, digest, end)
    yield made("digest-before-stripe", first, digest, stripe, end)
    yield made("digest-missing", first, stripe, end)
    yield made("digest-short", first, stripe, chunk(b"D", digest[2:17]), end)
    yield made("digest-long", first, stripe, chunk(b"D", digest[2:18] + b"\0"), end)
    other = chunk(b"D", bytes([digest[2] ^ 1]) + digest[3:18])
    yield made("digest-wrong", first, stripe, other, end, error="DigestError")
    yield made("stripe-missing", first, digest, end)
    yield made("stripe-twice", first, stripe, stripe, digest, end)
    yield made("alpha-without-flag", first, chunk(b"A", png(WIDTH, HEIGHT, bytes(15))), stripe,
               digest, end)  # fmt: skip
    yield made(
        "length-beyond-the-stream", first, b"S" + varint(2**32 - 1) + stripe[2:], digest, end
    )
    body = b"I" + varint(7, 3) + b"profile"
    yield made("length-not-shortest", first, sealed(body), stripe, digest, end)
    yield made("cut-in-a-varint", first, b"S\x80")
    for cut in (1, 4, len(end) + 1):
        yield made(f"cut-by-{cut}", data[:-cut])


def _alphas(model: Model, executor: Executor) -> Iterator[Refusal]:
    header = header_of(model, WIDTH, HEIGHT, alpha=True)

    def made(name: str, alpha: bytes) -> Refusal:
        z, symbols = np.array([1]), np.array([0])
        return name, "StreamError", forge(model, executor, header, z, symbols, alpha=alpha)

    rows = bytes(WIDTH * HEIGHT)
    good = png(WIDTH, HEIGHT, rows)
    yield made("alpha-not-png", b"P5 5 3 255 " + rows)
    yield made("alpha-narrower", png(WIDTH - 1, HEIGHT, rows[HEIGHT:]))
    yield made("alpha-turned", png(HEIGHT, WIDTH, rows))
    yield made("alpha-rgb", png(WIDTH, HEIGHT, rows * 3, colour=2))
    yield made("alpha-of-16-bits", png(WIDTH, HEIGHT, rows * 2, depth=16))
    yield made("alpha-bomb", png(65535, 65535, rows))
    yield made("alpha-cut", good[:-35])
    yield made("alpha-without-pixels", png(WIDTH, HEIGHT, b""))
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 24), 9)
    yield made("alpha-text-bomb", png(WIDTH, HEIGHT, rows, extra=png_chunk(b"zTXt", text)))


def _substreams(model: Model, data: bytes) -> Iterator[Refusal]:
    """Break the rules of docs/stream.md, section 3, in z (one lane, one value) and in y."""
    first, stripe, digest, end = parts_of(data)
    at = 2 if stripe[1] < 128 else 3
    size = stripe[at]
    z, y = stripe[at + 1 : at + 1 + size], stripe[at + 1 + size : -4]

    def made(name: str, z: bytes = z, y: bytes = y) -> Refusal:
        payload = varint(len(z)) + z + y
        return name, "StreamError", b"".join([first, chunk(b"S", payload), digest, end])

    assert made("")[2] == data, "without a fault it must be the valid stream"
    yield made("z-empty", z=b"")
    yield made("z-state-cut", z=z[:3])
    yield made("z-state-below-2-to-the-16", z=b"\xff\xff\0\0")
    yield made("z-state-0", z=bytes(4))
    yield made("z-final-state", z=bytes([z[0] ^ 1]) + z[1:])
    yield made("z-one-word-more", z=z + b"\0\0")
    yield made("z-one-byte-more", z=z + b"\0")
    yield made("z-and-y-swapped", z=y, y=z)
    yield made("y-empty", y=b"")
    yield made("y-one-lane-alone", y=y[:4])
    yield made("y-one-word-less", y=y[:-2])
    yield made("y-one-byte-less", y=y[:-1])
    yield made("y-one-word-more", y=y + b"\0\0")
    yield made("y-one-byte-more", y=y + b"\0")
    yield made("y-all-ones", y=b"\xff" * len(y))
    beyond = chunk(b"S", varint(len(z + y) + 1) + z + y)
    yield "z-length-beyond-the-chunk", "StreamError", first + beyond + digest + end
    tables = replace_tables(model)
    for value in (128, -129, 254, -256, 300, -32768, 32767):
        outside = rans.encode(np.array([value], np.int16), np.zeros(1, np.uint16), tables, lanes=1)
        yield made(f"z-is-{value}", z=outside)
    precision, groups = tables.precision, 16
    base = [(int(tables.starts[-1]), int(tables.frequencies[-1]))]

    def escaped(*digits: int) -> bytes:
        width = (1 << precision) // groups
        return steps([*base, *((digit * width, width) for digit in digits)], precision)

    assert escaped(0)[:4] != z[:4]
    yield made("escape-ends-with-0", z=escaped(8, 0))
    yield made("escape-of-zeros", z=escaped(8, 8, 8, 8, 8, 0))
    yield made("escape-of-7-groups", z=escaped(15, 15, 15, 15, 15, 15))
    yield made("escape-beyond-16-bits", z=escaped(15, 15, 15, 15, 15, 7))
    yield made("escape-below-16-bits", z=escaped(9, 15, 15, 15, 15, 7))
    yield made("escape-cut", z=escaped(15, 15, 15, 15, 15, 7)[:-2])


def replace_tables(model: Model) -> rans.Tables:
    """Give the table of z alone."""
    number = int(model.z_tables[0])
    whole = model.tables
    base, length = int(whole.bases[number]), int(whole.lengths[number])
    return rans.Tables(
        whole.precision, whole.lengths[number : number + 1], whole.offsets[number : number + 1],
        whole.frequencies[base : base + length],
    )  # fmt: skip


def steps(intervals: list[tuple[int, int]], precision: int) -> bytes:
    """Write a substream of one lane from the intervals of its steps: docs/stream.md, 3.4."""
    x, words = 1 << 16, []
    for first, f in reversed(intervals):
        if x >= f << (32 - precision):
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << precision) + first + x % f
    return x.to_bytes(4, "little") + b"".join(w.to_bytes(2, "little") for w in reversed(words))


# PNG by hand: the same bytes whatever zlib is there


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + crc


def png(
    width: int, height: int, samples: bytes, colour: int = 0, depth: int = 8, extra: bytes = b""
) -> bytes:
    """Write a PNG file, uncompressed. samples: row by row, without filter bytes."""
    size = len(samples) // height
    raw = b"".join(b"\0" + samples[y * size : (y + 1) * size] for y in range(min(height, 99)))
    stored = b"\x78\x01\x01" + len(raw).to_bytes(2, "little")
    stored += (len(raw) ^ 0xFFFF).to_bytes(2, "little") + raw
    stored += zlib.adler32(raw).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra
        + png_chunk(b"IDAT", stored) + png_chunk(b"IEND", b"")
    )  # fmt: skip
