"""Boards: what a part has, how fast its DRAM is, which DPU runs on it. One TOML file each.

Those that come with lichen are in `boards/`; a user may give his own file of the same form.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.rtl import fold
from lichen.study.dpu import PEAK_MACS
from lichen.study.result import BoardResult

FOLDER = Path(__file__).parent / "boards"
BRAM_BYTES, URAM_BYTES = 36 * 1024 // 8, 36 * 1024  # 288 Kibit
SECTIONS: dict[str, dict[str, type]] = {
    "part": {"device": str, "dsp": int, "bram36": int, "uram": int, "lut": int, "ff": int},
    "dram": {"gbyte_per_s": float},
    "dpu": {"architecture": str, "cores": int, "clock_mhz": float},
    "pipeline": {"clock_mhz": float},
}
OPTIONAL: dict[str, dict[str, type]] = {"entropy": {"nanoseconds_per_symbol": float}}


@dataclass(frozen=True)
class Board:
    """A board. Clocks in MHz; the pipeline's is assumed. entropy: of one CPU core, if known."""

    name: str
    title: str
    sources: tuple[str, ...]
    device: str
    dsp: int
    bram36: int
    uram: int
    lut: int
    ff: int
    dram_gbyte_per_s: float
    dpu_architecture: str
    dpu_cores: int
    dpu_clock_mhz: float
    pipeline_clock_mhz: float
    entropy_nanoseconds_per_symbol: float | None = None

    @property
    def part(self) -> fold.Part:
        """As `lichen.rtl` knows it."""
        resources = fold.Resources(self.dsp, self.bram36, self.uram, self.lut, self.ff)
        return fold.Part(self.name, self.device, resources)

    @property
    def on_chip_bytes(self) -> int:
        """Block RAM and UltraRAM."""
        return self.bram36 * BRAM_BYTES + self.uram * URAM_BYTES

    @property
    def dpu_clock_hz(self) -> float:
        return 1e6 * self.dpu_clock_mhz

    @property
    def dpu_peak_macs(self) -> float:
        """Per second, of all cores."""
        return self.dpu_cores * PEAK_MACS * self.dpu_clock_hz

    def result(self) -> BoardResult:
        """Give it as the study reports it."""
        return BoardResult(
            name=self.name,
            title=self.title,
            device=self.device,
            dsp=self.dsp,
            bram36=self.bram36,
            uram=self.uram,
            lut=self.lut,
            ff=self.ff,
            on_chip_bytes=self.on_chip_bytes,
            dram_gbyte_per_s=self.dram_gbyte_per_s,
            dpu_architecture=self.dpu_architecture,
            dpu_cores=self.dpu_cores,
            dpu_clock_mhz=self.dpu_clock_mhz,
            dpu_peak_gmac_per_s=self.dpu_peak_macs / 1e9,
            pipeline_clock_mhz=self.pipeline_clock_mhz,
            pipeline_peak_gmac_per_s=fold.LIMIT * self.dsp * 2 * self.pipeline_clock_mhz / 1e3,
            sources=self.sources,
        )


def installed() -> list[str]:
    """List the names of the boards that come with lichen."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Board:
    """Read a board by name or from a TOML file. Raises LichenError naming what is missing."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path}.toml"
        if not path.is_file():
            raise LichenError(
                f"no board is called {name_or_path!r}; there are {', '.join(installed())}, or give "
                "a file that ends in .toml"
            )
    try:
        values = _read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LichenError(f"cannot read the board file {path}: {error.strerror}") from error
    except ValueError as error:
        raise LichenError(f"the board file {path} must be TOML, but: {error}") from error
    return _board(values, path)


def _read(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _board(values: dict[str, Any], path: Path) -> Board:
    found: dict[str, Any] = {}
    problems = []
    for section, wanted in {**SECTIONS, **OPTIONAL}.items():
        given = values.pop(section, {})
        if not isinstance(given, dict):
            problems.append(f"[{section}] must be a table")
            continue
        for key, kind in wanted.items():
            label = f"{section}.{key}"
            if key not in given:
                if section in SECTIONS:
                    problems.append(f"{label} is missing")
                continue
            value = given.pop(key)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                problems.append(f"{label} must be {kind.__name__}, not {value!r}")
            elif isinstance(value, int | float) and value <= 0 and (value, key) != (0, "uram"):
                problems.append(f"{label} must be positive, not {value}")
            else:
                found[key if section == "part" else f"{section}_{key}"] = value
        problems += [f"{section}.{key} is not known" for key in given]
    title = values.pop("title", path.stem)
    sources = values.pop("sources", [])
    problems += [f"{key} is not known" for key in values]
    if found.get("dpu_architecture", "B4096") != "B4096":
        problems.append(f"dpu.architecture must be 'B4096', not {found['dpu_architecture']!r}")
    if not isinstance(sources, list) or not all(isinstance(x, str) for x in sources):
        problems.append("sources must be a list of texts")
    if problems:
        example = ", ".join(f"[{name}] {' '.join(keys)}" for name, keys in SECTIONS.items())
        raise LichenError(
            f"the board file {path}: {'; '.join(problems)}; it must hold {example}; copy one of "
            f"{FOLDER}"
        )
    assert {field.name for field in fields(Board)} >= found.keys()
    return Board(name=path.stem, title=str(title), sources=tuple(sources), **found)
