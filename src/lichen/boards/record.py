"""Record: lichen.json of a build folder and of the packages made from it: what was built.

Plain Python: boards read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lichen.boards.core_image import SUFFIX
from lichen.errors import DeviceError, ModelError
from lichen.model import Model

NAME = "lichen.json"
FORMAT = 1


@dataclass(frozen=True)
class CoreRecord:
    """A core of a build.

    layout: the value of its register `layout`. width, height: pixels and lines of the largest
    picture. target: pictures of that size per second that it was folded for; frames_per_second:
    planned, at clock_hz. load_bytes: of its weights. delay_bytes: of DRAM, of each delay that is
    outside of the chip.
    """

    layout: int
    width: int
    height: int
    target: float
    frames_per_second: float
    clock_hz: int
    cycles: int
    load_bytes: int
    delay_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """What was built. weights: the digest of the model's weights, as hex."""

    lichen: str
    board: str
    stem: str
    model: str
    weights: str
    cores: Mapping[str, CoreRecord]

    def image_name(self, core: str) -> str:
        """Give the name of the file with a core's weights, `core_image`."""
        return f"{core}{SUFFIX}"

    def text(self) -> str:
        """Give lichen.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def read(folder: Path) -> Record:
    """Read the record of a build folder. Raises DeviceError."""
    path = folder / NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _record(values)
    except FileNotFoundError as error:
        raise DeviceError(
            f"{folder} is no build folder: it has no {NAME}; `lichen build` makes one"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeviceError(f"{path} is damaged ({error}); run `lichen build` again") from error


def _record(values: Mapping[str, Any]) -> Record:
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']}, not {FORMAT}")
    rest = {key: value for key, value in values.items() if key != "format"}
    cores = {
        name: CoreRecord(**{**core, "delay_bytes": tuple(core["delay_bytes"])})
        for name, core in rest.pop("cores").items()
    }
    return Record(**rest, cores=cores)


def require_layout(record: Record, core: str, layout: int, model: Model) -> None:
    """Raise ModelError where a model's core is another than the one that was built."""
    built = record.cores[core].layout
    if built != layout:
        raise ModelError(
            f"the {core} of {record.stem} was built for the shape of model {record.model} "
            f"({record.weights}), layout {built:#010x}; model {model.name} ({model.digest.hex()}) "
            f"has layout {layout:#010x}: use that model, or build with --model {model.name}"
        )
