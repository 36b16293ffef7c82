"""Programs that are sound alone but do not fit together are refused when the model is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forge import micro_model

from lichen import model as models
from lichen.errors import ModelError
from lichen.model import Model
from lichen.program import Input, Output, Program, Vector, ops


def with_program(name: str, change: Callable[[Program], Program]) -> Model:
    model = micro_model()
    return replace(model, programs={**model.programs, name: change(model.programs[name])})


def renamed(program: Program) -> Program:
    """Let `index` be called otherwise."""
    table = replace(program.ops[-1], output="number")
    outputs = (program.outputs[0], Output("number", 0))
    return replace(program, ops=(*program.ops[:-1], table), outputs=outputs)


BROKEN: dict[str, tuple[str, Model]] = {
    "no index": ("h_s must make .'index', 'mean'.", with_program(
        "h_s", renamed)),
    "index of 16 bits": ("'index' must be u8", with_program(
        "h_s", lambda p: replace(p, ops=(*p.ops[:-1], ops.Clamp("index", "mean", 0, 3))))),
    "index beyond the tables": ("'index' must be below the number of tables", with_program(
        "h_s", lambda p: replace(p, ops=(*p.ops[:-1], replace(
            p.ops[-1], thresholds=np.arange(200, dtype=np.int32)))))),
    "z of 16 bits": ("'z' must be s8", with_program(
        "h_a", lambda p: replace(p, ops=(p.ops[0], replace(p.ops[1], dtype="s16"))))),
    "unknown input": ("quantize must make", with_program(
        "quantize", lambda p: replace(
            p, inputs=(p.inputs[0], Input("w", 2, "s16", 4)),
            ops=(replace(p.ops[0], b="w"),)))),
    "context of an encoder alone": ("quantize must make", with_program(
        "quantize", lambda p: replace(p, inputs=(*p.inputs, Input("z", 1, "s8", 0))))),
    "input of another type": ("must be s16", with_program(
        "quantize", lambda p: replace(p, inputs=(Input("v", 2, "s8", 4), p.inputs[1])))),
    "unknown vector": ("a vector must be one of", with_program(
        "h_a", lambda p: replace(p, vectors=(Vector("loss", 2),), ops=(
            replace(p.ops[0], multiplier="loss"), p.ops[1])))),
    "a smaller picture": ("must give a picture", with_program(
        "g_s", lambda p: replace(p, ops=(*p.ops[:-1], ops.PixelShuffle("half", "blocks", 8),
                                         ops.Slice("x", "half", 0, 3))))),
    "symbols of another size": ("'symbols' must have the shape", with_program(
        "quantize", lambda p: replace(p, ops=(
            replace(p.ops[0], output="whole"), ops.PixelUnshuffle("symbols", "whole", 2))))),
    "another reduction": ("the reduction must be one of", replace(micro_model(), reduction=16)),
    "rows of tables for no quality": (r"z_tables must have the shape \(2,\) or \(51, 2\)", replace(
        micro_model(), z_tables=np.full((50, 2), 4, np.uint16))),
    "too many hyper-latents": ("'z' must have the shape", replace(
        micro_model(), z_tables=np.array([4, 4], np.uint16))),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit_are_refused(name: str) -> None:
    message, model = BROKEN[name]
    with pytest.raises(ModelError, match=message):
        models.from_bytes(model.to_bytes())


def test_a_quantiser_may_read_the_numbers_of_the_tables() -> None:
    def with_index(program: Program) -> Program:
        rounded = replace(program.ops[0], output="residual")
        back = ops.Add("symbols", "residual", "index", 0, 0, 0, False, "s16")
        inputs = (*program.inputs, Input("index", program.inputs[0].channels, "u8", 0))
        return replace(program, inputs=inputs, ops=(rounded, back))

    model = with_program("quantize", with_index)
    assert models.from_bytes(model.to_bytes()).programs["quantize"].inputs[2].name == "index"


@pytest.mark.parametrize(
    ("field", "value"),
    [("order", ["hyperprior"]), ("order", None), ("reduction", float("inf")), ("reduction", []),
     ("programs", []), ("programs", {"g_a": 3}), ("format", {}), ("name", None)],
)  # fmt: skip
def test_odd_descriptions_are_refused(field: str, value: Any) -> None:
    if field == "name":  # any value has a text
        assert models.from_bytes(described(**{field: value})).name == "None"
        return
    with pytest.raises(ModelError):
        models.from_bytes(described(**{field: value}))


def test_deep_nesting_is_refused() -> None:
    data = described(name="@").replace(b'\\"@\\"', b"[" * 2 + b"@" + b"]" * 2)
    with pytest.raises(ModelError):
        models.from_bytes(data)
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ModelError):
        models.from_bytes(described(lichen=deep))


def described(lichen: str = "", **fields: Any) -> bytes:
    """Give the file of the micro model with other fields, or another text, in its description."""
    data = micro_model().to_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    document = json.loads(header["__metadata__"]["lichen"]) | fields
    header["__metadata__"]["lichen"] = lichen or json.dumps(document)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
