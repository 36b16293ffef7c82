"""Self-test: a board's cores against the codec of its processor, on a fresh board.

A picture goes through each core; what comes out must equal, byte for byte and pixel for pixel, what
the codec makes on the processor. Then pictures in a row: how many per second, and at what power.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lichen import container
from lichen.api import Codec
from lichen.boards.address_map import CoreName
from lichen.boards.board import Board
from lichen.boards.driver import Driver
from lichen.boards.power import Meter, Sensors
from lichen.model import Model
from lichen.picture import Picture, from_array

STRIPE = 1  # rows of 64 lines: what every core holds
END_BYTES = 6  # of the last chunk, Z: type, length 0, CRC
IDLE_S = 1.0  # that power is measured before a core works
SAMPLE = (1920, 1080)  # width and height of the picture that is made, or what the core takes

Opener = Callable[[CoreName], Driver]


@dataclass(frozen=True)
class Result:
    """What became of a core.

    wanted, found: SHA-256 of what the codec gave and what the core gave. pictures: in a row, in so
    many seconds, transfers and driver included. cycles: of the last one, by the core's counter,
    from its first beat in to its last beat out. idle_watts, watts: before and meanwhile, None where
    no sensor is found. loads: times that weights had to be loaded.
    """

    core: CoreName
    width: int
    height: int
    stream_bytes: int
    wanted: str
    found: str
    pictures: int
    seconds: float
    cycles: int
    latency_cycles: int
    loads: int
    idle_watts: float | None
    watts: float | None

    @property
    def passed(self) -> bool:
        return self.wanted == self.found

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds if self.seconds else 0.0


def sample(width: int, height: int) -> NDArray[np.uint8]:
    """Make a picture (height, width, 3): shades, edges and grain, the same everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    shade = (x * 255 // max(1, width - 1) + y * 255 // max(1, height - 1)) // 2
    rings = ((x - width // 3) ** 2 + (y - height // 2) ** 2) // 700 % 64
    bars = np.where((x // 37 + y // 53) % 5 == 0, 48, 0)
    grain = np.random.default_rng(2018).integers(-6, 7, (height, width, 3))
    colours = np.stack([shade + bars, 255 - shade + rings // 2, (shade * 3 + rings) % 256], axis=2)
    return np.clip(colours + grain, 0, 255).astype(np.uint8)


def check_core(
    driver: Driver, core: CoreName, codec: Codec, pixels: NDArray[np.uint8], position: int,
    pictures: int, sensors: Sensors,
) -> Result:  # fmt: skip
    """Test one core with pixels (H, W, 3) at a quality position; `pictures` times, at least once.

    Raises what the driver raises.
    """
    data = codec.encode(from_array(pixels), quality=position / 8, stripe=STRIPE).data
    chunks = data[container.start_bytes(data) :]
    height, width = pixels.shape[:2]
    with Meter(sensors) as idle:
        time.sleep(IDLE_S if sensors.files else 0)

    def run() -> bytes:
        if core == "encoder":
            return driver.encode(pixels, position, STRIPE)
        return driver.decode(chunks, width, height, position, STRIPE).tobytes()

    wanted = chunks[:-END_BYTES] if core == "encoder" else codec.decode(data).rgb.tobytes()
    found = run()
    started = time.perf_counter()
    with Meter(sensors) as busy:
        for _ in range(pictures):
            last = run()
            found = last if last != wanted else found
    seconds = time.perf_counter() - started
    counters = driver.counters()
    return Result(
        core, width, height, len(data), _digest(wanted), _digest(found), pictures, seconds,
        counters.picture_cycles, counters.latency_cycles, driver.loads, idle.watts, busy.watts,
    )  # fmt: skip


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run(
    opener: Opener, cores: Sequence[CoreName], model: Model | None, picture: Picture | None,
    position: int, pictures: int, sensors: Sensors,
) -> list[Result]:  # fmt: skip
    """Test cores one after the other."""
    codec = Codec(model)
    results = []
    for core in cores:
        with opener(core) as driver:
            if picture is None:
                width, height = (
                    min(side, driver.limits[name])
                    for side, name in zip(SAMPLE, ("width", "height"))
                )
                pixels = sample(width, height)
            else:
                pixels = np.ascontiguousarray(picture.rgb)
            results.append(check_core(driver, core, codec, pixels, position, pictures, sensors))
    return results


def text(place: Board, results: Sequence[Result]) -> str:
    """Give what `lichen selftest` prints."""
    lines = []
    for result in results:
        size = f"{result.width}x{result.height}"
        if result.passed:
            lines.append(
                f"{result.core}: identical to the codec, {size}, {result.stream_bytes} bytes, "
                f"sha256 {result.found}"
            )
        else:
            lines.append(
                f"{result.core}: DIFFERENT from the codec, {size}: sha256 {result.found}, not "
                f"{result.wanted}"
            )
        lines.append(
            f"  {result.pictures_per_second:.1f} pictures/s ({result.pictures} in "
            f"{result.seconds:.2f} s, transfers included); {result.cycles} cycles for one, the "
            f"first output after {result.latency_cycles}"
        )
        if result.watts is None:
            lines.append(
                f"  power: no sensor {' or '.join(place.power_sensors)} in /sys/class/hwmon"
            )
        else:
            idle = "" if result.idle_watts is None else f", {result.idle_watts:.2f} W before"
            lines.append(f"  power: {result.watts:.2f} W{idle}, of {place.power_of}")
    passed = all(result.passed for result in results)
    return "\n".join([*lines, f"{place.name}: {'passed' if passed else 'FAILED'}"])


def values(place: Board, results: Sequence[Result]) -> dict[str, object]:
    """Give the same for JSON."""
    cores = [
        {**asdict(r), "passed": r.passed, "pictures_per_second": r.pictures_per_second}
        for r in results
    ]
    return {"device": place.name, "passed": all(r.passed for r in results), "cores": cores}
