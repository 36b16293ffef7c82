"""AXI: the cores' streams and registers behind the buses of the boards (AMBA IHI 0051, IHI 0022).

Ports have AXI's own names, so that Vivado's block designs and test models find them.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.registers import ADDRESS_BITS, Register
from lichen.rtl.stripe_buffer import sequence

DATA_BITS = 32  # of AXI4-Lite
OKAY, SLVERR = 0, 2


class BytesFromAxi(wiring.Component):
    """Take the bytes of a picture from an AXI4-Stream of `size` bytes per beat.

    tkeep: one or more of the low bytes; all in beats without tlast. output: `last` with tlast.
    Throughput: one byte per cycle. Latency: one cycle.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(
            {
                "s_axis_tdata": In(8 * size),
                "s_axis_tkeep": In(size),
                "s_axis_tlast": In(1),
                "s_axis_tvalid": In(1),
                "s_axis_tready": Out(1),
                "output": Out(sequence(8)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The bytes still to go, the next one lowest, and which they are.
        data, keep, last = Signal(8 * self.size), Signal(self.size), Signal()
        final = ~keep[1:].any()
        moved = self.output.valid & self.output.ready
        m.d.comb += [
            self.output.p.item.eq(data[:8]),
            self.output.p.last.eq(last & final),
            self.output.valid.eq(keep[0]),
            self.s_axis_tready.eq(~keep[0] | (self.output.ready & final)),
        ]
        with m.If(moved):
            m.d.sync += [data.eq(data >> 8), keep.eq(keep >> 1)]
        with m.If(self.s_axis_tvalid & self.s_axis_tready):
            m.d.sync += [
                data.eq(self.s_axis_tdata),
                keep.eq(self.s_axis_tkeep),
                last.eq(self.s_axis_tlast),
            ]
        return m


class BytesToAxi(wiring.Component):
    """Give the bytes of a picture as an AXI4-Stream of `size` bytes per beat, tlast with `last`.

    Throughput: one byte per cycle. Latency: one cycle after the last byte of a beat.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(
            {
                "input": In(sequence(8)),
                "m_axis_tdata": Out(8 * size),
                "m_axis_tkeep": Out(size),
                "m_axis_tlast": Out(1),
                "m_axis_tvalid": Out(1),
                "m_axis_tready": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        place = Signal(range(self.size))
        accepted = self.input.valid & self.input.ready
        full = (place == self.size - 1) | self.input.p.last
        # A beat that waits keeps the register: the next byte begins the next beat.
        m.d.comb += self.input.ready.eq(~self.m_axis_tvalid | self.m_axis_tready)
        with m.If(self.m_axis_tready):
            m.d.sync += self.m_axis_tvalid.eq(0)
        with m.If(accepted):
            first = place == 0
            m.d.sync += [
                self.m_axis_tdata.word_select(place, 8).eq(self.input.p.item),
                self.m_axis_tkeep.eq(Mux(first, 1, Cat(1, self.m_axis_tkeep))),
                self.m_axis_tlast.eq(self.input.p.last),
                self.m_axis_tvalid.eq(full),
                place.eq(Mux(full, 0, place + 1)),
            ]
        return m


class Registers(wiring.Component):
    """A register file behind AXI4-Lite.

    A port for each register, with its name: an input of `read` ones, an output of `write` ones, a
    stream for a `stream` one. Addresses without a register, and writes to `read` ones, answer
    SLVERR and do nothing; so does a write of part of a word to a `stream` one.

    Throughput: a write or a read per 2 cycles, both at once. Latency: 2 cycles to the answer; a
    write to a `stream` register answers when the beat is taken.
    """

    def __init__(self, registers: Sequence[Register], address_bits: int = ADDRESS_BITS) -> None:
        self.registers = tuple(registers)
        members = {
            "s_axi_awaddr": In(address_bits), "s_axi_awprot": In(3), "s_axi_awvalid": In(1),
            "s_axi_awready": Out(1), "s_axi_wdata": In(DATA_BITS), "s_axi_wstrb": In(4),
            "s_axi_wvalid": In(1), "s_axi_wready": Out(1), "s_axi_bresp": Out(2),
            "s_axi_bvalid": Out(1), "s_axi_bready": In(1), "s_axi_araddr": In(address_bits),
            "s_axi_arprot": In(3), "s_axi_arvalid": In(1), "s_axi_arready": Out(1),
            "s_axi_rdata": Out(DATA_BITS), "s_axi_rresp": Out(2), "s_axi_rvalid": Out(1),
            "s_axi_rready": In(1),
        }  # fmt: skip
        ways = {
            "read": lambda r: In(r.bits),
            "write": lambda r: Out(r.bits, init=r.reset),
            "stream": lambda r: Out(stream.Signature(r.bits)),
        }
        super().__init__(members | {r.name: ways[r.access](r) for r in self.registers})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m: Module) -> None:
        """Take address and data in any order, act when both are there, answer."""
        address, data, strobe = Signal.like(self.s_axi_awaddr), Signal(DATA_BITS), Signal(4)
        has_address, has_data = Signal(), Signal()
        act, good, wait = Signal(), Signal(), Signal()
        m.d.comb += [
            self.s_axi_awready.eq(~has_address),
            self.s_axi_wready.eq(~has_data),
            act.eq(has_address & has_data & ~self.s_axi_bvalid),
        ]
        with m.If(self.s_axi_awvalid & self.s_axi_awready):
            m.d.sync += [address.eq(self.s_axi_awaddr), has_address.eq(1)]
        with m.If(self.s_axi_wvalid & self.s_axi_wready):
            m.d.sync += [data.eq(self.s_axi_wdata), strobe.eq(self.s_axi_wstrb), has_data.eq(1)]
        mask = Cat(bit.replicate(8) for bit in strobe)
        with m.Switch(address[2:]):
            for register in self.registers:
                with m.Case(register.address >> 2):
                    port = getattr(self, register.name)
                    if register.access == "write":
                        m.d.comb += good.eq(1)
                        with m.If(act):
                            m.d.sync += port.eq((port & ~mask) | (data & mask))
                    elif register.access == "stream":
                        m.d.comb += [
                            good.eq(strobe.all()),
                            port.payload.eq(data),
                            port.valid.eq(act & good),
                            wait.eq(good & ~port.ready),
                        ]
        with m.If(act & ~wait):
            m.d.sync += [
                has_address.eq(0),
                has_data.eq(0),
                self.s_axi_bvalid.eq(1),
                self.s_axi_bresp.eq(Mux(good, OKAY, SLVERR)),
            ]
        with m.If(self.s_axi_bvalid & self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)

    def _read(self, m: Module) -> None:
        address, has_address = Signal.like(self.s_axi_araddr), Signal()
        value, good = Signal(DATA_BITS), Signal()
        m.d.comb += self.s_axi_arready.eq(~has_address)
        with m.If(self.s_axi_arvalid & self.s_axi_arready):
            m.d.sync += [address.eq(self.s_axi_araddr), has_address.eq(1)]
        with m.Switch(address[2:]):
            for register in self.registers:
                with m.Case(register.address >> 2):
                    if register.access != "stream":
                        m.d.comb += [value.eq(getattr(self, register.name)), good.eq(1)]
        with m.If(has_address & ~self.s_axi_rvalid):
            m.d.sync += [
                has_address.eq(0),
                self.s_axi_rvalid.eq(1),
                self.s_axi_rdata.eq(value),
                self.s_axi_rresp.eq(Mux(good, OKAY, SLVERR)),
            ]
        with m.If(self.s_axi_rvalid & self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)
