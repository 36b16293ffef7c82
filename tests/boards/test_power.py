"""Power sensors, in made-up folders like /sys/class/hwmon."""

from __future__ import annotations

import time

from lichen.boards.board import BOARDS
from lichen.boards.power import Meter, Sensors


def sensor(root, number, name, microwatts=None):
    folder = root / f"hwmon{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n", encoding="ascii")
    if microwatts is not None:
        (folder / "power1_input").write_text(f"{microwatts}\n", encoding="ascii")
    return folder


def test_one_sensor(tmp_path):
    sensor(tmp_path, 0, "cpu_thermal")
    sensor(tmp_path, 1, "ina260_u14", 7_930_000)
    sensor(tmp_path, 2, "nvme", 3_000_000)
    assert Sensors(BOARDS["kv260"].power_sensors, tmp_path).watts() == 7.93


def test_rails_add_up(tmp_path):
    for number, name in enumerate(("u76", "u79", "u93")):
        sensor(tmp_path, number, f"ina226_{name}", 1_500_000 + number)
    sensor(tmp_path, 9, "ina226_u81")  # no power1_input
    (tmp_path / "hwmon10").mkdir()  # no name
    sensors = Sensors(BOARDS["zcu102"].power_sensors, tmp_path)
    assert len(sensors.files) == 3 and sensors.watts() == 4.500003


def test_none(tmp_path):
    assert Sensors(("ina260",), tmp_path).watts() is None
    assert Sensors(("ina260",), tmp_path / "nowhere").watts() is None
    sensor(tmp_path, 0, "ina260_u14", "busy")
    assert Sensors(("ina260",), tmp_path).watts() is None


def test_meter(tmp_path):
    folder = sensor(tmp_path, 0, "ina260_u14", 4_000_000)
    sensors = Sensors(("ina260",), tmp_path)
    with Meter(sensors) as meter:
        while not meter.values:
            time.sleep(0.001)
        (folder / "power1_input").write_text("8000000", encoding="ascii")
        while 8.0 not in meter.values:
            time.sleep(0.001)
    count = len(meter.values)
    assert meter.watts is not None and 4.0 < meter.watts < 8.0
    time.sleep(0.15)
    assert len(meter.values) == count  # it has ended
    with Meter(Sensors((), tmp_path)) as silent:
        pass
    assert silent.watts is None
