"""Code pictures on the board: transforms on the DPU, entropy coding and hyperprior on the CPU.

    python3 run.py encode photo.png photo.lic [--quality 50]
    python3 run.py decode photo.lic back.png
    python3 run.py test photo.png       # code, decode, compare with the integer codec, time it

Needs lichen (README.md; Python 3.10 or later). The DPU is driven by dpu_worker.py, which
the Python of the Vitis AI image runs. Streams are those of every other lichen: they decode anywhere
(to the integer codec's picture, which is close to the DPU's).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from lichen import container, files, model
from lichen.api import Codec
from lichen.boards.vitis_ai import measure
from lichen.boards.vitis_ai.executor import DpuExecutor, parts_of
from lichen.boards.vitis_ai.worker import WorkerDevice
from lichen.errors import LichenError, ModelError
from lichen.files import UsageError
from lichen.picture import to_image

HERE = Path(__file__).resolve().parent
MAX_PIXELS = 2**28


def arguments() -> argparse.Namespace:
    """Read the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--dpu-python",
        default="/usr/bin/python3",
        help="the command that runs the Python which has vart and xir (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one DPU call")
    commands = parser.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", help="picture -> stream")
    encode.add_argument("input")
    encode.add_argument("output")
    encode.add_argument("-q", "--quality", type=float, default=50.0, help="0..100")
    decode = commands.add_parser("decode", help="stream -> picture")
    decode.add_argument("input")
    decode.add_argument("output")
    test = commands.add_parser("test", help="compare with the integer codec, and time it")
    test.add_argument("input")
    test.add_argument("-n", type=int, default=8, help="pictures to time with")
    return parser.parse_args()


def main() -> int:
    """Run one command; returns its exit code."""
    given = arguments()
    try:
        export = json.loads((HERE / "export.json").read_text())
        weights = model.read(HERE / "model.safetensors")
        if weights.digest.hex() != export["weights"]:
            raise ModelError(
                f"model.safetensors has the weights {weights.digest.hex()}, the export "
                f"{export['weights']}: the folder is mixed of two exports; export again"
            )
        parts = parts_of(weights, export["linear"])
        check(parts.networks, export)
        xmodels = {name: compiled(name, export["weights"]) for name in parts.networks}
        cores = export["cores"]
        with WorkerDevice(
            HERE / "dpu_worker.py",
            parts.networks,
            xmodels,
            tuple(export["tile"]),
            shlex.split(given.dpu_python),
            threads=cores,
            timeout_s=given.timeout,
        ) as device:
            executor = DpuExecutor(parts, device)
            codec = Codec(weights, threads=os.cpu_count() or 1, executor=executor)
            return COMMANDS[given.command](codec, given, cores)
    except (LichenError, UsageError, OSError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 1


def check(networks: dict, export: dict) -> None:
    """Raise ModelError unless this lichen cuts the model as the one did that exported it."""
    found = {name: network.digest() for name, network in networks.items()}
    expected = {name: entry["digest"] for name, entry in export["networks"].items()}
    if found != expected:
        raise ModelError(
            f"this lichen cuts the model into {found}, the export has {expected}: install lichen "
            f"{export['lichen']}, or export and compile again"
        )


def compiled(name: str, weights: str) -> Path:
    """Find a network's compiled form. Raises ModelError."""
    path = HERE / "xmodel" / f"{name}-{weights}.xmodel"
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.xmodel"))
        raise ModelError(
            f"{path.name} is not in xmodel/ (there: {', '.join(others) or 'nothing'}): compile "
            "this export with quantize.py and compile.sh, and copy xmodel/ here"
        )
    return path


def encode(codec: Codec, given: argparse.Namespace, _: int) -> int:
    """Picture -> stream."""
    picture = files.read_picture(files.read(given.input), given.input, MAX_PIXELS)
    started = time.perf_counter()
    encoded = codec.encode(picture, quality=given.quality)
    seconds = time.perf_counter() - started
    with files.output_file(given.output, True) as file:
        file.write(encoded.data)
    print(f"{given.output}: {len(encoded.data)} bytes, {encoded.bits_per_pixel:.4f} bpp, "
          f"{seconds:.3f} s")  # fmt: skip
    return 0


def decode(codec: Codec, given: argparse.Namespace, _: int) -> int:
    """Stream -> picture."""
    data = without_digest(files.read(given.input))
    started = time.perf_counter()
    picture = codec.decode(data, max_pixels=MAX_PIXELS)
    seconds = time.perf_counter() - started
    to_image(picture).save(given.output)
    print(f"{given.output}: {picture.width}x{picture.height}, {seconds:.3f} s")
    return 0


def without_digest(data: bytes) -> bytes:
    """Take the digest of the pixels off a stream: it is of the integer codec's pixels."""
    stream = container.read(data, max_pixels=MAX_PIXELS)
    if not stream.digest:
        return data
    print(
        "run.py: note: the digest of the pixels is not checked: the DPU's differ", file=sys.stderr
    )
    return container.write(replace(stream, header=replace(stream.header, digest=False), digest=b""))


def test(codec: Codec, given: argparse.Namespace, cores: int) -> int:
    """Compare with the integer codec; then code with a picture in flight for each DPU core."""
    picture = files.read_picture(files.read(given.input), given.input, MAX_PIXELS)
    executor = codec.executor
    rows = measure.measure(
        codec.model, executor.host, executor, [(given.input, np.asarray(picture.rgb))]
    )
    print("\n".join(measure.table(rows)))
    data = codec.encode(picture).data
    for name, work in (("encode", lambda _: codec.encode(picture)),
                       ("decode", lambda _: codec.decode(data))):  # fmt: skip
        started = time.perf_counter()
        with ThreadPoolExecutor(max(2, cores)) as pool:
            list(pool.map(work, range(given.n)))
        rate = given.n / (time.perf_counter() - started)
        print(f"{name}: {rate:.2f} pictures of {picture.width}x{picture.height} per second")
    return 0


COMMANDS = {"encode": encode, "decode": decode, "test": test}

if __name__ == "__main__":
    sys.exit(main())
