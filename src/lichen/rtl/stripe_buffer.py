"""Stripe buffer: a sequence in, the same sequence backwards out, in the memory of one sequence.

rANS codes backwards what the network gives forwards, and gives backwards what a stream wants
forwards: both turns are this buffer. It keeps one memory, not two, for a sequence is read from its
end: what is read frees its place for the next sequence, which is written in the same direction.

    sequence k     written  0 1 2 3 ... n-1 -->       read  <-- 0 1 2 3 ... n-1
    sequence k+1   written  <-- n-1 ... 3 2 1 0       read  n-1 ... 3 2 1 0 -->     and so on
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lichen.rtl.leaf import Home, Memory


def sequence(bits: int) -> stream.Signature:
    """Give the signature of a stream of sequences: `last` marks the end of each."""
    return stream.Signature(data.StructLayout({"item": bits, "last": 1}))


def stripe_memory(bits: int, capacity: int, pack: int = 1) -> tuple[int, int]:
    """Give width and depth of the memory of a StripeBuffer."""
    return bits * pack, -(-capacity // pack)


class StripeBuffer(wiring.Component):
    """Reverse sequences of 1..`capacity` items of `bits`.

    A memory word holds `pack` items: 3 symbols of 22 bits and 4 words of 16 bits fill an UltraRAM's
    72. counts: the length of each sequence, once, before its items. A sequence that is longer than
    the capacity loses the items beyond it; `overflow` of its count is then set.

    Throughput: one item per cycle in and one out. Latency: the whole sequence, and 6 cycles.
    """

    PREFETCH = 8  # words between the memory and the output; its latency is 3 cycles

    def __init__(self, bits: int, capacity: int, pack: int = 1, home: Home | None = None) -> None:
        self.bits, self.pack, self.home = bits, pack, home
        _, self.words = stripe_memory(bits, capacity, pack)
        self.capacity = self.words * pack
        self.count_layout = data.StructLayout({"count": range(self.capacity + 1), "overflow": 1})
        super().__init__(
            {
                "input": In(sequence(bits)),
                "output": Out(sequence(bits)),
                "counts": Out(stream.Signature(self.count_layout)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self.memory = Memory(self.bits * self.pack, self.words, home=self.home, latency=2)
        m.submodules.memory = self.memory.instance()
        # What the reader works on: set when it takes a sequence over. Comparisons of long counters
        # are registers throughout, so that few levels of logic are left between ready and ready.
        self.busy = Signal()  # words are left to read
        self.freed = Signal(range(self.words + 1))  # words of the present sequence that were read
        self.up = Signal()  # the writer's direction
        self.pending = Signal()  # its items wait for those of the sequence before
        self.take_over = Signal()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m: Module) -> None:
        """Gather items into words and write them; hand each finished sequence over."""
        place = self.place = Signal(range(self.words))  # where the next word goes
        self.fill = Signal(range(self.pack))  # items of the last word, less one
        self.count = Signal(range(self.capacity + 1))
        self.overflow = Signal()
        written = self.written = Signal(range(self.words + 1))
        slot = Signal(range(self.pack))
        gathered = Signal(self.bits * self.pack)
        word = Signal(self.bits * self.pack)
        self.done = Signal()  # a whole sequence waits for the reader
        full = Signal()
        # Behind the reader only; it may pass where nothing is left to read. `behind` is of the last
        # cycle, in which one word may have been written: hence two words.
        behind = Signal()
        free = ~self.busy | behind
        m.d.sync += behind.eq(self.freed > written + 1)
        accepted = self.input.valid & self.input.ready
        completes = (slot == self.pack - 1) | self.input.p.last
        m.d.comb += [
            self.input.ready.eq(~self.done & (free | full)),
            word.eq(gathered),
            word.word_select(slot, self.bits).eq(self.input.p.item),
            self.memory.write_enable.eq(accepted & completes & ~full),
            self.memory.write_address.eq(place),
            self.memory.write_data.eq(word),
            self.take_over.eq(self.done & ~self.busy & ~self.pending & ~self.counts.valid),
        ]
        with m.If(accepted):
            with m.If(full):
                m.d.sync += self.overflow.eq(1)
            with m.Else():
                m.d.sync += [
                    gathered.eq(word),
                    self.fill.eq(slot),
                    slot.eq(Mux(completes, 0, slot + 1)),
                    self.count.eq(self.count + 1),
                ]
                with m.If(completes):
                    m.d.sync += [written.eq(written + 1), full.eq(written == self.words - 1)]
                    # The last word's place stays: it is the first to be read, and to be rewritten.
                    with m.If(~self.input.p.last & (written != self.words - 1)):
                        m.d.sync += place.eq(_beside(place, self.up, self.words))
            m.d.sync += self.done.eq(self.input.p.last)
        with m.If(self.take_over):
            m.d.sync += [
                self.done.eq(0),
                self.up.eq(~self.up),
                written.eq(0),
                full.eq(0),
                behind.eq(0),
                slot.eq(0),
                self.count.eq(0),
                self.overflow.eq(0),
                self.counts.p.count.eq(self.count),
                self.counts.p.overflow.eq(self.overflow),
                self.counts.valid.eq(1),
            ]
        with m.If(self.counts.valid & self.counts.ready):
            m.d.sync += self.counts.valid.eq(0)

    def _read(self, m: Module) -> None:
        """Read words from the last to the first, and give their items in that order too."""
        m.submodules.words = fifo = SyncFIFOBuffered(
            width=self.bits * self.pack, depth=self.PREFETCH
        )
        place = Signal(range(self.words))
        left, final = Signal(range(self.words + 1)), Signal()  # final: one is left
        down = Signal()  # the reader's direction is against that in which this was written
        on_the_way = Signal(2)
        room = Signal()
        read = Signal()
        m.d.sync += room.eq(fifo.level < self.PREFETCH - 4)
        m.d.comb += [
            read.eq(self.busy & room),
            self.memory.read_enable.eq(1),
            self.memory.read_address.eq(place),
            fifo.w_en.eq(on_the_way[1]),
            fifo.w_data.eq(self.memory.read_data),
        ]
        m.d.sync += on_the_way.eq(Cat(read, on_the_way[0]))
        with m.If(read):
            m.d.sync += [
                place.eq(_beside(place, ~down, self.words)),
                left.eq(left - 1),
                final.eq(left == 2),
                self.freed.eq(self.freed + 1),
            ]
            with m.If(final):
                m.d.sync += self.busy.eq(0)
        # Items: those of this sequence that are still to come out.
        items = Signal(range(self.capacity + 1))
        active, last = Signal(), Signal()  # some are, and just one
        slot = Signal(range(self.pack))
        word = Array(fifo.r_data[i * self.bits : (i + 1) * self.bits] for i in range(self.pack))
        taken = self.output.valid & self.output.ready
        m.d.comb += [
            self.output.valid.eq(fifo.r_rdy & active),
            self.output.p.item.eq(word[slot]),
            self.output.p.last.eq(last),
            fifo.r_en.eq(taken & ((slot == 0) | last)),
        ]
        with m.If(taken):
            m.d.sync += [
                items.eq(items - 1),
                last.eq(items == 2),
                active.eq(~last),
                slot.eq(Mux(slot == 0, self.pack - 1, slot - 1)),
            ]
        # A sequence is taken over once the one before is read and has left the output.
        held = Signal.like(items)
        first = Signal.like(slot)
        with m.If(self.take_over):
            m.d.sync += [
                place.eq(self.place),
                self.busy.eq(1),
                left.eq(self.written),
                final.eq(self.written == 1),
                down.eq(self.up),
                self.freed.eq(0),
                self.pending.eq(1),
                held.eq(self.count),
                first.eq(self.fill),
            ]
        with m.If(self.pending & ~active):
            m.d.sync += [
                self.pending.eq(0),
                items.eq(held),
                active.eq(1),
                last.eq(held == 1),
                slot.eq(first),
            ]


def _beside(place: Value, up: Value, words: int) -> Value:
    """The next word's place in a direction, in a ring of `words`."""
    above = Mux(place == words - 1, 0, place + 1)
    below = Mux(place == 0, words - 1, place - 1)
    return Mux(up, above, below)
