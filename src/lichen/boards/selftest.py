"""Self-test: a board's cores against the codec of its processor, on a fresh board.

A picture goes through each core; what comes out must equal, byte for byte and pixel for pixel, what
the codec makes on the processor. Then pictures in a row: how many per second, and at what power.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from lichen import container, files
from lichen.api import Codec
from lichen.boards import device, record
from lichen.boards.address_map import CORES, CoreName
from lichen.boards.board import Board, board
from lichen.boards.device import STRIPE
from lichen.boards.driver import Driver
from lichen.boards.power import Meter, Sensors
from lichen.model import Model
from lichen.picture import from_array

IDLE_S = 1.0  # that power is measured before a core works
SAMPLE = (1920, 1080)  # width and height of the picture that is made, or what the core takes
SIMULATED_SAMPLE = (128, 96)  # in simulation, where a picture takes minutes

PICTURES = 100  # in a row, on a board

Opener = Callable[[CoreName], Driver]
Pixels = NDArray[np.uint8] | tuple[int, int]


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

    def run(count: int) -> Iterator[bytes]:
        if core == "encoder":
            yield from driver.encode_all(repeat(pixels, count), position, STRIPE)
        else:
            size = (width, height, position, STRIPE)
            yield from (p.tobytes() for p in driver.decode_all(repeat(chunks, count), *size))

    if core == "encoder":
        wanted = container.write_stripes(container.read(data).stripes)
    else:
        wanted = codec.decode(data).rgb.tobytes()
    (found,) = run(1)
    started = time.perf_counter()
    with Meter(sensors) as busy:
        for last in run(pictures):
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
    opener: Opener, cores: Sequence[CoreName], codec: Codec, pixels: Pixels, position: int,
    pictures: int, sensors: Sensors,
) -> list[Result]:  # fmt: skip
    """Test cores one after the other; pixels: (H, W, 3), or the largest (width, height) to make."""
    results = []
    for core in cores:
        with opener(core) as driver:
            if isinstance(pixels, tuple):
                limits = (driver.limits[name] for name in ("width", "height"))
                given = sample(*(min(pair) for pair in zip(pixels, limits)))
            else:
                given = pixels
            results.append(check_core(driver, core, codec, given, position, pictures, sensors))
    return results


def built_cores(name: device.Device) -> Sequence[CoreName]:
    """List the cores that a device's bitfile has."""
    folder = None if name == "sim" else device.package_folder(name)
    if folder is None:
        return CORES
    made = record.read(folder)
    return [core for core in CORES if core in made.cores]


def command(arguments: argparse.Namespace, model: Model | None) -> int:
    """Run `lichen selftest`: 0 where all is equal, 1 where something is not."""
    name: device.Device = arguments.device
    simulated = name == "sim"
    place = board(device.SIMULATED if simulated else name)
    codec = Codec(model, threads=arguments.threads)
    pixels: Pixels = SIMULATED_SAMPLE if simulated else SAMPLE
    if arguments.input is not None:
        data = files.read(arguments.input)
        picture = files.read_picture(data, arguments.input, arguments.max_pixels)
        pixels = np.ascontiguousarray(picture.rgb)
    pictures = arguments.pictures
    if pictures is None:
        pictures = 1 if simulated else PICTURES

    def opener(core: CoreName) -> Driver:
        return device.open_driver(name, core, codec.model)

    cores = built_cores(name) if arguments.core == "both" else [arguments.core]
    sensors = Sensors(() if simulated else place.power_sensors)
    position = round(8 * arguments.quality)
    results = run(opener, cores, codec, pixels, position, pictures, sensors)
    passed = all(result.passed for result in results)
    if arguments.json:
        print(json.dumps(values(name, results)))
    elif not arguments.quiet or not passed:
        print(text(name, place, results))
    return 0 if passed else 1


def text(name: str, place: Board, results: Sequence[Result]) -> str:
    """Give what `lichen selftest` prints of a device that is, or stands for, a board."""
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
    return "\n".join([*lines, f"{name}: {'passed' if passed else 'FAILED'}"])


def values(name: str, results: Sequence[Result]) -> dict[str, object]:
    """Give the same for JSON."""
    cores = [
        {**asdict(r), "passed": r.passed, "pictures_per_second": r.pictures_per_second}
        for r in results
    ]
    return {"device": name, "passed": all(r.passed for r in results), "cores": cores}
