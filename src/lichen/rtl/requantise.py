"""Requantise: sums of the array -> values of the output type, the one rounding of the contract."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl import layer as layers
from lichen.rtl.element import saturate
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.leaf import Home, LoadBus, Memory, fill
from lichen.rtl.window import pass_counter

LATENCY = 6


class Requantise(wiring.Component):
    """Take the sums of a tile from the array, add biases, shift, round half to even, saturate.

    head: `beat` sums; done: the array has a new tile; next: the present head is taken. A tile's
    sums come pixel by pixel, output channels innermost. The parameters of a channel, bias
    (32 bits) and shift (5), lie in a memory that the load bus fills, in the order of passes and
    tiles.

    Throughput: `beat` sums per cycle. Latency: 6 cycles from `head` to `value`.
    """

    def __init__(
        self,
        layer: Layer,
        folding: Folding,
        max_columns: int,
        bus: LoadBus,
        number: int,
        home: Home | None = None,
    ) -> None:
        self.layer, self.folding, self.bus, self.number = layer, folding, bus, number
        self.home = home
        super().__init__(
            {
                "columns": In(range(max_columns + 1)),
                "done": In(1),
                "head": In(layer.sum_bits * folding.beat),
                "next": Out(1),
                "valid": Out(1),
                "value": Out(BITS[layer.y] * folding.beat),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer, folding = self.layer, self.folding
        beats, count = folding.outputs // folding.beat, layers.tiles(layer, folding)
        memory = Memory(
            layers.PARAMETER_BITS * folding.beat,
            layer.outputs // folding.beat,
            home=self.home,
        )
        m.submodules.parameters = memory.instance()
        fill(m, self.bus, self.number, memory, "parameters")

        # Which sums are on `head`: beat `b` of pixel `pixel` of tile `tile`.
        b, pixel = Signal(range(max(2, beats))), Signal(range(max(2, folding.pixels)))
        tile, going = Signal(range(max(2, count))), Signal()
        at = Signal(range(layer.outputs // folding.beat))  # of the tile's first channel
        active, last_b, last_pixel, ends = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            active.eq(going | self.done),
            self.next.eq(active),
            last_b.eq(b == beats - 1),
            last_pixel.eq(pixel == folding.pixels - 1),
            ends.eq(active & last_b & last_pixel),
            memory.read_enable.eq(1),
            memory.read_address.eq(at + b),
        ]
        last_tile = tile == count - 1
        base = pass_counter(m, layer, folding, self.columns, ends & last_tile, count * beats)
        m.d.sync += going.eq(active & ~ends)
        with m.If(active):
            m.d.sync += b.eq(Mux(last_b, 0, b + 1))
            with m.If(last_b):
                m.d.sync += pixel.eq(Mux(last_pixel, 0, pixel + 1))
        with m.If(ends):
            m.d.sync += [tile.eq(Mux(last_tile, 0, tile + 1)), at.eq(at + beats)]
            with m.If(last_tile):
                m.d.sync += at.eq(base)

        valid = Signal(LATENCY)
        m.d.sync += valid.eq(Cat(active, valid))
        m.d.comb += self.valid.eq(valid[-1])
        for lane in range(folding.beat):
            total = self.head.word_select(lane, layer.sum_bits).as_signed()
            parameters = memory.read_data.word_select(lane, layers.PARAMETER_BITS)
            bias, shift = parameters[: layers.BIAS_BITS].as_signed(), parameters[layers.BIAS_BITS :]
            value = self._lane(m, lane, total, bias, shift)
            m.d.comb += self.value.word_select(lane, BITS[layer.y]).eq(value)
        return m

    def _lane(self, m: Module, lane: int, total: Value, bias: Value, shift: Value) -> Value:
        """One register per line: the sum waits for its parameters, then five steps."""
        bits = self.layer.sum_bits

        def register(value: Value, name: str, shape: object = None) -> Signal:
            signal = Signal(value.shape() if shape is None else shape, name=f"{name}_{lane}")
            m.d.sync += signal.eq(value)
            return signal

        word = signed(bits)
        late = register(total, "late", word)
        biased = register(late + bias, "biased", word)
        shifts = [register(shift, "shift_1")]
        # Just below a half, plus the quotient's lowest bit: half to even.
        odd = register(biased.bit_select(shifts[0], 1), "odd")
        half = register(Cat(*((shifts[0] > k + 1) for k in range(bits))), "half", bits)
        held = register(biased, "held", word)
        shifts.append(register(shifts[0], "shift_2"))
        nonzero = shifts[1] != 0
        rounded = register(held + half + (odd & nonzero), "rounded", word)
        shifts.append(register(shifts[1], "shift_3"))
        # The barrel shifter in two parts, the smaller one before the saturation.
        coarse = register(rounded >> (shifts[2] & 0b11100), "coarse", word)
        shifts.append(register(shifts[2], "shift_4"))
        fine = coarse >> shifts[3][:2]
        return register(saturate(fine, self.layer.y), "out")
