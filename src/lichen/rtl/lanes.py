"""Lanes: how many values of a tensor one beat carries, and the change of that number.

A stream of a tensor is its values in raster order of positions, the channels of a position next to
each other; a beat holds `lanes` values that follow each other, the first one in the lowest bits.
"""

from __future__ import annotations

from math import lcm
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


def beat(bits: int) -> stream.Signature:
    """Give the signature of a stream whose beats have this many bits."""
    return stream.Signature(bits)


class Widen(wiring.Component):
    """Gather `factor` beats of `bits` into one.

    Throughput: one input beat per cycle. Latency: one cycle after the last of the `factor` beats.
    """

    def __init__(self, bits: int, factor: int) -> None:
        self.bits, self.factor = bits, factor
        super().__init__({"input": In(beat(bits)), "output": Out(beat(bits * factor))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(self.bits * self.factor)
        count = Signal(range(self.factor + 1))
        full = count == self.factor
        m.d.comb += [
            self.output.payload.eq(word),
            self.output.valid.eq(full),
            self.input.ready.eq(~full | self.output.ready),
        ]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += [
                word.eq(Cat(word, self.input.payload)[self.bits :]),
                count.eq(count + 1),
            ]
            with m.If(full):
                m.d.sync += count.eq(1)
        with m.Elif(full & self.output.ready):
            m.d.sync += count.eq(0)
        return m


class Narrow(wiring.Component):
    """Split each beat into `factor` beats of `bits`, the lowest first.

    Throughput: one output beat per cycle. Latency: one cycle.
    """

    def __init__(self, bits: int, factor: int) -> None:
        self.bits, self.factor = bits, factor
        super().__init__({"input": In(beat(bits * factor)), "output": Out(beat(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(self.bits * self.factor)
        left = Signal(range(self.factor + 1))
        m.d.comb += [
            self.output.payload.eq(word[: self.bits]),
            self.output.valid.eq(left != 0),
            self.input.ready.eq((left == 0) | ((left == 1) & self.output.ready)),
        ]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += [word.eq(self.input.payload), left.eq(self.factor)]
        with m.Elif(self.output.valid & self.output.ready):
            m.d.sync += [word.eq(word >> self.bits), left.eq(left - 1)]
        return m


class Relane(wiring.Component):
    """Change the lanes of a stream: straight where one number divides the other, else through both.

    Throughput: min(lanes_in, lanes_out) values per cycle. Latency: 0 (equal lanes), 1, or 2 cycles
    after the last value of a beat; where neither divides the other, of lcm(lanes_in, lanes_out)
    values.
    """

    def __init__(self, bits: int, lanes_in: int, lanes_out: int) -> None:
        self.bits, self.lanes_in, self.lanes_out = bits, lanes_in, lanes_out
        super().__init__(
            {"input": In(beat(bits * lanes_in)), "output": Out(beat(bits * lanes_out))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes_in, lanes_out = self.lanes_in, self.lanes_out
        source = self.input
        if lanes_out % lanes_in and lanes_in % lanes_out:
            both = lcm(lanes_in, lanes_out)
            m.submodules.gather = gather = Widen(self.bits * lanes_in, both // lanes_in)
            connect(m, source, gather.input)
            source, lanes_in = gather.output, both
        if lanes_out > lanes_in:
            m.submodules.widen = widen = Widen(self.bits * lanes_in, lanes_out // lanes_in)
            connect(m, source, widen.input)
            source = widen.output
        elif lanes_in > lanes_out:
            m.submodules.narrow = narrow = Narrow(self.bits * lanes_out, lanes_in // lanes_out)
            connect(m, source, narrow.input)
            source = narrow.output
        connect(m, source, self.output)
        return m


class Skid(wiring.Component):
    """Cut the way of `ready` through a chain of streams: it comes from a register.

    The beat that comes while the output waits is held. Throughput: one beat per cycle. Latency: 0
    cycles.
    """

    def __init__(self, bits: int) -> None:
        super().__init__({"input": In(beat(bits)), "output": Out(beat(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held, full = Signal.like(self.input.payload), Signal()
        m.d.comb += [
            self.input.ready.eq(~full),
            self.output.valid.eq(full | self.input.valid),
            self.output.payload.eq(Mux(full, held, self.input.payload)),
        ]
        m.d.sync += full.eq((full | self.input.valid) & ~self.output.ready)
        with m.If(~full):
            m.d.sync += held.eq(self.input.payload)
        return m


class Slice(wiring.Component):
    """Cut a stream in both ways: valid, payload and ready all come from registers.

    Throughput: one beat per cycle. Latency: one cycle.
    """

    def __init__(self, bits: int) -> None:
        super().__init__({"input": In(beat(bits)), "output": Out(beat(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held, full = Signal.like(self.input.payload), Signal()
        payload, valid = Signal.like(self.input.payload), Signal()
        m.d.comb += [
            self.input.ready.eq(~full),
            self.output.valid.eq(valid),
            self.output.payload.eq(payload),
        ]
        with m.If(~full):
            m.d.sync += held.eq(self.input.payload)
        with m.If(~valid | self.output.ready):
            m.d.sync += [
                valid.eq(full | self.input.valid),
                payload.eq(Mux(full, held, self.input.payload)),
                full.eq(0),
            ]
        with m.Elif(self.input.valid):
            m.d.sync += full.eq(1)
        return m


def sliced(m: Module, name: str, source: Any, sink: Any) -> None:
    """Join two ends of streams of the same payload by a Slice called `name`."""
    m.submodules[name] = cut = Slice(Value.cast(source.payload).shape().width)
    m.d.comb += [
        cut.input.payload.eq(source.payload),
        cut.input.valid.eq(source.valid),
        source.ready.eq(cut.input.ready),
        Value.cast(sink.payload).eq(cut.output.payload),
        sink.valid.eq(cut.output.valid),
        cut.output.ready.eq(sink.ready),
    ]


def connect(m: Module, source: object, sink: object) -> None:
    """Join two ends of streams, whichever way their ports face."""
    m.d.comb += [
        sink.payload.eq(source.payload),  # type: ignore[attr-defined]
        sink.valid.eq(source.valid),  # type: ignore[attr-defined]
        source.ready.eq(sink.ready),  # type: ignore[attr-defined]
    ]
