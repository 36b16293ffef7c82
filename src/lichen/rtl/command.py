"""The commands `lichen simulate` and `lichen synth`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from lichen import container, files
from lichen import model as models
from lichen.api import Codec
from lichen.errors import ContractError
from lichen.files import UsageError
from lichen.model import Model
from lichen.picture import from_array
from lichen.rtl import fold, report, synthesise, trial

CROP = (96, 128)  # lines and pixels of `--crop`
STRIPE = 1
END_BYTES = 6  # of the last chunk, Z: type, length 0, CRC


def target_of(arguments: argparse.Namespace) -> tuple[fold.Part, fold.Target]:
    """Give the part and the target that the options name."""
    part = fold.PARTS[arguments.board]
    width, height = arguments.size
    default = {"kv260": 30, "zcu102": 60}[arguments.board]
    return part, fold.Target(width, height, arguments.fps or default)


@contextmanager
def _folding() -> Iterator[None]:
    """A target that no folding reaches is the user's error, and says what would be reached."""
    try:
        yield
    except ContractError as error:
        raise UsageError(str(error)) from error


def simulate(arguments: argparse.Namespace, model: Model | None) -> int:
    """Run a picture through a core; 0 where it is identical, 1 where it is not."""
    part, target = target_of(arguments)
    codec = Codec(model)
    picture = files.read_picture(files.read(arguments.input), arguments.input, arguments.max_pixels)
    pixels = np.ascontiguousarray(picture.rgb)
    if arguments.crop:
        pixels = np.ascontiguousarray(pixels[: CROP[0], : CROP[1]])
    height, width = pixels.shape[:2]
    if height > target.height or width > target.width:
        raise UsageError(
            f"the picture is {width}x{height}, the core is built for up to {target.width}x"
            f"{target.height}: give a larger --size, or --crop"
        )
    position = round(8 * arguments.quality)
    data = codec.encode(from_array(pixels), quality=position / 8, stripe=STRIPE).data
    chunks = data[start_bytes(data) :]
    with _folding():
        bench = trial.Bench(codec.model, arguments.core, part, target)
    if arguments.core == "encoder":
        result = bench.encode(pixels, position, chunks[:-END_BYTES], arguments.pictures)
    else:
        decoded = codec.decode(data).pixels
        result = bench.decode(chunks, position, decoded, arguments.pictures)
    if arguments.json:
        values = asdict(result) | {"frames_per_second": result.frames_per_second,
                                   "cycles_per_pixel": result.cycles_per_pixel}  # fmt: skip
        print(json.dumps(values))
    else:
        print(report.trial_text(result, bench.plan))
    return 1 if result.difference else 0


def start_bytes(data: bytes) -> int:
    """Give the length of a stream's start: magic, version, length, header, CRC."""
    # The header is below 128 bytes: its length is one byte.
    return len(container.MAGIC) + 1 + 1 + data[len(container.MAGIC) + 1] + 4


def synth(arguments: argparse.Namespace, model: Model | None) -> int:
    """Synthesise a core, or some of its stages, and print it beside its plan."""
    part, target = target_of(arguments)
    model = model or models.default()
    found: synthesise.Synthesis | None = None
    with _folding():
        plan = trial.plan_for(model, arguments.core, part, target)
        if not arguments.plan:
            placement = plan.place(part)
            unit = trial.core_for(model, arguments.core, plan, placement, "packed")
            found = synthesise.core(unit, plan, placement, arguments.stage)
    if arguments.json:
        values = report.plan_values(plan, part)
        if found is not None:
            values["synthesis"] = report.synthesis_values(found)
        print(json.dumps(values))
    else:
        print(report.plan_text(plan, part))
        if found is not None:
            print(f"\n{report.synthesis_text(found, plan, part)}")
    return 0
