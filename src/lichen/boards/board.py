"""The boards: what Vivado calls them, and what of them the block design uses.

Part, board part and connections: the board files that come with Vivado and XilinxBoardStore.
Resources of the parts: `lichen.rtl.fold`. Sensors: the names that Linux gives them in
/sys/class/hwmon/hwmon*/name.
"""

from __future__ import annotations

from dataclasses import dataclass

from lichen.errors import DeviceError


@dataclass(frozen=True)
class Board:
    """A board.

    part, board_parts: as `create_project -part` and the property board_part want them; the newest
    of board_parts that Vivado knows is taken. connections: the property board_connections.
    power_sensors: beginnings of hwmon names whose power1_input, in microwatts, add up to what the
    board takes. kria: whether firmware is loaded by xmutil.
    """

    name: str
    title: str
    part: str
    board_parts: tuple[str, ...]
    connections: str
    power_sensors: tuple[str, ...]
    power_of: str
    kria: bool


KV260 = Board(
    name="kv260",
    title="AMD Kria KV260",
    part="xck26-sfvc784-2LV-c",
    board_parts=("xilinx.com:kv260_som:part0:1.4", "xilinx.com:kv260_som:part0:1.3"),
    connections="som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3",
    power_sensors=("ina260",),
    power_of="the module (SOM), PS, PL and DRAM",
    kria=True,
)
ZCU102 = Board(
    name="zcu102",
    title="AMD ZCU102",
    part="xczu9eg-ffvb1156-2-e",
    board_parts=("xilinx.com:zcu102:part0:3.4", "xilinx.com:zcu102:part0:3.3"),
    connections="",
    # The 18 INA226 of the board measure one rail each (UG1182, "Monitoring Voltage and Current").
    power_sensors=("ina226",),
    power_of="the rails that have an INA226",
    kria=False,
)
BOARDS = {board.name: board for board in (KV260, ZCU102)}


def board(name: str) -> Board:
    """Find a board. Raises DeviceError."""
    if name not in BOARDS:
        raise DeviceError(f"no board {name!r}; there are {', '.join(BOARDS)}")
    return BOARDS[name]
