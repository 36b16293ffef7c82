"""Trial: a model's core for a part, as simulation, synthesis and boards make it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lichen.container import ROW_LINES
from lichen.errors import ContractError
from lichen.model import Model
from lichen.rtl import codec, fold, graph
from lichen.rtl.codec import Decoder, Encoder
from lichen.rtl.convolution import Face

Core = Literal["encoder", "decoder"]
STRIPE = 1  # rows of 64 lines in the highest stripe that a core holds


def plan_for(model: Model, core: Core, part: fold.Part, target: fold.Target) -> fold.Plan:
    """Fold a model's core for a part. Raises ContractError where there is no hardware for it."""
    if model.order != "hyperprior":
        raise ContractError(
            f"model {model.name}: cores are for the order 'hyperprior', not {model.order!r}; "
            "the student is one"
        )
    make = graph.encoder if core == "encoder" else graph.decoder
    plan = fold.fold(make(model.programs), target, part)
    return replace(plan, coder=codec.coder(model, plan, core, stripe_units(model)))


def stripe_units(model: Model) -> int:
    """Count the rows of the coarsest grid in a stripe of 64 lines."""
    return ROW_LINES // model.reduction


def core_for(
    model: Model, kind: Core, plan: fold.Plan, placement: fold.Placement, face: Face = "plain"
) -> Encoder | Decoder:
    """Make a core of a plan, in stripes of 64 lines, the least that a stream has."""
    make = Encoder if kind == "encoder" else Decoder
    return make(model, plan, stripe=stripe_units(model), placement=placement, face=face)
