"""Symbol steps: from symbols, last one first, to the rANS steps that code them (stream.md 3.3)."""

from __future__ import annotations

import itertools

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lichen.entropy.rans import MAX_ESCAPE_GROUPS
from lichen.entropy.tables import ESCAPE_GROUP_BITS
from lichen.rtl.leaf import LUT_RAM, Home, LoadBus, Memory, fill
from lichen.rtl.rans_push import Kind, step_layout
from lichen.rtl.rans_tables import ESCAPE_BITS, OFFSET_BITS, EncoderShape
from lichen.rtl.stripe_buffer import sequence

SYMBOL_BITS = 16
GROUP_BITS = 3  # of the value, in an escape's group
VALUE_BITS = GROUP_BITS * MAX_ESCAPE_GROUPS


def symbol_layout(tables: int) -> data.StructLayout:
    """Lay a symbol out, with the number of its table."""
    return data.StructLayout({"symbol": signed(SYMBOL_BITS), "table": range(max(2, tables))})


class SymbolSteps(wiring.Component):
    """Look symbols up in the tables and give their steps, last step first; then the states' halves.

    symbols: a sequence backwards, items of symbol_layout. counts: its length, before it. Symbol i
    is of lane i % lanes, a power of two. descriptors, entries: the numbers of the two memories on
    the load bus; rans_tables.encoder_contents gives what to load.

    Throughput: one step per cycle: a symbol per cycle, an escaped one 2 to 7 cycles; 2 cycles more
    per lane and sequence. Latency: 10 cycles.
    """

    STEPS = 16  # of the queue behind the memory

    def __init__(
        self,
        shape: EncoderShape,
        lanes: int,
        count_layout: data.StructLayout,
        bus: LoadBus,
        descriptors: int,
        entries: int,
        home: Home | None = None,
    ) -> None:
        if lanes & lanes - 1:
            raise ValueError(f"lanes must be a power of two, not {lanes}")
        self.shape, self.lanes, self.bus, self.home = shape, lanes, bus, home
        self.numbers = descriptors, entries
        self.item = symbol_layout(shape.tables)
        super().__init__(
            {
                "symbols": In(sequence(self.item.size)),
                "counts": In(stream.Signature(count_layout)),
                "steps": Out(stream.Signature(step_layout(shape.coder))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self.go = Signal()  # the stages before the expansion move
        self._describe(m)
        self._locate(m)
        self._expand(m)
        self._read_entry(m)
        return m

    def _describe(self, m: Module) -> None:
        """Take a symbol, count its lane down, read its table's descriptor: three stages."""
        lane, running = Signal(range(max(2, self.lanes))), Signal()
        accepted = self.symbols.valid & self.symbols.ready
        m.d.comb += [
            self.counts.ready.eq(~running),
            self.symbols.ready.eq(running & self.go),
        ]
        with m.If(self.counts.valid & self.counts.ready):
            m.d.sync += [running.eq(1), lane.eq((self.counts.p.count - 1) & (self.lanes - 1))]
        with m.If(accepted):
            m.d.sync += lane.eq((lane - 1) & (self.lanes - 1))
            with m.If(self.symbols.p.last):
                m.d.sync += running.eq(0)
        self.described = self._line(m, "described", 2, accepted, lane)
        item = data.View(self.item, self.symbols.p.item)
        descriptors = Memory(self.shape.descriptor_bits, self.shape.tables, home=LUT_RAM, latency=2)
        m.submodules.descriptors = descriptors.instance()
        fill(m, self.bus, self.numbers[0], descriptors, "descriptors")
        m.d.comb += [
            descriptors.read_enable.eq(self.go),
            descriptors.read_address.eq(item.table),
        ]
        layout = data.StructLayout(
            {"base": self.shape.base_bits, "escape": ESCAPE_BITS, "offset": signed(OFFSET_BITS)}
        )
        self.descriptor = data.View(layout, descriptors.read_data)

    def _line(self, m: Module, name: str, stages: int, valid: object, lane: Signal) -> data.View:
        """Delay a symbol beside the memory."""
        layout = data.StructLayout(
            {
                "symbol": signed(SYMBOL_BITS),
                "lane": len(lane),
                "last": 1,
                "valid": 1,
            }
        )
        item = data.View(self.item, self.symbols.p.item)
        line = [Signal(layout, name=f"{name}{i}") for i in range(stages)]
        with m.If(self.go):
            m.d.sync += [
                line[0].symbol.eq(item.symbol),
                line[0].lane.eq(lane),
                line[0].last.eq(self.symbols.p.last),
                line[0].valid.eq(valid),
            ]
            for before, after in itertools.pairwise(line):
                m.d.sync += after.eq(before)
        return line[-1]

    def _locate(self, m: Module) -> None:
        """Find the entry's number, or the value of the escape: three stages."""
        before = self.described
        entry1, escape1 = Signal(signed(18)), Signal(ESCAPE_BITS)
        entry2, escape2, beyond2 = Signal(signed(18)), Signal(ESCAPE_BITS), Signal(signed(19))
        base1, base2 = Signal(self.shape.base_bits), Signal(self.shape.base_bits)
        below2, above2 = Signal(), Signal()
        self.address3 = Signal(self.shape.base_bits)
        self.value3, self.escaped3 = Signal(VALUE_BITS), Signal()
        tags = [Signal(before.shape(), name=f"tag{i}") for i in (1, 2, 3)]
        self.tag3 = tags[2]
        with m.If(self.go):
            m.d.sync += [
                entry1.eq(before.symbol - self.descriptor.offset),
                escape1.eq(self.descriptor.escape),
                base1.eq(self.descriptor.base),
                tags[0].eq(before),
                # second stage
                entry2.eq(entry1),
                escape2.eq(escape1),
                base2.eq(base1),
                below2.eq(entry1 < 0),
                above2.eq(entry1 >= escape1),
                beyond2.eq(entry1 - escape1),
                tags[1].eq(tags[0]),
                # third stage: value = 2 * distance + below
                self.address3.eq(base2 + Mux(below2 | above2, escape2, entry2[:ESCAPE_BITS])),
                self.escaped3.eq(below2 | above2),
                self.value3.eq(Cat(below2, Mux(below2, ~entry2, beyond2))),
                self.tag3.eq(tags[1]),
            ]

    def _expand(self, m: Module) -> None:
        """Give a symbol's steps in reverse: groups, entry, halves of states."""
        lanes = range(max(2, self.lanes))
        step = self.step = Signal(
            data.StructLayout(
                {
                    "address": self.shape.base_bits,
                    "group": ESCAPE_GROUP_BITS,
                    "escaped": 1,
                    "lane": lanes,
                    "kind": Kind,
                    "last": 1,
                }
            )
        )
        valid, last, address = Signal(), Signal(), Signal(self.shape.base_bits)
        lane, value = Signal(lanes), Signal(VALUE_BITS)
        group, more = Signal(range(MAX_ESCAPE_GROUPS)), Signal()
        escaped, flushing, high, end = Signal(), Signal(), Signal(), Signal()
        self.emit, self.room = Signal(), Signal()
        m.d.comb += [
            self.emit.eq(valid & self.room),
            self.go.eq(~valid | (self.room & Mux(last, end, ~escaped))),
            step.address.eq(address),
            step.group.eq(Cat(value.word_select(group, GROUP_BITS), more)),
            step.escaped.eq(escaped),
            step.lane.eq(lane),
            step.kind.eq(Mux(flushing, Mux(high, Kind.HIGH, Kind.LOW), Kind.PUSH)),
            step.last.eq(end),
        ]
        with m.If(self.emit):
            with m.If(escaped):
                m.d.sync += [group.eq(group - 1), more.eq(1), escaped.eq(group != 0)]
            with m.Elif(~flushing):
                m.d.sync += [flushing.eq(last), high.eq(1), lane.eq(self.lanes - 1)]
            with m.Else():
                m.d.sync += [high.eq(~high), end.eq(high & (lane == 0))]
                with m.If(~high):
                    m.d.sync += lane.eq(lane - 1)
        with m.If(self.go):
            m.d.sync += [
                valid.eq(self.tag3.valid),
                last.eq(self.tag3.last),
                lane.eq(self.tag3.lane),
                address.eq(self.address3),
                value.eq(self.value3),
                escaped.eq(self.escaped3),
                more.eq(0),
                flushing.eq(0),
                end.eq(0),
                group.eq(0),
            ]
            for number in range(1, MAX_ESCAPE_GROUPS):
                with m.If(self.value3[GROUP_BITS * number :].any()):
                    m.d.sync += group.eq(number)

    def _read_entry(self, m: Module) -> None:
        """Look the entry up, two cycles, or give a group's constants; queue the step."""
        c = self.shape.coder
        entries = Memory(self.shape.entry_bits, self.shape.entries, home=self.home, latency=2)
        m.submodules.entries = entries.instance()
        fill(m, self.bus, self.numbers[1], entries, "entries")
        m.submodules.queue = queue = SyncFIFOBuffered(width=step_layout(c).size, depth=self.STEPS)
        step1, step2 = Signal.like(self.step), Signal.like(self.step)
        emitted = Signal(2)
        m.d.sync += [
            step1.eq(self.step),
            step2.eq(step1),
            emitted.eq(Cat(self.emit, emitted[0])),
            self.room.eq(queue.level < self.STEPS - 5),
        ]
        entry = data.View(
            data.StructLayout(
                {
                    "start": c.precision,
                    "frequency": c.precision,
                    "reciprocal": c.reciprocal_bits,
                    "normalise": c.normalise_bits,
                }
            ),
            entries.read_data,
        )
        out = data.View(step_layout(c), queue.w_data)
        uniform = c.precision - ESCAPE_GROUP_BITS
        m.d.comb += [
            entries.read_enable.eq(1),
            entries.read_address.eq(self.step.address),
            out.start.eq(Mux(step2.escaped, step2.group << uniform, entry.start)),
            out.frequency.eq(Mux(step2.escaped, 1 << uniform, entry.frequency)),
            out.reciprocal.eq(Mux(step2.escaped, (1 << c.reciprocal_bits) - 1, entry.reciprocal)),
            out.normalise.eq(Mux(step2.escaped, ESCAPE_GROUP_BITS - 1, entry.normalise)),
            out.lane.eq(step2.lane),
            out.kind.eq(step2.kind),
            out.last.eq(step2.last),
            queue.w_en.eq(emitted[1]),
            self.steps.payload.eq(queue.r_data),
            self.steps.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.steps.ready),
        ]
