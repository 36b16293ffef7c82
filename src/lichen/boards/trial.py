"""Trial: a picture through a simulated core by the board's driver, compared with the codec.

The command `lichen simulate`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import container, files
from lichen import model as models
from lichen.api import Codec
from lichen.boards.address_map import CoreName
from lichen.boards.build import target_of
from lichen.boards.device import STRIPE
from lichen.boards.driver import Driver
from lichen.boards.simulated import simulated
from lichen.errors import ContractError
from lichen.files import UsageError
from lichen.model import Model
from lichen.picture import from_array
from lichen.rtl import fold
from lichen.rtl.simulate_axi import Waits

CROP = (96, 128)  # lines and pixels of `--crop`
END_BYTES = 6  # of the last chunk, Z: type, length 0, CRC


@dataclass(frozen=True)
class Trial:
    """What a trial found. Cycles are exact; the clock is assumed.

    difference: "" or where the first one is. picture_cycles: of the first picture, from its first
    beat in to its last beat out; latency_cycles: to its first beat out. period_cycles: from the end
    of the last picture but one to that of the last, 0 where only one was run. planned: what the
    formulas say for a picture of this size. occupancy: of each array, the share of the cycles of a
    picture in which it multiplied. waits: of each stream at the core's pins, over the whole trial.
    """

    core: CoreName
    board: str
    model: str
    width: int
    height: int
    quality: float
    stream_bytes: int
    difference: str
    picture_cycles: int
    latency_cycles: int
    period_cycles: int
    planned: int
    occupancy: Mapping[str, float]
    waits: Mapping[str, Waits]
    clock_hz: int
    simulated_cycles: int
    build_seconds: float
    run_seconds: float

    @property
    def paced(self) -> int:
        """Cycles per picture: of pictures in a row, if they were run, else of the single one."""
        return self.period_cycles or self.picture_cycles

    @property
    def cycles_per_pixel(self) -> float:
        return self.paced / (self.width * self.height)

    @property
    def frames_per_second(self) -> float:
        """Of this size, at the assumed clock."""
        return self.clock_hz / self.paced

    def values(self) -> dict[str, Any]:
        """Give all of it for JSON."""
        return asdict(self) | {
            "frames_per_second": self.frames_per_second,
            "cycles_per_pixel": self.cycles_per_pixel,
        }


def run(
    model: Model, core: CoreName, board: str, target: fold.Target, pixels: NDArray[np.uint8],
    position: int, pictures: int = 2,
) -> Trial:  # fmt: skip
    """Code pixels (H, W, 3) `pictures` times in a row in a simulated core.

    Raises ImageError or StreamError where the picture is larger than the core, DeviceError where a
    core hangs or a tool is missing, ContractError where there is no hardware for the model.
    """
    codec = Codec(model)
    data = codec.encode(from_array(pixels), quality=position / 8, stripe=STRIPE).data
    chunks = data[container.start_bytes(data) :]
    height, width = pixels.shape[:2]
    started = time.perf_counter()
    link, image = simulated(model, core, board, target)
    built = time.perf_counter()
    with Driver(link, image, model, board=board) as driver:
        link.simulation.begin()  # what is waited for while weights are loaded does not count
        wanted = chunks[:-END_BYTES]
        if core == "encoder":
            found = driver.encode_all([pixels] * pictures, position, STRIPE)
        else:
            wanted = codec.decode(data).rgb.tobytes()
            rows = driver.decode_all([chunks] * pictures, width, height, position, STRIPE)
            found = (row.tobytes() for row in rows)
        difference, first = "", None
        for number, result in enumerate(found):
            difference = difference or _difference(core, number, result, wanted)
            first = first or driver.counters()
        assert first is not None
        period = driver.read("period_cycles") if pictures > 1 else 0
    simulation, plan = link.simulation, link.simulation.top.core.plan
    rows, columns = (-(-n // model.reduction) for n in (height, width))
    scale = rows * columns / (plan.units[0] * plan.units[1])
    paced = period or first.picture_cycles
    return Trial(
        core=core, board=board, model=model.name, width=width, height=height,
        quality=position / 8, stream_bytes=len(data), difference=difference,
        picture_cycles=first.picture_cycles, latency_cycles=first.latency_cycles,
        period_cycles=period, planned=int(plan.cycles * scale),
        occupancy={s.stage.name: s.busy * scale / paced for s in plan.stages if s.folding},
        waits=simulation.waits(), clock_hz=target.clock_hz, simulated_cycles=simulation.cycles,
        build_seconds=built - started, run_seconds=time.perf_counter() - built,
    )  # fmt: skip


def _difference(core: CoreName, number: int, found: bytes, wanted: bytes) -> str:
    """Say where the first difference is, "" where there is none."""
    if found == wanted:
        return ""
    what = "bytes" if core == "encoder" else "pixel bytes"
    if len(found) != len(wanted):
        return f"picture {number}: {len(found)} {what}, not {len(wanted)}"
    wrong = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8))
    place = int(wrong[0])
    return (
        f"picture {number}, {what}, place {place}: {found[place]:#04x}, not {wanted[place]:#04x}; "
        f"{len(wrong)} of {len(wanted)} differ"
    )


def text(trial: Trial) -> str:
    """Give what `lichen simulate` prints."""
    lines = [
        "identical" if not trial.difference else f"DIFFERENT: {trial.difference}",
        f"{trial.core} core for {trial.board}, model {trial.model}, {trial.width}x{trial.height}, "
        f"quality {trial.quality:g}, {trial.stream_bytes} bytes:",
        f"  {trial.picture_cycles} cycles for one picture, the first output after "
        f"{trial.latency_cycles}",
    ]
    if trial.period_cycles:
        lines.append(
            f"  {trial.period_cycles} cycles per picture in a row ({trial.planned} planned)"
        )
    lines += [
        f"  {trial.cycles_per_pixel:.3f} cycles per pixel, {trial.frames_per_second:.1f} pictures "
        f"of this size per second at an assumed clock of {trial.clock_hz / 1e6:g} MHz",
        f"  {'stream':24} {'beats':>9} {'waited':>9} {'waited for':>10}  (cycles)",
        *(
            f"  {name:24} {w.beats:9} {w.waits:9} {w.starved:10}"
            for name, w in trial.waits.items()
            if not name.endswith(("_aw", "_ar", "_b"))
        ),
        "  share of the cycles in which each array multiplied:",
        *(f"    {name:24} {share:6.1%}" for name, share in trial.occupancy.items()),
        f"  built in {trial.build_seconds:.0f} s; {trial.simulated_cycles} cycles in "
        f"{trial.run_seconds:.0f} s",
    ]
    return "\n".join(lines)


def command(arguments: argparse.Namespace, model: Model | None) -> int:
    """Run a picture through a core; 0 where it is identical, 1 where it is not."""
    target = target_of(arguments.board, arguments.core, arguments.size, arguments.fps)
    picture = files.read_picture(files.read(arguments.input), arguments.input, arguments.max_pixels)
    pixels = np.ascontiguousarray(picture.rgb)
    if arguments.crop:
        pixels = np.ascontiguousarray(pixels[: CROP[0], : CROP[1]])
    height, width = pixels.shape[:2]
    if height > target.height or width > target.width:  # the driver would say so, minutes later
        raise UsageError(
            f"the picture is {width}x{height}, the core is built for up to {target.width}x"
            f"{target.height}: give a larger --size, or --crop"
        )
    model = model or models.default()
    position = round(8 * arguments.quality)
    try:
        result = run(
            model, arguments.core, arguments.board, target, pixels, position, arguments.pictures
        )
    except ContractError as error:  # a target that no folding reaches is the user's error
        raise UsageError(str(error)) from error
    print(json.dumps(result.values()) if arguments.json else text(result))
    return 1 if result.difference else 0
