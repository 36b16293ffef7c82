"""Write what the fuzz targets start from: python seeds.py FOLDER

FOLDER/seeds/TARGET   inputs: the conformance vectors, the golden streams, some by hand
FOLDER/plans          plan files for the target `plans`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from forge import forge, header_of, micro_model
from harness import cases
from plan_file import to_bytes

from lichen import container
from lichen.errors import ContractError, StreamError
from lichen.executors import best
from test_native import chain_inputs, random_chain

TESTS = Path(__file__).resolve().parent.parent
CHAINS = 60
PLAN_ELEMENTS_MAX = 40_000  # larger cases are slow under the sanitizers


def streams() -> list[bytes]:
    """Give all streams of the conformance vectors, the golden ones, and forged ones."""
    found = [path.read_bytes() for path in sorted((TESTS / "golden").glob("*.lic"))]
    found += [path.read_bytes() for path in sorted(TESTS.glob("conformance/vectors/**/*.lic"))]
    model, executor = micro_model(), best()
    for size in ((1, 1), (64, 65), (130, 30)):
        header = header_of(model, *size, stripe=1)
        symbols = np.array([0, 1, -3, 20, 32767])
        found.append(forge(model, executor, header, np.arange(-128, 128, 37), symbols))
    return found


def stripes_of(data: bytes) -> bytes:
    """Give the stripes of a stream alone, empty where it has none that can be read."""
    try:
        return container.write_stripes(container.read(data).stripes)
    except StreamError:
        return b""


def seeds() -> dict[str, list[bytes]]:
    made = streams()
    rng = np.random.default_rng(0)
    noise = [rng.bytes(40) for _ in range(16)]
    return {
        "coder": [bytes([k % 256]) + rng.bytes(200) for k in range(0, 128, 5)],
        "plans": [bytes([k % 256, k // 256, k % 32]) + rng.bytes(64) for k in range(400)],
        "container": [*made, *(stripes_of(data) for data in made[::4])],
        "decode": [bytes([1, k]) + data for data in made for k in range(2)] + noise,
        "roundtrip": [bytes([255, k % 4]) + part for k, part in enumerate(noise)],
        "model": [micro_model().to_bytes(), *(bytes([192 + k]) + rng.bytes(16) for k in range(32))],
        "programs": [bytes([k, k]) + part for k, part in enumerate(noise)],
    }


def write_plans(folder: Path) -> int:
    """Write the plans of the conformance cases and of random chains; returns how many Programs."""
    given = [(c.program, c.inputs, c.vectors) for c in cases()]
    for seed in range(CHAINS):
        rng = np.random.default_rng(1000 + seed)
        program = random_chain(rng)
        given.append((program, chain_inputs(rng, program), {}))
    number = 0
    for program, inputs, vectors in given:
        if sum(x.size for x in inputs.values()) > PLAN_ELEMENTS_MAX:
            continue
        try:
            plans = [to_bytes(program, inputs, vectors, form) for form in range(3)]
        except ContractError:
            continue
        for form, data in enumerate(plans):
            (folder / f"{number}.{form}.plan").write_bytes(data)
        number += 1
    return number


def main(folder: Path) -> None:
    for target, inputs in seeds().items():
        place = folder / "seeds" / target
        place.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (place / f"{number:04}").write_bytes(data)
    plans = folder / "plans"
    if not plans.is_dir() or not any(plans.iterdir()):
        plans.mkdir(exist_ok=True)
        write_plans(plans)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
