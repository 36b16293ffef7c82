"""Tile buffer: the outputs of a group, from the order of the array to the order of a stream."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl import layer as layers
from lichen.rtl.lanes import Slice, beat, connect
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.leaf import Home, Memory


class TileBuffer(wiring.Component):
    """Write tile by tile, pixel by pixel; read pixel by pixel, channel by channel.

    `layers.tile_slots` places, a group (in one pass) in each. `room`: a place is free; `start`
    takes it, as the group begins to be computed, so that nothing on the way has to wait. Positions
    of a group beyond the end of its row are dropped.

    columns: of the layer's input. Throughput: one beat per cycle in and out. Latency: three cycles
    after the group's last value.
    """

    def __init__(
        self, layer: Layer, folding: Folding, max_columns: int, home: Home | None = None
    ) -> None:
        self.layer, self.folding = layer, folding
        self.home = home
        self.bits = BITS[layer.y] * folding.beat
        super().__init__(
            {
                "columns": In(range(max_columns + 1)),
                "room": Out(1),
                "start": In(1),
                "valid": In(1),
                "value": In(self.bits),
                "output": Out(beat(self.bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer, folding = self.layer, self.folding
        tile_beats = folding.outputs // folding.beat
        pixel_beats = tile_beats * layers.tiles(layer, folding)  # of one position
        slots, slot_beats = layers.tile_slots(layer, folding), pixel_beats * folding.pixels
        memory = Memory(self.bits, slots * slot_beats, home=self.home)
        m.submodules.memory = memory.instance()

        free, full = Signal(range(slots + 1), init=slots), Signal(range(slots + 1))
        filled, released = Signal(), Signal()
        m.d.comb += self.room.eq(free != 0)
        m.d.sync += [free.eq(free - self.start + released), full.eq(full + filled - released)]

        # In: `first` is the place of the tile in its first pixel.
        b, pixel = Signal(range(max(2, tile_beats))), Signal(range(max(2, folding.pixels)))
        first, place = Signal(range(slots * slot_beats)), Signal(range(slots * slot_beats))
        following = Signal.like(place, init=slot_beats)  # where the next slot begins
        tile = Signal(range(max(2, layers.tiles(layer, folding))))
        last_b, last_pixel = b == tile_beats - 1, pixel == folding.pixels - 1
        m.d.comb += [
            memory.write_enable.eq(self.valid),
            memory.write_address.eq(place),
            memory.write_data.eq(self.value),
        ]
        with m.If(self.valid):
            m.d.sync += [b.eq(b + 1), place.eq(place + 1)]
            with m.If(last_b):
                m.d.sync += [b.eq(0), pixel.eq(pixel + 1)]
                m.d.sync += place.eq(place + (pixel_beats - tile_beats + 1))
                with m.If(last_pixel):
                    m.d.sync += [pixel.eq(0), tile.eq(tile + 1)]
                    m.d.sync += [place.eq(first + tile_beats), first.eq(first + tile_beats)]
                    with m.If(tile == layers.tiles(layer, folding) - 1):
                        m.d.sync += [tile.eq(0), place.eq(following), first.eq(following)]
                        m.d.sync += following.eq(_after(following, slots, slot_beats))
                        m.d.comb += filled.eq(1)

        # Out: beat `word` of a position.
        word = Signal(range(max(2, pixel_beats)))
        out_pixel = Signal(range(max(2, folding.pixels)))
        next_column = Signal(len(self.columns) + 1, init=layer.stride[1])
        at, valid = Signal.like(place), Signal()
        next_slot = Signal.like(place, init=slot_beats)
        advance, reading = Signal(), Signal()
        row_ends = next_column >= self.columns
        # Long logic hangs on `ready`: it is a register's.
        m.submodules.out = out = Slice(self.bits)
        connect(m, out.output, self.output)
        m.d.comb += [
            advance.eq(~valid | out.input.ready),
            reading.eq(advance & (full != 0)),
            memory.read_enable.eq(advance),
            memory.read_address.eq(at),
            out.input.payload.eq(memory.read_data),
            out.input.valid.eq(valid),
        ]
        with m.If(advance):
            m.d.sync += valid.eq(reading)
        with m.If(reading):
            m.d.sync += [word.eq(word + 1), at.eq(at + 1)]
            with m.If(word == pixel_beats - 1):
                m.d.sync += [word.eq(0), out_pixel.eq(out_pixel + 1)]
                m.d.sync += next_column.eq(next_column + layer.stride[1])
                with m.If(row_ends):
                    m.d.sync += next_column.eq(layer.stride[1])
                with m.If(row_ends | (out_pixel == folding.pixels - 1)):
                    m.d.sync += [out_pixel.eq(0), at.eq(next_slot)]
                    m.d.sync += next_slot.eq(_after(next_slot, slots, slot_beats))
                    m.d.comb += released.eq(1)
        return m


def _after(place: Signal, slots: int, beats: int) -> Value:
    """The slot behind the one that begins at `place`."""
    return Mux(place == (slots - 1) * beats, 0, place + beats)
