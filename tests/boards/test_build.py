"""`lichen build` from a model to packages, with a stand-in for Vivado, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vivado_on_path
from vivado import TCLSH, WANTS_TCL

sys.path.insert(0, str(Path(__file__).parents[1] / "rtl"))

import tiny_codec

from lichen.boards import build, core_image, cores, firmware, vivado
from lichen.boards.address_map import CORES
from lichen.boards.board import BOARDS, board
from lichen.boards.record import read
from lichen.cli import main
from lichen.errors import DeviceError
from lichen.rtl import fold, trial
from lichen.rtl.leaf import SOURCES
from lichen.rtl.ports import core_pins
from lichen.rtl.synthesise import yosys

SIZE = "128x128"


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    path.write_bytes(tiny_codec.model().to_bytes())
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory, model_file):
    """A real folder of the tiny codec's encoder, and that core: seconds."""
    path = tmp_path_factory.mktemp("written") / "board"
    made, make = [], cores.make_all

    def keep(*arguments):
        made.append(make(*arguments))
        return made[-1]

    command = ["build", "--board", "kv260", "--core", "encoder", "--size", SIZE, "--no-vivado"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "make_all", keep)
        assert main([*command, "-o", str(path), "--model", str(model_file)]) == 0
    return path, made[0]["encoder"]


@pytest.fixture
def written(whole):
    return whole[0]


@pytest.fixture
def fast(monkeypatch, whole):
    """The core that is written already, instead of another one."""
    home = whole[0] / "ip/lichen_encoder"
    known = {p.relative_to(home).as_posix(): p.read_text("utf-8") for p in home.rglob("*.*")}
    monkeypatch.setattr(cores, "make_all", lambda *arguments: {"encoder": whole[1]})
    monkeypatch.setattr(cores.BoardCore, "files", lambda core: known)


def arguments(model_file, output, *more):
    command = ["build", "--board", "kv260", "--core", "encoder", "--size", SIZE]
    return [*command, "-o", str(output), "--model", str(model_file), *more]


def on_path(monkeypatch, *folders):
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def test_folder(written):
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {
        "README.md", "lichen.json", "vivado/build.tcl", "ip/lichen_encoder/component.xml",
        "ip/lichen_encoder/src/lichen_encoder.v", "firmware/lichen-kv260.dtsi",
        "firmware/lichen-kv260.bif", "firmware/shell.json", "pynq/pyproject.toml",
    } <= files  # fmt: skip
    for source in SOURCES:
        copied = written / "ip/lichen_encoder/src" / source.name
        assert copied.read_bytes() == source.read_bytes()
    text = (written / "ip/lichen_encoder/src/lichen_encoder.v").read_text(encoding="utf-8")
    head = re.search(r"^module lichen_encoder\((.*?)\);", text, re.DOTALL | re.MULTILINE)
    assert head
    assert {name.strip() for name in head[1].split(",")} == {pin.name for pin in core_pins(0)}
    for pin in core_pins(0):
        width = rf"\[{pin.bits - 1}:0\] " if pin.bits > 1 else ""
        assert re.search(rf"^  {pin.flow}put {width}{pin.name};", text, re.MULTILINE), pin
    assert '.FACE("packed")' in text and "/root" not in text
    made = read(written)
    assert made.board == "kv260" and list(made.cores) == ["encoder"] and made.model == "tiny"
    image = core_image.read(written / "weights/encoder.load.npz")
    core = made.cores["encoder"]
    assert (image.core, image.layout) == ("encoder", core.layout)
    assert image.words.nbytes == core.load_bytes > 1000
    assert (core.width, core.height, core.clock_hz) == (128, 128, 300_000_000)
    assert core.frames_per_second >= 30
    assert hex(core.layout) in (written / "README.md").read_text(encoding="utf-8")


def test_sources_are_complete(written):
    """Another tool finds every module that the packaged core names, and notices a missing file."""
    home = written / "ip/lichen_encoder/src"
    try:
        program = yosys()
    except DeviceError as error:
        pytest.skip(str(error))

    def check(files):
        script = (
            "read_verilog -lib +/xilinx/cells_sim.v +/xilinx/cells_xtra.v; "
            f"read_verilog -sv {' '.join(files)}; hierarchy -check -top lichen_encoder"
        )
        done = subprocess.run([*program, "-q", "-p", script], cwd=home, capture_output=True)
        return done.returncode

    names = sorted(path.name for path in home.iterdir())
    assert check(names) == 0
    assert check([name for name in names if name != "memory.sv"]) != 0


def test_without_vivado(fast, model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vivado.shutil, "which", lambda name: None)
    assert main(arguments(model_file, tmp_path / "board")) == 0
    printed = capsys.readouterr()
    assert "Vivado is not on the PATH" in printed.out
    assert "vivado -mode batch -source build.tcl" in printed.out
    assert f"lichen package {tmp_path / 'board'}" in printed.out
    assert not printed.err


def test_usual_core(fast, model_file, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(vivado, "find", lambda: None)
    known = cores.make_all
    monkeypatch.setattr(cores, "make_all", lambda *a: asked.append(a[1:]) or known(*a))
    words = ["build", "--board", "kv260", "--model", str(model_file)]
    assert main([*words, "-o", str(tmp_path / "usual")]) == 0
    assert main([*words, "-o", str(tmp_path / "one"), "--core", "encoder"]) == 0
    found = [(names, target.width, target.frames_per_second) for names, _, target in asked]
    assert found == [(CORES, 1280, 30.0), (("encoder",), 1920, 30.0)]


@pytest.mark.skipif(TCLSH is None, reason=WANTS_TCL)
def test_with_vivado(fast, model_file, tmp_path, monkeypatch, capsys):
    vivado_on_path.install(tmp_path / "bin")
    on_path(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(firmware, "convert_bitfile", convert_anything)
    output = tmp_path / "board"
    assert main(arguments(model_file, output, "--json")) == (0)
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["state"] == "all" and report["board"] == "kv260" and not printed.err
    for name in ("out/lichen-kv260.bit", "out/lichen-kv260.hwh", "out/lichen-kv260.xsa"):
        assert (output / name).is_file()
    if shutil.which("dtc"):
        packages = {Path(name).relative_to(output).as_posix() for name in report["packages"]}
        assert {"firmware/lichen-kv260.dtbo", "pynq/lichen_kv260/lichen-kv260.bit"} <= packages


def convert_anything(home, stem):
    """The stand-in's bitfile is none; bootgen has its own tests."""
    return Path(shutil.copy(home / f"{stem}.bit", home / f"{stem}.bit.bin"))


@pytest.mark.skipif(TCLSH is None, reason=WANTS_TCL)
def test_vivado_fails(fast, model_file, tmp_path, monkeypatch, capsys):
    vivado_on_path.install(tmp_path / "bin", "2021.1", "set stub(setup) -0.25")
    on_path(monkeypatch, tmp_path / "bin")
    assert main(arguments(model_file, tmp_path / "board")) == 6
    error = capsys.readouterr().err
    assert "note: Vivado 2021.1: build.tcl was written by the documents of 2022.1, " in error
    assert "error: Vivado failed: ERROR: timing is not met by lichen-kv260: setup slack" in error
    assert "vivado.log" in error and "please report" not in error
    assert not (tmp_path / "board/out").exists()


def test_vivado_that_says_nothing(fast, model_file, tmp_path, monkeypatch, capsys):
    vivado_on_path.install(tmp_path / "bin", "")
    on_path(monkeypatch, tmp_path / "bin")
    assert main(arguments(model_file, tmp_path / "board")) == 6
    assert "-version said '?'; expected 'Vivado v2023.2'" in capsys.readouterr().err


def test_no_packages_without_tools(fast, model_file, tmp_path, monkeypatch, capsys):
    vivado_on_path.install(tmp_path / "bin")
    on_path(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(vivado, "run", lambda program, path, step: leave(path))
    monkeypatch.setattr(firmware.shutil, "which", lambda name: None)
    monkeypatch.setattr(vivado, "find", lambda: str(tmp_path / "bin/vivado"))
    assert main(arguments(model_file, tmp_path / "board")) == 0
    error = capsys.readouterr().err
    assert "note: no packages yet: bootgen is missing: it comes with Vivado" in error
    assert f"lichen package {tmp_path / 'board'}" in error


def leave(path):
    (path / "out").mkdir()
    for suffix in (".bit", ".hwh"):
        (path / f"out/lichen-kv260{suffix}").write_text("x", encoding="utf-8")


def test_output_is_not_empty(fast, model_file, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(arguments(model_file, tmp_path)) == 2
    assert f"the folder {tmp_path} is not empty; name another" in capsys.readouterr().err
    assert main(arguments(model_file, tmp_path / "notes.txt")) == 2
    assert "notes.txt is a file; expected a new folder" in capsys.readouterr().err
    assert main(arguments(model_file, tmp_path / "nowhere/board")) == 3
    assert "there is no folder for the output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_half_written(fast, model_file, tmp_path, monkeypatch, capsys):
    def fail(self):
        raise OSError(28, "No space left on device", "lichen_encoder.v")

    monkeypatch.setattr(cores.BoardCore, "files", fail)
    assert main(arguments(model_file, tmp_path / "board", "--no-vivado")) == 3
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--board", "kv261"], "invalid choice: 'kv261' (choose from 'kv260', 'zcu102')"),
        (["--core", "transcoder"], "invalid choice: 'transcoder'"),
        (["--size", "0x10"], "--size"),
        (["--fps", "-1"], "--fps"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_words(tmp_path, capsys, words, message):
    code = main(["build", "--board", "kv260", "-o", str(tmp_path / "x"), *words])
    assert code in (2, 4) and message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_model_that_is_no_pipeline(tmp_path, model_file, monkeypatch, capsys):
    """A rate that no folding reaches is the user's error, and says what would be reached."""
    command = arguments(model_file, tmp_path / "x", "--fps", "1000000")
    assert main(command) == 2
    assert "frames" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_boards_are_those_of_the_parts():
    assert BOARDS.keys() == fold.PARTS.keys() == build.ALONE.keys() == build.TOGETHER.keys()
    with pytest.raises(DeviceError, match="no board 'pynq-z2'; there are kv260, zcu102"):
        board("pynq-z2")


def test_shortage(monkeypatch):
    class Core:
        resources = fold.Resources(dsp=2000, bram36=10)

    with pytest.warns(UserWarning, match=r"more of the AMD Kria KV260 than 85%: dsp: 2000 of 1060"):
        build.warn_of_shortage(BOARDS["kv260"], {"encoder": Core()})


def test_cores_share_the_memory(monkeypatch):
    """Placed one by one, both would take the same UltraRAM."""
    part, target = fold.PARTS["kv260"], fold.Target(1280, 720, 30.0)
    plans = {name: trial.plan_for(tiny_codec.model(), name, part, target) for name in CORES}
    asked, place = [], fold.place

    def watch(memories, part, external, taken):
        asked.append((len(memories), taken))
        return place(memories, part, external, taken)

    monkeypatch.setattr(fold, "place", watch)
    together = cores.place(plans, part)
    count = sum(len(plan.memories) for plan in plans.values())
    assert asked == [(count, plans["encoder"].logic + plans["decoder"].logic)]
    for name, plan in plans.items():
        placed = [memory for memory, _ in together[name].homes] + list(together[name].external)
        assert sorted(map(repr, placed)) == sorted(map(repr, plan.memories))


def test_package_command(make_folder, capsys):
    root = make_folder()
    assert main(["package", str(root)]) == 6
    assert "run Vivado first" in capsys.readouterr().err
    assert main(["package", str(root / "nowhere")]) == 6
    assert "is no build folder" in capsys.readouterr().err
