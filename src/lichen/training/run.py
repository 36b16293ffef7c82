"""A run's folder. Every file in it is whole: written under a temporary name, then renamed.

config.json          the recipe, with all arguments of the model
checkpoint.pt        everything needed to go on
weights.safetensors  averaged (EMA) weights, what evaluation and lowering read
log.csv              one line per `log_every` steps, cut back to the checkpoint on resuming
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lichen.errors import LichenError

CONFIG, CHECKPOINT, WEIGHTS, LOG = "config.json", "checkpoint.pt", "weights.safetensors", "log.csv"
LOG_FIELDS = ["step", "seconds", "loss", "bpp", "mse", "psnr", "learning_rate", "quantized"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` when the block has succeeded, and else vanishes.

    Raises OSError for whatever went wrong; what `path` held before is then still there.
    """
    from safetensors import SafetensorError

    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # on the disk before it takes the name
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch and safetensors report a full disk by exceptions of their own
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        was = "; the one before it is kept" if path.exists() else ""
        raise OSError(
            number,
            f"could not be written ({why}){was}; free space on that disk and give the same command",
            str(path),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    state: dict[str, Tensor], path: Path, half: bool = False, facts: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, floats in 16 bits if `half`; `facts` are its metadata."""
    from safetensors.torch import save_file

    cast = {
        k: v.detach().cpu().to(torch.float16 if half and v.is_floating_point() else v.dtype)
        for k, v in state.items()
    }
    with whole_file(path) as temporary:
        save_file({k: v.contiguous() for k, v in cast.items()}, temporary, facts)


def load_tensors(model: nn.Module, path: Path) -> dict[str, str]:
    """Load safetensors into `model` and give the file's facts.

    Raises LichenError naming what is missing or unexpected, OSError for a file that is not there.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LichenError(f"{path} is no safetensors file ({error}); give a run's weights") from (
            error
        )
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        raise LichenError(
            f"{path} does not hold this model: missing {missing[:5]}, unexpected {extra[:5]}, "
            f"of another shape {wrong[:5]}; give the model and arguments that it was trained with"
        )
    model.load_state_dict(state)
    return facts


def save_checkpoint(state: dict[str, Any], folder: Path) -> None:
    with whole_file(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Read a folder's checkpoint, None where it has none. Raises LichenError for a damaged one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if "auxiliary" not in state:
            raise LichenError(
                f"{path} is of an older version of lichen; start another run from its weights: "
                f"--weights {folder / WEIGHTS}"
            )
    except (LichenError, OSError):
        raise
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise LichenError(
            f"{path} is damaged ({type(error).__name__}); remove it to start anew, from its "
            f"weights with --weights {folder / WEIGHTS}"
        ) from error
    return state  # type: ignore[no-any-return]


def begin_log(folder: Path, step: int, fields: list[str] = LOG_FIELDS) -> None:
    """Leave in log.csv the lines up to `step`: those after it are about to be written again."""
    path, text = folder / LOG, io.StringIO()
    rows: list[dict[str, str]] = []
    if step and path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if _is_whole(row, fields, step)]
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), newline="")


def _is_whole(row: dict[str, str], fields: list[str], step: int) -> bool:
    """Tell whether a line is one of ours, up to `step`: a kill may have cut the last one short."""
    return list(row) == fields and None not in row.values() and int(row["step"]) <= step
