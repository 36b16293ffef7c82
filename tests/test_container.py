"""Container: bytes of whole streams, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen import container
from lichen.container import Header, Stream
from lichen.crc32c import crc32c, crc32c_plain
from lichen.errors import ContractError, StreamError

GOLDEN = Path(__file__).parent / "golden"
HEADER = Header(
    width=1,
    height=1,
    channels=1,
    alpha=False,
    digest=False,
    order=container.FACTORISED,
    weights=b"weights!",
    position=0,
    stripe=1,
)
STREAMS = {
    "minimal.lic": Stream(HEADER, ((b"", b""),)),
    "full.lic": Stream(
        replace(
            HEADER,
            width=300,
            height=65 * 64 - 63,
            channels=3,
            alpha=True,
            digest=True,
            order=container.HYPERPRIOR,
            position=800,
            stripe=22,
        ),
        stripes=((b"\0z0", b"y0" * 70), (b"", b"y1"), (b"z2", b"")),
        alpha=b"alpha",
        icc=b"icc" * 50,
        exif=b"exif",
        xmp=b"xmp",
        digest=bytes(range(16)),
    ),
}


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def header(fields: bytes, *, version: int = 1, size: bytes | None = None) -> bytes:
    """A stream's start with a right CRC around any fields."""
    start = b"\x8aLIC" + bytes([version]) + (varint(len(fields)) if size is None else size) + fields
    return start + crc32c(start).to_bytes(4, "little")


def fields(
    flags: int = 0,
    order: int = 0,
    width: bytes = b"\1",
    height: bytes = b"\1",
    position: bytes = b"\0",
    stripe: bytes = b"\1",
) -> bytes:
    return bytes([flags, order]) + b"weights!" + width + height + position + stripe


def chunk(kind: str, payload: bytes = b"", *, size: bytes | None = None) -> bytes:
    """A chunk with a right CRC."""
    body = kind.encode("latin-1") + (varint(len(payload)) if size is None else size) + payload
    return body + crc32c(body).to_bytes(4, "little")


S, Z = chunk("S", b"\0y"), chunk("Z")


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    alpha, digest = draw(st.booleans()), draw(st.booleans())
    some = st.binary(max_size=30)
    head = Header(
        width=draw(st.integers(1, 65535)),
        height=draw(st.integers(1, 1000)),
        channels=draw(st.sampled_from([1, 3])),
        alpha=alpha,
        digest=digest,
        order=draw(st.integers(0, 2)),
        weights=draw(st.binary(min_size=8, max_size=8)),
        position=draw(st.integers(0, 800)),
        stripe=draw(st.integers(1, 1024)),
        float_arithmetic=draw(st.booleans()),
    )
    z = some if head.order else st.just(b"")
    return Stream(
        head,
        tuple((draw(z), draw(some)) for _ in range(head.stripes)),
        alpha=draw(st.binary(min_size=1, max_size=300)) if alpha else b"",
        icc=draw(some),
        exif=draw(some),
        xmp=draw(some),
        digest=draw(st.binary(min_size=16, max_size=16)) if digest else b"",
    )


@settings(max_examples=150, deadline=None)
@given(streams())
def test_round_trip(stream: Stream) -> None:
    data = container.write(stream)
    assert container.read(data) == stream
    assert container.read_header(data) == stream.header
    assert container.write(container.read(data)) == data


@pytest.mark.parametrize("name", STREAMS)
def test_golden_streams(name: str, golden: Callable[[str, bytes], None]) -> None:
    golden(name, container.write(STREAMS[name]))
    assert container.read((GOLDEN / name).read_bytes()) == STREAMS[name]


def test_the_first_bytes_are_as_documented() -> None:
    data = (GOLDEN / "minimal.lic").read_bytes()
    assert data[:20] == b"\x8aLIC\x01\x0e\x00\x00weights!\x01\x01\x00\x01"
    assert data[24:27] == b"S\x01\x00"
    assert data[-6:-4] == b"Z\x00"


@pytest.mark.parametrize("name", STREAMS)
def test_every_changed_byte_is_seen(name: str) -> None:
    data = bytearray((GOLDEN / name).read_bytes())
    for position in range(len(data)):
        right = data[position]
        for value in range(256):
            if value != right:
                data[position] = value
                with pytest.raises(StreamError):
                    container.read(bytes(data))
        data[position] = right


@pytest.mark.parametrize("name", STREAMS)
def test_every_truncation_is_seen(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    for end in range(len(data)):
        with pytest.raises(StreamError):
            container.read(data[:end])
    for more in (b"\0", b"Z", Z, data):
        with pytest.raises(StreamError, match="bytes follow the end"):
            container.read(data + more)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_give_a_stream_error(data: bytes) -> None:
    for bad in (data, b"\x8aLIC\x01" + data, header(data), header(fields()) + data):
        with pytest.raises(StreamError):
            container.read(bad)


def test_header_is_read_without_the_rest() -> None:
    full = STREAMS["full.lic"]
    data = container.write(full)
    assert container.read_header(data[:40]) == full.header
    assert full.header.stripes == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "not a lichen stream"),
        (b"\x8aLI", "not a lichen stream"),
        (b"\x89PNG\r\n\x1a\n", "expected .* first, found .*PNG"),
        (b"\x8aLIC\x02", r"made by a newer lichen \(format version 2, this build reads 1\): upg"),
        (b"\x8aLIC\x00", "version must be 1, found 0"),
        (header(fields(), size=b"\x8e\x00"), "shortest form"),
        (header(fields(), size=b"\xff\xff\xff\xff\x0f"), "takes 4294967295 bytes, found"),
        (header(fields(), size=b"\xff\xff\xff\xff\x1f"), r"below 2\*\*32"),
        (header(fields(), size=b"\xff\xff\xff\xff\xff\x01"), "at most 5 bytes"),
        (header(fields() + b"\0"), "1 bytes too many"),
        (header(fields()[:-1]), "stripe takes 1 bytes, found 0"),
        (header(b""), "cut off"),
        (header(fields())[:-1] + b"!", "header is damaged"),
        (header(fields(flags=2)), "unknown flags 0x02"),
        (header(fields(flags=3)), "unknown flags"),
        (header(fields(flags=32)), "unknown flags 0x20"),
        (header(fields(flags=128)), "unknown flags"),
        (header(fields(order=3)), "order must be 0..2, not 3"),
        (header(fields(width=b"\0")), "width and height must be 1..65535, not 0 and 1"),
        (header(fields(height=varint(65536))), "not 1 and 65536"),
        (header(fields(width=b"\x81\x00")), "width: a varint must have its shortest form"),
        (header(fields(width=varint(65535), height=varint(65535))), "65535 x 65535 pixels, more"),
        (header(fields(width=varint(16385), height=varint(16384))), "more than the limit"),
        (header(fields(position=varint(801))), "position must be 0..800, not 801"),
        (header(fields(stripe=b"\0")), "stripe must be 1..1024, not 0"),
        (header(fields(stripe=varint(1025))), "stripe must be 1..1024, not 1025"),
    ],
)
def test_wrong_headers_are_refused(bad: bytes, message: str) -> None:
    for function in (container.read, container.read_header):
        with pytest.raises(StreamError, match=message):
            function(bad)


def test_the_pixel_limit_is_the_callers() -> None:
    big = header(fields(width=varint(65535), height=varint(65535), stripe=varint(1024))) + S + Z
    assert len(container.read(big, max_pixels=65535 * 65535).stripes) == 1
    small = header(fields(width=b"\x05", height=b"\x05")) + S + Z
    assert container.read(small, max_pixels=25)
    with pytest.raises(StreamError, match="5 x 5 pixels, more than the limit of 24"):
        container.read(small, max_pixels=24)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (S, "there must be an end chunk"),
        (Z, "expected 1 stripes, found 0"),
        (S + S + Z, "expected 1 stripes, found more"),
        (S + chunk("Z", b"x"), "'Z': 1 bytes"),
        (chunk("S", b"") + Z, "length of z takes 1 bytes"),
        (chunk("S", b"\5abcd") + Z, "z takes 5 bytes, found 4"),
        (chunk("S", b"\x80\x00") + Z, "shortest form"),
        (chunk("S", b"\1z") + Z, "factorised stream must have no z"),
        (chunk("S", b"\0y", size=varint(2**32 - 1)) + Z, "takes 4294967295 bytes, found 12"),
        (chunk("S", b"\0y", size=b"\x82\x00") + Z, "shortest form"),
        (chunk("S", b"\0y", size=b"\xff\xff\xff\xff\xff\xff") + Z, "at most 5 bytes"),
        (chunk("I", b"i") * 2 + S + Z, "must not occur twice"),
        (chunk("X", b"x") + chunk("E", b"e") + S + Z, "'E' must not follow 'X'"),
        (S + chunk("I", b"i") + Z, "'I' must not follow 'S'"),
        (S + chunk("A", b"a") + Z, "'A' must not follow 'S'"),
        (chunk("D", b"d" * 16) + S + Z, "'S' must not follow 'D'"),
        (chunk("A", b"a") + S + Z, "the header says alpha False"),
        (S + chunk("D", b"d" * 16) + Z, "digest of 0 bytes, found 16"),
        (chunk("I") + S + Z, "'I': 0 bytes are not a possible length"),
        (chunk("Q", b"q") + S + Z, "unknown chunk 'Q': made by a newer lichen"),
        (chunk("0", b"q") + S + Z, "must be a letter, found '0'"),
        (chunk("\xe9", b"q") + S + Z, "must be a letter"),
        (chunk("\0", b"q") + S + Z, "must be a letter"),
        (chunk("q", b"q")[:-1] + b"!" + S + Z, "chunk 'q' is damaged"),
        (S + Z + S, "bytes follow the end"),
    ],
)
def test_wrong_chunks_are_refused(chunks: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        container.read(header(fields()) + chunks)


def test_chunks_that_the_header_promises_must_come() -> None:
    with pytest.raises(StreamError, match="the header says alpha True"):
        container.read(header(fields(flags=4)) + S + Z)
    with pytest.raises(StreamError, match="expected a digest of 16 bytes, found 0"):
        container.read(header(fields(flags=8)) + S + Z)
    with pytest.raises(StreamError, match="expected a digest of 16 bytes, found 15"):
        container.read(header(fields(flags=8)) + S + chunk("D", b"d" * 15) + Z)


def test_unknown_lower_case_chunks_are_skipped() -> None:
    plain = header(fields()) + S + Z
    noted = header(fields()) + chunk("q") + chunk("a", b"x" * 300) + S + chunk("z", b"end") + Z
    assert container.read(noted) == container.read(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": 65536},
        {"channels": 4},
        {"order": 3},
        {"weights": b"short"},
        {"position": 801},
        {"position": -1},
        {"stripe": 0},
        {"alpha": True},
        {"digest": True},
        {"height": 65},
    ],
)
def test_streams_that_cannot_be_read_are_not_written(change: dict[str, Any]) -> None:
    stream = STREAMS["minimal.lic"]
    with pytest.raises(ContractError, match="stream to write"):
        container.write(replace(stream, header=replace(stream.header, **change)))


@given(st.binary(max_size=100))
def test_crc32c_equals_its_definition(data: bytes) -> None:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc32c_plain(data) == crc ^ 0xFFFFFFFF


def test_crc32c_known_values() -> None:
    """RFC 3720, appendix B.4."""
    for function in (crc32c, crc32c_plain):
        assert function(b"123456789") == 0xE3069283
        assert function(b"") == 0
        assert function(bytes(32)) == 0x8A9136AA
        assert function(b"\xff" * 32) == 0x62A8AB43
        assert function(bytes(range(32))) == 0x46DD794E
