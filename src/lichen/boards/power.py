"""Power: what a board takes, by the sensors that Linux shows in /sys/class/hwmon."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

HWMON = Path("/sys/class/hwmon")
PERIOD_S = 0.1  # an INA260 and an INA226 average over some 10 to 100 ms by themselves


class Sensors:
    """The power sensors of a board.

    names: beginnings of what a sensor's file `name` says. The values of all that are found are
    added up. files: their power1_input, microwatts each; empty where there are none.
    """

    def __init__(self, names: Sequence[str], root: Path = HWMON) -> None:
        self.files: list[Path] = []
        for folder in sorted(root.glob("hwmon*")):
            with suppress(OSError):
                name = (folder / "name").read_text(encoding="ascii").strip()
                power = folder / "power1_input"
                if name.startswith(tuple(names)) and power.is_file():
                    self.files.append(power)

    def watts(self) -> float | None:
        """Read all of them once; None where there are none, or one cannot be read."""
        if not self.files:
            return None
        try:
            return sum(int(file.read_text(encoding="ascii")) for file in self.files) / 1e6
        except (OSError, ValueError):
            return None


class Meter:
    """Reads sensors every PERIOD_S while it is entered; `watts` is the mean of what it read."""

    def __init__(self, sensors: Sensors) -> None:
        self.sensors = sensors
        self.values: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            value = self.sensors.watts()
            if value is not None:
                self.values.append(value)
            if self._end.wait(PERIOD_S):
                return

    @property
    def watts(self) -> float | None:
        """Mean power, or None where no sensor answered."""
        return fmean(self.values) if self.values else None
