"""Chunks: the bytes of the `S` chunks of a stream from their substreams, and back.

The cores take and give the part of a stream that grows with the picture. The driver writes and
reads the rest, which it must understand anyway: the start with its header, the metadata chunks, the
digest and the end (docs/stream.md 1).

    encoder core   S chunk*                     the driver puts start before, D? and Z behind
    decoder core   chunk* as they follow the start; all but S are checked and skipped
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.crc32c import Crc32c
from lichen.rtl.rans_decoder import word_layout
from lichen.rtl.stripe_buffer import sequence

WORD_BITS = 16
STRIPE_BITS = 16  # of the number of stripes of a picture
LENGTH_BITS = 32
VARINT_BYTES = 5

BYTES = sequence(8)  # `last`: the last byte of a picture


class ChunkWriter(wiring.Component):
    """Write the `S` chunks of a picture.

    z_words, y_words: the words of each stripe's substreams; z_counts, y_counts: how many, before
    them, with `overflow` where the substream is cut off. stripes: of a picture, 1..65535, steady
    while one is written. bytes: `last` after the last chunk. overflows: one bit per stripe, after
    its chunk: 1 where a substream was cut off, and the chunk is of no use.

    Throughput: one byte per cycle, and 4 cycles per chunk. Latency: 4 cycles after both counts.
    """

    def __init__(self, count_layouts: tuple[data.StructLayout, data.StructLayout]) -> None:
        z, y = count_layouts
        super().__init__(
            {
                "z_words": In(sequence(WORD_BITS)),
                "z_counts": In(stream.Signature(z)),
                "y_words": In(sequence(WORD_BITS)),
                "y_counts": In(stream.Signature(y)),
                "stripes": In(STRIPE_BITS),
                "bytes": Out(BYTES),
                "overflows": Out(stream.Signature(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = Crc32c(1)
        byte, give = Signal(8), Signal()  # what the present state gives, if anything
        free, moved = Signal(), Signal()  # the output register is; and it took what there was
        last = Signal()
        first, checked = Signal(), Signal(init=1)  # of a chunk's bytes that the sum is of
        # The sum is of the bytes in the output register, a cycle late.
        m.d.sync += [crc.clear.eq(first), crc.count.eq(moved & checked)]
        m.d.comb += [
            free.eq(~self.bytes.valid | self.bytes.ready),
            moved.eq(give & free),
            crc.data.eq(self.bytes.p.item),
        ]
        with m.If(moved):
            m.d.sync += [
                self.bytes.p.item.eq(byte),
                self.bytes.p.last.eq(last),
                self.bytes.valid.eq(1),
            ]
        with m.Elif(self.bytes.ready):
            m.d.sync += self.bytes.valid.eq(0)

        z_size, y_size = Signal(LENGTH_BITS), Signal(LENGTH_BITS)
        left = Signal(LENGTH_BITS)
        number = Signal(STRIPE_BITS)
        overflow, high = Signal(), Signal()
        place = Signal(2)

        def varint(next_state: str, following: Value) -> None:
            """Give `left` seven bits at a time, then load it with what follows."""
            more = left[7:].any()
            m.d.comb += [give.eq(1), byte.eq(Cat(left[:7], more))]
            with m.If(moved):
                m.d.sync += left.eq(Mux(more, left >> 7, following))
                with m.If(~more):
                    m.next = next_state

        def words(source: object, next_state: str) -> None:
            """Give the two bytes of each word, up to the last."""
            m.d.comb += [
                give.eq(source.valid),
                byte.eq(source.p.item.word_select(high, 8)),
                source.ready.eq(free & high),
            ]
            with m.If(moved):
                m.d.sync += high.eq(~high)
                with m.If(high & source.p.last):
                    m.next = next_state

        with m.FSM():
            with m.State("wait"):
                both = self.z_counts.valid & self.y_counts.valid
                m.d.comb += [self.z_counts.ready.eq(both), self.y_counts.ready.eq(both)]
                m.d.sync += [
                    z_size.eq(self.z_counts.p.count << 1),
                    y_size.eq(self.y_counts.p.count << 1),
                    overflow.eq(self.z_counts.p.overflow | self.y_counts.p.overflow),
                    left.eq(0),
                ]
                with m.If(both):
                    m.next = "add"
            with m.State("add"):
                prefix = 1 + sum((z_size >> 7 * k != 0) for k in range(1, VARINT_BYTES))
                m.d.sync += [y_size.eq(y_size + prefix), left.eq(z_size)]
                m.next = "type"
            with m.State("type"):
                m.d.comb += [give.eq(1), byte.eq(ord("S")), first.eq(1)]
                with m.If(moved):
                    m.d.sync += left.eq(left + y_size)
                    m.next = "length"
            with m.State("length"):
                varint("z length", z_size)
            with m.State("z length"):
                varint("z", left)
            with m.State("z"):
                words(self.z_words, "y")
            with m.State("y"):
                words(self.y_words, "sum")
                m.d.sync += place.eq(0)
            with m.State("sum"):  # the last word's byte is being added
                m.next = "crc"
            with m.State("crc"):
                m.d.comb += [
                    give.eq(1),
                    last.eq((place == 3) & (number == self.stripes - 1)),
                ]
                with m.If(moved):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.d.sync += number.eq(Mux(last, 0, number + 1))
                        m.next = "report"
                # The sum stands still while it leaves.
                m.d.comb += [byte.eq(crc.crc.word_select(place, 8)), checked.eq(0)]
            with m.State("report"):
                m.d.comb += [
                    self.overflows.valid.eq(1),
                    self.overflows.payload.eq(overflow),
                ]
                with m.If(self.overflows.ready):
                    m.next = "wait"
        return m


class Framing(enum.Enum, shape=3):
    """How the chunks of a picture were. Only OK: every rule of the container held."""

    OK = 0
    TYPE = 1  # a type that is not a letter, or a second part after Z
    LENGTH = 2  # a length that breaks a rule, or more words than the core holds
    CRC = 3
    CUT = 4  # the bytes end within a chunk
    STRIPES = 5  # more or fewer S chunks than the picture has stripes


class ChunkParser(wiring.Component):
    """Split the chunks of a picture into substreams, and check them.

    bytes: the chunks that follow the start; `last` after the last byte. stripes: of the picture,
    steady while one is read. z_words, y_words: exactly `stripes` substreams each; where chunks are
    damaged or missing, closed by a beat with `bad`. framings: one Framing per picture, at its end.
    A damaged picture's bytes are dropped up to `last`, and the next one is read as if nothing had
    happened. z_limit, y_limit: words of the longest substream that the core can hold.

    Throughput: one byte per cycle, 6 cycles per S chunk more. Latency: 2 cycles to a word.
    """

    def __init__(self, z_limit: int, y_limit: int) -> None:
        self.z_limit, self.y_limit = z_limit, y_limit
        words = stream.Signature(word_layout(WORD_BITS))
        super().__init__(
            {
                "bytes": In(BYTES),
                "stripes": In(STRIPE_BITS),
                "z_words": Out(words),
                "y_words": Out(words),
                "framings": Out(stream.Signature(Framing)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = self.crc = Crc32c(1)
        self._output(m)
        self._take(m)
        self._states(m)
        return m

    def _output(self, m: Module) -> None:
        """One register for the words of both; `to_y` says whose it holds."""
        word = self.word = Signal(word_layout(WORD_BITS))
        valid, to_y = Signal(), Signal()
        # What the present state gives: a word or an end.
        self.give, self.give_y = Signal(), Signal()
        self.given = Signal(word_layout(WORD_BITS))
        self.free = Signal()
        m.d.comb += [
            self.z_words.payload.eq(word),
            self.y_words.payload.eq(word),
            self.z_words.valid.eq(valid & ~to_y),
            self.y_words.valid.eq(valid & to_y),
            self.free.eq(~valid | Mux(to_y, self.y_words.ready, self.z_words.ready)),
        ]
        with m.If(self.free):
            m.d.sync += [valid.eq(self.give), to_y.eq(self.give_y), word.eq(self.given)]

    def _take(self, m: Module) -> None:
        """A byte is taken where the state wants one and the output is free."""
        self.want, self.took = Signal(), Signal()
        self.byte = self.bytes.p.item
        m.d.comb += [
            self.bytes.ready.eq(self.want & self.free),
            self.took.eq(self.bytes.valid & self.bytes.ready),
            self.crc.data.eq(self.byte),
        ]
        self.framing = Signal(Framing)
        self.z_ends, self.y_ends = Signal(STRIPE_BITS), Signal(STRIPE_BITS)

    def _fail(self, m: Module, reason: Framing, state: str = "drop") -> None:
        with m.If(self.framing == Framing.OK):
            m.d.sync += self.framing.eq(reason)
        m.next = state

    def _unless_cut(self, m: Module) -> None:
        """No byte of a chunk but its last one may be the last of the picture."""
        with m.If(self.took & self.bytes.p.last):
            self._fail(m, Framing.CUT, "finish")

    def _end(self, m: Module, y: bool, bad: Value | int) -> None:
        ends = self.y_ends if y else self.z_ends
        m.d.comb += [
            self.give.eq(1),
            self.give_y.eq(y),
            self.given.end.eq(1),
            self.given.bad.eq(bad),
        ]
        with m.If(self.free):
            m.d.sync += ends.eq(ends + 1)

    def _states(self, m: Module) -> None:
        left, z_left = Signal(LENGTH_BITS), Signal(LENGTH_BITS)
        stripe, end = Signal(), Signal()
        value, number = Signal(LENGTH_BITS), Signal(range(VARINT_BYTES + 1))
        low, high = Signal(8), Signal()
        place = Signal(2)
        letter = Signal()
        m.d.comb += letter.eq((self.byte & 0xDF >= ord("A")) & (self.byte & 0xDF <= ord("Z")))
        # A varint, with the byte at hand.
        whole = Signal(LENGTH_BITS)
        m.d.comb += whole.eq(value)
        for k in range(VARINT_BYTES):
            with m.If(number == k):
                seven = whole[7 * k : 7 * k + 7]
                m.d.comb += seven.eq(self.byte[: len(seven)])
        ends = ~self.byte[7]
        z_over = Signal()
        m.d.sync += z_over.eq((z_left > left) | (z_left > 2 * self.z_limit + 1))
        broken = Mux(ends, (number != 0) & (self.byte == 0), number == VARINT_BYTES - 1)
        broken |= (number == VARINT_BYTES - 1) & (self.byte[4:] != 0)
        for_crc = Signal()
        m.d.comb += self.crc.count.eq(self.took & for_crc)

        def varint() -> None:
            m.d.comb += [self.want.eq(1), for_crc.eq(1)]
            with m.If(self.took):
                m.d.sync += [value.eq(whole), number.eq(number + 1)]
                with m.If(ends):
                    m.d.sync += [value.eq(0), number.eq(0)]

        def words(y: bool, count: Signal, next_state: str) -> None:
            m.d.comb += [
                self.want.eq(1),
                for_crc.eq(1),
                self.give.eq(self.bytes.valid & high),
                self.give_y.eq(y),
                self.given.word.eq(Cat(low, self.byte)),
            ]
            with m.If(self.took):
                m.d.sync += [low.eq(self.byte), high.eq(~high), count.eq(count - 1)]
                with m.If(count == 1):
                    m.next = next_state
            self._unless_cut(m)

        with m.FSM():
            with m.State("type"):
                m.d.comb += [self.want.eq(1), for_crc.eq(1), self.crc.clear.eq(self.took)]
                m.d.sync += [value.eq(0), number.eq(0), place.eq(0), high.eq(0)]
                with m.If(self.took):
                    m.d.sync += [stripe.eq(self.byte == ord("S")), end.eq(self.byte == ord("Z"))]
                    m.next = "length"
                    with m.If(~letter | end):
                        self._fail(m, Framing.TYPE)
                    with m.If((self.byte == ord("S")) & (self.z_ends == self.stripes)):
                        self._fail(m, Framing.STRIPES)
                self._unless_cut(m)
            with m.State("length"):
                varint()
                m.d.sync += left.eq(whole)
                with m.If(self.took & ends):
                    m.next = "room"
                with m.If(self.took & broken):
                    self._fail(m, Framing.LENGTH)
                self._unless_cut(m)
            with m.State("room"):
                m.next = "crc"
                with m.If(left != 0):
                    m.next = "skip"
                with m.If(stripe):
                    m.next = "z length"
                with m.If((stripe & (left == 0)) | (end & (left != 0))):
                    self._fail(m, Framing.LENGTH)
            with m.State("skip"):
                m.d.comb += [self.want.eq(1), for_crc.eq(1)]
                with m.If(self.took):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        m.next = "crc"
                self._unless_cut(m)
            with m.State("z length"):
                varint()
                m.d.sync += z_left.eq(whole)
                with m.If(self.took):
                    m.d.sync += left.eq(left - 1)
                    with m.If(ends):
                        m.next = "z room"
                    with m.If(broken | ((left == 1) & ~ends)):
                        self._fail(m, Framing.LENGTH)
                self._unless_cut(m)
            with m.State("z room"):  # until z_over counts
                m.next = "z fits"
            with m.State("z fits"):
                m.d.sync += left.eq(left - z_left)
                m.next = "y room"
                with m.If(z_over):
                    self._fail(m, Framing.LENGTH)
            with m.State("y room"):
                m.next = "z"
                with m.If(z_left == 0):
                    m.next = "z end"
                with m.If(left > 2 * self.y_limit + 1):
                    self._fail(m, Framing.LENGTH)
            with m.State("z"):
                words(False, z_left, "z end")
            with m.State("z end"):
                self._end(m, False, high)
                with m.If(self.free):
                    m.d.sync += high.eq(0)
                    m.next = "y"
                    with m.If(left == 0):
                        m.next = "y end"
            with m.State("y"):
                words(True, left, "y end")
            with m.State("y end"):
                self._end(m, True, high)
                with m.If(self.free):
                    m.next = "crc"
            with m.State("crc"):
                m.d.comb += self.want.eq(1)
                with m.If(self.took):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.next = "type"
                        with m.If(self.bytes.p.last):
                            m.next = "finish"
                    with m.Elif(self.bytes.p.last):
                        self._fail(m, Framing.CUT, "finish")
                    with m.If(self.byte != self.crc.crc.word_select(place, 8)):
                        self._fail(m, Framing.CRC)
                        with m.If(self.bytes.p.last):
                            m.next = "finish"
            with m.State("drop"):
                m.d.comb += self.want.eq(1)
                with m.If(self.took & self.bytes.p.last):
                    m.next = "finish"
            with m.State("finish"):
                behind = self.y_ends != self.z_ends
                with m.If(behind):
                    self._end(m, True, 1)
                with m.Elif(self.z_ends != self.stripes):
                    self._end(m, False, 1)
                    with m.If(self.framing == Framing.OK):
                        m.d.sync += self.framing.eq(Framing.STRIPES)
                with m.Else():
                    m.next = "report"
            with m.State("report"):
                m.d.comb += [
                    self.framings.valid.eq(1),
                    self.framings.payload.eq(self.framing),
                ]
                with m.If(self.framings.ready):
                    m.d.sync += [
                        self.framing.eq(Framing.OK),
                        end.eq(0),
                        self.z_ends.eq(0),
                        self.y_ends.eq(0),
                    ]
                    m.next = "type"
