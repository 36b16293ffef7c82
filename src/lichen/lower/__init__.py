"""Lower a trained torch module to integer Programs, tables and gains: a `Model` that runs anywhere.

Every rounding decision was made by the layers (`models/layers.py`): exponents of outputs by
calibration, exponents of weights by their peaks. This part only writes them down, so that the
quantised forward pass in torch and the Programs agree to the last bit (a test holds that).
"""

from lichen.errors import ModelError
from lichen.lower.balle2016 import lower_balle2016
from lichen.lower.balle2018 import lower_balle2018
from lichen.lower.builder import Builder
from lichen.lower.floating import float_model
from lichen.lower.minnen2020 import lower_minnen2020
from lichen.lower.parts import join
from lichen.lower.student import lower_student
from lichen.model import Model
from lichen.models.balle2016 import FactorizedPrior
from lichen.models.balle2018 import ScaleHyperprior
from lichen.models.layers import QuantizableModel
from lichen.models.minnen2020 import ChannelWise
from lichen.models.student import Student
from lichen.models.zou2022 import FloatCodec

__all__ = [
    "Builder",
    "float_model",
    "join",
    "lower",
    "lower_balle2016",
    "lower_balle2018",
    "lower_minnen2020",
    "lower_student",
]


def lower(model: QuantizableModel, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated model of `lichen.models`; those without an integer form stay in float.

    Raises ModelError for a class that is not one of `models.catalogue`.
    """
    match model:
        case Student():
            return lower_student(model, name, metadata)
        case FactorizedPrior():
            return lower_balle2016(model, name, metadata)
        case ScaleHyperprior():
            return lower_balle2018(model, name, metadata)
        case ChannelWise():
            return lower_minnen2020(model, name, metadata)
        case FloatCodec():
            return float_model(model, name, metadata)
        case _:
            raise ModelError(
                f"{type(model).__name__} does not lower to integer Programs; choose one of "
                "Student, FactorizedPrior, ScaleHyperprior, ChannelWise"
            )
