"""The command `lichen synth`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager

from lichen import model as models
from lichen.errors import ContractError
from lichen.files import UsageError
from lichen.model import Model
from lichen.rtl import fold, report, synthesise, trial


def target_of(arguments: argparse.Namespace) -> tuple[fold.Part, fold.Target]:
    """Give the part and the target that the options name."""
    part = fold.PARTS[arguments.board]
    width, height = arguments.size
    default = {"kv260": 30, "zcu102": 60}[arguments.board]
    return part, fold.Target(width, height, arguments.fps or default)


@contextmanager
def _folding() -> Iterator[None]:
    """A target that no folding reaches is the user's error, and says what would be reached."""
    try:
        yield
    except ContractError as error:
        raise UsageError(str(error)) from error


def synth(arguments: argparse.Namespace, model: Model | None) -> int:
    """Synthesise a core, or some of its stages, and print it beside its plan."""
    part, target = target_of(arguments)
    model = model or models.default()
    found: synthesise.Synthesis | None = None
    with _folding():
        plan = trial.plan_for(model, arguments.core, part, target)
        if not arguments.plan:
            placement = plan.place(part)
            unit = trial.core_for(model, arguments.core, plan, placement, "packed")
            found = synthesise.core(unit, plan, placement, arguments.stage)
    if arguments.json:
        values = report.plan_values(plan, part)
        if found is not None:
            values["synthesis"] = report.synthesis_values(found)
        print(json.dumps(values))
    else:
        print(report.plan_text(plan, part))
        if found is not None:
            print(f"\n{report.synthesis_text(found, plan, part)}")
    return 0
