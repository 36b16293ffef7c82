"""docs/boards.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from test_vivado_script import WRONG

from lichen.boards import shell, tcl
from lichen.boards.address_map import FIRST_SHARED_INTERRUPT, MAPS

ROOT = Path(__file__).parents[2]
# What stands for something else in a message of the table.
HOLES = r"\.\.\.|\bX\b|\bY\b|\bN\b|WxH|FILE|STEM|note: |dtc|bootgen|decoder|encoder"
PAGE = (ROOT / "docs/boards.md").read_text(encoding="utf-8")


def test_addresses_and_interrupts():
    for place in MAPS.values():
        for address in (place.registers, place.dma):
            assert f"0x{address >> 16:04X}_{address & 0xFFFF:04X}" in PAGE
        lines = place.interrupt, place.interrupt + 1
        spi = [FIRST_SHARED_INTERRUPT + line for line in lines]
        assert f"{lines[0]}, {lines[1]} (SPI {spi[0]}, {spi[1]})" in PAGE


def test_versions_and_counts():
    assert f"Vivado {tcl.DOCUMENTED[0]} to {tcl.DOCUMENTED[-1]}" in PAGE
    assert f"{len(WRONG)} deliberate errors" in PAGE
    assert f"{shell.CONTROL_CLOCK_HZ // 10**6} MHz" in PAGE
    assert f"{shell.CORE_CLOCK_HZ // 10**6} MHz" in PAGE


def test_messages_are_those_of_the_code():
    """Each message of the table begins, or goes on, somewhere in the package."""
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/lichen/boards").glob("*.py")
    )
    text = re.sub(r'"\s*f?"', "", source)  # strings that are joined
    table = PAGE.split("## What messages mean")[1].split("##")[0]
    quoted = [found for row in table.splitlines()[4:] for found in re.findall("`([^`]+)`", row)[:1]]
    assert len(quoted) > 12
    for message in quoted:
        parts = re.split(HOLES, message)
        for part in (part.strip(" :,`") for part in parts):
            assert part in text, f"{message!r}: {part!r}"
