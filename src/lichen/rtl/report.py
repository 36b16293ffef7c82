"""Report: plans and synthesised stages as text and as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lichen.rtl import fold
from lichen.rtl import layer as layers
from lichen.rtl.fold import Part, Plan, Resources
from lichen.rtl.synthesise import SCRIPT, Synthesis

COLUMNS = ("dsp", "bram36", "uram", "lut", "ff")


def totals(plan: Plan, part: Part) -> tuple[Resources, fold.Placement]:
    """Give all that a plan takes on a part, with its long delays outside where they must be."""
    placement = plan.place(part)
    return plan.logic + placement.resources, placement


def together_text(plans: Sequence[Plan], part: Part) -> str:
    """Give what several cores take together on one part, their memories placed together."""
    logic = sum((plan.logic for plan in plans), Resources())
    memories = [memory for plan in plans for memory in plan.memories]
    placement = fold.place(memories, part, external=True, taken=logic)
    outside = ", ".join(memory.stage for memory in placement.external) or "none"
    rates = ", ".join(
        f"{plan.target.clock_hz / plan.cycles:.1f} frames/s, multipliers busy {plan.occupancy:.1%}"
        for plan in plans
    )
    against = _against(logic + placement.resources, part)
    return "\n".join([rates, f"delays outside: {outside}", *against])


def plan_text(plan: Plan, part: Part) -> str:
    """Give a plan as text: a line for each stage, then the sums against the part."""
    total, placement = totals(plan, part)
    lines = [
        f"{'stage':24} {'lanes x outputs x pixels':>24} {'cycles':>9} {'busy':>6} "
        f"{'DSP':>5} {'weights':>12} {'lines':>12} {'LUT':>6} {'FF':>6}"
    ]
    for stage in plan.stages:
        f, name = stage.folding, stage.stage.name
        if f is None:
            lines.append(f"{name:24} {type(stage.stage.op).__name__:>24} {stage.cycles:9}")
            continue
        ring, weights = stage.memories[:2]
        lines.append(
            f"{name:24} {f'{f.lanes} x {f.outputs} x {f.pixels}':>24} {stage.cycles:9} "
            f"{stage.busy / plan.cycles:6.1%} {stage.logic.dsp:5} "
            f"{f'{weights.width}x{weights.depth}':>12} {f'{ring.width}x{ring.depth}':>12} "
            f"{stage.logic.lut + placement.taken_by(name).lut:6} {stage.logic.ff:6}"
        )
    lines.append("")
    lines += [
        f"delay {buffer.tensor.name} before {buffer.stage}: {buffer.depth} positions, "
        f"{buffer.bits / 8192:.0f} KiB"
        + (" (outside)" if any(m.stage == buffer.stage for m in placement.external) else "")
        for buffer in plan.buffers
    ]
    lines += [
        f"{name}: its first {plan.reduction} lines leave when {lag:.0f} lines have come in"
        for name, lag in plan.lag_lines.items()
    ]
    if plan.coder is not None:
        lines.append(
            f"the first output leaves when {plan.first_output_lines:.0f} lines have come in"
        )
    lines += [
        "",
        f"{plan.cycles} cycles per frame, {plan.target.clock_hz / plan.cycles:.1f} frames/s at an "
        f"assumed clock of {plan.target.clock_hz / 1e6:g} MHz; multipliers busy "
        f"{plan.occupancy:.1%}",
        f"of {part.name} ({part.board}), {_what(plan)}, LUT and FF predicted:",
    ]
    return "\n".join([*lines, *_against(total, part)])


def _what(plan: Plan) -> str:
    return "networks only" if plan.coder is None else "entropy coder and stripe buffers included"


def _against(total: Resources, part: Part) -> list[str]:
    """Give a line for each resource: what is taken of the part."""
    over = fold.shortfall(total, part)
    lines = []
    for name in COLUMNS:
        used, have = getattr(total, name), getattr(part.resources, name)
        share = f"{used / have:6.1%}" if have else "  none"
        note = ""
        if name in over:
            note = f"  {used - over[name][1]:g} over the limit of {fold.LIMIT:.0%}"
        lines.append(f"  {name:7} {used:9g} of {have:7} {share}{note}")
    return lines


def synthesis_text(found: Synthesis, plan: Plan, part: Part) -> str:
    """Give a synthesis as text: a line for each stage, then the whole against the part."""
    placement = plan.place(part)
    predicted = {
        name: stage.logic + placement.taken_by(name)
        for stage in plan.stages if stage.folding for name in [stage.stage.name]
    }  # fmt: skip
    lines = [
        f"{found.tool}, {SCRIPT}; a level: a LUT, the reading of a LUT RAM, or a chain of carries",
        f"{'stage':32} {'levels':>6} {'DSP':>5} {'LUT':>7} {'(plan)':>8} {'FF':>7} {'(plan)':>8} "
        f"{'BRAM36':>7} {'BRAM18':>6} {'URAM':>5} {'LUTRAM':>6} {'CARRY4':>6}",
    ]
    for name, module in found.stages.items():
        n, plans = module.counts, predicted.get(name)
        lut, ff = (f"({plans.lut})", f"({plans.ff})") if plans else ("", "")
        lines.append(
            f"{name:32} {module.arcs.levels:6} {n['dsp']:5g} {n['lut']:7g} {lut:>8} {n['ff']:7g} "
            f"{ff:>8} {n['bram36']:7g} {n['bram18']:6g} {n['uram']:5g} {n['lut_as_memory']:6g} "
            f"{n['carry4']:6g}"
        )
    if found.levels is None:
        return "\n".join(lines)
    lines += [f"longest path of the core: {found.levels} levels", f"whole core, {part.name}:"]
    return "\n".join([*lines, *_against(whole(found), part)])


def whole(found: Synthesis) -> Resources:
    """Give what all stages of a synthesis take together."""
    n = found.totals
    return Resources(int(n["dsp"]), n["bram36"], int(n["uram"]), int(n["lut"]), int(n["ff"]))


def synthesis_values(found: Synthesis) -> dict[str, Any]:
    """Give the same as values."""
    return {
        "tool": found.tool,
        "script": SCRIPT,
        "stages": {name: module.values() for name, module in found.stages.items()},
        "levels": found.levels,
        "path": list(found.path),
        "total": found.totals,
    }


def plan_values(plan: Plan, part: Part) -> dict[str, Any]:
    """Give the same as values."""
    total, placement = totals(plan, part)
    stages = [
        {
            "name": stage.stage.name,
            "operation": type(stage.stage.op).__name__,
            "folding": asdict(stage.folding) if stage.folding else None,
            "multipliers": layers.multipliers(stage.folding) if stage.folding else 0,
            "cycles": stage.cycles,
            "busy": stage.busy / plan.cycles,
            "memories": [asdict(memory) for memory in stage.memories],
            "logic": asdict(stage.logic),
            "placed": asdict(placement.taken_by(stage.stage.name)),
        }
        for stage in plan.stages
    ]
    return {
        "part": part.name,
        "board": part.board,
        "target": asdict(plan.target),
        "cycles": plan.cycles,
        "occupancy": plan.occupancy,
        "lag_lines": plan.lag_lines,
        "first_output_lines": plan.first_output_lines,
        "total": asdict(total),
        "limit": {name: fold.LIMIT * getattr(part.resources, name) for name in COLUMNS},
        "over": {name: used - limit for name, (used, limit) in fold.shortfall(total, part).items()},
        "outside": [asdict(memory) for memory in placement.external],
        "stages": stages,
    }
