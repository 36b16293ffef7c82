"""Write the folder that a Vitis AI user runs as it is.

DIR/README.md, export.json       the steps; what it is, and what was measured
DIR/network.py, networks/NAME/   the float networks in PyTorch: network.json, weights.npz
DIR/calibration/NAME.FEED.npy    what the networks read for photographs, int8 (N, C, H, W)
DIR/quantize.py, compile.sh      in AMD's container: xmodels
DIR/arch.json                    the board's DPU, for the compiler
DIR/run.py, dpu_worker.py        on the board: the codec
DIR/model.safetensors            lichen's model file: tables, hyperprior, linear paths
DIR/onnx/NAME.onnx               the networks as QDQ ONNX, where the package onnx is there
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lichen._version import VERSION
from lichen.boards.vitis_ai import network as net
from lichen.boards.vitis_ai import targets
from lichen.boards.vitis_ai.calibration import Calibration, Pixels, calibrate, crops
from lichen.boards.vitis_ai.dpu import Quantized
from lichen.boards.vitis_ai.executor import (
    DpuExecutor,
    EmulatedDpu,
    Linear,
    Parts,
    Size,
    parts_of,
    places,
)
from lichen.boards.vitis_ai.measure import Row, measure
from lichen.boards.vitis_ai.readme import readme
from lichen.boards.vitis_ai.targets import Target
from lichen.errors import DeviceError
from lichen.executors import Executor, best
from lichen.files import UsageError
from lichen.model import Model
from lichen.program import Program
from lichen.program.check import macs_per_pixel

FORMAT = 1
TEMPLATES = Path(__file__).parent / "templates"
TILE = (512, 512)
CROPS, CROP = 64, 256
HELD = 8  # crops beyond those of the calibration, to measure on


@dataclass(frozen=True)
class Export:
    """What an export has found. rows: by device, where it was measured."""

    parts: Parts
    networks: Mapping[str, Quantized]
    rows: Mapping[str, Sequence[Row]]
    notes: Sequence[str]


def export(
    model: Model,
    target: Target,
    photographs: Sequence[Path],
    output: Path,
    *,
    linear: Linear = "arm",
    tile: Size = TILE,
    count: int = CROPS,
    crop: int = CROP,
    pictures: Sequence[tuple[str, Pixels]] = (),
    host: Executor | None = None,
) -> Export:
    """Write the folder, whole or not at all, and measure what the DPU's 8 bits cost.

    photographs: calibrate the DPU. linear: see `parts_of`. tile: lines and columns that networks
    are compiled for. count, crop: of the squares that are cut out of the photographs. pictures: to
    measure on, by name; none: squares that the calibration has not seen. Raises LichenError,
    UsageError, OSError.
    """
    host = best() if host is None else host
    parts = parts_of(model, linear)
    check_tile(parts, tile)
    if crop % model.reduction or crop < model.reduction:
        raise UsageError(f"--crop must be a multiple of {model.reduction}, not {crop}")
    squares = crops(photographs, count + HELD, crop)
    held = squares[: max(1, min(HELD, len(squares) // 8))]
    seen = squares[len(held) :] or squares
    calibration = calibrate(parts, seen, host)
    networks = calibration.quantize(parts)
    shown = pictures or [(f"square {k}", pixels) for k, pixels in enumerate(held)]
    rows, notes = measured(parts, networks, shown, host)
    description = described(parts, target, tile, calibration, rows) | {"linear": linear}
    temporary = output.absolute().with_name(f".{secrets.token_hex(8)}.lichen.part")
    try:
        write(temporary, parts, target, tile, calibration, networks, description)
        if output.is_dir():
            output.rmdir()
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(parts, networks, rows, notes)


def check_tile(parts: Parts, tile: Size) -> None:
    """Raise UsageError for a size that the networks cannot be compiled for."""
    step = max(parts.model.reduction, 16)
    if any(n < step or n % step for n in tile):
        raise UsageError(
            f"--tile must be multiples of {step}, not {tile[1]}x{tile[0]}: {parts.model.name} "
            f"works in steps of {step} lines"
        )
    for network in parts.networks.values():
        coarsest = max(int(r) for r in network.reductions().values())
        try:
            for side in tile:
                list(places(4 * side, side, network.reach(), coarsest))
        except DeviceError as error:
            raise UsageError(f"{network.name}: {error}") from error


def measured(
    parts: Parts,
    networks: Mapping[str, Quantized],
    pictures: Sequence[tuple[str, Pixels]],
    host: Executor,
) -> tuple[dict[str, list[Row]], list[str]]:
    """Measure on the emulated DPU, and on ONNX Runtime if it is there; notes say what was not."""
    emulated = DpuExecutor(parts, EmulatedDpu(networks), host)
    rows = {"dpu": measure(parts.model, host, emulated, pictures)}
    try:
        from lichen.boards.vitis_ai.qdq import QdqDevice
    except ModuleNotFoundError as error:
        return rows, [f"no QDQ ONNX: it needs the package {error.name}: pip install 'lichen[onnx]'"]
    device = DpuExecutor(parts, QdqDevice(networks), host)
    rows["qdq"] = measure(parts.model, host, device, pictures)
    return rows, []


def described(
    parts: Parts,
    target: Target,
    tile: Size,
    calibration: Calibration,
    rows: Mapping[str, Sequence[Row]],
) -> dict[str, Any]:
    """Give export.json."""
    model = parts.model
    found = {}
    for name, network in parts.networks.items():
        found[name] = {
            "digest": network.digest(),
            "kmac_per_pixel": network.macs_per_pixel() / 1000,
            "lines_around": network.reach(),
        }
    return {
        "format": FORMAT,
        "lichen": VERSION,
        "vitis_ai": targets.VITIS_AI,
        "board": target.name,
        "cores": target.cores,
        "fingerprint": targets.FINGERPRINT,
        "model": model.name,
        "weights": model.digest.hex(),
        "tile": list(tile),
        "calibration_pictures": len(next(iter(calibration.values[next(iter(found))].values()))),
        "networks": found,
        "arm_kmac_per_pixel": arm_work(parts),
        "measured": {k: [dataclasses.asdict(row) for row in v] for k, v in rows.items()},
    }


def arm_work(parts: Parts) -> dict[str, float]:
    """Count thousands of products per pixel that stay on the Arm cores, by direction.

    Those that read 16 bits count once.
    """
    model = parts.model

    def products(program: Program, reduction: int) -> float:
        return macs_per_pixel(program, reduction, 1) / 1000 if program.ops else 0.0

    latent = model.reduction if model.order == "factorised" else 16
    g_a, g_s = parts.by_name["g_a"], parts.by_name["g_s"]
    encode = products(g_a.before, 1)
    decode = products(g_s.before, latent)
    for name, program in model.programs.items():
        if name in ("g_a", "g_s"):
            continue
        work = products(program, model.reduction if name == "h_s" else latent)
        encode += work
        decode += work if name == "h_s" or name.startswith(("context.", "refine.")) else 0.0
    return {"encode": encode, "decode": decode}


def write(
    folder: Path,
    parts: Parts,
    target: Target,
    tile: Size,
    calibration: Calibration,
    networks: Mapping[str, Quantized],
    description: Mapping[str, Any],
) -> None:
    """Write all files into a new folder."""
    model = parts.model
    for name, network in parts.networks.items():
        home = folder / "networks" / name
        home.mkdir(parents=True)
        text = net.describe(network)
        for entry in text["inputs"]:
            entry["exponent"] = calibration.exponents[name][entry["name"]]
        (home / "network.json").write_text(json.dumps(text, indent=1) + "\n")
        np.savez(home / "weights.npz", **net.weights(network))  # type: ignore[arg-type]
        for feed, values in calibration.values[name].items():
            path = folder / "calibration" / f"{name}.{feed}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.stack(values))
    (folder / "model.safetensors").write_bytes(model.to_bytes())
    (folder / "export.json").write_text(json.dumps(description, indent=1) + "\n")
    (folder / "arch.json").write_text(json.dumps({"fingerprint": targets.FINGERPRINT}) + "\n")
    for name in ("network.py", "quantize.py", "dpu_worker.py", "run.py"):
        shutil.copy(TEMPLATES / name, folder / name)
    script = (TEMPLATES / "compile.sh").read_text()
    for mark, value in (
        ("@VITIS_AI@", targets.VITIS_AI), ("@ARCH@", target.arch),
        ("@FINGERPRINT@", targets.FINGERPRINT), ("@CONTAINER@", targets.CONTAINER),
        ("@WEIGHTS@", model.digest.hex()),
    ):  # fmt: skip
        script = script.replace(mark, value)
    (folder / "compile.sh").write_text(script)
    (folder / "compile.sh").chmod(0o755)
    (folder / "README.md").write_text(readme(description, target))
    if "qdq" in description["measured"]:
        from lichen.boards.vitis_ai import qdq

        (folder / "onnx").mkdir()
        for name, q in networks.items():
            qdq.write(q, folder / "onnx" / f"{name}.onnx", tile)
