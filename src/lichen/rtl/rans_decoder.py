"""rANS decoder: words and table numbers in, symbols out (docs/stream.md 3.3).

The states of up to DEPTH lanes go round in one pipeline, as in rans_push:

    1  take a word if the state fell below 2**16; address of the row that holds the slot
    2  memory                                                              array
    3                                                                      output register
    4  compare the slot with the row's keys
    5  choose start and frequency, commit                                  DSP, A and B registers
    6  frequency * (x >> precision)                                        DSP, M register
    0  ... + slot - start                                                  DSP, P register

A pass commits only in turn: every earlier symbol has committed, and there is room for the symbol
and a word for the state. Otherwise the state goes round unchanged and the lane tries again; a row
that is an inner node leaves the address of the next row.

A substream that no encoder made ends in a status other than OK. Its remaining symbols are then 0,
its remaining words are dropped, and the next substream is decoded as if nothing had happened: a
picture always gets all of its symbols.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lichen.entropy.rans import MAX_ESCAPE_GROUPS
from lichen.entropy.tables import ESCAPE_GROUP_BITS, MAX_SYMBOL, MIN_SYMBOL
from lichen.rtl.lanes import Slice
from lichen.rtl.leaf import LUT_RAM, Home, LoadBus, Memory, fill
from lichen.rtl.rans_tables import BASE_BITS, LENGTH_BITS, SHIFT_STEPS, WAYS, DecoderShape
from lichen.rtl.stripe_buffer import sequence

DEPTH = 6
SYMBOL_BITS = 16
GROUP_BITS = ESCAPE_GROUP_BITS - 1
VALUE_BITS = GROUP_BITS * MAX_ESCAPE_GROUPS


class Status(enum.Enum, shape=3):
    """How a substream ended. Only OK: it is the one that encoding its symbols gives."""

    OK = 0
    SHORT = 1  # words are missing
    STATE = 2  # an initial state is below 2**16, or a final state is not 2**16
    ESCAPE = 3  # an escaped symbol is longer than it must be, or has more than six groups
    SYMBOL = 4  # a symbol is out of range
    LONG = 5  # words are left, or half a word


def word_layout(bits: int) -> data.StructLayout:
    """Lay a word out. A beat with `end` closes the substream and holds no word; bad: damaged."""
    return data.StructLayout({"word": bits, "end": 1, "bad": 1})


def index_layout(tables: int) -> data.StructLayout:
    """Lay out the table number of a symbol; `last`: the substream's last symbol."""
    return data.StructLayout({"table": range(max(2, tables)), "last": 1})


class RansDecoder(wiring.Component):
    """Decode substreams as `entropy.decode` does.

    indices: a table number for each symbol. words: those of the substream, then a beat with `end`.
    symbols: signed 16 bits. statuses: one Status per substream, after its last symbol. low, high:
    least and greatest symbol allowed. descriptors, rows: the numbers of the memories on the load
    bus; rans_tables.decoder_contents gives what to load.

    Throughput: lanes / 6 symbols per cycle for rows that are leaves; a symbol whose rows are
    deeper, or that is escaped, 6 cycles per further row or group. 12 cycles per lane and 30 per
    substream more. Latency: 16 cycles per lane, then 10.
    """

    QUEUE = 16

    def __init__(
        self,
        shape: DecoderShape,
        lanes: int,
        bus: LoadBus,
        descriptors: int,
        rows: int,
        *,
        low: int = MIN_SYMBOL,
        high: int = MAX_SYMBOL,
        home: Home | None = None,
    ) -> None:
        if not 1 <= lanes <= DEPTH:
            raise ValueError(f"the ring has 1..{DEPTH} lanes, not {lanes}")
        self.shape, self.lanes, self.bus, self.home = shape, lanes, bus, home
        self.numbers, self.low, self.high = (descriptors, rows), low, high
        self.job = data.StructLayout(
            {"base": shape.row_address_bits, "shift": 2, "length": LENGTH_BITS, "last": 1}
        )
        super().__init__(
            {
                "indices": In(stream.Signature(index_layout(shape.tables))),
                "words": In(stream.Signature(word_layout(shape.coder.word_bits))),
                "symbols": Out(sequence(SYMBOL_BITS)),
                "statuses": Out(stream.Signature(Status)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._signals()
        self._words(m)
        self._describe(m)
        self._assign(m)
        self._renormalise(m)
        self._search(m)
        self._commit(m)
        self._escape(m)
        self._give(m)
        self._control(m)
        return m

    def _signals(self) -> None:
        lanes = range(max(2, self.lanes))
        self.slots = [Signal(range(DEPTH), init=-k % DEPTH, name=f"slot{k}") for k in range(DEPTH)]
        self.running = Signal()  # a register: whether the state is "run"
        self.checking, self.concealing = Signal(), Signal()
        self.turn = Signal(lanes)  # the lane whose symbol is the next to commit
        self.jobs = Array(Signal(self.job, name=f"job{i}") for i in range(self.lanes))
        self.has_job = Signal(self.lanes)
        self.finish_job = Signal()  # the lane whose turn it is gave its symbol
        self.escaping = Signal()
        self.room = Signal()  # for a symbol behind the ring
        self.out_of_range = Signal()  # the symbol that is given is

    def _words(self, m: Module) -> None:
        """Queue words; know whether every lane can have one, or the end is in sight."""
        layout = word_layout(self.shape.coder.word_bits)
        m.submodules.words = fifo = SyncFIFOBuffered(width=layout.size, depth=self.QUEUE)
        # What takes words is known late in a cycle: a register lies between it and the queue.
        m.submodules.head = head = Slice(layout.size)
        self.head, self.head_valid = data.View(layout, head.output.payload), head.output.valid
        self.pop, self.drain = Signal(), Signal()
        ends, enough = Signal(range(self.QUEUE + 3)), Signal()
        put_end = fifo.w_en & fifo.w_rdy & self.words.p.end
        take_end = self.drain & self.head.end  # nothing else takes an end
        m.d.comb += [
            fifo.w_data.eq(self.words.payload),
            fifo.w_en.eq(self.words.valid),
            self.words.ready.eq(fifo.w_rdy),
            head.input.payload.eq(fifo.r_data),
            head.input.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(head.input.ready),
            head.output.ready.eq(self.pop),
        ]
        # A pass that commits has a word three cycles later: at most one pass of each lane has
        # committed and not yet renormalised. Words beside the queue are not counted.
        m.d.sync += [
            ends.eq(ends + put_end - take_end),
            enough.eq((fifo.level > self.lanes) | (ends != 0)),
        ]
        self.enough = enough

    def _describe(self, m: Module) -> None:
        """Look up the tables of the coming symbols and queue them."""
        shape = self.shape
        memory = Memory(shape.descriptor_bits, shape.tables, home=LUT_RAM, latency=2)
        m.submodules.descriptors = memory.instance()
        fill(m, self.bus, self.numbers[0], memory, "descriptors")
        m.submodules.coming = self.coming = coming = SyncFIFOBuffered(
            width=self.job.size, depth=self.QUEUE
        )
        valid, last, room = Signal(2), Signal(2), Signal()
        m.d.sync += [
            valid.eq(Cat(self.indices.valid & self.indices.ready, valid[0])),
            last.eq(Cat(self.indices.p.last, last[0])),
            room.eq(coming.level < self.QUEUE - 5),
        ]
        m.d.comb += [
            self.indices.ready.eq(room),
            memory.read_enable.eq(1),
            memory.read_address.eq(self.indices.p.table),
            coming.w_data.eq(Cat(memory.read_data, last[1])),
            coming.w_en.eq(valid[1]),
        ]

    def _assign(self, m: Module) -> None:
        """Give each lane its symbol, in turn, up to the last one of the substream."""
        lane, complete = Signal.like(self.turn), Signal()
        self.complete = complete
        job = data.View(self.job, self.coming.r_data)
        m.d.comb += self.coming.r_en.eq(
            self.coming.r_rdy & ~self.has_job.bit_select(lane, 1) & ~complete
        )
        with m.If(self.coming.r_en):
            m.d.sync += [
                self.jobs[lane].eq(job),
                self.has_job.bit_select(lane, 1).eq(1),
                lane.eq(Mux(job.last | (lane == self.lanes - 1), 0, lane + 1)),
                complete.eq(job.last),
            ]
        with m.If(self.finish_job):
            m.d.sync += [
                self.has_job.bit_select(self.turn, 1).eq(0),
                self.turn.eq(Mux(self.jobs[self.turn].last, 0, _next(self.turn, self.lanes))),
            ]

    def _renormalise(self, m: Module) -> None:
        """Stage 1. The pass of stage 1 is that of the lane in slots[0]."""
        c = self.shape.coder
        word, precision = c.word_bits, c.precision
        m.d.sync += self.slots[0].eq(Mux(self.slots[0] == DEPTH - 1, 0, self.slots[0] + 1))
        for before, after in zip(self.slots, self.slots[1:]):
            m.d.sync += after.eq(before)
        # What the pass will do, one cycle before.
        coming = self.slots[-1]  # the lane that is at stage 1 in the next cycle
        job = self.jobs[coming]
        self.base0, self.shift0 = Signal(self.shape.row_address_bits), Signal(2)
        self.active0, self.insert0, self.live0 = Signal(), Signal(), Signal()
        self.loaded, self.loaded_valid = Signal(2 * word), Signal()
        self.loaded_lane = Signal(range(DEPTH))
        ours = coming < self.lanes
        m.d.sync += [
            self.base0.eq(job.base),
            self.shift0.eq(job.shift),
            self.active0.eq(ours & self.has_job.bit_select(coming, 1) & self.running),
            self.insert0.eq(self.loaded_valid & (self.loaded_lane == coming)),
            self.live0.eq(ours & (self.running | self.checking)),
        ]
        self.state0 = Signal(2 * word)
        self.short = Signal()
        low = self.state0[word:] == 0
        self.take = Signal()
        x, slot = Signal(2 * word), Signal(precision)
        m.d.comb += [
            self.take.eq(low & self.live0 & self.head_valid & ~self.head.end),
            self.short.eq(low & self.live0 & self.head_valid & self.head.end),
            x[:word].eq(
                Mux(self.insert0, self.loaded[:word], Mux(self.take, self.head.word, self.state0))
            ),
            x[word:].eq(
                Mux(
                    self.insert0,
                    self.loaded[word:],
                    Mux(self.take, self.state0[:word], self.state0[word:]),
                )
            ),
            slot.eq(x),
        ]
        choices = [slot >> precision - step for step in SHIFT_STEPS]
        self.address0 = self.base0 | Array(choices)[self.shift0]
        self.x1, self.active1, self.live1 = Signal(2 * word), Signal(), Signal()
        m.d.sync += [
            self.x1.eq(x),
            self.active1.eq(self.active0),
            self.live1.eq(self.live0),
        ]

    def _search(self, m: Module) -> None:
        """Stages 2 to 4: read a row and compare the slot with its keys."""
        shape = self.shape
        precision = shape.coder.precision
        memory = Memory(shape.row_bits, shape.rows, home=self.home, latency=2)
        m.submodules.rows = memory.instance()
        fill(m, self.bus, self.numbers[1], memory, "rows")
        m.d.comb += [memory.read_enable.eq(1), memory.read_address.eq(self.address0)]
        row = data.View(
            data.StructLayout(
                {
                    "keys": data.ArrayLayout(precision, WAYS + 1),
                    "leaf": 1,
                    "escape": 1,
                    "base": BASE_BITS,
                }
            ),
            memory.read_data,
        )
        x2, self.x3 = Signal.like(self.x1), Signal.like(self.x1)
        active2, self.active3 = Signal(), Signal()
        slot2 = x2[:precision]
        # One of these is set: the last interval whose first slot is not above ours.
        at_least = Signal(WAYS)
        self.chosen3 = Signal(WAYS)
        self.starts3 = [Signal(precision, name=f"start3_{i}") for i in range(WAYS)]
        self.sizes3 = [Signal(precision, name=f"size3_{i}") for i in range(WAYS)]
        self.leaf3, self.escape3, self.base3 = Signal(), Signal(), Signal(BASE_BITS)
        m.d.comb += at_least.eq(Cat(1, *(slot2 >= row.keys[i] for i in range(1, WAYS))))
        m.d.sync += [
            x2.eq(self.x1),
            active2.eq(self.active1),
            self.x3.eq(x2),
            self.active3.eq(active2),
            self.chosen3.eq(at_least & ~(at_least >> 1)),
            self.leaf3.eq(row.leaf),
            self.escape3.eq(row.escape),
            self.base3.eq(row.base),
        ]
        for i in range(WAYS):
            m.d.sync += [
                self.starts3[i].eq(row.keys[i]),
                self.sizes3[i].eq(row.keys[i + 1] - row.keys[i]),
            ]

    def _commit(self, m: Module) -> None:
        """Stages 5, 6 and 0: pop the interval from the state if it is this symbol's turn."""
        c = self.shape.coder
        precision = c.precision
        lane = self.slots[3]
        slot = self.x3[:precision]
        self.group = slot[precision - ESCAPE_GROUP_BITS :]
        mine = self.active3 & self.running & (lane == self.turn)
        ready = mine & self.room & self.enough
        self.commit_entry, self.commit_group = Signal(), Signal()
        self.is_escape = self.escape3 & self.chosen3[WAYS - 1]
        commit = self.commit_entry | self.commit_group
        m.d.comb += [
            self.commit_entry.eq(ready & ~self.escaping & self.leaf3),
            self.commit_group.eq(ready & self.escaping),
        ]
        start, size = Signal(precision), Signal(precision)
        m.d.comb += [
            start.eq(_selected(self.chosen3, self.starts3)),
            size.eq(_selected(self.chosen3, self.sizes3)),
        ]
        x4_high, frequency4 = Signal(c.quotient_bits), Signal(precision + 1)
        slot4, start4 = Signal(precision), Signal(precision)
        uniform = precision - ESCAPE_GROUP_BITS
        m.d.sync += [
            x4_high.eq(self.x3 >> precision),
            slot4.eq(slot),
            frequency4.eq(Mux(~commit, 1 << precision, Mux(self.escaping, 1 << uniform, size))),
            start4.eq(Mux(~commit, 0, Mux(self.escaping, self.group << uniform, start))),
        ]
        product5 = Signal(2 * c.word_bits + 1)
        offset5 = Signal(precision)
        m.d.sync += [
            product5.eq(x4_high * frequency4),
            offset5.eq(slot4 - start4),
            self.state0.eq(product5 + offset5),
        ]
        # An inner node: go on at one of its children, in turn or not.
        self.descend4, self.lane4 = Signal(), Signal(range(DEPTH))
        self.base4, self.number4 = Signal(BASE_BITS), Signal(range(WAYS))
        m.d.sync += [
            self.descend4.eq(self.active3 & ~self.leaf3 & ~self.escaping_lane(lane)),
            self.lane4.eq(lane),
            self.base4.eq(self.base3),
            self.number4.eq(_selected(self.chosen3, [Const(i, 3) for i in range(WAYS)])),
        ]
        with m.If(self.descend4):
            m.d.sync += [
                self.jobs[self.lane4].base.eq(self.base4 + self.number4),
                self.jobs[self.lane4].shift.eq(0),
            ]

    def escaping_lane(self, lane: Value) -> Value:
        """Whether this lane is in the groups of an escape: what its row says is of no use then."""
        return self.escaping & (lane == self.turn)

    def _escape(self, m: Module) -> None:
        """Gather the groups of an escape."""
        number, value = Signal(range(MAX_ESCAPE_GROUPS)), Signal(VALUE_BITS)
        more = self.group[-1]
        gathered = value | (self.group[:GROUP_BITS] << (number * GROUP_BITS))[:VALUE_BITS]
        final = self.commit_group & ~more
        bad = Signal()
        m.d.comb += [
            bad.eq(
                self.commit_group
                & Mux(more, number == MAX_ESCAPE_GROUPS - 1, (number != 0) & (self.group == 0))
            ),
            self.finish_job.eq(
                (self.commit_entry & ~self.is_escape) | (final & ~bad) | self.conceal_one(m)
            ),
        ]
        self.bad_escape = bad
        self.value4 = Signal(VALUE_BITS)
        m.d.sync += self.value4.eq(gathered)
        with m.If(self.commit_entry):
            m.d.sync += [self.escaping.eq(self.is_escape), number.eq(0), value.eq(0)]
        with m.If(self.commit_group):
            m.d.sync += [self.escaping.eq(more), number.eq(number + 1), value.eq(gathered)]
        with m.If(self.concealing):
            m.d.sync += self.escaping.eq(0)

    def conceal_one(self, m: Module) -> Signal:
        """A 0 in the place of a symbol of a damaged substream."""
        self.conceal = Signal()
        m.d.comb += self.conceal.eq(
            self.concealing & self.room & self.has_job.bit_select(self.turn, 1)
        )
        return self.conceal

    def _give(self, m: Module) -> None:
        """Compute symbols, three stages, and queue them."""
        bits = SYMBOL_BITS + 3
        m.submodules.symbols = queue = SyncFIFOBuffered(width=SYMBOL_BITS + 1, depth=self.QUEUE)
        job = self.jobs[self.turn]
        valid, last = Signal(3), Signal(3)
        escaped4, zero4, length4 = Signal(), Signal(), Signal(LENGTH_BITS)
        base4 = self.base4.as_signed()
        high = Signal(signed(bits))  # the symbol that the escape entry would be
        entry4 = Signal()
        near5, distance5, zero5 = Signal(signed(bits)), Signal(signed(bits)), Signal()
        symbol6, zero6 = Signal(signed(bits)), Signal()
        below, distance = self.value4[0], self.value4[1:]
        m.d.sync += [
            self.room.eq(queue.level < self.QUEUE - 6),
            valid.eq(Cat(self.finish_job, valid[:2])),
            last.eq(Cat(job.last, last[:2])),
            escaped4.eq(self.escaping),
            zero4.eq(self.conceal),
            length4.eq(job.length),
            entry4.eq(self.commit_entry),
            # The symbol of the entry, or the one nearest to an escape's.
            near5.eq(Mux(escaped4, high - Mux(below, length4, 0), base4 + self.number4)),
            distance5.eq(Mux(escaped4, Mux(below, -distance, distance), 0)),
            zero5.eq(zero4),
            symbol6.eq(near5 + distance5),
            zero6.eq(zero5),
        ]
        with m.If(entry4):
            m.d.sync += high.eq(base4 + self.number4)
        bad = (symbol6 < self.low) | (symbol6 > self.high)
        m.d.comb += [
            self.out_of_range.eq(valid[2] & ~zero6 & bad),
            queue.w_data.eq(Cat(Mux(zero6 | bad, 0, symbol6)[:SYMBOL_BITS], last[2])),
            queue.w_en.eq(valid[2]),
            self.symbols.payload.eq(queue.r_data),
            self.symbols.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.symbols.ready),
        ]

    def _control(self, m: Module) -> None:
        """Load states, run, check final states, drop what is left, report; on an error conceal."""
        c = self.shape.coder
        status = Signal(Status)
        half = Signal()
        count = Signal(range(2 * DEPTH))
        final = Signal()  # the last symbol of the substream is done
        damage = Signal()
        load_pop = Signal()
        m.d.comb += [
            final.eq(self.finish_job & self.jobs[self.turn].last),
            self.pop.eq(self.take | load_pop | self.drain),
            self.statuses.payload.eq(status),
        ]

        def fail(reason: Status) -> None:
            m.d.comb += damage.eq(1)
            with m.If(status == Status.OK):
                m.d.sync += status.eq(reason)

        with m.FSM():
            with m.State("load"):
                low_half = self.loaded[: c.word_bits]
                high_half = self.loaded[c.word_bits :]
                m.d.comb += load_pop.eq(self.head_valid & ~self.head.end & ~self.loaded_valid)
                with m.If(load_pop):
                    m.d.sync += half.eq(~half)
                    with m.If(half):
                        m.d.sync += [high_half.eq(self.head.word), self.loaded_valid.eq(1)]
                        with m.If(self.head.word == 0):
                            fail(Status.STATE)
                    with m.Else():
                        m.d.sync += low_half.eq(self.head.word)
                with m.Elif(self.head_valid & self.head.end & ~self.loaded_valid):
                    fail(Status.SHORT)
                with m.If(self.loaded_valid & (self.loaded_lane == self.slots[-1])):
                    m.d.sync += [
                        self.loaded_valid.eq(0),
                        self.loaded_lane.eq(self.loaded_lane + 1),
                    ]
                    with m.If(self.loaded_lane == self.lanes - 1):
                        m.d.sync += self.running.eq(1)
                        m.next = "run"
                with m.If(damage):
                    m.d.sync += [self.loaded_valid.eq(0), self.running.eq(0)]
                    m.next = "conceal"
            with m.State("run"):
                with m.If(self.out_of_range):
                    fail(Status.SYMBOL)
                with m.If(self.bad_escape):
                    fail(Status.ESCAPE)
                with m.If(self.short):
                    fail(Status.SHORT)
                m.d.sync += count.eq(0)
                with m.If(final):
                    m.d.sync += self.running.eq(0)
                    m.next = "check"
                with m.Elif(damage):
                    m.d.sync += self.running.eq(0)
                    m.next = "conceal"
            with m.State("check"):
                # Three cycles to the last word, then each lane's state passes by once.
                m.d.comb += self.checking.eq(1)
                m.d.sync += count.eq(count + 1)
                with m.If(self.out_of_range):
                    fail(Status.SYMBOL)
                with m.If(self.short):
                    fail(Status.SHORT)
                wrong = (self.slots[1] < self.lanes) & (self.x1 != 1 << c.word_bits)
                with m.If((count >= 3) & wrong):
                    fail(Status.STATE)
                with m.If(count == 3 + DEPTH - 1):
                    m.next = "drop"
            with m.State("conceal"):
                m.d.comb += self.concealing.eq(1)
                with m.If(final):
                    m.next = "drop"
            with m.State("drop"):
                m.d.comb += self.drain.eq(self.head_valid)
                with m.If(self.head_valid):
                    with m.If(self.head.end):
                        m.next = "report"
                        with m.If(self.head.bad):
                            fail(Status.LONG)
                    with m.Else():
                        fail(Status.LONG)
            with m.State("report"):
                m.d.comb += self.statuses.valid.eq(1)
                with m.If(self.statuses.ready):
                    m.d.sync += [
                        status.eq(Status.OK),
                        self.complete.eq(0),
                        self.loaded_lane.eq(0),
                        half.eq(0),
                    ]
                    m.next = "load"


def _selected(one_hot: Value, values: list[Signal] | list[Const]) -> Value:
    """The value whose bit is set."""
    total: Value = Const(0, len(values[0]))
    for i, value in enumerate(values):
        total = total | Mux(one_hot[i], value, 0)
    return total


def _next(lane: Signal, lanes: int) -> Value:
    return Mux(lane == lanes - 1, 0, lane + 1)
