"""The models by name: what the command line, a recipe and a saved run call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lichen.errors import ModelError
from lichen.models import balle2016, balle2018, channels, minnen2020, zou2022
from lichen.models.balle2016 import FactorizedPrior
from lichen.models.balle2018 import ScaleHyperprior
from lichen.models.checkpoint import names_of, read_state
from lichen.models.layers import QuantizableModel
from lichen.models.minnen2020 import ChannelWise
from lichen.models.student import Student
from lichen.models.zou2022 import STF, WACNN

MODELS: dict[str, type[QuantizableModel]] = {
    "balle2016": FactorizedPrior,
    "balle2018": ScaleHyperprior,
    "minnen2020": ChannelWise,
    "student": Student,
    "zou2022-stf": STF,
    "zou2022-wacnn": WACNN,
}


def build(name: str, arguments: dict[str, Any]) -> QuantizableModel:
    """Make a model with fresh weights. Raises ModelError listing the models or the arguments.

    Any model takes one argument more, `pruned`: how many channels groups of them have left.
    """
    if name not in MODELS:
        raise ModelError(f"no model is called {name!r}; there are {', '.join(sorted(MODELS))}")
    own = {key: value for key, value in arguments.items() if key != "pruned"}
    try:
        model = MODELS[name](**own)
    except TypeError as error:
        known = MODELS[name]().arguments
        raise ModelError(
            f"{name} does not take these arguments ({error}); it takes {', '.join(known)}"
        ) from error
    if arguments.get("pruned"):
        channels.narrow(model, arguments["pruned"])
    return model


def name_of(model: QuantizableModel) -> str:
    """Give the name under which `build` makes models of this class."""
    return next(name for name, kind in MODELS.items() if type(model) is kind)


def from_checkpoint(path: Path) -> tuple[QuantizableModel, bool]:
    """Make the model of a state dict of others (CompressAI, STF, X-LIC), and load it.

    Also tells whether the file has a prior: without one, `balle2016.fit_prior` must make it. Which
    of the models it is follows from the names. Raises ModelError.
    """
    state = names_of(read_state(path))
    if not any(name.startswith(("g_a.", "g_s.", "patch_embed.")) for name in state):
        raise ModelError(_unknown(path, state))
    has_prior = any(name.startswith("entropy_bottleneck.") for name in state)
    if not any(name.startswith("cc_mean_transforms.") for name in state):
        of_hyperprior = any(name.startswith("h_a.") for name in state)
        paper = balle2018 if of_hyperprior else balle2016
        return paper.from_checkpoint(state), has_prior
    of_attention = any(name.startswith("patch_embed.") or ".conv_a." in name for name in state)
    return (zou2022 if of_attention else minnen2020).from_checkpoint(state), has_prior


def _unknown(path: Path, state: dict[str, Tensor]) -> str:
    """Say that no model here has such weights, what they look like, and which would do."""
    values = sum(value.numel() for value in state.values())
    own = any(name.endswith(".exponent") for name in state)
    return (
        f"{path} is of an unknown architecture: {len(state)} tensors, {values} values, the first "
        f"{', '.join(list(state)[:3])}; "
        + (
            "lichen's own weights need the config.json of their run beside them: give its folder"
            if own
            else "give weights of CompressAI's bmshj2018-factorized, bmshj2018-hyperprior or "
            "mbt2018-mean, of minnen2020, STF or WACNN, or of X-LIC, or the folder of a lichen run"
        )
    )


def load_checkpoint(model: QuantizableModel, state: dict[str, Tensor]) -> None:
    """Load a state dict of others into a model of the same paper and arguments.

    Raises ModelError naming what is missing, unexpected or misshapen.
    """
    match model:
        case FactorizedPrior():
            balle2016.load_checkpoint(model, state)
        case ScaleHyperprior():
            balle2018.load_checkpoint(model, state)
        case ChannelWise():
            minnen2020.load_checkpoint(model, state)
        case STF() | WACNN():
            zou2022.load_checkpoint(model, state)
        case _:
            raise ModelError(
                f"{name_of(model)} has no weights but lichen's own; give those of a run"
            )
