"""Shell: the block design around the cores, as data.

    pl_clk0 100 MHz -> clocks -> core clock 300 MHz, control clock 100 MHz
    M_AXI_HPM0_FPD -> control (SmartConnect) -> registers of the cores, registers of the DMAs
    DMA MM2S -> core -> DMA S2MM; these and the cores' delays -> memory (SmartConnect)
        -> S_AXI_HP0_FPD -> DRAM
    the DMAs' interrupts -> interrupts (Concat) -> pl_ps_irq0

The widths of both ports of the processor are those that they have after power-up, 128 bits
(UG1085: AFI_FS, RDCTRL, WRCTRL), so that a boot loader or a device tree which sets none is right.
Properties and pins of the blocks: PG201 (processor), PG021 (DMA), PG247 (SmartConnect), PG065
(clocks), PG164 (reset).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lichen.boards.address_map import (
    CORES,
    DMA_ADDRESS_BITS,
    DMA_LENGTH_BITS,
    INTERRUPTS_PER_CORE,
    MAPS,
    SEGMENT_BYTES,
    CoreName,
)
from lichen.boards.buses import CLOCK, RESET
from lichen.boards.ipxact import Component
from lichen.errors import ContractError
from lichen.rtl.fold import ASSUMED_CLOCK_HZ

CORE_CLOCK_HZ = ASSUMED_CLOCK_HZ
CONTROL_CLOCK_HZ = 100_000_000
PORT_BITS = 128  # of M_AXI_HPM0_FPD and of S_AXI_HP0_FPD
MEMORY_PORTS = 16  # the most that a SmartConnect has
BURST_BEATS = 16
DDR_LOW = (0x0, 0x8000_0000)  # offset, bytes
DDR_HIGH = (0x8_0000_0000, 0x8000_0000)
# Versions of the blocks that their product guides describe; others are tried with a warning.
BLOCKS = {
    "zynq_ultra_ps_e": ("3.4", "3.5"),
    "axi_dma": ("7.1",),
    "smartconnect": ("1.0",),
    "proc_sys_reset": ("5.0",),
    "clk_wiz": ("6.0",),
    "xlconcat": ("2.1",),
    "xlconstant": ("1.1",),
}


@dataclass(frozen=True)
class Cell:
    """A block. vlnv: without a version the catalogue's newest. properties: without CONFIG."""

    name: str
    vlnv: str
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Segment:
    """A range of addresses, as a master (space) sees a slave (segment)."""

    space: str
    segment: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Design:
    """The block design. nets: the driver first; links: the master first."""

    cells: tuple[Cell, ...]
    nets: tuple[tuple[str, ...], ...]
    links: tuple[tuple[str, str], ...]
    segments: tuple[Segment, ...]
    excluded: tuple[tuple[str, str], ...]  # space, segment


def design(cores: Mapping[CoreName, Component]) -> Design:
    """Lay out the block design of one core or both. Raises ContractError."""
    builder = _Builder([name for name in CORES if name in cores], cores)
    builder.processor()
    for name in builder.names:
        builder.core(name)
    builder.control()
    builder.memory()
    builder.interrupts()
    builder.clocks()
    return Design(
        tuple(builder.cells), tuple(builder.nets), tuple(builder.links),
        tuple(builder.segments), tuple(builder.excluded),
    )  # fmt: skip


class _Builder:
    """Collects cells and connections; clocked pins are gathered until `clocks` joins them."""

    def __init__(self, names: Sequence[CoreName], components: Mapping[CoreName, Component]) -> None:
        self.names, self.components = names, components
        self.cells: list[Cell] = []
        self.nets: list[tuple[str, ...]] = []
        self.links: list[tuple[str, str]] = []
        self.segments: list[Segment] = []
        self.excluded: list[tuple[str, str]] = []
        self.core_clock: list[str] = []
        self.control_clock: list[str] = []
        self.core_reset: list[str] = []
        self.control_reset: list[str] = []
        self.masters: list[tuple[str, str]] = []  # of DRAM: interface, address space
        self.slaves: list[str] = []  # of the processor
        self.interrupt_pins: dict[int, str] = {}

    def _cell(self, name: str, block: str, **properties: object) -> None:
        vlnv = block if ":" in block else f"xilinx.com:ip:{block}"
        self.cells.append(Cell(name, vlnv, {k: str(v) for k, v in properties.items()}))

    def processor(self) -> None:
        self._cell(
            "ps", "zynq_ultra_ps_e",
            PSU__USE__M_AXI_GP0=1, PSU__MAXIGP0__DATA_WIDTH=PORT_BITS,
            PSU__USE__M_AXI_GP1=0, PSU__USE__M_AXI_GP2=0,
            PSU__USE__S_AXI_GP2=1, PSU__SAXIGP2__DATA_WIDTH=PORT_BITS,
            PSU__USE__IRQ0=1, PSU__USE__FABRIC__RST=1,
            PSU__FPGA_PL0_ENABLE=1,
            PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ=CONTROL_CLOCK_HZ // 1_000_000,
        )  # fmt: skip
        self.core_clock += ["ps/maxihpm0_fpd_aclk", "ps/saxihp0_fpd_aclk"]

    def core(self, name: CoreName) -> None:
        """Add a core and its DMA."""
        component, place = self.components[name], MAPS[name]
        interface = component.interface
        inputs, outputs = interface.of_kind("stream", False), interface.of_kind("stream", True)
        lites = interface.of_kind("lite", False)
        if len(inputs) != 1 or len(outputs) != 1 or len(lites) != 1:
            raise ContractError(
                f"the {name} has {len(inputs)} streams in, {len(outputs)} out and {len(lites)} "
                "AXI4-Lite slaves; a board joins one of each"
            )
        cell, dma = place.cell, place.dma_cell
        self._cell(cell, component.vlnv)
        self._cell(
            dma, "axi_dma",
            c_include_sg=0, c_sg_include_stscntrl_strm=0, c_sg_length_width=DMA_LENGTH_BITS,
            c_addr_width=DMA_ADDRESS_BITS, c_include_mm2s=1, c_include_s2mm=1,
            c_include_mm2s_dre=0, c_include_s2mm_dre=0,
            c_m_axi_mm2s_data_width=PORT_BITS, c_m_axi_s2mm_data_width=PORT_BITS,
            c_m_axis_mm2s_tdata_width=inputs[0].data_bits,
            c_s_axis_s2mm_tdata_width=outputs[0].data_bits,
            c_mm2s_burst_size=BURST_BEATS, c_s2mm_burst_size=BURST_BEATS,
        )  # fmt: skip
        self.links += [
            (f"{dma}/M_AXIS_MM2S", f"{cell}/{inputs[0].name}"),
            (f"{cell}/{outputs[0].name}", f"{dma}/S_AXIS_S2MM"),
        ]
        self.core_clock += [f"{cell}/{CLOCK}", f"{dma}/m_axi_mm2s_aclk", f"{dma}/m_axi_s2mm_aclk"]
        self.core_reset.append(f"{cell}/{RESET}")
        self.control_clock.append(f"{dma}/s_axi_lite_aclk")
        self.control_reset.append(f"{dma}/axi_resetn")
        self.slaves += [f"{cell}/{lites[0].name}", f"{dma}/S_AXI_LITE"]
        self.segments += [
            Segment("ps/Data", f"{cell}/{lites[0].name}/reg0", place.registers, SEGMENT_BYTES),
            Segment("ps/Data", f"{dma}/S_AXI_LITE/Reg", place.dma, SEGMENT_BYTES),
        ]
        self.masters += [
            (f"{dma}/M_AXI_MM2S", f"{dma}/Data_MM2S"),
            (f"{dma}/M_AXI_S2MM", f"{dma}/Data_S2MM"),
        ]
        self.masters += [
            (f"{cell}/{bus.name}", f"{cell}/{bus.name}")
            for bus in interface.of_kind("memory", True)
        ]
        self.interrupt_pins |= {
            place.interrupt: f"{dma}/mm2s_introut", place.interrupt + 1: f"{dma}/s2mm_introut"
        }  # fmt: skip

    def _connect(self, name: str, slaves: int, masters: int, clocks: int) -> None:
        self._cell(name, "smartconnect", NUM_SI=slaves, NUM_MI=masters, NUM_CLKS=clocks)
        self.core_clock.append(f"{name}/aclk")
        self.core_reset.append(f"{name}/aresetn")

    def control(self) -> None:
        """The processor to all registers."""
        self._connect("control", 1, len(self.slaves), 2)
        self.control_clock.append("control/aclk1")
        self.links.append(("ps/M_AXI_HPM0_FPD", "control/S00_AXI"))
        self.links += [
            (f"control/M{number:02}_AXI", slave) for number, slave in enumerate(self.slaves)
        ]

    def memory(self) -> None:
        """All that reads and writes DRAM to the processor's port."""
        if len(self.masters) > MEMORY_PORTS:
            raise ContractError(
                f"{len(self.masters)} masters of DRAM, a SmartConnect joins {MEMORY_PORTS}: build "
                "one core, or a smaller picture, so that fewer delays are outside"
            )
        self._connect("memory", len(self.masters), 1, 1)
        for number, (interface, space) in enumerate(self.masters):
            self.links.append((interface, f"memory/S{number:02}_AXI"))
            for segment, (offset, size) in (("HP0_DDR_LOW", DDR_LOW), ("HP0_DDR_HIGH", DDR_HIGH)):
                self.segments.append(Segment(space, f"ps/SAXIGP2/{segment}", offset, size))
            for segment in ("HP0_LPS_OCM", "HP0_QSPI"):
                self.excluded.append((space, f"ps/SAXIGP2/{segment}"))
        self.links.append(("memory/M00_AXI", "ps/S_AXI_HP0_FPD"))

    def interrupts(self) -> None:
        """Each DMA's interrupts at their fixed places; a constant 0 where no core is built."""
        ports = INTERRUPTS_PER_CORE * len(CORES)
        self._cell("interrupts", "xlconcat", NUM_PORTS=ports)
        free = [n for n in range(ports) if n not in self.interrupt_pins]
        for number, pin in sorted(self.interrupt_pins.items()):
            self.nets.append((pin, f"interrupts/In{number}"))
        if free:
            self._cell("no_interrupt", "xlconstant", CONST_WIDTH=1, CONST_VAL=0)
            self.nets.append(("no_interrupt/dout", *(f"interrupts/In{n}" for n in free)))
        self.nets.append(("interrupts/dout", "ps/pl_ps_irq0"))

    def clocks(self) -> None:
        """Clocks and resets of all that was added."""
        self._cell(
            "clocks", "clk_wiz",
            PRIM_SOURCE="No_buffer", NUM_OUT_CLKS=2, CLKOUT2_USED="true",
            CLKOUT1_REQUESTED_OUT_FREQ=f"{CORE_CLOCK_HZ / 1e6:.3f}",
            CLKOUT2_REQUESTED_OUT_FREQ=f"{CONTROL_CLOCK_HZ / 1e6:.3f}",
            USE_LOCKED="true", USE_RESET="true", RESET_TYPE="ACTIVE_LOW",
        )  # fmt: skip
        self.nets.append(("ps/pl_clk0", "clocks/clk_in1"))
        resets = []
        for name, output, clocked, reset in (
            ("core_reset", "clk_out1", self.core_clock, self.core_reset),
            ("control_reset", "clk_out2", self.control_clock, self.control_reset),
        ):
            self._cell(name, "proc_sys_reset")
            self.nets.append((f"clocks/{output}", f"{name}/slowest_sync_clk", *clocked))
            self.nets.append((f"{name}/peripheral_aresetn", *reset))
            resets.append(name)
        self.nets += [
            ("ps/pl_resetn0", "clocks/resetn", *(f"{name}/ext_reset_in" for name in resets)),
            ("clocks/locked", *(f"{name}/dcm_locked" for name in resets)),
        ]
