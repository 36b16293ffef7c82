"""Element: what operations that work value by value have in common, their pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.program.arithmetic import DTYPE_RANGE
from lichen.program.ops import DType
from lichen.rtl.lanes import Skid, beat, connect
from lichen.rtl.layer import BITS


class Element(wiring.Component):
    """A pipeline of `latency` registers that takes a beat of every input at once.

    A subclass gives `lane`, the value of one lane, with exactly `latency` registers made by
    `register` on every way from an input.

    Throughput: one beat per cycle. Latency: `latency` cycles. All registers stop while the output
    waits; `ready` is a register's.
    """

    latency: int

    def __init__(
        self,
        inputs: Mapping[str, DType],
        output: DType,
        lanes: int,
        settings: Mapping[str, wiring.Member] | None = None,
    ) -> None:
        self.inputs, self.dtype, self.lanes = dict(inputs), output, lanes
        ports = {name: In(beat(BITS[dtype] * lanes)) for name, dtype in inputs.items()}
        outputs = {"output": Out(beat(BITS[output] * lanes))}
        super().__init__({**ports, **outputs, **(settings or {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self.module = m
        self.advance, self.taken = Signal(), Signal()
        skids = {name: Skid(BITS[dtype] * self.lanes) for name, dtype in self.inputs.items()}
        for name, skid in skids.items():
            m.submodules[f"skid_{name}"] = skid
            connect(m, getattr(self, name), skid.input)
        sources = [skid.output for skid in skids.values()]
        valid = Signal(self.latency)
        m.d.comb += [
            self.advance.eq(~valid[-1] | self.output.ready),
            self.taken.eq(self.advance & Cat(source.valid for source in sources).all()),
            self.output.valid.eq(valid[-1]),
        ]
        m.d.comb += [source.ready.eq(self.taken) for source in sources]
        with m.If(self.advance):
            m.d.sync += valid.eq(Cat(self.taken, valid))
        self.prepare()
        for lane in range(self.lanes):
            values = {}
            for name, dtype in self.inputs.items():
                value = skids[name].output.payload.word_select(lane, BITS[dtype])
                values[name] = value if dtype == "u8" else value.as_signed()
            result = self.lane(lane, **values)
            m.d.comb += self.output.payload.word_select(lane, BITS[self.dtype]).eq(result)
        return m

    def prepare(self) -> None:
        """Add what the lanes share."""

    def lane(self, number: int, **values: Value) -> Value:
        """Give the value of a lane from those of the inputs."""
        raise NotImplementedError

    def register(self, value: Value) -> Signal:
        """Hold a value for a cycle of the pipeline."""
        signal = Signal(value.shape(), name="held")
        with self.module.If(self.advance):
            self.module.d.sync += signal.eq(value)
        return signal


def round_shift(value: Value, shift: int) -> Value:
    """The one rounding: divide by 2**shift, half to even, shift a constant. One adder."""
    if shift == 0:
        return value
    odd = value[shift] if shift < len(value) else value[-1]
    return (value + ((1 << (shift - 1)) - 1) + odd) >> shift


def saturate(value: Value, dtype: DType) -> Value:
    """Clip to the range of `dtype`; the result has its bits."""
    low, high = DTYPE_RANGE[dtype]
    bits = BITS[dtype]
    if len(value) <= bits or not value.shape().signed:
        return Mux(value < low, low, Mux(value > high, high, value))[:bits]
    # It fits where the bits above are all the same: no comparison of long numbers.
    sign, above = value[-1], value[bits if low == 0 else bits - 1 :]
    fits = ~above.any() if low == 0 else ~above.any() | above.all()
    return Mux(fits, value[:bits], Mux(sign, low, high)[:bits])
