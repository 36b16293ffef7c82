"""Stream: the bytes of a compressed picture, version 1. docs/stream.md is the full definition.

All integers are little-endian; a varint is LEB128, at most 5 bytes, in its shortest form.

    magic    8A 4C 49 43 (0x8A, "LIC")
    version  u8, 1
    header   varint length, then: flags u8 (bits 0-1: 0 grey, 1 RGB; bit 2 alpha; bit 3 digest;
             bit 4 float arithmetic), order u8, weights 8 bytes, width varint, height varint,
             position varint, stripe varint
    crc      u32, CRC32C of all bytes before it
    chunks   type u8, varint length, payload, u32 CRC32C of type, length and payload

Chunks stand in this order, each at most once but for S, and nothing follows Z:

    I  ICC profile    E  Exif    X  XMP    A  alpha plane    S  stripe, top to bottom
    D  digest of the decoded pixels    Z  end, empty

Lower-case types are skipped by readers that do not know them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lichen.crc32c import crc32c
from lichen.errors import ContractError, StreamError

MAGIC = b"\x8aLIC"
VERSION = 1
FACTORISED, HYPERPRIOR, CHANNEL_WISE = 0, 1, 2
MAX_SIDE = 65535  # pixels
MAX_POSITION = 800
MAX_STRIPE = 1024  # rows of z
ROW_LINES = 64  # picture lines per row of z
MAX_PIXELS = 16384 * 16384
WEIGHTS_BYTES = 8
DIGEST_BYTES = 16

_COLOURS = (1, 3)  # channels by the value of flags bits 0-1
_ALPHA, _DIGEST, _FLOAT = 4, 8, 16  # flags
_ORDER = "IEXASDZ"


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it allocates anything.

    width, height: pixels, 1..65535.
    channels: 1 (grey) or 3 (RGB), not counting alpha.
    alpha, digest: whether the stream has an alpha plane and a digest of the decoded pixels.
    order: decoding order: 0 factorised, 1 hyperprior, 2 channel-wise.
    weights: the first 8 bytes of the SHA-256 of the model file.
    position: quality * 8, 0..800.
    stripe: rows of 64 picture lines in each stripe, 1..1024.
    float_arithmetic: the model runs in float: only a machine like the encoder's decodes the stream.
    """

    width: int
    height: int
    channels: int
    alpha: bool
    digest: bool
    order: int
    weights: bytes
    position: int
    stripe: int
    float_arithmetic: bool = False

    @property
    def stripes(self) -> int:
        """Count the stripes of the picture."""
        rows = -(-self.height // ROW_LINES)
        return -(-rows // self.stripe)


@dataclass(frozen=True)
class Stream:
    """A parsed stream; an empty alpha, icc, exif, xmp or digest is an absent one.

    stripes: (z bytes, y bytes) for each stripe, top to bottom; z is empty in the factorised order.
    alpha: a losslessly coded 8-bit grey picture of the same size: PNG.
    digest: 16 bytes, see docs/stream.md.
    """

    header: Header
    stripes: tuple[tuple[bytes, bytes], ...]
    alpha: bytes = b""
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    digest: bytes = b""


def write(stream: Stream) -> bytes:
    """Give the bytes of a stream. Raises ContractError for one that `read` would refuse."""
    header = stream.header
    problem = _header_problem(header) or _stream_problem(stream)
    if problem:
        raise ContractError(f"stream to write: {problem}")
    flags = _COLOURS.index(header.channels) | _ALPHA * header.alpha | _DIGEST * header.digest
    flags |= _FLOAT * header.float_arithmetic
    fields = bytes([flags, header.order]) + header.weights
    for value in (header.width, header.height, header.position, header.stripe):
        fields += _varint(value)
    start = MAGIC + bytes([VERSION]) + _varint(len(fields)) + fields
    parts = [start, _u32(crc32c(start))]
    payloads = {"I": stream.icc, "E": stream.exif, "X": stream.xmp, "A": stream.alpha}
    parts += [_chunk(kind, payload) for kind, payload in payloads.items() if payload]
    parts.append(write_stripes(stream.stripes))
    parts += [_chunk("D", stream.digest)] if stream.digest else []
    parts.append(_chunk("Z", b""))
    return b"".join(parts)


def write_stripes(stripes: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Give the `S` chunks of stripes: (z bytes, y bytes) of each."""
    return b"".join(_chunk("S", _varint(len(z)) + z + y) for z, y in stripes)


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header alone; the stream after it may be incomplete. Raises StreamError."""
    return _header(_Reader(data), max_pixels)


def start_bytes(data: bytes) -> int:
    """Count the bytes of a stream before its chunks. Raises StreamError."""
    reader = _Reader(data)
    _header(reader, MAX_SIDE**2)
    return reader.position


def read_stripes(chunks: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Parse `S` chunks and nothing else: (z bytes, y bytes) of each. Raises StreamError."""
    reader = _Reader(chunks)
    stripes = []
    while reader.position < len(chunks):
        kind, payload = reader.chunk()
        if kind != "S":
            raise StreamError(f"expected a chunk 'S', found {kind!r}")
        stripes.append(_stripe(payload))
    return tuple(stripes)


def read(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Stream:
    """Parse and check a whole stream: no byte of it can change unseen.

    Raises StreamError. Copies no more than the stream's own size.
    """
    reader = _Reader(data)
    header = _header(reader, max_pixels)
    once: dict[str, bytes] = {}
    stripes: list[tuple[bytes, bytes]] = []
    last = "I"
    while last != "Z":
        kind, payload = reader.chunk()
        if kind.islower():
            continue
        if kind not in _ORDER:
            raise StreamError(f"unknown chunk {kind!r}: made by a newer lichen? Upgrade lichen")
        if _ORDER.index(kind) < _ORDER.index(last):
            raise StreamError(f"chunk {kind!r} must not follow {last!r}")
        last = kind
        if kind == "S":
            if len(stripes) == header.stripes:
                raise StreamError(f"expected {header.stripes} stripes, found more")
            stripes.append(_stripe(payload))
            continue
        if kind in once:
            raise StreamError(f"chunk {kind!r} must not occur twice")
        if bool(payload) != (kind != "Z"):
            raise StreamError(f"chunk {kind!r}: {len(payload)} bytes are not a possible length")
        once[kind] = payload
    if reader.position != len(data):
        raise StreamError(f"{len(data) - reader.position} bytes follow the end of the stream")
    fields = {"icc": "I", "exif": "E", "xmp": "X", "alpha": "A", "digest": "D"}
    found = {name: once.get(kind, b"") for name, kind in fields.items()}
    stream = Stream(header, tuple(stripes), **found)
    problem = _stream_problem(stream)
    if problem:
        raise StreamError(problem)
    return stream


class _Reader:
    """A position in the bytes of a stream. Every method raises StreamError at their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        left = len(self.data) - self.position
        if count > left:
            raise StreamError(f"the stream is cut off: {what} takes {count} bytes, found {left}")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self, what: str) -> int:
        value = 0
        for number in range(5):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << (7 * number)
            if byte < 0x80:
                if number and not byte:
                    raise StreamError(f"{what}: a varint must have its shortest form")
                if value >= 1 << 32:
                    raise StreamError(f"{what}: a varint must be below 2**32, found {value}")
                return value
        raise StreamError(f"{what}: a varint must have at most 5 bytes")

    def check(self, start: int, what: str) -> None:
        found = crc32c(self.data[start : self.position])
        if int.from_bytes(self.take(4, f"the CRC of {what}"), "little") != found:
            raise StreamError(f"{what} is damaged: its CRC does not fit. Get the file again")

    def chunk(self) -> tuple[str, bytes]:
        start = self.position
        kind = chr(self.take(1, "the next chunk (there must be an end chunk 'Z')")[0])
        what = f"chunk {kind!r}"
        payload = self.take(self.varint(what), what)
        self.check(start, what)
        if not (kind.isascii() and kind.isalpha()):
            raise StreamError(f"a chunk type must be a letter, found {kind!r}")
        return kind, payload


def _header(reader: _Reader, max_pixels: int) -> Header:
    magic = reader.take(min(len(MAGIC), len(reader.data)), "the magic")
    if magic != MAGIC:
        raise StreamError(f"not a lichen stream: expected {MAGIC!r} first, found {magic!r}")
    version = reader.take(1, "the version")[0]
    if version > VERSION:
        raise StreamError(
            f"made by a newer lichen (format version {version}, this build reads {VERSION}): "
            "upgrade lichen"
        )
    if version < VERSION:
        raise StreamError(f"the format version must be {VERSION}, found {version}")
    size = reader.varint("the header")
    start = reader.position
    reader.take(size, "the header")
    end = reader.position
    reader.check(0, "the header")
    fields = _Reader(reader.data[start:end])
    flags = fields.take(1, "flags")[0]
    if flags & 3 >= len(_COLOURS) or flags & ~(3 | _ALPHA | _DIGEST | _FLOAT):
        raise StreamError(f"header: unknown flags {flags:#04x}; made by a newer lichen?")
    header = Header(
        channels=_COLOURS[flags & 3],
        alpha=bool(flags & _ALPHA),
        digest=bool(flags & _DIGEST),
        order=fields.take(1, "order")[0],
        weights=fields.take(WEIGHTS_BYTES, "weights"),
        width=fields.varint("width"),
        height=fields.varint("height"),
        position=fields.varint("position"),
        stripe=fields.varint("stripe"),
        float_arithmetic=bool(flags & _FLOAT),
    )
    if fields.position != size:
        raise StreamError(f"header: {size - fields.position} bytes too many")
    problem = _header_problem(header)
    if problem:
        raise StreamError(f"header: {problem}")
    if header.width * header.height > max_pixels:
        raise StreamError(
            f"the picture has {header.width} x {header.height} pixels, more than the limit of "
            f"{max_pixels}; raise max_pixels if that is wanted"
        )
    return header


def _header_problem(header: Header) -> str:
    if not 1 <= header.width <= MAX_SIDE or not 1 <= header.height <= MAX_SIDE:
        return f"width and height must be 1..{MAX_SIDE}, not {header.width} and {header.height}"
    if header.channels not in _COLOURS:
        return f"channels must be one of {_COLOURS}, not {header.channels}"
    if not FACTORISED <= header.order <= CHANNEL_WISE:
        return f"order must be 0..{CHANNEL_WISE}, not {header.order}"
    if len(header.weights) != WEIGHTS_BYTES:
        return f"weights must be {WEIGHTS_BYTES} bytes, not {len(header.weights)}"
    if not 0 <= header.position <= MAX_POSITION:
        return f"position must be 0..{MAX_POSITION}, not {header.position}"
    if not 1 <= header.stripe <= MAX_STRIPE:
        return f"stripe must be 1..{MAX_STRIPE}, not {header.stripe}"
    return ""


def _stream_problem(stream: Stream) -> str:
    header = stream.header
    if len(stream.stripes) != header.stripes:
        return f"expected {header.stripes} stripes, found {len(stream.stripes)}"
    if header.order == FACTORISED and any(z for z, _ in stream.stripes):
        return "a factorised stream must have no z"
    if bool(stream.alpha) != header.alpha:
        return f"the header says alpha {header.alpha}, the chunks {bool(stream.alpha)}"
    if len(stream.digest) != DIGEST_BYTES * header.digest:
        return (
            f"expected a digest of {DIGEST_BYTES * header.digest} bytes, found {len(stream.digest)}"
        )
    return ""


def _stripe(payload: bytes) -> tuple[bytes, bytes]:
    reader = _Reader(payload)
    z = reader.take(reader.varint("the length of z"), "z")
    return z, payload[reader.position :]


def _chunk(kind: str, payload: bytes) -> bytes:
    if len(payload) >= 1 << 32:
        raise ContractError(f"chunk {kind!r} must be below 4 GiB, not {len(payload)} bytes")
    body = kind.encode("ascii") + _varint(len(payload)) + payload
    return body + _u32(crc32c(body))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
