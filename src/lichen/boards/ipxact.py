"""IP-XACT: the file component.xml, by which Vivado's catalogue takes a core as packaged IP.

IEEE 1685-2009 in the namespace `spirit`; what Vivado wants beside it is in vendor extensions
(UG1118). Order of elements: that of the standard's schema, which the tests check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as xml

from lichen.boards.buses import CLOCK, RESET, Bus, Interface
from lichen.rtl.ports import Pin
from lichen.rtl.registers import Register

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
VENDOR, LIBRARY, VERSION = "lichen", "codec", "1.0"
FAMILY = "zynquplus"
FILE_TYPES = {".v": "verilogSource", ".sv": "systemVerilogSource"}
ACCESS = {"read": "read-only", "write": "read-write", "stream": "write-only"}
VIEWS = (
    ("xilinx_anylanguagesynthesis", "verilogSource:vivado.xilinx.com:synthesis"),
    ("xilinx_anylanguagebehavioralsimulation", "verilogSource:vivado.xilinx.com:simulation"),
)


@dataclass(frozen=True)
class Component:
    """What component.xml says. files: relative to it.

    registers: of the AXI4-Lite interface. range_bytes: of it that a block design may map; above
    the registers' address bits they repeat.
    """

    name: str
    title: str
    description: str
    interface: Interface
    files: Sequence[str]
    registers: Sequence[Register]
    range_bytes: int

    @property
    def vlnv(self) -> str:
        """Vendor, library, name and version, as `create_bd_cell -vlnv` wants them."""
        return f"{VENDOR}.org:{LIBRARY}:{self.name}:{VERSION}"


def text(component: Component) -> str:
    """Give component.xml."""
    xml.register_namespace("spirit", SPIRIT)
    xml.register_namespace("xilinx", XILINX)
    root = xml.Element(_tag("component"))
    vendor, library, name, version = component.vlnv.split(":")
    for tag, value in (
        ("vendor", vendor), ("library", library), ("name", name), ("version", version)
    ):  # fmt: skip
        _add(root, tag, value)
    _bus_interfaces(root, component)
    _address_spaces(root, component.interface)
    _memory_maps(root, component)
    _model(root, component)
    _file_sets(root, component)
    _add(root, "description", component.description)
    parameters = _add(root, "parameters")
    _parameter(parameters, "Component_Name", f"{name}_v1_0", "PARAM_VALUE.Component_Name")
    _extensions(root, component)
    xml.indent(root)
    body = xml.tostring(root, encoding="unicode", short_empty_elements=True)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _tag(name: str) -> str:
    return f"{{{SPIRIT}}}{name}"


def _add(
    parent: xml.Element, tag: str, value: str | None = None, /, **attributes: str
) -> xml.Element:
    element = xml.SubElement(parent, _tag(tag), {_tag(k): v for k, v in attributes.items()})
    element.text = value
    return element


def _parameter(parent: xml.Element, name: str, value: str, identity: str) -> None:
    parameter = _add(parent, "parameter")
    _add(parameter, "name", name)
    _add(parameter, "value", value, id=identity)


def _bus_interfaces(root: xml.Element, component: Component) -> None:
    group = _add(root, "busInterfaces")
    interface = component.interface
    for bus in interface.buses:
        _axi(group, bus)
    names = ":".join(bus.name for bus in interface.buses)
    _signal(group, RESET, "reset", "RST", {"POLARITY": "ACTIVE_LOW"})
    # Without FREQ_HZ the frequency is that of the clock that the block design connects.
    _signal(group, CLOCK, "clock", "CLK", {"ASSOCIATED_BUSIF": names, "ASSOCIATED_RESET": RESET})


def _types(parent: xml.Element, library: str, name: str) -> None:
    for tag, kind in (("busType", name), ("abstractionType", f"{name}_rtl")):
        _add(parent, tag, vendor="xilinx.com", library=library, name=kind, version="1.0")


def _axi(group: xml.Element, bus: Bus) -> None:
    element = _add(group, "busInterface")
    _add(element, "name", bus.name)
    _types(element, "interface", "axis" if bus.kind == "stream" else "aximm")
    if bus.master:
        role = _add(element, "master")
        if bus.kind != "stream":
            _add(role, "addressSpaceRef", addressSpaceRef=bus.name)
    else:
        role = _add(element, "slave")
        if bus.kind != "stream":
            _add(role, "memoryMapRef", memoryMapRef=bus.name)
    maps = _add(element, "portMaps")
    for signal, port in bus.pins.items():
        _port_map(maps, signal.upper(), port.name)
    if bus.kind == "stream":
        return
    parameters = _add(element, "parameters")
    protocol = "AXI4LITE" if bus.kind == "lite" else "AXI4"
    for name, value in (("DATA_WIDTH", bus.data_bits), ("PROTOCOL", protocol),
                        ("ADDR_WIDTH", bus.address_bits)):  # fmt: skip
        identity = f"BUSIFPARAM_VALUE.{bus.name.upper()}.{name}"
        _parameter(parameters, name, str(value), identity)


def _port_map(maps: xml.Element, logical: str, physical: str) -> None:
    pair = _add(maps, "portMap")
    _add(_add(pair, "logicalPort"), "name", logical)
    _add(_add(pair, "physicalPort"), "name", physical)


def _signal(group: xml.Element, name: str, kind: str, logical: str, values: dict[str, str]) -> None:
    element = _add(group, "busInterface")
    _add(element, "name", name)
    _types(element, "signal", kind)
    _add(element, "slave")
    _port_map(_add(element, "portMaps"), logical, name)
    parameters = _add(element, "parameters")
    for key, value in values.items():
        _parameter(parameters, key, value, f"BUSIFPARAM_VALUE.{name.upper()}.{key}")


def _address_spaces(root: xml.Element, interface: Interface) -> None:
    masters = interface.of_kind("memory", True)
    if not masters:
        return
    group = _add(root, "addressSpaces")
    for bus in masters:
        space = _add(group, "addressSpace")
        _add(space, "name", bus.name)
        _add(space, "range", str(1 << bus.address_bits))
        _add(space, "width", str(bus.data_bits))


def _memory_maps(root: xml.Element, component: Component) -> None:
    slaves = component.interface.of_kind("lite", False)
    if not slaves:
        return
    group = _add(root, "memoryMaps")
    for bus in slaves:
        memory = _add(group, "memoryMap")
        _add(memory, "name", bus.name)
        block = _add(memory, "addressBlock")
        _add(block, "name", "reg0")
        _add(block, "baseAddress", "0")
        _add(block, "range", str(component.range_bytes))
        _add(block, "width", "32")
        _add(block, "usage", "register")
        for register in component.registers:
            _register(block, register)


def _register(block: xml.Element, register: Register) -> None:
    element = _add(block, "register")
    _add(element, "name", register.name)
    _add(element, "description", register.meaning)
    _add(element, "addressOffset", hex(register.address))
    _add(element, "size", "32")
    access = ACCESS[register.access]
    _add(element, "access", access)
    if register.access == "write":
        _add(_add(element, "reset"), "value", hex(register.reset))
    field = _add(element, "field")
    _add(field, "name", register.name)
    _add(field, "bitOffset", "0")
    _add(field, "bitWidth", str(register.bits))
    _add(field, "access", access)


def _model(root: xml.Element, component: Component) -> None:
    model = _add(root, "model")
    views = _add(model, "views")
    for name, environment in VIEWS:
        view = _add(views, "view")
        _add(view, "name", name)
        _add(view, "envIdentifier", environment)
        _add(view, "language", "verilog")
        _add(view, "modelName", component.name)
        _add(_add(view, "fileSetRef"), "localName", f"{name}_view_fileset")
    ports = _add(model, "ports")
    for port in component.interface.pins:
        _port(ports, port)


def _port(ports: xml.Element, port: Pin) -> None:
    element = _add(ports, "port")
    _add(element, "name", port.name)
    wire = _add(element, "wire")
    _add(wire, "direction", port.flow)
    if port.bits > 1:
        vector = _add(wire, "vector")
        _add(vector, "left", str(port.bits - 1))
        _add(vector, "right", "0")
    definition = _add(_add(wire, "wireTypeDefs"), "wireTypeDef")
    _add(definition, "typeName", "std_logic_vector" if port.bits > 1 else "std_logic")
    for view, _ in VIEWS:
        _add(definition, "viewNameRef", view)


def _file_sets(root: xml.Element, component: Component) -> None:
    group = _add(root, "fileSets")
    for view, _ in VIEWS:
        files = _add(group, "fileSet")
        _add(files, "name", f"{view}_view_fileset")
        for path in component.files:
            file = _add(files, "file")
            _add(file, "name", path)
            _add(file, "fileType", FILE_TYPES[path[path.rindex(".") :]])


def _extensions(root: xml.Element, component: Component) -> None:
    extensions = _add(root, "vendorExtensions")
    core = xml.SubElement(extensions, f"{{{XILINX}}}coreExtensions")
    families = xml.SubElement(core, f"{{{XILINX}}}supportedFamilies")
    family = xml.SubElement(families, f"{{{XILINX}}}family", {f"{{{XILINX}}}lifeCycle": "Beta"})
    family.text = FAMILY
    taxonomies = xml.SubElement(core, f"{{{XILINX}}}taxonomies")
    xml.SubElement(taxonomies, f"{{{XILINX}}}taxonomy").text = "/UserIP"
    for name, value in (("displayName", component.title), ("coreRevision", "1")):
        xml.SubElement(core, f"{{{XILINX}}}{name}").text = value
