"""How wrong the study's formulas have been: every row that was measured, worst first."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lichen.study import dpu
from lichen.study.files import find, results
from lichen.study.result import Check, Constant, Predictor

CONSTANTS = {  # name: (unit, meaning)
    "dram_bytes_per_cycle": ("byte/cycle", "what one core loads and saves; its two ports have 32"),
    "serial_share": ("", "share of the shorter of array and transfers that is not hidden"),
    "alu_cycles_per_tap": ("cycles", "of depthwise convolutions and pools, 4 pixels x 16 channels; "
                           "at the lower bound of its search: transfers hide it"),
    "step_cycles": ("cycles", "overhead of a layer"),
    "call_ms": ("ms", "overhead of a subgraph's call"),
    "shared_dram": ("", "of the transfer time, that every further busy core adds"),
}  # fmt: skip


def all_of_them() -> tuple[Predictor, ...]:
    """List the predictors. What has not been measured has no checks and says so."""
    return (*_dpu(), _cycles(), _resources())


def _dpu() -> tuple[Predictor, Predictor]:
    values = dpu.model_values()
    constants = tuple(
        Constant(f.name, values["constants"][f.name], *CONSTANTS[f.name])
        for f in fields(dpu.Constants)
    )

    def checks(kind: str) -> tuple[Check, ...]:
        rows = [row for row in values["rows"] if row["kind"] == kind]
        return _sorted(
            Check(
                f"{row['name']} ({row['board']})", row["predicted_ms"], row["measured_ms"], "ms",
                row["error_percent"], row["role"], row["source"], row["note"],
            )
            for row in rows
        )  # fmt: skip

    return (
        Predictor(
            "dpu subgraphs", "DPU time of subgraphs of learned codecs, ZCU102", values["command"],
            "within 6 %, maps of 2 to 8 pixels within 25 %", constants, checks("subgraph"), "",
        ),
        Predictor(
            "dpu networks", "DPU time of published networks, all cores busy", values["command"],
            "ten networks at least, the error stated", constants, checks("network"), "",
        ),
    )  # fmt: skip


def _cycles() -> Predictor:
    name, missing = "pipeline-model.json", ""
    rows: list[dict[str, Any]] = []
    command = "scripts/measure-pipeline-model"
    if find(name) is None:
        missing = f"{name} is not there: run {command}"
    else:
        rows = results(name)["rows"]
    checks = _sorted(
        Check(
            row["name"], row["predicted_cycles"], row["measured_cycles"], "cycles",
            row["error_percent"], "check", "Verilator, all values equal to the reference", "",
        )
        for row in rows
    )  # fmt: skip
    return Predictor(
        "pipeline cycles", "cycles per picture of whole pipelines", command, "within 2 %", (),
        checks, missing,
    )  # fmt: skip


def _resources() -> Predictor:
    """Read docs/results/synthesis.json: for each stage and resource, predicted and measured."""
    name, missing = "synthesis.json", ""
    checks: tuple[Check, ...] = ()
    command = "scripts/bench-synth"
    if find(name) is None:
        missing = f"{name} is not there: run {command}"
    else:
        values = results(name)
        command = str(values.get("command", command))
        checks = _sorted(_synthesised(values))
        missing = "" if checks else f"{name} holds no pairs of predicted and measured counts"
    return Predictor(
        "pipeline resources", "DSP, block RAM, LUT and FF of synthesised stages (Yosys)", command,
        "within 10 %", (), checks, missing,
    )  # fmt: skip


def _synthesised(values: dict[str, Any]) -> list[Check]:
    found = []
    for row in values.get("stages", values.get("rows", [])):
        predicted, measured = row.get("predicted"), row.get("measured")
        pairs: dict[str, tuple[Any, Any]] = {}
        if isinstance(predicted, dict) and isinstance(measured, dict):
            pairs = {key: (predicted[key], measured[key]) for key in predicted if key in measured}
        elif isinstance(predicted, int | float) and isinstance(measured, int | float):
            pairs = {str(row.get("resource", "")): (predicted, measured)}
        role = "check" if row.get("held_out", True) else "fit"
        for resource, (guess, count) in pairs.items():
            if not count and not guess:
                continue
            error = 100 * (guess / count - 1) if count else float("inf")
            found.append(
                Check(
                    f"{row.get('name', row.get('stage', ''))}, {resource}", float(guess),
                    float(count), resource, error, role, "Yosys", str(row.get("note", "")),  # type: ignore[arg-type]
                )
            )  # fmt: skip
    return found


def _sorted(checks: Any) -> tuple[Check, ...]:
    return tuple(sorted(checks, key=lambda check: -abs(check.error_percent)))
