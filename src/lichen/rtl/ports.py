"""Ports: the pins of a core on a board, the one place where they are written down.

`top.py` makes the hardware by this list, the packages of the boards are made by it. Plain Python:
no Amaranth here. Names are AXI's own (AMBA IHI 0022 and 0051), so that tools find the buses.

    aclk, aresetn       one clock, and a reset that is low when active and follows the clock
    s_axi_*             AXI4-Lite: the registers (registers.py)
    s_axis_*            AXI4-Stream in: pixels (encoder) or a stream's bytes (decoder), and the
                        words of the load stream while `control` says LOAD
    m_axis_*            AXI4-Stream out: a stream's bytes (encoder) or pixels (decoder)
    m_axi_delayN_*      AXI4: delay N in DRAM, for cores whose long delays do not fit the chip

Pixels are the bytes R, G, B of each, line by line, without gaps between lines or beats. A picture
is a packet: tlast with its last beat, whose tkeep may have fewer bytes, the low ones. (tlast of
pixels that come in is not looked at: the core counts them.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lichen.rtl.registers import ADDRESS_BITS

STREAM_BYTES = 4  # of a beat of both streams
LITE_BITS = 32
MEMORY_BITS = 128  # data of a delay's port: that of S_AXI_HP
MEMORY_ADDRESS_BITS = 40
BURST_BEATS = 16

Flow = Literal["in", "out"]


@dataclass(frozen=True)
class Pin:
    """A port of the top: its direction, seen from the core, and its bits."""

    name: str
    flow: Flow
    bits: int


def core_pins(delays: int) -> tuple[Pin, ...]:
    """List the ports of a core with so many delays in DRAM, clock and reset first."""
    pins = [Pin("aclk", "in", 1), Pin("aresetn", "in", 1), *lite_pins("s_axi", ADDRESS_BITS)]
    pins += [
        *stream_pins("s_axis", "in", STREAM_BYTES),
        *stream_pins("m_axis", "out", STREAM_BYTES),
    ]
    for number in range(delays):
        pins += memory_pins(f"m_axi_delay{number}")
    return tuple(pins)


def lite_pins(prefix: str, address_bits: int) -> tuple[Pin, ...]:
    """List the ports of an AXI4-Lite slave."""
    return (
        Pin(f"{prefix}_awaddr", "in", address_bits),
        Pin(f"{prefix}_awprot", "in", 3),
        Pin(f"{prefix}_awvalid", "in", 1),
        Pin(f"{prefix}_awready", "out", 1),
        Pin(f"{prefix}_wdata", "in", LITE_BITS),
        Pin(f"{prefix}_wstrb", "in", LITE_BITS // 8),
        Pin(f"{prefix}_wvalid", "in", 1),
        Pin(f"{prefix}_wready", "out", 1),
        Pin(f"{prefix}_bresp", "out", 2),
        Pin(f"{prefix}_bvalid", "out", 1),
        Pin(f"{prefix}_bready", "in", 1),
        Pin(f"{prefix}_araddr", "in", address_bits),
        Pin(f"{prefix}_arprot", "in", 3),
        Pin(f"{prefix}_arvalid", "in", 1),
        Pin(f"{prefix}_arready", "out", 1),
        Pin(f"{prefix}_rdata", "out", LITE_BITS),
        Pin(f"{prefix}_rresp", "out", 2),
        Pin(f"{prefix}_rvalid", "out", 1),
        Pin(f"{prefix}_rready", "in", 1),
    )


def stream_pins(prefix: str, flow: Flow, size_bytes: int) -> tuple[Pin, ...]:
    """List the ports of an AXI4-Stream that comes in or goes out."""
    back: Flow = "out" if flow == "in" else "in"
    return (
        Pin(f"{prefix}_tdata", flow, 8 * size_bytes),
        Pin(f"{prefix}_tkeep", flow, size_bytes),
        Pin(f"{prefix}_tlast", flow, 1),
        Pin(f"{prefix}_tvalid", flow, 1),
        Pin(f"{prefix}_tready", back, 1),
    )


def memory_pins(prefix: str) -> tuple[Pin, ...]:
    """List the ports of an AXI4 master: incrementing bursts, without IDs."""
    size = MEMORY_BITS // 8
    address = (("addr", MEMORY_ADDRESS_BITS), ("len", 8), ("size", 3), ("burst", 2),
               ("cache", 4), ("prot", 3), ("valid", 1))  # fmt: skip
    return (
        *(Pin(f"{prefix}_aw{name}", "out", bits) for name, bits in address),
        Pin(f"{prefix}_awready", "in", 1),
        Pin(f"{prefix}_wdata", "out", MEMORY_BITS),
        Pin(f"{prefix}_wstrb", "out", size),
        Pin(f"{prefix}_wlast", "out", 1),
        Pin(f"{prefix}_wvalid", "out", 1),
        Pin(f"{prefix}_wready", "in", 1),
        Pin(f"{prefix}_bresp", "in", 2),
        Pin(f"{prefix}_bvalid", "in", 1),
        Pin(f"{prefix}_bready", "out", 1),
        *(Pin(f"{prefix}_ar{name}", "out", bits) for name, bits in address),
        Pin(f"{prefix}_arready", "in", 1),
        Pin(f"{prefix}_rdata", "in", MEMORY_BITS),
        Pin(f"{prefix}_rresp", "in", 2),
        Pin(f"{prefix}_rlast", "in", 1),
        Pin(f"{prefix}_rvalid", "in", 1),
        Pin(f"{prefix}_rready", "out", 1),
    )
