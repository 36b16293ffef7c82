"""Cross-layer equalisation: scales that pass from one layer to the next, so that 8 bits serve both.

Nagel 2019, "Data-free quantization through weight equalization and bias correction", section 4.1.
Students are equalised by `training.scales`, as before they are trained in integers. Models with
GDN, and those of the same transforms with ReLU, are equalised as a whole by
`training.quantize.equalise`, through GDN and the rate gains too; who calls it compares the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lichen.frugal import noise
from lichen.models.gdn import GDN
from lichen.models.layers import QuantizableModel
from lichen.models.student import Student
from lichen.training import quantize, scales

Form = Literal["even", "peaks", "noise"]


def forms(model: QuantizableModel) -> tuple[Form, ...]:
    """List the ways in which a model can be equalised; which is best, its weights decide."""
    has_gdn = any(isinstance(layer, GDN) for layer in model.modules())
    return ("even", "peaks", "noise") if has_gdn else ("even",)


@torch.no_grad()
def equalise(model: QuantizableModel, batches: Sequence[Tensor], form: Form = "even") -> int:
    """Equalise a float network, which computes what it did before; count the rescaled pairs.

    batches: pixels (B, 3, H, W) in -1..1. form: what a GDN reads is scaled as what it gives
    ("even"), or all of it to one peak ("peaks"), which serves a gamma whose columns lie far apart;
    or what is around GDNs then goes to where the predicted noise is least ("noise").
    """
    if isinstance(model, Student):
        return scales.equalise(model, batches)
    quantize.equalise(model, batches, even_gamma=form == "even")
    quantize.fill_ranges(model, batches)
    if form == "noise":
        noise.equalise(model, batches)
    return len(quantize.transforms(model))
