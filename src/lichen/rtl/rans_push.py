"""rANS push: the ring of the encoder's states. Steps in, words out (docs/stream.md 3.4).

A lane's next step needs the state that its last one left, and that takes DEPTH cycles: a product
for the quotient, a product for the remainder, and the choice between them. So the states of up to
DEPTH lanes go round in one pipeline, each in its own slot; a step waits for its lane's slot, and
words leave in the order of the steps.

    a state is (quotient, rest) = (x >> precision, low bits of x)

    1  choose the quotient and rest, renormalise (a word leaves), normalise the dividend
    2  dividend * reciprocal                                               DSP, M register
    3  estimate of the quotient, at most 1 too small (rans_tables)         DSP, P register
    4  estimate -> A, -f -> B
    5  estimate * -f                                                       DSP, M register
    6  x - f - estimate * f, whose sign says which quotient is right;      DSP, P register
       x + start - estimate * f, the rest if it is the estimate;           DSP, P register
       the same less f, the rest if it is the estimate plus 1              DSP, P register
       and whether the next step of this lane will renormalise, for either quotient
"""

from __future__ import annotations

import itertools

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lichen.rtl.rans_tables import Coder
from lichen.rtl.stripe_buffer import sequence

DEPTH = 6  # cycles round the ring, and so the most lanes


class Kind(enum.Enum, shape=2):
    """PUSH codes an interval. HIGH and LOW give the final state's halves; LOW then resets it."""

    PUSH = 0
    HIGH = 1
    LOW = 2


def step_layout(coder: Coder) -> data.StructLayout:
    """Lay a step out: `last` marks the last one of a substream, which is LOW of lane 0."""
    return data.StructLayout(
        {
            "start": coder.precision,
            "frequency": coder.precision,
            "reciprocal": coder.reciprocal_bits,
            "normalise": coder.normalise_bits,
            "lane": range(DEPTH),
            "kind": Kind,
            "last": 1,
        }
    )


class RansPush(wiring.Component):
    """Push steps into the states of `lanes` lanes; give the words in the order of emission.

    steps: a lane's frequency, reciprocal and normalise are an entry of rans_tables. words: `last`
    marks the last word of a substream, the low half of lane 0's state.

    Throughput: a step per DEPTH cycles and lane: `lanes` / 6 steps per cycle where neighbouring
    steps go down the lanes. Latency: 2 to 7 cycles to the word.
    """

    WORDS = 16  # of the queue behind the ring, which cannot wait

    def __init__(self, coder: Coder, lanes: int) -> None:
        if not 1 <= lanes <= DEPTH:
            raise ValueError(f"the ring has 1..{DEPTH} lanes, not {lanes}")
        self.coder, self.lanes = coder, lanes
        # The state that a lane begins with; the proofs put any state here.
        self.first: Value = Const(1 << coder.word_bits, 2 * coder.word_bits)
        super().__init__(
            {
                "steps": In(stream.Signature(step_layout(coder))),
                "words": Out(sequence(coder.word_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queue = self.queue = SyncFIFOBuffered(
            width=self.coder.word_bits + 1, depth=self.WORDS
        )
        m.d.comb += [
            self.words.payload.eq(self.queue.r_data),
            self.words.valid.eq(self.queue.r_rdy),
            self.queue.r_en.eq(self.words.ready),
        ]
        self._issue(m)
        self._choose(m)
        self._divide(m)
        self._multiply_back(m)
        return m

    def _issue(self, m: Module) -> None:
        """Take the step of the lane whose state is three cycles before the choice."""
        slot = Signal(range(DEPTH))
        # After a reset the ring is filled with first states.
        starting, self.start_up = Signal(range(DEPTH + 1), init=DEPTH), Signal(init=1)
        room = Signal()
        layout = step_layout(self.coder)
        self.step5, self.step6 = Signal(layout), Signal(layout)
        self.valid5, self.valid6 = Signal(), Signal()
        take = Signal()
        m.d.sync += [
            slot.eq(Mux(slot == 0, DEPTH - 1, slot - 1)),
            room.eq(self.queue.level < self.WORDS - 6),
            self.step5.eq(self.steps.payload),
            self.valid5.eq(take),
            self.step6.eq(self.step5),
            self.valid6.eq(self.valid5),
        ]
        m.d.comb += [
            self.steps.ready.eq((self.steps.p.lane == slot) & room & ~self.start_up),
            take.eq(self.steps.valid & self.steps.ready),
        ]
        with m.If(self.start_up):
            m.d.sync += [starting.eq(starting - 1), self.start_up.eq(starting != 0)]

    def _choose(self, m: Module) -> None:
        """Stage 1: from the candidates of the division to the next dividend."""
        c = self.coder
        word, precision = c.word_bits, c.precision
        state = 2 * word
        self.quotient6, self.above6 = Signal(c.quotient_bits), Signal(c.quotient_bits)
        self.full6, self.full_above6 = Signal(), Signal()  # the next step will give a word
        self.rest6, self.rest_less6 = Signal(precision), Signal(precision)
        self.remainder6 = Signal(signed(precision + 2))  # less f
        step, above = self.step6, self.remainder6 >= 0
        x, dividend, full = Signal(state), Signal(state), Signal()
        push = self.valid6 & (step.kind == Kind.PUSH)
        m.d.comb += [
            x[precision:].eq(Mux(above, self.above6, self.quotient6)),
            x[:precision].eq(Mux(above, self.rest_less6, self.rest6)),
            full.eq(Mux(above, self.full_above6, self.full6)),
            dividend.eq(Mux(full, x >> word, x)),
        ]
        # The word leaves behind a register.
        out, emit, last = Signal(word), Signal(), Signal()
        m.d.sync += [
            out.eq(Mux(step.kind == Kind.HIGH, x >> word, x)),
            emit.eq(self.valid6 & (full | (step.kind != Kind.PUSH))),
            last.eq(step.last),
        ]
        m.d.comb += [
            self.queue.w_data[:word].eq(out),
            self.queue.w_data[word].eq(last),
            self.queue.w_en.eq(emit),
        ]
        self.scaled1 = Signal(state - c.dropped_bits)
        self.reciprocal1 = Signal(c.reciprocal_bits)
        self.dividend1 = Signal(state)
        self.start1, self.frequency1 = Signal(precision), Signal(precision)
        self.hold1, self.reset1 = Signal(), Signal()
        m.d.sync += [
            self.scaled1.eq((dividend << step.normalise)[:state] >> c.dropped_bits),
            self.reciprocal1.eq(step.reciprocal),
            self.dividend1.eq(dividend),
            self.start1.eq(Mux(push, step.start, 0)),
            self.frequency1.eq(Mux(push, step.frequency, 0)),
            self.hold1.eq(~push),
            self.reset1.eq((self.valid6 & (step.kind == Kind.LOW)) | self.start_up),
        ]

    def _divide(self, m: Module) -> None:
        """Stages 2 to 4: estimate the quotient. Beside it, what stage 6 adds the product to."""
        c, precision = self.coder, self.coder.precision
        product2 = Signal(len(self.scaled1) + c.reciprocal_bits)
        product3 = Signal.like(product2)
        m.d.sync += [product2.eq(self.scaled1 * self.reciprocal1), product3.eq(product2)]
        frequency2, frequency3 = Signal(precision), Signal(precision)
        hold2, hold3 = Signal(), Signal()
        held2, held3 = Signal(c.quotient_bits), Signal(c.quotient_bits)
        m.d.sync += [
            frequency2.eq(self.frequency1),
            frequency3.eq(frequency2),
            hold2.eq(self.hold1),
            hold3.eq(hold2),
            held2.eq(Mux(self.reset1, self.first, self.dividend1) >> precision),
            held3.eq(held2),
        ]
        estimate = product3[2 * c.word_bits - c.dropped_bits :][: c.quotient_bits]
        self.estimate4, self.quotient4 = Signal(c.quotient_bits), Signal(c.quotient_bits)
        self.minus4 = Signal(signed(precision + 1))
        self.minus_low4 = Signal(precision)
        m.d.sync += [
            self.estimate4.eq(estimate),
            self.quotient4.eq(Mux(hold3, held3, estimate)),
            self.minus4.eq(-frequency3),
            self.minus_low4.eq(-frequency3),
        ]
        # Without a step: rest stays and the sign says that the quotient, the held one, is right.
        base = Signal(signed(precision + 2))
        m.d.comb += base.eq(self.dividend1[: precision + 2] - self.frequency1)
        rest = self.dividend1[:precision] + self.start1
        self.remainders = [
            Signal(signed(precision + 2), name=f"remainder{i}") for i in (2, 3, 4, 5)
        ]
        self.rests = [Signal(precision, name=f"rest{i}") for i in (2, 3, 4, 5)]
        self.rests_less = [Signal(precision, name=f"rest_less{i}") for i in (2, 3, 4, 5)]
        m.d.sync += [
            self.remainders[0].eq(Mux(self.hold1, -1, base)),
            self.rests[0].eq(Mux(self.reset1, self.first[:precision], rest)),
            self.rests_less[0].eq(rest - self.frequency1),
        ]
        for line in (self.remainders, self.rests, self.rests_less):
            for before, after in itertools.pairwise(line):
                m.d.sync += after.eq(before)

    def _multiply_back(self, m: Module) -> None:
        """Stages 5 and 6. Three products of other operands, for each has its own DSP to add in."""
        c, precision = self.coder, self.coder.precision
        bits = c.quotient_bits + precision + 1
        exact5 = Signal(signed(bits))
        low5, less5 = Signal(bits), Signal(bits)
        quotient5, above5 = Signal(c.quotient_bits), Signal(c.quotient_bits)
        m.d.sync += [
            exact5.eq(self.estimate4 * self.minus4),
            low5.eq(self.quotient4 * self.minus_low4),
            less5.eq(self.estimate4 * self.minus_low4),
            quotient5.eq(self.quotient4),
            above5.eq(self.quotient4 + 1),
            self.quotient6.eq(quotient5),
            self.above6.eq(above5),
            self.remainder6.eq(self.remainders[3] + exact5),
            self.rest6.eq(self.rests[3] + low5),
            self.rest_less6.eq(self.rests_less[3] + less5),
        ]
        # x >= f << quotient_bits, for both quotients: the top `precision` bits of x decide.
        top = 2 * (c.word_bits - precision)
        push = self.valid5 & (self.step5.kind == Kind.PUSH)
        m.d.sync += [
            self.full6.eq(push & ((quotient5 >> top) >= self.step5.frequency)),
            self.full_above6.eq(push & ((above5 >> top) >= self.step5.frequency)),
        ]
