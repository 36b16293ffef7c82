"""State dicts of others: read safely, renamed to this project's names, fitted to a module.

Only tensors are ever read: a file that holds code is refused, never run.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models.layers import Quantizable

# Tensors of CompressAI's files that follow from others, or that lichen makes its own way.
IGNORED = (
    "gaussian_conditional.",
    "entropy_bottleneck._offset",
    "entropy_bottleneck._quantized_cdf",
    "entropy_bottleneck._cdf_length",
    "entropy_bottleneck.target",
    "entropy_bottleneck.likelihood_lower_bound.",
)
RENAMED = (  # spellings of the factorised prior's parameters in older and newer releases
    ("entropy_bottleneck._matrices.", "entropy_bottleneck._matrix"),
    ("entropy_bottleneck._biases.", "entropy_bottleneck._bias"),
    ("entropy_bottleneck._factors.", "entropy_bottleneck._factor"),
    ("entropy_bottleneck.matrices.", "entropy_bottleneck._matrix"),
    ("entropy_bottleneck.biases.", "entropy_bottleneck._bias"),
    ("entropy_bottleneck.factors.", "entropy_bottleneck._factor"),
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or a torch file of which only tensors are unpickled.

    Raises ModelError; never runs code that a file contains.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"expected tensors in {path}, found something else ({type(error).__name__}: "
            f"{str(error)[:200]}); give a state dict saved by safetensors or torch.save"
        ) from error
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ModelError(f"cannot read {path} as safetensors ({error})") from error
    for name in ("state_dict", "model"):  # what training scripts wrap it in
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"expected a state dict (names and tensors) in {path}, found other types")
    return state


def names_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this module's names and leave out what is not needed."""
    found = {}
    for name, value in state.items():
        name = name.removeprefix("module.")  # DataParallel's
        for old, new in RENAMED:
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if not name.startswith(IGNORED) and "_reparam." not in name:
            found[name] = value
    return found


def is_foreign(state: dict[str, Tensor]) -> bool:
    """Tell whether the weights come from elsewhere: lichen's own always have exponents."""
    return not any(name.endswith(".exponent") for name in state)


def check_fit(
    model: nn.Module, state: dict[str, Tensor], where: str, optional: Collection[str] = ()
) -> None:
    """Raise ModelError naming what is missing (unless `optional`), unexpected or misshapen."""
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys() - set(optional))
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if missing or unexpected or misshapen:
        arguments: Any = getattr(model, "arguments", {})
        raise ModelError(
            f"{where} does not fit {type(model).__name__}({arguments}): missing {missing}, "
            f"unexpected {unexpected}, of another shape {misshapen}; give the arguments that it "
            "was trained with"
        )


def own_values(model: nn.Module) -> dict[str, Tensor]:
    """Give what foreign weights have not: gains of 1, no peaks, the exponents of the design."""
    values = {
        name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
        if name in ("gain", "inverse_gain") or name.endswith(".peak")
    }
    for name, layer in model.named_modules():
        if isinstance(layer, Quantizable):
            values[f"{name}.exponent"] = layer.exponent
    return values


def from_unit_pixels(state: dict[str, Tensor], first: str, last: str) -> dict[str, Tensor]:
    """Scale the first and the last layer of a model that codes pixels / 255 in 0..1.

    p = pixel / 256 goes in where they take pixel / 255; x' = (pixel - 128) / 128 comes out.
    """
    return {
        **state,
        f"{first}.weight": state[f"{first}.weight"] * (256 / 255),
        f"{last}.weight": state[f"{last}.weight"] * (255 / 128),
        f"{last}.bias": state[f"{last}.bias"] * (255 / 128) - 1,
    }
