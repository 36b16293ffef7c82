"""Firmware: what Linux needs to load a bitfile and to let a program at its cores, without PYNQ.

    STEM.bit --bootgen--> STEM.bit.bin
    STEM.dtsi --dtc-->    STEM.dtbo
    shell.json            Kria: for dfx-mgr

They belong into /lib/firmware/xilinx/STEM/, all with the same stem (Kria: `xmutil loadapp STEM`;
others: `fpgautil -b STEM.bit.bin -o STEM.dtbo`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lichen.boards.address_map import (
    FIRST_SHARED_INTERRUPT,
    MAPS,
    SEGMENT_BYTES,
    CoreMap,
)
from lichen.boards.board import board
from lichen.boards.record import CoreRecord, Record
from lichen.errors import DeviceError

INSTALLED = "/lib/firmware/xilinx"
PAGE = 4096
PIXEL_BYTES = 3
SPARE_BYTES = 1 << 16  # of a stream's buffer, beside as many bytes as the pixels have
LEVEL_HIGH = 4
TOOLS = {
    "bootgen": "it comes with Vivado and Vitis; Debian: apt-get install xilinx-bootgen; Ubuntu: "
    "bootgen-xlnx",
    "dtc": "apt-get install device-tree-compiler",
}


def texts(record: Record) -> Mapping[str, str]:
    """Give the files that need no tool: text by name."""
    stem = record.stem
    found = {
        f"{stem}.bif": f"all:\n{{\n    [destination_device = pl] {stem}.bit\n}}\n",
        f"{stem}.dtsi": overlay(record),
    }
    if board(record.board).kria:
        # Not an XRT platform: no xclbin. One whole device, no slots to fill.
        values = {"shell_type": "XRT_FLAT", "num_slots": "1"}
        found["shell.json"] = json.dumps(values, indent=4) + "\n"
    return found


def overlay(record: Record) -> str:
    """Give the device tree overlay, as source.

    Registers of cores and DMAs become /dev/uio*, the driver's buffers those of u-dma-buf. Clocks:
    PL0 at the frequency that the block design has. The widths of the processor's AXI ports are
    those after power-up (`shell`), so that nothing is set.
    """
    parts = []
    for name, core in record.cores.items():
        place = MAPS[name]  # type: ignore[index]
        parts += [_registers(place), _dma(place), *_buffers(place, core)]
    nodes = "\n".join(parts)
    return f"""\
/* {board(record.board).title}, lichen {record.lichen}: the overlay of {record.stem}.bit.
 * dtc -@ -I dts -O dtb -o {record.stem}.dtbo {record.stem}.dtsi
 */
/dts-v1/;
/plugin/;

&fpga_full {{
    #address-cells = <2>;
    #size-cells = <2>;
    firmware-name = "{record.stem}.bit.bin";
    resets = <&zynqmp_reset 116>;
}};

&amba {{
    #address-cells = <2>;
    #size-cells = <2>;

    lichen_clock: lichen-clock {{
        compatible = "xlnx,fclk";
        #clock-cells = <0>;
        clocks = <&zynqmp_clk 71>;
        clock-output-names = "fabric_clk";
        assigned-clocks = <&zynqmp_clk 71>;
        assigned-clock-rates = <100000000>;
    }};

{nodes}}};
"""


def _cells(value: int) -> str:
    return f"{value >> 32:#x} {value & 0xFFFF_FFFF:#x}"


def _registers(place: CoreMap) -> str:
    return f"""\
    {place.uio}@{place.registers:x} {{
        compatible = "generic-uio";
        reg = <{_cells(place.registers)} {_cells(SEGMENT_BYTES)}>;
    }};
"""


def _dma(place: CoreMap) -> str:
    # A UIO device has one interrupt: that of S2MM, with which a picture is finished.
    interrupt = FIRST_SHARED_INTERRUPT + place.interrupt + 1
    return f"""\
    {place.dma_uio}@{place.dma:x} {{
        compatible = "generic-uio";
        reg = <{_cells(place.dma)} {_cells(SEGMENT_BYTES)}>;
        interrupt-parent = <&gic>;
        interrupts = <0 {interrupt} {LEVEL_HIGH}>;
    }};
"""


def _buffers(place: CoreMap, core: CoreRecord) -> list[str]:
    pixels = PIXEL_BYTES * core.width * core.height
    stream = pixels + SPARE_BYTES
    into, out = {"encoder": (pixels, stream), "decoder": (stream, pixels)}[place.name]
    sizes = (max(into, core.load_bytes), out)  # weights come by the same way
    named = list(zip((place.input_buffer, place.output_buffer), sizes))
    named += [(place.delay_buffer(n), size) for n, size in enumerate(core.delay_bytes)]
    return [
        f"""\
    {name} {{
        compatible = "ikwzm,u-dma-buf";
        device-name = "{name}";
        size = <{-(-size // PAGE) * PAGE:#x}>;
    }};
"""
        for name, size in named
    ]


def compile_overlay(source: Path, target: Path) -> None:
    """Run dtc. Raises DeviceError."""
    _run(["dtc", "-@", "-q", "-I", "dts", "-O", "dtb", "-o", str(target), str(source)])


def convert_bitfile(folder: Path, stem: str) -> Path:
    """Run bootgen in a folder that has STEM.bit and STEM.bif. Raises DeviceError."""
    made = folder / f"{stem}.bit.bin"
    made.unlink(missing_ok=True)  # where bootgen fails it leaves an older one
    command = ["bootgen", "-w", "-arch", "zynqmp", "-process_bitstream", "bin", "-image"]
    _run([*command, f"{stem}.bif"], folder)
    if not made.is_file():
        raise DeviceError(f"bootgen ended well and left no {made}; is {stem}.bit a bitfile?")
    return made


def _run(command: list[str], folder: Path | None = None) -> None:
    tool = command[0]
    if shutil.which(tool) is None:
        raise DeviceError(f"{tool} is missing: {TOOLS[tool]}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise DeviceError(f"{tool} failed: {errors[0].strip() if errors else 'it said nothing'}")
