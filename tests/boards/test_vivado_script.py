"""build.tcl in a stand-in of Vivado: it goes through, and the stand-in would see what is wrong."""

from __future__ import annotations

import re

import pytest
from vivado import TCLSH, WANTS_TCL, run

from lichen.boards import shell, tcl
from lichen.boards.address_map import MAPS
from lichen.boards.board import BOARDS

pytestmark = pytest.mark.skipif(TCLSH is None, reason=WANTS_TCL)


def names(ran):
    return [line.split()[0] for line in ran.commands]


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("cores", [("encoder",), ("decoder",), ("encoder", "decoder")])
@pytest.mark.parametrize("delays", [0, 4])
def test_builds(make_folder, tmp_path, board, cores, delays):
    root = make_folder(board, cores, delays)
    ran = run(root / "vivado/build.tcl", tmp_path)
    assert ran.code == 0, ran.error
    assert "WARNING" not in ran.output
    stem = f"lichen-{board}"
    out = {path.name for path in (root / "out").iterdir()}
    assert out == {f"{stem}.bit", f"{stem}.hwh", f"{stem}.xsa"}
    reports = {path.name for path in (root / "reports").iterdir()}
    assert {"utilization.rpt", "timing.rpt", "power.rpt"} <= reports
    text = "\n".join(ran.commands)
    assert f"-part {BOARDS[board].part}" in text
    for name in cores:
        assert f"-offset {MAPS[name].registers:#x} -range 0x10000" in text
        assert f"-offset {MAPS[name].dma:#x} -range 0x10000" in text
    assert (
        names(ran).count("create_bd_cell")
        == len(shell.BLOCKS) + 1 + 2 * len(cores) + (len(cores) == 2) * -1
    )  # two SmartConnects and resets; a DMA and itself for each core; the constant for one


def test_steps(make_folder, tmp_path):
    root = make_folder()
    script = root / "vivado/build.tcl"
    design = run(script, tmp_path, "design")
    assert design.code == 0 and "launch_runs" not in names(design)
    assert "validate_bd_design" in names(design)
    core = run(script, tmp_path, "core")
    assert core.code == 0, core.error
    assert names(core).count("synth_design") == 2 and "create_bd_design" not in names(core)
    assert {"lichen_encoder_timing.rpt", "lichen_decoder_utilization.rpt"} <= {
        path.name for path in (root / "reports").iterdir()
    }
    wrong = run(script, tmp_path, "everything")
    assert wrong.code == 1 and "expected one of design, core, all, not 'everything'" in wrong.error
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("settings", "step", "message"),
    [
        ("set stub(setup) -0.012", "all", "timing is not met by lichen-kv260: setup slack -0.012"),
        ("set stub(hold) -0.001", "all", "hold slack -0.001"),
        ("set stub(setup) -0.3", "core", "timing is not met by lichen_encoder"),
        ("set stub(fails) synth_1", "all", "synth_1 failed: synth_design ERROR"),
        ("set stub(fails) impl_1", "all", "impl_1 failed"),
        ("set stub(board_parts) {}", "all", "no board files of the AMD Kria KV260"),
        ("array unset catalogue *axi_dma*", "all", "Vivado's catalogue has no axi_dma"),
    ],
)
def test_failures(make_folder, tmp_path, settings, step, message):
    root = make_folder()
    ran = run(root / "vivado/build.tcl", tmp_path, step, settings=settings)
    assert ran.code == 1 and message in ran.error
    assert not (root / "out").exists()  # no bitfile that did not keep the clock


def test_versions(make_folder, tmp_path):
    script = make_folder() / "vivado/build.tcl"
    old = run(script, tmp_path, settings="set stub(version) 2020.1")
    assert old.code == 0 and "WARNING: lichen: Vivado 2020.1; " in old.output
    assert "2022.1, 2022.2" in old.output
    patch = run(script, tmp_path, settings="set stub(version) 2023.2.2")
    assert patch.code == 0 and "WARNING" not in patch.output
    newer = run(
        script, tmp_path,
        settings="set catalogue(xilinx.com:ip:axi_dma:7.9) $catalogue(xilinx.com:ip:axi_dma:7.1)",
    )  # fmt: skip
    assert newer.code == 0 and "WARNING: lichen: axi_dma 7.9; documented: 7.1" in newer.output


# What the stand-in must see: (what is replaced, by what, the error).
WRONG = [
    (r"validate_bd_design\n", "validate_design\n", "no command 'validate_design'"),
    (r"-target_language Verilog|target_language", "target_langage", "no property 'target_langage'"),
    (r"c_include_sg  ", "c_include_gs  ", "has no property 'c_include_gs'"),
    (r"c_sg_length_width( +)\{26\}", r"c_sg_length_width\1{27}", "'27' is not in 8..26"),
    (r"CONFIG.NUM_CLKS +\{2\}", "CONFIG.NUM_CLKS {1}", "has no pins 'aclk1'"),
    (r"-range 0x10000 ", "-range 0x18000 ", "98304 bytes at"),
    (r"0xa0010000", "0xa0000000", "overlaps"),
    (r"0xa0010000", "0x90010000", "outside of what ps/Data gives"),
    (r"\[get_bd_pins encoder/aclk\] \\\n +", "", "encoder/aclk is not connected"),
    (r"connect_bd_net \[get_bd_pins clocks/locked\].*?\n.*?\n.*?\n", "",
     "dcm_locked is not connected"),
    (r".*get_bd_intf_pins encoder/m_axis\].*\n", "", "is not connected"),
    (r"(CONFIG.PSU__USE__M_AXI_GP1 +)\{0\}", r"\1{1}", "ps/maxihpm1_fpd_aclk is not connected"),
    (r"(c_m_axis_mm2s_tdata_width +)\{32\}", r"\1{64}", "has 64 bits, encoder/s_axis 32"),
    (r"(c_m_axi_mm2s_data_width +)\{128\}", r"\1{48}", "is not one of 32 64 128"),
    (r"(?s)encoder_dma/m_axi_s2mm_aclk(.*?)control/aclk1",
     r"control/aclk1\1encoder_dma/m_axi_s2mm_aclk", "different clocks"),
    (r"control_reset/peripheral_aresetn", "core_reset/peripheral_aresetn", "follows another clock"),
    (r"get_bd_intf_pins memory/M00_AXI\] \[get_bd_intf_pins ps/S_AXI_HP0_FPD",
     "get_bd_intf_pins ps/S_AXI_HP0_FPD] [get_bd_intf_pins memory/M00_AXI", "is a slave"),
    (r"board_part \[board_part\]", "board_part {xilinx.com:none:part0:1.0}", "no board part"),
    (r"get_bd_intf_pins encoder/s_axi\]", "get_bd_intf_pins encoder/s_axis]",
     "connected already|is stream"),
    (r"(exclude_bd_addr_seg -target_address_space \[get_bd_addr_spaces encoder_dma/Data_MM2S\] \\\n"
     r".*HP0_QSPI\]\n)", "", "HP0_QSPI has no address and is not excluded"),
    (r"generate_target all \$file\n", "", "generate_target first"),
    (r"wait_on_run synth_1\n", "", "synth_1 first|see its"),
    (r"codec:lichen_encoder:1.0", "codec:lichen_encoder:2.0", "no lichen.org"),
    (r"-sv \[glob", "[glob", "needs -sv"),
    (r"-mode out_of_context", "-mode default", "-mode default"),
    (r"launch_runs synth_1 -jobs", "launch_runs synth_1 -job", "unknown option '-job'"),
    (r"\{apply_board_preset \"1\"\}", "{apply_board_preset \"0\"}", "apply_bd_automation"),
    (r"encoder_dma/mm2s_introut\] \\\n +\[get_bd_pins interrupts/In0",
     r"encoder_dma/mm2s_introut] \\\n        [get_bd_pins interrupts/In4", "no pins 'In4'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_the_stand_in_sees(make_folder, tmp_path, old, new, message):
    root = make_folder()
    script = root / "vivado/build.tcl"
    text = script.read_text(encoding="utf-8")
    changed, count = re.subn(old, new, text, count=1)
    assert count == 1 and changed != text
    script.write_text(changed, encoding="utf-8")
    steps = ("core",) if "sv" in message or "-mode" in message else ("all",)
    ran = run(script, tmp_path, *steps)
    assert ran.code == 1 and re.search(message, ran.error), ran.error


def test_documented_blocks_are_those_of_the_design(make_folder):
    text = (make_folder() / "vivado/build.tcl").read_text(encoding="utf-8")
    used = set(re.findall(r"-vlnv xilinx\.com:ip:(\w+)", text)) | {"xlconstant"}
    assert used == set(shell.BLOCKS)
    assert sorted(tcl.DOCUMENTED) == list(tcl.DOCUMENTED)
