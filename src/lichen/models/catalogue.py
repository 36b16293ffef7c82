"""The models by name: what the command line, a recipe and a saved run call them."""

from __future__ import annotations

from typing import Any

from lichen.errors import ModelError
from lichen.models.balle2016 import FactorizedPrior
from lichen.models.balle2018 import ScaleHyperprior
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
    """Make a model with fresh weights. Raises ModelError listing the models or the arguments."""
    if name not in MODELS:
        raise ModelError(f"no model is called {name!r}; there are {', '.join(sorted(MODELS))}")
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        known = MODELS[name]().arguments
        raise ModelError(
            f"{name} does not take these arguments ({error}); it takes {', '.join(known)}"
        ) from error


def name_of(model: QuantizableModel) -> str:
    """Give the name under which `build` makes models of this class."""
    return next(name for name, kind in MODELS.items() if type(model) is kind)
