"""Flow: do the Programs of a model fit together in the way that `codec.py` runs them?

A model file is a stranger's too. Each of its Programs is sound by itself (`program.check`); here
the tensors between them are followed, by name, type and shape, for two sizes of picture, so that
no combination of sound parts can fail in the middle of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from lichen.errors import ContractError
from lichen.program import Program
from lichen.program.check import Shape, infer_shapes, tensors

Z_REDUCTIONS = (32, 64)  # z has one row for as many lines of the picture: docs/stream.md, 2
GAINS = {"gain", "inverse_gain"}
# What `codec.py` gives to each Program of an order, and takes from it; in the order of running.
# (Channel-wise: whatever Programs before it have given.)
STEPS = {
    "factorised": {"g_a": ("x", "y"), "quantize": ("y", "symbols"), "g_s": ("symbols", "x")},
    "hyperprior": {
        "g_a": ("x", "y"), "h_a": ("y", "v z"), "h_s": ("z", "mean index"),
        "quantize": ("v mean", "symbols"), "g_s": ("symbols mean", "x"),
    },
}  # fmt: skip
ENCODER = ("g_a", "h_a", "quantize")  # begin the names of Programs that a decoder does not run
# What the codec, or the entropy coder, takes out of Programs, and its type.
TAKEN = {"z": "s8", "index": "u8", "symbols": "s16", "x": "s8"}


def check(
    order: str, programs: Mapping[str, Program], reduction: int, latents: int, hyper_latents: int,
    tables: int,
) -> None:  # fmt: skip
    """Raise ContractError unless the Programs fit together.

    latents, hyper_latents: the channels that the model's gains and z_tables have. tables: how many
    entropy tables there are.
    """
    if order != "factorised" and reduction not in Z_REDUCTIONS:
        raise ContractError(f"with z the reduction must be one of {Z_REDUCTIONS}, not {reduction}")
    for rows, columns in ((1, 1), (2, 3)):
        known: dict[str, tuple[Shape, str]] = {}
        known["x"] = (3, rows * reduction, columns * reduction), "s8"
        picture = known["x"]
        decoded = {"z", "symbols"}  # what a decoder has when it comes to it
        for name in _steps(order, programs):
            _names(order, programs[name], name)
            if not name.startswith(ENCODER):
                _decodable(programs[name], decoded)
            _run(programs[name], known, latents, tables)
            if name == "h_a":
                _expect("z", known, (hyper_latents, rows, columns))
            if not name.startswith("quantize"):
                continue
            if order == "factorised":
                _expect("symbols", known, (latents, rows, columns))
                continue
            if "index" not in known:
                raise ContractError(f"no Program before {name} gives 'index'")
            _expect("symbols", known, known["index"][0])
            if known["symbols"][0][1] % rows:
                raise ContractError("symbols must have a whole number of rows for a row of z")
        if known["x"] != picture:
            raise ContractError(f"g_s must give a picture {picture}, not {known['x']}")


def _decodable(program: Program, decoded: set[str]) -> None:
    """Refuse a Program of the decoder that reads what an encoder alone has; add its outputs."""
    lacking = sorted({x.name for x in program.inputs} - decoded)
    if lacking:
        raise ContractError(f"{program.name}: a decoder does not have its input {lacking[0]!r}")
    decoded.update(output.name for output in program.outputs)


def _steps(order: str, programs: Mapping[str, Program]) -> list[str]:
    """List the Programs in the order in which an encoder and then a decoder runs them."""
    if order in STEPS:
        return list(STEPS[order])
    slices = sum(name.startswith("context.") for name in programs)
    parts = [f"{part}.{k}" for k in range(slices) for part in ("context", "quantize", "refine")]
    return ["g_a", "h_a", "h_s", *parts, "g_s"]


def _names(order: str, program: Program, name: str) -> None:
    """Compare the names of inputs and outputs with those that the codec uses."""
    if order not in STEPS:
        return
    given, taken = (set(names.split()) for names in STEPS[order][name])
    inputs, outputs = ({x.name for x in part} for part in (program.inputs, program.outputs))
    may = {"index"} if order == "hyperprior" and name == "quantize" else set()
    if not given <= inputs <= given | may or not taken <= outputs:
        raise ContractError(
            f"{name} must make {sorted(taken)} from {sorted(given)}, not {sorted(outputs)} from "
            f"{sorted(inputs)}"
        )


def _run(program: Program, known: dict[str, tuple[Shape, str]], latents: int, tables: int) -> None:
    """Follow the shapes through a Program; its outputs join what is known."""
    for x in program.inputs:
        if x.name not in known:
            raise ContractError(f"{program.name}: nothing before it gives its input {x.name!r}")
        if known[x.name][1] != x.dtype:
            raise ContractError(f"{program.name}: {x.name!r} must be {known[x.name][1]}")
    for vector in program.vectors:
        if vector.name not in GAINS or vector.channels != latents:
            raise ContractError(
                f"{program.name}: a vector must be one of {sorted(GAINS)} of {latents} channels, "
                f"not {vector.name!r} of {vector.channels}"
            )
    shapes = infer_shapes(program, {x.name: known[x.name][0] for x in program.inputs})
    types = tensors(program)
    for output in program.outputs:
        dtype = types[output.name].dtype
        if TAKEN.get(output.name, dtype) != dtype:
            raise ContractError(f"{program.name}: {output.name!r} must be {TAKEN[output.name]}")
        if output.name == "index" and types["index"].high >= tables:
            raise ContractError(
                f"{program.name}: 'index' must be below the number of tables, {tables}, but may be "
                f"{types['index'].high}"
            )
        known[output.name] = shapes[output.name], dtype


def _expect(name: str, known: Mapping[str, tuple[Shape, str]], shape: Shape) -> None:
    if name not in known or known[name][0] != shape:
        found = known[name][0] if name in known else "none"
        raise ContractError(f"{name!r} must have the shape {shape}, found {found}")
