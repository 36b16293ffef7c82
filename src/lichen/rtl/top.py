"""Top: a core behind the buses of a board: AXI4-Stream, AXI4-Lite, and AXI4 to DRAM (ports.py).

    s_axis --[pixels or bytes]--> core --[bytes or pixels]--> m_axis
      `-- load stream --> core      |  `-- delays <-> m_axi_delayN
    s_axi <-> registers ------------'

The core is in a clock domain of its own, "sync": the same clock, but its reset is also that of
the register `control`. Registers outlive it, and so do transfers to DRAM that are on the way.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    Mux,
    ResetSignal,
    Signal,
    Value,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.container import ROW_LINES
from lichen.errors import ContractError
from lichen.program import ops
from lichen.rtl import registers
from lichen.rtl.axi import BytesFromAxi, BytesToAxi, Registers
from lichen.rtl.axi_pixels import PIXEL_BYTES, PixelsFromAxi, PixelsToAxi, Raster
from lichen.rtl.codec import Decoder, Encoder
from lichen.rtl.dram_fifo import PREFIX, DramFifo, packing, ring_words
from lichen.rtl.lanes import Skid, connect
from lichen.rtl.layer import BITS
from lichen.rtl.monitor import DecoderStatus, EncoderStatus, Monitor, place
from lichen.rtl.ports import MEMORY_BITS, STREAM_BYTES, core_pins
from lichen.rtl.skew import SPARE

Board = Literal["kv260", "zcu102"]


class Top(wiring.Component):
    """A core with the pins that `ports.core_pins` lists.

    core: folded for `board`, for pictures up to `width` x `height` and stripes up to `stripe` times
    64 lines. A picture begins with its first beat in, and is finished when its last beat is out and
    its last status is known; only then do the registers tell of it. Up to four are on the way.

    Throughput: that of the core, and a byte of the stream per cycle. Latency: 4 cycles more.
    """

    def __init__(
        self, core: Encoder | Decoder, board: Board, width: int, height: int, stripe: int
    ) -> None:
        self.core, self.board, self.stripe = core, board, stripe
        self.encodes = isinstance(core, Encoder)
        pixels = core.analysis if isinstance(core, Encoder) else core.synthesis
        self.reduction = pixels.reduction
        self.width, self.height = width, height
        if len(core.loops) > registers.DELAYS:
            raise ContractError(
                f"{len(core.loops)} delays do not fit the chip, and a core keeps at most "
                f"{registers.DELAYS} in DRAM: fold for a larger board or a smaller picture"
            )
        self.layout = layout(core)
        self.delays = [DramFifo(*shape) for shape in delay_shapes(core)]
        ways = {"in": In, "out": Out}
        pins = core_pins(len(self.delays))
        super().__init__({pin.name: ways[pin.flow](pin.bits) for pin in pins})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.bus = ClockDomain("bus")
        m.domains.sync = ClockDomain("sync")
        self.file = Registers(registers.REGISTERS)
        m.submodules.registers = DomainRenamer("bus")(self.file)
        m.submodules.core = self.core
        self.resetting = Signal(init=1)
        m.d.bus += self.resetting.eq(self.file.control[0])
        m.d.comb += [
            ClockSignal("bus").eq(self.aclk),
            ResetSignal("bus").eq(~self.aresetn),
            ClockSignal("sync").eq(self.aclk),
            ResetSignal("sync").eq(self.resetting),
        ]
        self._pass(m, self.file, "s_axi", "s_axi")
        self._settings(m)
        m.submodules.monitor = self.monitor = Monitor()
        m.d.comb += [
            self.monitor.input_valid.eq(self.s_axis_tvalid),
            self.monitor.input_ready.eq(self.s_axis_tready),
            self.monitor.output_valid.eq(self.m_axis_tvalid),
            self.monitor.output_ready.eq(self.m_axis_tready),
            self.monitor.output_last.eq(self.m_axis_tlast),
        ]
        if self.encodes:
            self._encoder(m)
        else:
            self._decoder(m)
        self._delays(m)
        self._report(m)
        return m

    def _pass(self, m: Module, unit: Any, prefix: str, its: str) -> None:
        """Join the pins with a prefix to the ports of a unit that has its own for them."""
        for pin in core_pins(len(self.delays)):
            if pin.name.startswith(f"{prefix}_"):
                mine = getattr(self, pin.name)
                theirs = getattr(unit, its + pin.name[len(prefix) :])
                m.d.comb += theirs.eq(mine) if pin.flow == "in" else mine.eq(theirs)

    def _settings(self, m: Module) -> None:
        """Give the core its sizes: in units of its coarsest grid, a power of two of pixels."""
        core, file = self.core, self.file
        shift = (self.reduction - 1).bit_length()
        per_row = (ROW_LINES // self.reduction - 1).bit_length()
        # Not in "sync": a core that leaves reset finds them there.
        m.d.bus += [
            core.width.eq(file.width),
            core.height.eq(file.height),
            core.unit_columns.eq((file.width + (self.reduction - 1)) >> shift),
            core.unit_rows.eq((file.height + (self.reduction - 1)) >> shift),
            core.stripe.eq(file.stripe << per_row),
            core.stripes.eq(file.stripes),
        ]

    def _input(self, m: Module, unit: Any) -> None:
        """Share the input stream out: to `unit`, to the load stream, or, in reset, to nobody."""
        loading = self.file.control[1]
        words = Signal()
        m.d.comb += [
            unit.s_axis_tdata.eq(self.s_axis_tdata),
            unit.s_axis_tkeep.eq(self.s_axis_tkeep),
            unit.s_axis_tvalid.eq(self.s_axis_tvalid & ~loading),
            self.s_axis_tready.eq(self.resetting | loading | unit.s_axis_tready),
            words.eq(self.s_axis_tvalid & loading & ~self.resetting),
            self.core.load.valid.eq(words | self.file.load.valid),
            self.core.load.payload.eq(Mux(loading, self.s_axis_tdata, self.file.load.payload)),
            self.file.load.ready.eq(~loading),
        ]
        with m.If(words | (self.file.load.valid & ~loading & ~self.resetting)):
            m.d.bus += self.file.loaded.eq(self.file.loaded + 1)

    def _encoder(self, m: Module) -> None:
        m.submodules.pixels = pixels = PixelsFromAxi(STREAM_BYTES)
        m.submodules.raster = raster = Raster()
        m.submodules.skid = skid = Skid(8 * PIXEL_BYTES)
        m.submodules.bytes = to_axi = BytesToAxi(STREAM_BYTES)
        m.submodules.status = status = EncoderStatus()
        core, monitor = self.core, self.monitor
        self._input(m, pixels)
        # A picture begins only where there is room to keep what is known of it.
        go = Signal()
        m.d.comb += [
            go.eq(~raster.first | monitor.room),
            skid.input.payload.eq(pixels.output.payload),
            skid.input.valid.eq(pixels.output.valid & go),
            pixels.output.ready.eq(skid.input.ready & go),
            raster.step.eq(skid.input.valid & skid.input.ready),
            raster.width.eq(self.file.width),
            raster.height.eq(self.file.height),
            monitor.begin.eq(raster.step & raster.first),
        ]
        connect(m, skid.output, core.pixels)
        connect(m, core.bytes, to_axi.input)
        connect(m, core.overflows, status.overflows)
        m.d.comb += [
            status.stripes.eq(self.file.stripes),
            status.taken.eq(monitor.finish),
            monitor.known.eq(status.known),
            monitor.status_in.eq(status.status),
            monitor.byte.eq(core.bytes.valid & core.bytes.ready),
            monitor.byte_last.eq(core.bytes.p.last),
        ]
        self._pass(m, to_axi, "m_axis", "m_axis")

    def _decoder(self, m: Module) -> None:
        m.submodules.bytes = from_axi = BytesFromAxi(STREAM_BYTES)
        m.submodules.skid = skid = Skid(8 * PIXEL_BYTES)
        m.submodules.pixels = to_axi = PixelsToAxi(STREAM_BYTES)
        m.submodules.status = status = DecoderStatus()
        core, monitor = self.core, self.monitor
        self._input(m, from_axi)
        m.d.comb += from_axi.s_axis_tlast.eq(self.s_axis_tlast)
        first, go, moved = Signal(init=1), Signal(), Signal()
        m.d.comb += [
            go.eq(~first | monitor.room),
            core.bytes.payload.eq(from_axi.output.payload),
            core.bytes.valid.eq(from_axi.output.valid & go),
            from_axi.output.ready.eq(core.bytes.ready & go),
            moved.eq(core.bytes.valid & core.bytes.ready),
            monitor.begin.eq(moved & first),
            monitor.byte.eq(moved),
            monitor.byte_last.eq(core.bytes.p.last),
        ]
        with m.If(moved):
            m.d.sync += first.eq(core.bytes.p.last)
        connect(m, core.pixels, skid.input)
        connect(m, skid.output, to_axi.input)
        for name in ("framings", "z_statuses", "y_statuses"):
            connect(m, getattr(core, name), getattr(status, name))
        m.d.comb += [
            to_axi.width.eq(self.file.width),
            to_axi.height.eq(self.file.height),
            status.stripes.eq(self.file.stripes),
            status.taken.eq(monitor.finish),
            monitor.known.eq(status.known),
            monitor.status_in.eq(status.status),
        ]
        self._pass(m, to_axi, "m_axis", "m_axis")

    def _delays(self, m: Module) -> None:
        """Join what leaves the core and comes back by rings in DRAM."""
        self.busy, self.memory_error = Signal(), Signal()
        for number, (delay, (out, back)) in enumerate(zip(self.delays, self.core.loops)):
            m.submodules[f"delay{number}"] = DomainRenamer("bus")(delay)
            connect(m, getattr(self.core, out), delay.input)
            connect(m, delay.output, getattr(self.core, back))
            self._pass(m, delay, f"m_axi_delay{number}", PREFIX)
            m.d.comb += [
                delay.base.eq(getattr(self.file, f"delay_{number}")),
                delay.clear.eq(self.resetting),
            ]
        if self.delays:
            m.d.comb += [
                self.busy.eq(_any(delay.busy for delay in self.delays)),
                self.memory_error.eq(_any(delay.error for delay in self.delays)),
            ]
        m.d.comb += self.monitor.memory_error.eq(self.memory_error)

    def _report(self, m: Module) -> None:
        """Give the registers what there is to read."""
        file, monitor = self.file, self.monitor
        constants = {
            "magic": registers.MAGIC,
            "version": registers.VERSION,
            "core": registers.CORES["encoder" if self.encodes else "decoder"],
            "board": registers.BOARDS[self.board],
            "layout": self.layout,
            "width_limit": self.width,
            "height_limit": self.height,
            "stripe_limit": self.stripe,
        }
        m.d.comb += [getattr(file, name).eq(value) for name, value in constants.items()]
        m.d.comb += [getattr(file, name).eq(getattr(monitor, name)) for name in Monitor.COUNTERS]
        state = {
            "input_valid": self.s_axis_tvalid,
            "input_ready": self.s_axis_tready,
            "output_valid": self.m_axis_tvalid,
            "output_ready": self.m_axis_tready,
            "begun": monitor.begun,
            "ended": monitor.ended,
            "busy": self.busy,
        }
        m.d.comb += place(registers.STATE, file.state, state)


def delay_shapes(core: Encoder | Decoder) -> list[tuple[int, int, int]]:
    """Give bits of a beat, beats of a word and words of each delay that is outside of a core."""
    network = (core.analysis if isinstance(core, Encoder) else core.synthesis).network
    lanes, shapes = core.plan.lanes, []
    for buffer in network.external:
        bits = BITS[buffer.tensor.dtype] * lanes
        pack = packing(bits, buffer.tensor.channels // lanes)
        beats = -(-(buffer.values + SPARE) // lanes)
        shapes.append((bits, pack, ring_words(beats, pack)))
    return shapes


def delay_bytes(core: Encoder | Decoder) -> tuple[int, ...]:
    """Give the bytes of DRAM that each delay's ring takes."""
    return tuple(words * MEMORY_BITS // 8 for _, _, words in delay_shapes(core))


def layout(core: Encoder | Decoder) -> int:
    """Give a hash of all that a core has of a model, and that `load` cannot change: 32 bits."""
    plan = core.plan
    stages = [
        (s.stage.name, type(s.stage.op).__name__, s.folding, s.stage.layer, constants(s.stage.op))
        for s in plan.stages
    ]
    streams = [(part.table_of_channel, part.channels, part.per_unit) for part in core.streams]
    parts = (type(core).__name__, plan.units, plan.lanes, stages, core.shapes, streams)
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def constants(op: ops.Op) -> tuple[object, ...]:
    """Give what hardware has of an operation as constants: weights and gains are loaded."""
    match op:
        case ops.Add():
            return op.shift_a, op.shift_b, op.shift, op.subtract, op.dtype
        case ops.Clamp():
            return op.low, op.high
        case ops.TableIndex():
            return tuple(op.thresholds.tolist())
        case ops.Scale():
            return op.shift, op.dtype, isinstance(op.multiplier, str)
        case _:
            return ()  # a convolution's are in its layer


def _any(values: Any) -> Value:
    result: Value | None = None
    for value in values:
        result = value if result is None else result | value
    assert result is not None
    return result
