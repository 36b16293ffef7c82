"""Tcl: the script by which Vivado makes a project out of a folder, and builds it.

    vivado -mode batch -source build.tcl -tclargs STEP

STEP is `design` (the project and its block design, checked), `core` (each core alone, out of
context: synthesised, placed, routed, timed) or `all` (everything, up to the bitfile; the default).
Commands: UG835; project and reports: UG894; block designs: UG994, UG1118.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lichen.boards import shell
from lichen.boards.address_map import CoreName
from lichen.boards.board import Board
from lichen.boards.buses import CLOCK
from lichen.boards.ipxact import Component
from lichen.boards.shell import Cell, Design

# Releases whose documents the script was written by. None was run: no Vivado was at hand.
DOCUMENTED = ("2022.1", "2022.2", "2023.1", "2023.2", "2024.1")
STEPS = ("design", "core", "all")
BLOCK_DESIGN = "lichen"
SCRIPT = "build.tcl"


def script(board: Board, stem: str, cores: Mapping[CoreName, Component], design: Design) -> str:
    """Give build.tcl. stem: of the files in out/."""
    parts = [
        _head(board, stem, [cores[name].name for name in cores]),
        _checks(board),
        _project(board),
        _block_design(design),
        _core(board),
        _build(),
        _main(),
    ]
    return "\n".join(parts)


def brace(words: Iterable[str]) -> str:
    """Give a Tcl list of words."""
    return " ".join(f"{{{word}}}" for word in words)


def _head(board: Board, stem: str, cores: Sequence[str]) -> str:
    return f"""\
# {board.title}: lichen's cores in a block design. Written by `lichen build`.
#
#   vivado -mode batch -source {SCRIPT}                          all: to the bitfile, in ../out
#   vivado -mode batch -source {SCRIPT} -tclargs design          only the block design, checked
#   vivado -mode batch -source {SCRIPT} -tclargs core            each core alone, out of context
#
# Ends with an error where a step fails or timing is not met; reports are in ../reports.

set here [file dirname [file normalize [info script]]]
set root [file dirname $here]
set work [file join $here work]
set reports [file join $root reports]
set out [file join $root out]
set stem {{{stem}}}
set part {{{board.part}}}
set cores [list {brace(cores)}]
set jobs 4
set step all
if {{[llength $argv] > 0}} {{ set step [lindex $argv 0] }}
if {{[lsearch -exact [list {" ".join(STEPS)}] $step] < 0}} {{
    error "expected one of {", ".join(STEPS)}, not '$step'"
}}
file mkdir $reports
"""


def _checks(board: Board) -> str:
    blocks = "\n".join(
        f"        {name} {{{' '.join(versions)}}}" for name, versions in shell.BLOCKS.items()
    )
    return f"""\
# Versions: what other ones do is not known, so they are named and tried.
proc check_vivado {{}} {{
    set found [version -short]
    set documented [list {" ".join(DOCUMENTED)}]
    if {{[lsearch -exact $documented [string range $found 0 5]] < 0}} {{
        puts "WARNING: lichen: Vivado $found; the script was written by the documents of\\
            [join $documented {{, }}]"
    }}
}}

proc check_blocks {{}} {{
    set documented {{
{blocks}
    }}
    foreach {{name versions}} $documented {{
        set found [get_ipdefs -all -filter "VLNV =~ xilinx.com:ip:$name:*"]
        if {{[llength $found] == 0}} {{
            error "Vivado's catalogue has no $name; install the device family Zynq UltraScale+"
        }}
        set version [lindex [split [lindex [lsort -dictionary $found] end] :] end]
        if {{[lsearch -exact $versions $version] < 0}} {{
            puts "WARNING: lichen: $name $version; documented: [join $versions {{, }}]"
        }}
    }}
}}

proc board_part {{}} {{
    foreach name [list {" ".join(board.board_parts)}] {{
        if {{[llength [get_board_parts -quiet $name]] > 0}} {{ return $name }}
    }}
    error "Vivado has no board files of the {board.title}: install them by\\
        `xhub::install \\[xhub::get_xitems *{board.name}*\\]`, or from\\
        github.com/Xilinx/XilinxBoardStore"
}}
"""


def _project(board: Board) -> str:
    connections = ""
    if board.connections:
        connections = (
            f"    set_property board_connections {{{board.connections}}} [current_project]\n"
        )
    return f"""\
proc make_project {{}} {{
    global work part root stem
    create_project $stem $work -part $part -force
    set_property board_part [board_part] [current_project]
{connections}\
    set_property target_language Verilog [current_project]
    set_property ip_repo_paths [list [file join $root ip]] [current_project]
    update_ip_catalog
    check_blocks
}}
"""


def _cell(cell: Cell) -> str:
    lines = [f"    create_bd_cell -type ip -vlnv {cell.vlnv} {cell.name}"]
    if cell.name == "ps":
        lines.append(
            "    apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e \\\n"
            '        -config {apply_board_preset "1"} [get_bd_cells ps]'
        )
    if cell.properties:
        width = max(map(len, cell.properties))
        pairs = "".join(
            f"        CONFIG.{name:{width}} {{{value}}} \\\n"
            for name, value in cell.properties.items()
        )
        lines.append(f"    set_property -dict [list \\\n{pairs}    ] [get_bd_cells {cell.name}]")
    return "\n".join(lines) + "\n"


def _block_design(design: Design) -> str:
    cells = "\n".join(_cell(cell) for cell in design.cells)
    links = "".join(
        f"    connect_bd_intf_net [get_bd_intf_pins {a}] [get_bd_intf_pins {b}]\n"
        for a, b in design.links
    )
    nets = "".join(
        "    connect_bd_net " + " \\\n        ".join(f"[get_bd_pins {pin}]" for pin in net) + "\n"
        for net in design.nets
    )
    segments = "".join(
        f"    assign_bd_address -offset {segment.offset:#x} -range {segment.size_bytes:#x} \\\n"
        f"        -target_address_space [get_bd_addr_spaces {segment.space}] \\\n"
        f"        [get_bd_addr_segs {segment.segment}]\n"
        for segment in design.segments
    )
    excluded = "".join(
        f"    exclude_bd_addr_seg -target_address_space [get_bd_addr_spaces {space}] \\\n"
        f"        [get_bd_addr_segs {segment}]\n"
        for space, segment in design.excluded
    )
    return f"""\
proc make_design {{}} {{
    create_bd_design {BLOCK_DESIGN}

{cells}
    # Interfaces
{links}
    # Clocks, resets, interrupts
{nets}
    # Addresses: those of the driver and of the device tree
{segments}
    # What the DMAs must not touch
{excluded}
    validate_bd_design
    save_bd_design
    set file [get_files {BLOCK_DESIGN}.bd]
    # Every block is synthesised by itself, out of context, and kept.
    set_property synth_checkpoint_mode Hierarchical $file
    generate_target all $file
    add_files -norecurse [make_wrapper -files $file -top]
    set_property top {BLOCK_DESIGN}_wrapper [current_fileset]
    update_compile_order -fileset sources_1
}}
"""


def _core(board: Board) -> str:
    period = 1e9 / shell.CORE_CLOCK_HZ
    return f"""\
# A core alone: what it takes and whether its own paths keep the clock, without the board around it.
proc build_core {{name}} {{
    global root part reports
    set folder [file join $root ip $name src]
    create_project -in_memory -part $part
    read_verilog [glob [file join $folder *.v]]
    read_verilog -sv [glob [file join $folder *.sv]]
    synth_design -top $name -part $part -mode out_of_context
    create_clock -name {CLOCK} -period {period:.3f} [get_ports {CLOCK}]
    opt_design
    place_design
    phys_opt_design
    route_design
    report_utilization -file [file join $reports ${{name}}_utilization.rpt]
    report_timing_summary -max_paths 20 -file [file join $reports ${{name}}_timing.rpt]
    report_power -file [file join $reports ${{name}}_power.rpt]
    set setup [get_property SLACK [get_timing_paths -max_paths 1 -setup]]
    set hold [get_property SLACK [get_timing_paths -max_paths 1 -hold]]
    close_project
    check_slack $name $setup $hold
}}

proc check_slack {{what setup hold}} {{
    global reports
    puts "lichen: $what: setup slack $setup ns, hold slack $hold ns"
    if {{$setup < 0 || $hold < 0}} {{
        error "timing is not met by $what: setup slack $setup ns, hold slack $hold ns, at\\
            {shell.CORE_CLOCK_HZ / 1e6:.0f} MHz; see $reports. No bitfile was kept"
    }}
}}
"""


def _build() -> str:
    return f"""\
proc check_run {{name}} {{
    set run [get_runs $name]
    if {{[get_property PROGRESS $run] ne "100%"}} {{
        error "$name failed: [get_property STATUS $run]; see its runme.log in\\
            [get_property DIRECTORY $run]"
    }}
}}

proc build_all {{}} {{
    global work reports out stem jobs
    set_property strategy Flow_PerfOptimized_high [get_runs synth_1]
    set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]
    launch_runs synth_1 -jobs $jobs
    wait_on_run synth_1
    check_run synth_1
    launch_runs impl_1 -to_step write_bitstream -jobs $jobs
    wait_on_run impl_1
    check_run impl_1

    open_run impl_1
    report_utilization -file [file join $reports utilization.rpt]
    report_utilization -hierarchical -file [file join $reports utilization_hierarchical.rpt]
    report_timing_summary -max_paths 20 -file [file join $reports timing.rpt]
    report_power -file [file join $reports power.rpt]
    report_drc -file [file join $reports drc.rpt]
    set run [get_runs impl_1]
    check_slack $stem [get_property STATS.WNS $run] [get_property STATS.WHS $run]

    set folder [get_property DIRECTORY $run]
    set bit [file join $folder {BLOCK_DESIGN}_wrapper.bit]
    set handoff [glob -nocomplain [file join $work $stem.{{gen,srcs}} sources_1 bd \\
        {BLOCK_DESIGN} hw_handoff {BLOCK_DESIGN}.hwh]]
    if {{![file exists $bit] || [llength $handoff] == 0}} {{
        error "Vivado left no $bit, or no {BLOCK_DESIGN}.hwh under $work"
    }}
    file mkdir $out
    file copy -force $bit [file join $out $stem.bit]
    file copy -force [lindex $handoff 0] [file join $out $stem.hwh]
    write_hw_platform -fixed -include_bit -force -file [file join $out $stem.xsa]
    puts "lichen: $stem.bit, $stem.hwh and $stem.xsa are in $out"
}}
"""


def _main() -> str:
    return """\
check_vivado
if {$step eq "core"} {
    foreach name $cores { build_core $name }
} else {
    make_project
    make_design
    if {$step eq "all"} { build_all }
}
"""
