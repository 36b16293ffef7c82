"""Firmware by dtc and bootgen, and the package for PYNQ."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from board_folders import record

from lichen.boards import firmware, folder, overlay_package
from lichen.boards.address_map import FIRST_SHARED_INTERRUPT, MAPS
from lichen.boards.board import BOARDS
from lichen.boards.record import read, require_layout
from lichen.errors import DeviceError, ModelError

needs_dtc = pytest.mark.skipif(
    shutil.which("dtc") is None, reason="needs dtc: apt-get install device-tree-compiler"
)
needs_bootgen = pytest.mark.skipif(
    shutil.which("bootgen") is None, reason="needs bootgen: apt-get install xilinx-bootgen"
)
SYNC = [0xFFFFFFFF] * 16 + [0xBB, 0x11220044, 0xFFFFFFFF, 0xFFFFFFFF, 0xAA995566]


def bitfile(words: list[int]) -> bytes:
    """Give a .bit file: header, then words, high byte first."""

    def field(key: bytes, text: bytes) -> bytes:
        return key + struct.pack(">H", len(text) + 1) + text + b"\0"

    data = struct.pack(f">{len(words)}I", *words)
    start = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    named = field(b"a", b"lichen_wrapper;Version=2023.2") + field(b"b", b"xck26-sfvc784-2LV-c")
    dated = field(b"c", b"2026/11/28") + field(b"d", b"12:00:00")
    return start + named + dated + b"e" + struct.pack(">I", len(data)) + data


def built(root: Path) -> list[int]:
    """Put into out/ what Vivado would leave; give the words of the bitfile."""
    words = [*SYNC, 0x20000000, 0x30008001, 0xD, *range(100)]
    stem = read(root).stem
    (root / "out").mkdir()
    (root / f"out/{stem}.bit").write_bytes(bitfile(words))
    (root / f"out/{stem}.hwh").write_text("<EDKSYSTEM/>", encoding="utf-8")
    return words


@needs_dtc
@needs_bootgen
@pytest.mark.parametrize("board", BOARDS)
def test_packages(make_folder, board):
    root = make_folder(board)
    words = built(root)
    made = {path.relative_to(root).as_posix() for path in folder.finish(root)}
    stem = f"lichen-{board}"
    package = f"pynq/{stem.replace('-', '_')}"
    wanted = {f"firmware/{stem}.bit.bin", f"firmware/{stem}.dtbo"}
    wanted |= {f"{package}/{stem}.bit", f"{package}/{stem}.hwh"}
    images = [f"{core}.load.npz" for core in MAPS]
    wanted |= {f"{place}/{n}" for place in ("firmware", package) for n in ["lichen.json", *images]}
    assert made == wanted and all((root / name).is_file() for name in wanted)
    # What the FPGA manager wants: the words behind the header, low byte first.
    assert (root / f"firmware/{stem}.bit.bin").read_bytes() == struct.pack(
        f"<{len(words)}I", *words
    )
    kria = root / "firmware/shell.json"
    assert kria.exists() == BOARDS[board].kria
    if kria.exists():
        assert json.loads(kria.read_text()) == {"shell_type": "XRT_FLAT", "num_slots": "1"}


@needs_dtc
def test_overlay(tmp_path):
    source, target = tmp_path / "x.dtsi", tmp_path / "x.dtbo"
    source.write_text(firmware.overlay(record("kv260")), encoding="utf-8")
    firmware.compile_overlay(source, target)
    command = ["dtc", "-I", "dtb", "-O", "dts", str(target)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'firmware-name = "lichen-kv260.bit.bin";' in text
    for place in MAPS.values():
        for node, base in ((place.uio, place.registers), (place.dma_uio, place.dma)):
            body = re.search(rf"\b{node}@{base:x} {{(.*?)}}", text, re.DOTALL)
            assert body and f"reg = <0x00 {base:#x} 0x00 0x10000>;" in body[1]
            assert 'compatible = "generic-uio";' in body[1]
        interrupt = FIRST_SHARED_INTERRUPT + place.interrupt + 1
        assert f"interrupts = <0x00 {interrupt:#x} 0x04>;" in body[1]
        for name in (place.input_buffer, place.output_buffer, place.delay_buffer(0)):
            buffer = re.search(rf"\b{name} {{(.*?)}}", text, re.DOTALL)
            assert buffer and f'device-name = "{name}";' in buffer[1]
            get = ["fdtget", str(target), f"/fragment@1/__overlay__/{name}", "size"]
            size = int(subprocess.run(get, capture_output=True, text=True, check=True).stdout)
            assert size % 4096 == 0
            assert size >= (1 << 20 if "delay" in name else 3 * 1280 * 720)
    for label in ("fpga_full", "amba", "zynqmp_clk", "zynqmp_reset", "gic"):
        assert re.search(rf"\b{label} = ", text), f"the overlay does not refer to {label}"


def test_buffers_take_the_weights():
    """They come by the way of the pictures, which may be smaller."""
    whole = record("kv260", ("decoder",))
    small = replace(whole.cores["decoder"], width=16, height=16, load_bytes=1_234_567)
    text = firmware.overlay(replace(whole, cores={"decoder": small}))
    sizes = [int(found, 16) for found in re.findall(r"size = <(0x[0-9a-f]+)>", text)]
    assert sizes == [1_236_992, 4096, 1 << 20]


@needs_dtc
def test_overlay_that_is_none(tmp_path):
    source = tmp_path / "x.dtsi"
    source.write_text(firmware.overlay(record("kv260")).replace("};", "}", 1), encoding="utf-8")
    with pytest.raises(DeviceError, match=r"dtc failed: .*syntax error"):
        firmware.compile_overlay(source, tmp_path / "x.dtbo")


@needs_bootgen
def test_bitfile_that_is_none(make_folder):
    root = make_folder()
    built(root)
    (root / "out/lichen-kv260.bit").write_bytes(b"no bitfile")
    before = sorted(root.rglob("*"))
    with pytest.raises(DeviceError, match=r"bootgen failed: .*ERROR"):
        folder.finish(root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("tool", "how"),
    [("bootgen", "apt-get install xilinx-bootgen"), ("dtc", "device-tree-compiler")],
)
def test_missing_tools(make_folder, monkeypatch, tool, how):
    root = make_folder()
    built(root)
    which = shutil.which
    monkeypatch.setattr(
        firmware.shutil, "which", lambda name: None if name == tool else which(name) or "/bin/true"
    )
    if tool == "dtc":
        monkeypatch.setattr(firmware, "convert_bitfile", lambda home, stem: home / f"{stem}.bit")
    before = sorted(root.rglob("*"))
    with pytest.raises(DeviceError, match=rf"{tool} is missing: .*{how}"):
        folder.finish(root)
    assert sorted(root.rglob("*")) == before


def test_before_vivado(make_folder, tmp_path):
    with pytest.raises(DeviceError, match=r"lichen-kv260\.bit is not there: run Vivado first"):
        folder.finish(make_folder())
    with pytest.raises(DeviceError, match=r"is no build folder: it has no lichen\.json"):
        folder.finish(tmp_path)


def test_record(make_folder):
    root = make_folder()
    assert read(root) == record("kv260")
    path = root / "lichen.json"
    for old, new in (('"format": 1', '"format": 2'), ('"cores"', '"course"'), ("{", "[")):
        path.write_text(record("kv260").text().replace(old, new, 1), encoding="utf-8")
        with pytest.raises(DeviceError, match=r"lichen\.json is damaged .*run `lichen build`"):
            read(root)


def test_weights_of_another_shape():
    class Model:
        name, digest = "balle", bytes(8)

    require_layout(record("kv260"), "encoder", 0x1234ABCD, Model())
    with pytest.raises(ModelError, match=r"built for the shape of model student-s .* model balle"):
        require_layout(record("kv260"), "encoder", 0x1234ABCE, Model())


@pytest.mark.parametrize("cores", [("encoder",), ("decoder",), ("encoder", "decoder")])
def test_notebook(cores):
    book = nbformat.reads(overlay_package.notebook(record("zcu102", cores)), as_version=4)
    nbformat.validate(book)
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    assert "lichen selftest --device zcu102" in source
    assert ("lichen encode" in source) == ("encoder" in cores)
    assert ("lichen decode" in source) == ("decoder" in cores)
    python = [line for line in source.splitlines() if not line.startswith("!")]
    compile("\n".join(python), "notebook", "exec")
    broken = nbformat.from_dict({**book, "cells": [{"cell_type": "poem", "id": "a", "source": ""}]})
    with pytest.raises(nbformat.ValidationError):
        nbformat.validate(broken)


def test_pip_package(make_folder):
    """A wheel as pip makes it: entry points, bitfile and notebook are where PYNQ looks."""
    root = make_folder("kv260")
    package = root / "pynq/lichen_kv260"
    (package / "lichen-kv260.bit").write_bytes(b"bits")
    (package / "lichen-kv260.hwh").write_bytes(b"handoff")
    (package / "encoder.load.npz").write_bytes(b"weights")
    code = "import setuptools.build_meta as b; print(b.build_wheel('wheels'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "pynq", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((root / "pynq/wheels").glob("*.whl"))) as wheel:
        names = wheel.namelist()
        points = next(name for name in names if name.endswith("entry_points.txt"))
        entries = configparser.ConfigParser()
        entries.read_string(wheel.read(points).decode())
        requires = wheel.read(points.replace("entry_points.txt", "METADATA")).decode()
    assert dict(entries["pynq.overlays"]) == {"lichen-kv260": "lichen_kv260"}
    assert dict(entries["pynq.notebooks"]) == {"lichen-kv260": "lichen_kv260.notebooks"}
    for name in ("lichen-kv260.bit", "lichen-kv260.hwh", "encoder.load.npz",
                 "notebooks/lichen.ipynb"):  # fmt: skip
        assert f"lichen_kv260/{name}" in names
    assert "Requires-Dist: pynq>=3.0" in requires
