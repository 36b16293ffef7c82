"""Lower a trained torch module to integer Programs, tables and gains: a `Model` that runs anywhere.

Every rounding decision was made by the layers (`models/layers.py`): exponents of outputs by
calibration, exponents of weights by their peaks. This part only writes them down, so that the
quantised forward pass in torch and the Programs agree to the last bit (a test holds that).
"""

from lichen.errors import ModelError
from lichen.lower.balle2018 import lower_balle2018
from lichen.lower.builder import Builder
from lichen.lower.parts import join
from lichen.lower.student import lower_student
from lichen.model import Model
from lichen.models.balle2018 import ScaleHyperprior
from lichen.models.layers import QuantizableModel
from lichen.models.student import Student

__all__ = ["Builder", "join", "lower", "lower_balle2018", "lower_student"]


def lower(model: QuantizableModel, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated model of `lichen.models`. Raises ModelError for one without integers."""
    match model:
        case Student():
            return lower_student(model, name, metadata)
        case ScaleHyperprior():
            return lower_balle2018(model, name, metadata)
        case _:
            raise ModelError(
                f"{type(model).__name__} does not lower to integer Programs; choose one of "
                "Student, ScaleHyperprior"
            )
