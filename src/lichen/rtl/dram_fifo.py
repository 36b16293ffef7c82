"""DRAM FIFO: a long delay kept in the board's memory, behind a port of AXI4 (AMBA IHI 0022).

    input -> 128-bit words -> queue -> bursts of writes -> DRAM
    output <- narrow <- queue <- bursts of reads <- DRAM

The ring in DRAM begins at a page and has a power of two of words. A burst is up to 16 beats and
stays within 256 aligned bytes. What is read was acknowledged before: the memory may answer writes
and reads in any order of its own.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import Narrow, Widen, beat, connect
from lichen.rtl.ports import BURST_BEATS, MEMORY_BITS, memory_pins
from lichen.rtl.registers import PAGE_BYTES

WORD_BYTES = MEMORY_BITS // 8
QUEUE = 2 * BURST_BEATS
PATIENCE = 63  # cycles that an incomplete burst waits for more words
INCREMENTING = 1
BUFFERABLE = 0b0011  # normal memory, not cached
PREFIX = "m_axi"


def packing(bits: int, beats: int) -> int:
    """Give the beats of `bits` in a word of 128: the most that divide `beats`, of a row or less."""
    return max(n for n in range(1, MEMORY_BITS // bits + 1) if beats % n == 0)


def ring_words(beats: int, pack: int) -> int:
    """Give the words of a ring for so many beats."""
    return max(2 * QUEUE, 1 << (-(-beats // pack) - 1).bit_length())


class DramFifo(wiring.Component):
    """Hold beats of `bits` in a ring of `words` words of DRAM, `pack` beats in each.

    The number of beats of a picture must be a multiple of `pack`: an unfinished word stays inside.
    base: page of DRAM where the ring begins, steady. clear: loses what it holds; `busy` as long as
    transfers are on the way, which AXI does not let one drop. error: an answer was not OKAY.

    Throughput: one beat per cycle at each end; 16 words per 16 cycles and the time that the memory
    takes to answer, one write burst and one read burst at a time. Latency: both answers, and up to
    130 cycles where few beats come.
    """

    def __init__(self, bits: int, pack: int, words: int) -> None:
        assert words >= 2 * QUEUE and words & (words - 1) == 0
        self.bits, self.pack, self.words = bits, pack, words
        ways = {"in": In, "out": Out}
        super().__init__(
            {
                "input": In(beat(bits)),
                "output": Out(beat(bits)),
                "base": In(32),
                "clear": In(1),
                "busy": Out(1),
                "error": Out(1),
                **{pin.name: ways[pin.flow](pin.bits) for pin in memory_pins(PREFIX)},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = self.bits * self.pack
        widen, narrow = Widen(self.bits, self.pack), Narrow(self.bits, self.pack)
        write = SyncFIFOBuffered(width=width, depth=QUEUE)
        read = SyncFIFOBuffered(width=width, depth=QUEUE)
        self.idle = Signal()  # cleared, and nothing is on the way
        for name, unit in (("widen", widen), ("narrow", narrow), ("write", write), ("read", read)):
            m.submodules[name] = ResetInserter(self.idle)(unit)
        connect(m, self.input, widen.input)
        connect(m, narrow.output, self.output)
        m.d.comb += [
            write.w_data.eq(widen.output.payload),
            write.w_en.eq(widen.output.valid),
            widen.output.ready.eq(write.w_rdy),
            narrow.input.payload.eq(read.r_data),
            narrow.input.valid.eq(read.r_rdy),
            read.r_en.eq(narrow.input.ready),
        ]
        bits = range(self.words + 1)
        self.stored = Signal(bits)  # words acknowledged, and not yet asked for
        self.reserved = Signal(bits)  # words from the request to write them until they are back
        self.acknowledged, self.asked = Signal(range(BURST_BEATS + 1)), Signal.like(self.stored)
        self.claimed, self.returned = Signal(range(BURST_BEATS + 1)), Signal()
        m.d.sync += [
            self.stored.eq(self.stored + self.acknowledged - self.asked),
            self.reserved.eq(self.reserved + self.claimed - self.returned),
        ]
        self.writing, self.reading = Signal(), Signal()
        m.d.comb += [
            self.busy.eq(self.writing | self.reading),
            self.idle.eq(self.clear & ~self.busy),
        ]
        tail = self._write(m, write)
        head = self._read(m, read)
        with m.If(self.idle):
            m.d.sync += [
                self.stored.eq(0), self.reserved.eq(0), tail.eq(0), head.eq(0), self.error.eq(0)
            ]  # fmt: skip
        return m

    def _start(self, m: Module, name: str, level: Value, room: Value, place: Signal) -> Any:
        """Decide on a burst: whether, and how many words, for a pointer `place` of the ring.

        Both are of the cycle before last: bursts are three cycles apart or more, and until the next
        one begins there are never fewer words.
        """
        block = Signal(range(BURST_BEATS + 1), name=f"{name}_block")
        late = Signal(range(PATIENCE + 1), name=f"{name}_late")
        expired = Signal(name=f"{name}_expired")
        wanted, start = Signal(name=f"{name}_wanted"), Signal(name=f"{name}_start")
        count = Signal(range(BURST_BEATS + 1), name=f"{name}_count")
        whole = level >= block
        m.d.comb += [
            block.eq(BURST_BEATS - place[: (BURST_BEATS - 1).bit_length()]),
            start.eq(wanted & room & ~self.clear),
        ]
        m.d.sync += [
            count.eq(Mux(whole, block, level)),
            wanted.eq(whole | (expired & (level != 0))),
            expired.eq(late == PATIENCE),
        ]
        with m.If(level == 0):
            m.d.sync += late.eq(0)
        with m.Elif(late != PATIENCE):
            m.d.sync += late.eq(late + 1)
        return start, count, late

    def _address(self, m: Module, channel: str, place: Signal, count: Signal) -> None:
        """Give the request of a burst: it stands in registers."""
        ports = {n: getattr(self, f"{PREFIX}_{channel}{n}") for n in ("addr", "len", "valid")}
        page = Const(0, (PAGE_BYTES - 1).bit_length())
        m.d.sync += [
            ports["addr"].eq(Cat(page, self.base) + place * WORD_BYTES),
            ports["len"].eq(count - 1),
            ports["valid"].eq(1),
        ]

    def _constants(self, m: Module, channel: str) -> None:
        size = (WORD_BYTES - 1).bit_length()
        values = {"size": size, "burst": INCREMENTING, "cache": BUFFERABLE, "prot": 0}
        for name, value in values.items():
            m.d.comb += getattr(self, f"{PREFIX}_{channel}{name}").eq(value)

    def _write(self, m: Module, queue: SyncFIFOBuffered) -> Signal:
        tail = Signal(range(self.words))
        room = Signal()
        m.d.sync += room.eq(self.reserved <= self.words - BURST_BEATS)
        start, count, late = self._start(m, "write", queue.level, room, tail)
        left = Signal(range(BURST_BEATS + 1))
        done = Signal.like(left)
        self._constants(m, "aw")
        m.d.comb += [
            self.m_axi_wdata.eq(queue.r_data),
            self.m_axi_wstrb.eq(~0),
            self.m_axi_wlast.eq(left == 1),
        ]
        with m.FSM():
            with m.State("idle"):
                with m.If(start):
                    self._address(m, "aw", tail, count)
                    m.d.comb += self.claimed.eq(count)
                    m.d.sync += [left.eq(count), done.eq(count), tail.eq(tail + count), late.eq(0)]
                    m.next = "address"
            with m.State("address"):
                m.d.comb += self.writing.eq(1)
                with m.If(self.m_axi_awready):
                    m.d.sync += self.m_axi_awvalid.eq(0)
                    m.next = "data"
            with m.State("data"):
                m.d.comb += [
                    self.writing.eq(1),
                    self.m_axi_wvalid.eq(queue.r_rdy),
                    queue.r_en.eq(self.m_axi_wready),
                ]
                with m.If(self.m_axi_wready & queue.r_rdy):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        m.next = "answer"
            with m.State("answer"):
                m.d.comb += [self.writing.eq(1), self.m_axi_bready.eq(1)]
                with m.If(self.m_axi_bvalid):
                    m.d.comb += self.acknowledged.eq(done)
                    with m.If(self.m_axi_bresp != 0):
                        m.d.sync += self.error.eq(1)
                    m.next = "idle"
        return tail

    def _read(self, m: Module, queue: SyncFIFOBuffered) -> Signal:
        head = Signal(range(self.words))
        room = Signal()
        m.d.sync += room.eq(queue.level <= QUEUE - BURST_BEATS)
        start, count, late = self._start(m, "read", self.stored, room, head)
        left = Signal(range(BURST_BEATS + 1))
        self._constants(m, "ar")
        m.d.comb += [
            queue.w_data.eq(self.m_axi_rdata),
            queue.w_en.eq(self.m_axi_rvalid & self.m_axi_rready),
            self.returned.eq(self.m_axi_rvalid & self.m_axi_rready),
        ]
        with m.FSM():
            with m.State("idle"):
                with m.If(start):
                    self._address(m, "ar", head, count)
                    m.d.comb += self.asked.eq(count)
                    m.d.sync += [left.eq(count), head.eq(head + count), late.eq(0)]
                    m.next = "address"
            with m.State("address"):
                m.d.comb += self.reading.eq(1)
                with m.If(self.m_axi_arready):
                    m.d.sync += self.m_axi_arvalid.eq(0)
                    m.next = "data"
            with m.State("data"):
                m.d.comb += [self.reading.eq(1), self.m_axi_rready.eq(1)]
                with m.If(self.m_axi_rvalid):
                    m.d.sync += left.eq(left - 1)
                    with m.If(self.m_axi_rresp != 0):
                        m.d.sync += self.error.eq(1)
                    with m.If(left == 1):
                        m.d.sync += room.eq(0)  # until it has counted this burst
                        m.next = "idle"
        return head
