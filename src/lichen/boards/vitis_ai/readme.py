"""README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lichen.boards.vitis_ai import targets
from lichen.boards.vitis_ai.measure import Row, table
from lichen.boards.vitis_ai.targets import Target

DEVICES = {"dpu": "the DPU's arithmetic, emulated", "qdq": "QDQ ONNX in ONNX Runtime"}


def readme(description: Mapping[str, Any], target: Target) -> str:
    """Write the steps, and what was measured. description: export.json."""
    rows, columns = description["tile"]
    count = description["calibration_pictures"]
    networks = "\n".join(
        f"- {name}: {entry['kmac_per_pixel']:.2f} thousand products per pixel"
        for name, entry in description["networks"].items()
    )
    arm = description["arm_kmac_per_pixel"]
    tables = "\n\n".join(
        f"{DEVICES[device]}:\n\n" + "\n".join(f"    {line}" for line in table(_rows(found)))
        for device, found in description["measured"].items()
    )
    return f"""\
# {description["model"]} on the DPU of the {target.title}

Written by `lichen export vitis-ai` (lichen {description["lichen"]}), weights
{description["weights"]}, for DPUCZDX8G B4096 ({targets.FINGERPRINT}) and Vitis AI
{targets.VITIS_AI}. On the DPU:

{networks}

The Arm cores do the rest in integers: the hyperprior, entropy coding, gains, and what needs 16 bits
({arm["encode"]:.2f} thousand products per pixel to encode, {arm["decode"]:.2f} to decode). Streams
are those of every lichen: any lichen with model.safetensors decodes them.

## 1. Quantise and compile (a PC with Docker)

    docker run -it --rm -v "$PWD":/workspace -w /workspace {targets.CONTAINER}
    conda activate vitis-ai-pytorch
    python quantize.py --quant_mode calib
    python quantize.py --quant_mode test
    python quantize.py --quant_mode test --deploy
    ./compile.sh

leaves xmodel/*.xmodel. `--fast_finetune` in all three modes tunes the integers layer by layer
(minutes to hours). Calibration tensors are in calibration/, of {count} photographs.
The compiler's log says how many DPU subgraphs there are: one for each network.

## 2. The board

Flash {target.image} (Vitis AI {targets.VITIS_AI} board setup) and copy this
folder to it. `xdputil query` must show the fingerprint {targets.FINGERPRINT}. That
image's own Python (3.9) has vart and xir; lichen needs Python 3.10 or later and a C compiler:

    curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv --python 3.11 lichen-env && . lichen-env/bin/activate
    uv pip install ./lichen    # a checkout or wheel of lichen {description["lichen"]}

    python run.py encode photo.png photo.lic
    python run.py decode photo.lic back.png
    python run.py test photo.png        # against the integer codec; pictures per second

run.py starts dpu_worker.py with `--dpu-python` (/usr/bin/python3), one runner for each network and
DPU core. Networks are compiled for {columns}x{rows} pixels; larger pictures run in tiles that
overlap, with the same result as in one piece; smaller ones are continued to that size.

## What to expect

Means over pictures, beside the integer codec (bits per pixel; PSNR over RGB, and differences where
the DPU decodes, encodes, does both; share of equal latents).

{tables}

quantize.py may choose other positions than this emulation did, and AMD's reference of the DPU's
arithmetic has not been compared with the silicon here.
"""


def _rows(found: list[dict[str, Any]] | list[Row]) -> list[Row]:
    return [row if isinstance(row, Row) else Row(**row) for row in found]
