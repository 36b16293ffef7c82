"""Monitor: what the registers tell of the pictures in a core: status, cycles, waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.chunks import STRIPE_BITS, Framing
from lichen.rtl.rans_decoder import Status
from lichen.rtl.registers import STATE, STATUS, register

AT_ONCE = 4  # pictures that may be in a core at the same time, a power of two
SLOT_BITS = (AT_ONCE - 1).bit_length()
INDEX_BITS = STATE["begun"][1]  # of the numbers of pictures, which go round
STATUS_BITS = register("status").bits
COUNTER_BITS = 32


def place(layout: Mapping[str, tuple[int, int]], target: Value, values: Mapping[str, Any]) -> Any:
    """Give the statements that set the fields of a value, as `registers.fields` splits them."""
    parts = layout.items()
    return [target[low : low + bits].eq(values.get(name, 0)) for name, (low, bits) in parts]


class EncoderStatus(wiring.Component):
    """Gather the status of a picture from those of its stripes.

    overflows: one bit per stripe. known: all of the picture's have come; status: then what the
    register shows. taken: goes on to the next picture. Takes a beat per cycle, while not `known`.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "overflows": In(stream.Signature(1)),
                "stripes": In(STRIPE_BITS),
                "known": Out(1),
                "status": Out(STATUS_BITS),
                "taken": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count, bad = Signal(STRIPE_BITS), Signal()
        m.d.comb += self.overflows.ready.eq(~self.known)
        m.d.comb += place(STATUS, self.status, {"overflow": bad})
        with m.If(self.overflows.valid & self.overflows.ready):
            m.d.sync += [
                bad.eq(bad | self.overflows.payload),
                count.eq(count + 1),
                self.known.eq(count + 1 == self.stripes),
            ]
        with m.If(self.taken):
            m.d.sync += [self.known.eq(0), count.eq(0), bad.eq(0)]
        return m


class _Gather(wiring.Component):
    """Keep the first status that is not 0 of each picture, for up to AT_ONCE pictures.

    statuses: `count` for a picture. known: those of the oldest picture have come; first: the first
    bad one of them. taken: goes on to the next picture.
    """

    def __init__(self, shape: Any) -> None:
        super().__init__(
            {
                "statuses": In(stream.Signature(shape)),
                "count": In(STRIPE_BITS),
                "known": Out(1),
                "first": Out(3),
                "taken": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        slots = Array(Signal(3, name=f"slot{k}") for k in range(AT_ONCE))
        come, gone = Signal(SLOT_BITS + 1), Signal(SLOT_BITS + 1)  # pictures, going round
        number = Signal(STRIPE_BITS)
        room = Signal()
        value = self.statuses.payload.as_value()
        at, old = come[:SLOT_BITS], gone[:SLOT_BITS]
        m.d.comb += [
            room.eq((come ^ gone) != AT_ONCE),
            self.statuses.ready.eq(room),
            self.known.eq(come != gone),
            self.first.eq(slots[old]),
        ]
        with m.If(self.statuses.valid & room):
            m.d.sync += number.eq(number + 1)
            with m.If((number == 0) | (slots[at] == 0)):
                m.d.sync += slots[at].eq(value)
            with m.If(number + 1 == self.count):
                m.d.sync += [number.eq(0), come.eq(come + 1)]
        with m.If(self.taken):
            m.d.sync += gone.eq(gone + 1)
        return m


class DecoderStatus(wiring.Component):
    """Gather the status of a picture from its framing and those of its substreams.

    framings: one per picture; z_statuses, y_statuses: one per stripe. They may run ahead of the
    oldest picture, by AT_ONCE pictures at most. known, status, taken: as in EncoderStatus.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "framings": In(stream.Signature(Framing)),
                "z_statuses": In(stream.Signature(Status)),
                "y_statuses": In(stream.Signature(Status)),
                "stripes": In(STRIPE_BITS),
                "known": Out(1),
                "status": Out(STATUS_BITS),
                "taken": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.framing = framing = _Gather(Framing)
        m.submodules.z = z = _Gather(Status)
        m.submodules.y = y = _Gather(Status)
        for part, ends in ((framing, self.framings), (z, self.z_statuses), (y, self.y_statuses)):
            m.d.comb += [
                part.statuses.payload.eq(ends.payload),
                part.statuses.valid.eq(ends.valid),
                ends.ready.eq(part.statuses.ready),
                part.count.eq(1 if part is framing else self.stripes),
                part.taken.eq(self.taken),
            ]
        m.d.comb += self.known.eq(framing.known & z.known & y.known)
        m.d.comb += place(
            STATUS, self.status, {"framing": framing.first, "z": z.first, "y": y.first}
        )
        return m


class Monitor(wiring.Component):
    """Follow pictures from their first beat in to their last one out.

    room: another picture may begin; begin: it does. known, status_in: of the oldest picture.
    finish: it is finished, and what is to be read is of it from the next cycle on. byte, byte_last:
    a byte of a stream goes out of (encoder) or into (decoder) the core, and a picture's last one.
    """

    COUNTERS = (
        "status", "pictures", "bad_pictures", "stream_bytes", "picture_cycles", "latency_cycles",
        "period_cycles", "input_waits", "input_starved", "output_waits", "output_starved",
    )  # fmt: skip

    def __init__(self) -> None:
        inputs = ("input_valid", "input_ready", "output_valid", "output_ready", "output_last",
                  "begin", "byte", "byte_last", "known", "memory_error")  # fmt: skip
        super().__init__(
            {name: In(1) for name in inputs}
            | {"status_in": In(STATUS_BITS)}
            | {"room": Out(1), "finish": Out(1), "begun": Out(INDEX_BITS), "ended": Out(INDEX_BITS)}
            | {name: Out(register(name).bits) for name in self.COUNTERS}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        now = Signal(COUNTER_BITS)
        began = Array(Signal(COUNTER_BITS, name=f"began{k}") for k in range(AT_ONCE))
        first_out, last_out, before = (Signal(COUNTER_BITS) for _ in range(3))
        leaving, out = Signal(), Signal()  # the oldest picture's first beat is out; its last one
        moved = self.output_valid & self.output_ready
        slot = self.ended[:SLOT_BITS]
        bad = self.status_in.any() | self.memory_error
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            self.room.eq((self.begun - self.ended)[:INDEX_BITS] < AT_ONCE),
            self.finish.eq(out & self.known),
        ]
        with m.If(self.begin):
            m.d.sync += [began[self.begun[:SLOT_BITS]].eq(now), self.begun.eq(self.begun + 1)]
        with m.If(moved):
            m.d.sync += leaving.eq(1)
            with m.If(~leaving):
                m.d.sync += first_out.eq(now)
            with m.If(self.output_last):
                m.d.sync += [out.eq(1), last_out.eq(now)]
        with m.If(self.finish):
            m.d.sync += [
                out.eq(moved & self.output_last),
                leaving.eq(moved),
                before.eq(last_out),
                self.ended.eq(self.ended + 1),
                self.status.eq(self.status_in),
                self.pictures.eq(self.pictures + 1),
                self.bad_pictures.eq(self.bad_pictures + bad),
                self.picture_cycles.eq(last_out - began[slot] + 1),
                self.latency_cycles.eq(first_out - began[slot]),
                self.period_cycles.eq(last_out - before),
            ]
            low, _ = STATUS["memory"]
            m.d.sync += self.status[low].eq(self.memory_error)
        self._bytes(m)
        waits = {
            "input_waits": self.input_valid & ~self.input_ready,
            "input_starved": self.input_ready & ~self.input_valid,
            "output_waits": self.output_valid & ~self.output_ready,
            "output_starved": self.output_ready & ~self.output_valid,
        }
        for name, condition in waits.items():
            counter = getattr(self, name)
            with m.If(condition):
                m.d.sync += counter.eq(counter + 1)
        return m

    def _bytes(self, m: Module) -> None:
        count = Signal(COUNTER_BITS)
        with m.If(self.byte):
            m.d.sync += count.eq(Mux(self.byte_last, 0, count + 1))
            with m.If(self.byte_last):
                m.d.sync += self.stream_bytes.eq(count + 1)
