"""Buses: which pins of a core belong to which AXI interface, told by their names.

The names are AXI's own (AMBA IHI 0022, IHI 0051): `<interface>_<signal>`, in small letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lichen.errors import ContractError
from lichen.rtl.ports import Pin

CLOCK, RESET = "aclk", "aresetn"
STREAM = ("tdata", "tkeep", "tstrb", "tlast", "tuser", "tid", "tdest", "tvalid", "tready")
ADDRESS = ("id", "addr", "len", "size", "burst", "lock", "cache", "prot", "region", "qos", "user",
           "valid", "ready")  # fmt: skip
MEMORY = (
    *(f"{channel}{signal}" for channel in ("aw", "ar") for signal in ADDRESS),
    *("wid", "wdata", "wstrb", "wlast", "wuser", "wvalid", "wready"),
    *("bid", "bresp", "buser", "bvalid", "bready"),
    *("rid", "rdata", "rresp", "rlast", "ruser", "rvalid", "rready"),
)
# What the other side cannot do without.
NEEDED = {
    "stream": ("tdata", "tvalid", "tready"),
    "lite": ("awaddr", "awvalid", "awready", "wdata", "wstrb", "wvalid", "wready", "bresp",
             "bvalid", "bready", "araddr", "arvalid", "arready", "rdata", "rresp", "rvalid",
             "rready"),
}  # fmt: skip
NEEDED["memory"] = (*NEEDED["lite"], "awlen", "awsize", "awburst", "wlast", "arlen", "arsize",
                    "arburst", "rlast")  # fmt: skip

Kind = Literal["stream", "lite", "memory"]


@dataclass(frozen=True)
class Bus:
    """An AXI interface. pins: by the signal's name in the standard, small letters."""

    name: str
    kind: Kind
    master: bool
    pins: Mapping[str, Pin]

    @property
    def data_bits(self) -> int:
        """Width of the data."""
        return self.pins["tdata" if self.kind == "stream" else "wdata"].bits

    @property
    def address_bits(self) -> int:
        """Width of the addresses; 0 for a stream."""
        return 0 if self.kind == "stream" else self.pins["awaddr"].bits


@dataclass(frozen=True)
class Interface:
    """All pins of a core, and the buses that they make beside clock and reset."""

    pins: tuple[Pin, ...]
    buses: tuple[Bus, ...]

    def of_kind(self, kind: Kind, master: bool) -> tuple[Bus, ...]:
        """Give the buses of a kind that begin (master) or end (slave) here, in order."""
        return tuple(bus for bus in self.buses if bus.kind == kind and bus.master == master)


def interface(pins: Sequence[Pin]) -> Interface:
    """Group pins. Raises ContractError where one is missing, or fits nowhere."""
    names = {pin.name for pin in pins}
    for name in (CLOCK, RESET):
        if name not in names:
            raise ContractError(f"a core on a board needs a pin {name!r}; this one has none")
    groups: dict[str, dict[str, Pin]] = {}
    for pin in pins:
        prefix, _, signal = pin.name.rpartition("_")
        if prefix and signal in (*STREAM, *MEMORY):
            groups.setdefault(prefix, {})[signal] = pin
        elif pin.name not in (CLOCK, RESET):
            raise ContractError(f"the pin {pin.name!r} belongs to no AXI interface")
    return Interface(tuple(pins), tuple(_bus(name, group) for name, group in groups.items()))


def _bus(name: str, pins: Mapping[str, Pin]) -> Bus:
    kind: Kind = "stream" if "tvalid" in pins else "memory" if "awlen" in pins else "lite"
    missing = [signal for signal in NEEDED[kind] if signal not in pins]
    if missing:
        raise ContractError(f"the interface {name} lacks {', '.join(missing)}")
    valid = pins["tvalid" if kind == "stream" else "awvalid"]
    return Bus(name, kind, valid.flow == "out", pins)
