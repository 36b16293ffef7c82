"""Where the processor finds the cores: addresses, interrupts and names, written down once.

The block design, the device tree overlay, the PYNQ overlay and the driver all work by this file.
Plain Python: no Amaranth here. Registers of a core: `lichen.rtl.registers`; of the DMA: PG021,
"Direct Register Mode".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CoreName = Literal["encoder", "decoder"]
CORES: tuple[CoreName, ...] = ("encoder", "decoder")

# M_AXI_HPM0_FPD reaches 256 MB from here (UG1085, "Zynq UltraScale+ system address map").
BASE = 0xA000_0000
SEGMENT_BYTES = 0x1_0000
SEGMENTS_PER_CORE = 2

# pl_ps_irq0[0] is interrupt 121 of the GIC, shared peripheral interrupt 89 (UG1085, table 13-1).
FIRST_SHARED_INTERRUPT = 89
INTERRUPTS_PER_CORE = 2

DMA_LENGTH_BITS = 26  # of the DMA's length registers: a transfer is below 64 MiB (PG021)
DMA_ADDRESS_BITS = 40  # all DRAM of the processor (UG1085)


@dataclass(frozen=True)
class CoreMap:
    """What belongs to one core.

    registers, dma: addresses in bytes, each of SEGMENT_BYTES. cell, dma_cell: names in the block
    design, and so keys of `pynq.Overlay.ip_dict`. uio, dma_uio: what /sys/class/uio/uio*/name says.
    input_buffer, output_buffer, delay_buffer: devices of u-dma-buf. interrupt: of pl_ps_irq0, the
    DMA's MM2S channel (to the core); the next one is its S2MM channel (from the core).
    """

    name: CoreName
    registers: int
    dma: int
    interrupt: int

    @property
    def cell(self) -> str:
        return self.name

    @property
    def dma_cell(self) -> str:
        return f"{self.name}_dma"

    @property
    def uio(self) -> str:
        return f"lichen-{self.name}"

    @property
    def dma_uio(self) -> str:
        return f"lichen-{self.name}-dma"

    @property
    def input_buffer(self) -> str:
        return f"lichen-{self.name}-in"

    @property
    def output_buffer(self) -> str:
        return f"lichen-{self.name}-out"

    def delay_buffer(self, number: int) -> str:
        """Name the u-dma-buf in which a delay of the core is kept."""
        return f"lichen-{self.name}-delay{number}"


MAPS: dict[CoreName, CoreMap] = {
    name: CoreMap(
        name,
        BASE + SEGMENTS_PER_CORE * place * SEGMENT_BYTES,
        BASE + (SEGMENTS_PER_CORE * place + 1) * SEGMENT_BYTES,
        INTERRUPTS_PER_CORE * place,
    )
    for place, name in enumerate(CORES)
}


def stem(board: str) -> str:
    """Give the name, without suffix, of a board's bitfile, overlay and firmware."""
    return f"lichen-{board}"
