"""Graphs, skew and foldings: formulas against small cases, and the shipped student on paper."""

from __future__ import annotations

import numpy as np
import pytest
from stages import random_conv
from tiny_codec import programs

from lichen import model as models
from lichen.errors import ContractError
from lichen.program import Input, Output, Program, ops
from lichen.rtl import fold, graph, skew
from lichen.rtl import layer as layers
from lichen.rtl.fold import KV260, ZCU102, Memory, Resources, Target
from lichen.rtl.layer import Folding

RNG = np.random.default_rng(3)


def _graph(*steps: ops.Op, outputs: tuple[str, ...] = ("p.y",)) -> graph.Graph:
    program = Program("p", (Input("x", 4, "s8", 0),), (), steps, (Output("y", 0),))
    return graph.build([program], {}, outputs, {"p.x": 8})


def _conv(y: str, x: str, dtype: str = "s8", kernel: int = 3) -> ops.Conv:
    return random_conv(RNG, 4, 4, kernel, 1, dtype, (6, 8), (y, x))  # type: ignore[arg-type]


def test_shuffles_merge() -> None:
    found = graph.encoder(programs())
    by_name = {stage.name: stage for stage in found.stages}
    linear = by_name["g_a.linear.1"].layer
    assert linear is not None
    assert (linear.channels, linear.kernel, linear.stride) == (48, (16, 1), (16, 1))
    branch = by_name["g_a.branch.1"].layer
    assert branch is not None
    assert (branch.channels, branch.kernel, branch.stride) == (12, (12, 3), (8, 2))
    assert by_name["h_s.h_s.0"].layer.passes == 2  # type: ignore[union-attr]
    assert not any("linear.0" in stage.name for stage in found.stages)
    assert [tensor.scale for tensor in found.outputs] == [1, 4, 4]


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((_conv("h", "x"), ops.Slice("y", "h", 0, 2)), r"Slice.*nearest is a convolution"),
        ((_conv("h", "x"), ops.Concat("y", ("h", "h"))), r"Concat.*no hardware"),
        ((ops.PixelShuffle("y", "x", 2),), r"PixelShuffle.*after a convolution"),
        ((ops.PixelUnshuffle("h", "x", 2), ops.Clamp("y", "h", 0, 1)), "only convolutions read"),
        ((ops.GDN("y", "x", np.ones(4, np.int32), np.zeros((4, 4), np.uint8), 2, False, 0, 0,
                  "s8"),),
         r"GDN.*nearest is a ReLU"),
    ],
)  # fmt: skip
def test_what_has_no_hardware_is_named(steps: tuple[ops.Op, ...], word: str) -> None:
    with pytest.raises(ContractError, match=word):
        _graph(*steps)


def test_padding_that_keeps_no_size_is_refused() -> None:
    conv = ops.Conv("y", "x", np.zeros((4, 4, 3, 3), np.int8), np.zeros(4, np.int32),
                    np.zeros(4, np.uint8), 1, (0, 0, 0, 0), 1, "s8")  # fmt: skip
    with pytest.raises(ContractError, match=r"whole number per unit|padding must be"):
        _graph(conv)


def test_skew_of_a_residual_block() -> None:
    """Two 3x3 convolutions: the skip waits two lines, and a few groups of columns."""
    add = ops.Add("y", "x", "b", 7, 0, 7, False, "s8")
    steps = (_conv("a", "x", "u8"), _conv("b", "a", "s16"), add)
    found = _graph(*steps)
    folding = Folding(4, 1, 2, 4)
    buffers = skew.analyse(found, {"p.a": folding, "p.b": folding}, (4, 10)).buffers
    (buffer,) = buffers
    line = 8 * 10
    # A group's last column is one to its right; three groups of two are on the way, in each stage.
    assert (buffer.stage, buffer.port, buffer.tensor.name) == ("p.y", 0, "p.x")
    assert 2 * line + 2 * 6 < buffer.depth <= 2 * line + 2 * (6 + 3) + 2


def test_a_chain_needs_no_buffer_and_lags() -> None:
    found = _graph(_conv("a", "x"), _conv("y", "a"))
    result = skew.analyse(found, dict.fromkeys(("p.a", "p.y"), Folding(4, 1, 2, 4)), (4, 10))
    assert result.buffers == ()
    # The 8th row of the output, its last group: two rows below, and some columns of the next.
    assert 9.9 < result.lag_rows["p.y"] < 10.5


def test_memories_in_blocks() -> None:
    assert Memory("", "", 72, 512).bram36 == 1
    assert Memory("", "", 36, 512).bram36 == 0.5
    assert Memory("", "", 64, 4096).uram == 1
    assert Memory("", "", 128, 4097).uram == 4
    whole, rest = Memory("", "", 128, 4608).split
    assert (whole.uram, rest.bram36) == (2, 2)


def test_folding_rules() -> None:
    layer = _graph(_conv("y", "x")).stages[0].layer
    assert layer is not None
    layers.check(layer, Folding(4, 1, 2, 4))
    for wrong, word in (
        (Folding(3, 1, 2, 4), "divide word"),
        (Folding(4, 3, 2, 4), "outputs must divide"),
        (Folding(4, 1, 3, 4), "even"),
        (Folding(4, 4, 20, 4), "more than its 9"),
    ):
        with pytest.raises(ValueError, match=word):
            layers.check(layer, wrong)


def test_a_target_out_of_reach_names_the_stage() -> None:
    with pytest.raises(ContractError, match=r"no folding takes at most .* the fastest takes"):
        fold.fold(graph.decoder(programs()), Target(1920, 1080, 3000))


def test_shortfall_names_the_resource() -> None:
    with pytest.raises(ContractError, match=r"XCK26.*dsp: 1100 of 1060\.5 allowed, 39\.5 too many"):
        fold.require_fit(Resources(dsp=1100, bram36=100), KV260)
    fold.require_fit(Resources(dsp=1060, bram36=122, uram=54), KV260)


@pytest.mark.parametrize(
    ("kind", "part", "target"),
    [("encoder", KV260, Target(1920, 1080, 30)), ("decoder", ZCU102, Target(1920, 1080, 60))],
)
def test_the_student_keeps_the_rate(kind: str, part: fold.Part, target: Target) -> None:
    plan = fold.fold(getattr(graph, kind)(models.default().programs), target, part)
    assert plan.cycles <= target.cycles
    assert plan.occupancy >= 0.85
    assert plan.logic.dsp <= fold.LIMIT * part.resources.dsp
    slowest = max(stage.cycles for stage in plan.stages if stage.folding)
    for stage in plan.stages:
        if stage.folding is not None:
            assert stage.cycles >= (1 - fold.SPREAD) * slowest, stage.stage.name
            layers.check(stage.stage.layer, stage.folding)  # type: ignore[arg-type]
    placement = fold.place(plan.memories, part, external=True)
    assert {memory.role for memory in placement.external} <= {"delay"}
    kept = (*placement.block, *placement.ultra, *placement.split, *placement.external)
    assert sorted(map(repr, kept)) == sorted(map(repr, plan.memories))
