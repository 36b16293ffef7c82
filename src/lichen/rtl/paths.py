"""Paths: levels of logic in a netlist of Yosys, within modules and across them.

What counts. A LUT is one level, the reading of a LUT RAM is one, and so is a whole chain of
carries, whose LUTs in front count by themselves: an adder between registers has two levels. Wide
multiplexers (MUXF7 to MUXF9) sit in the slice of the LUTs that they join and count nothing, nor do
inverters, which LUTs and registers take in; only an inverter alone between registers is one. Paths
begin and end at flip-flops, shift registers, block RAM, UltraRAM, DSPs and the writing of LUT RAM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

LOGIC = re.compile(r"LUT\d|CARRY\d|MUXF\d|INV$|RAM\d+[MX]|XORCY|MUXCY")
FREE = re.compile(r"MUXF|INV")
CARRY = re.compile(r"CARRY|XORCY|MUXCY")
WRITTEN = re.compile(r"D|WE|WCLK")  # ports of a LUT RAM that a path ends at
IGNORED = frozenset({"$scopeinfo", "GND", "VCC", "BUFG"})

Node = tuple[str, str]  # a cell and its output port; a cell of logic has one node, port ""


@dataclass(frozen=True)
class Arcs:
    """Levels of logic of a module, seen from its ports.

    inside: between its registers. before: from an input to a register, behind: from a register to
    an output, through: from an input to an output, by (input, output); ports without logic at all
    on the way to a register count 0.
    """

    inside: int
    before: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, int] = field(default_factory=dict)
    through: Mapping[tuple[str, str], int] = field(default_factory=dict)
    worst: tuple[str, ...] = ()  # nets on the longest path inside, from its beginning

    @property
    def levels(self) -> int:
        """The most of all that touch its registers."""
        return max(self.inside, *self.before.values(), *self.behind.values(), 0)


class Paths:
    """The logic of one flattened module. children: arcs of the modules that it keeps."""

    def __init__(self, module: Mapping[str, Any], children: Mapping[str, Arcs]) -> None:
        self.module, self.children = module, children
        self.cells: Mapping[str, Any] = {
            name: cell for name, cell in module["cells"].items() if cell["type"] not in IGNORED
        }
        self.driver: dict[int, Node] = {}
        for name, cell in self.cells.items():
            for port, bits in self._ports(cell, "output"):
                node = (name, "" if self._logic(cell) else port)
                self.driver |= {bit: node for bit in bits}
        self.sources = {
            name: [bit for bit in port["bits"] if isinstance(bit, int)]
            for name, port in module["ports"].items()
            if port["direction"] == "input"
        }
        self.order = self._order()

    @staticmethod
    def _logic(cell: Mapping[str, Any]) -> bool:
        return bool(LOGIC.match(cell["type"]))

    @staticmethod
    def _ports(cell: Mapping[str, Any], way: str) -> Iterator[tuple[str, list[int]]]:
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == way:
                yield port, [bit for bit in bits if isinstance(bit, int)]

    def _inputs(self, node: Node) -> Iterator[tuple[int, int]]:
        """Give (bit, levels) of the inputs from which logic leads to a node."""
        name, output = node
        cell = self.cells[name]
        if self._logic(cell):
            for port, bits in self._ports(cell, "input"):
                if not (cell["type"].startswith("RAM") and WRITTEN.match(port)):
                    yield from ((bit, 1) for bit in bits)
        elif cell["type"] in self.children:
            through = self.children[cell["type"]].through
            for port, bits in self._ports(cell, "input"):
                if (port, output) in through:
                    yield from ((bit, through[port, output]) for bit in bits)

    def _order(self) -> list[Node]:
        """Order the nodes so that each comes behind those that it hangs on."""
        before: dict[Node, set[Node]] = {}
        for node in self.driver.values():
            if node not in before:
                bits = (bit for bit, _ in self._inputs(node))
                before[node] = {self.driver[bit] for bit in bits if bit in self.driver}
                before[node].discard(node)
        return list(TopologicalSorter(before).static_order())

    def _cost(self, node: Node, bit: int, levels: int) -> int:
        cell = self.cells[node[0]]
        if not self._logic(cell):
            return levels
        source = self.driver.get(bit)
        before = self.cells[source[0]]["type"] if source else ""
        chained = CARRY.match(cell["type"]) and CARRY.match(before)
        return 0 if chained or FREE.match(cell["type"]) else 1

    def depths(self, port: str | None) -> dict[Node, tuple[int, int | None]]:
        """Give the levels at each node that a path from an input reaches, and the bit before it.

        port None: paths from registers, those of kept modules included.
        """
        starts = set(self.sources[port]) if port is not None else set()
        found: dict[Node, tuple[int, int | None]] = {}
        for node in self.order:
            cell = self.cells[node[0]]
            best: tuple[int, int | None] | None = None
            if port is None and not self._logic(cell):
                arcs = self.children.get(cell["type"])
                if arcs is None:
                    best = (0, None)
                elif node[1] in arcs.behind:
                    best = (arcs.behind[node[1]], None)
            for bit, levels in self._inputs(node):
                source = self.driver.get(bit)
                at = found.get(source) if source is not None else None
                if bit in starts:
                    at = (0, None)
                if at is None:
                    continue
                depth = at[0] + self._cost(node, bit, levels)
                if best is None or depth > best[0]:
                    best = (depth, bit)
            if best is not None:
                found[node] = best
        return found

    def ends(self, depths: Mapping[Node, tuple[int, int | None]], starts: set[int]
             ) -> Iterator[tuple[int, int, str]]:  # fmt: skip
        """Give (levels, bit, cell) of the paths that end at registers and kept modules."""
        for name, cell in self.cells.items():
            arcs = self.children.get(cell["type"])
            for port, bits in self._ports(cell, "input"):
                if self._logic(cell):
                    if not (cell["type"].startswith("RAM") and WRITTEN.match(port)):
                        continue
                elif arcs is not None and port not in arcs.before:
                    continue
                more = arcs.before[port] if arcs is not None else 0
                for bit in bits:
                    if bit in starts:
                        yield more, bit, name
                    elif bit in self.driver and self.driver[bit] in depths:
                        node = self.driver[bit]
                        alone = FREE.match(self.cells[node[0]]["type"]) is not None
                        yield max(depths[node][0] + more, int(alone)), bit, name

    def arcs(self) -> Arcs:
        """Give the levels of the module from its ports."""
        before, behind, through = {}, {}, {}
        outputs = {
            name: [bit for bit in port["bits"] if isinstance(bit, int)]
            for name, port in self.module["ports"].items()
            if port["direction"] == "output"
        }
        for port, bits in self.sources.items():
            depths, starts = self.depths(port), set(bits)
            levels = [end[0] for end in self.ends(depths, starts)]
            if levels:
                before[port] = max(levels)
            for name, leaving in outputs.items():
                found = [depths[self.driver[bit]][0] for bit in leaving
                         if bit in self.driver and self.driver[bit] in depths]  # fmt: skip
                found += [0 for bit in leaving if bit in starts]
                if found:
                    through[port, name] = max(found)
        depths = self.depths(None)
        for name, leaving in outputs.items():
            found = [depths[self.driver[bit]][0] for bit in leaving
                     if bit in self.driver and self.driver[bit] in depths]  # fmt: skip
            if found:
                behind[name] = max(found)
        worst = max(self.ends(depths, set()), default=(0, 0, ""))
        inside = max([worst[0], *(self.children[cell["type"]].inside
                                  for cell in self.cells.values()
                                  if cell["type"] in self.children)])  # fmt: skip
        return Arcs(inside, before, behind, through, self.names(depths, worst))

    def names(
        self, depths: Mapping[Node, tuple[int, int | None]], end: tuple[int, int, str]
    ) -> tuple[str, ...]:
        """Name the nets of a path from its beginning, as far as the source names them."""
        named: dict[int, str] = {}
        for name, net in self.module["netnames"].items():
            for place, bit in enumerate(net["bits"]):
                known = named.get(bit)
                if not name.startswith("$") and (known is None or len(name) < len(known)):
                    named[bit] = f"{name}[{place}]" if len(net["bits"]) > 1 else name
        way: list[str] = []
        bit: int | None = end[1] or None
        last = end[2]
        while bit is not None:
            if bit in named and (not way or way[-1] != named[bit]):
                way.append(named[bit])
            node = self.driver.get(bit)
            if node is None or node not in depths:
                break
            bit = depths[node][1]
        own = self.cells.get(last)
        if own is not None:
            outputs = [b for _, bits in self._ports(own, "output") for b in bits]
            way[:0] = [named[b] for b in outputs[:1] if b in named]
        return tuple(reversed(way))


def analyse(module: Mapping[str, Any], children: Mapping[str, Arcs] | None = None) -> Arcs:
    """Count the levels of logic of a flattened module of Yosys' JSON."""
    return Paths(module, children or {}).arcs()
