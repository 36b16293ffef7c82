"""Graphs, skew and foldings: formulas against small cases, and the shipped student on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stages import depthwise_conv, random_conv
from tiny_codec import programs

from lichen import model as models
from lichen.boards import cores
from lichen.boards.address_map import CORES
from lichen.boards.build import TOGETHER, target_of
from lichen.errors import ContractError
from lichen.program import Input, Output, Program, ops
from lichen.rtl import fold, graph, leaf, skew
from lichen.rtl import layer as layers
from lichen.rtl.fold import KV260, ZCU102, Memory, Resources, Target, shortfall
from lichen.rtl.layer import Folding
from lichen.rtl.leaf import Home
from lichen.rtl.placement import OUTSIDE_LOGIC
from lichen.rtl.registers import DELAYS
from lichen.rtl.trial import plan_for

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


def test_groups_that_are_not_depthwise_are_refused() -> None:
    conv = replace(_conv("y", "x"), weight=np.zeros((4, 2, 3, 3), np.int8), groups=2)
    with pytest.raises(ContractError, match=r"2 groups of 2 channels.*\(depthwise\)"):
        _graph(conv)


def test_a_depthwise_layer_and_its_foldings() -> None:
    """16 channels, 9 products each: two pixels in a DSP, weights of a few bytes."""
    op = depthwise_conv(RNG, 4, 3, 1, "s8", (3, 5), ("y", "x"))
    stage = _graph(op).stages[0]
    layer = stage.layer
    assert layer is not None and layer.depthwise
    assert (layer.channels, layer.outputs, layer.macs) == (4, 4, 36)
    found = fold.foldings(layer, 16, 1)
    assert found and all(folding.lanes == 1 for folding in found)
    folding = fold.choose(stage, (4, 16), 8 * 4 * 8 * 16 * 36, 1)
    assert layers.dsps(layer, folding) == 1
    assert fold.weight_memory("", layer, folding).bits <= 2 * 8 * 36
    with pytest.raises(ValueError, match="one lane"):
        layers.check(layer, Folding(2, 1, 2, 4))
    point = depthwise_conv(RNG, 4, 1, 1, "s8", (3, 5), ("y", "x"))
    with pytest.raises(ContractError, match=r"1x1 kernel of 1 products.*a Scale"):
        fold.choose(_graph(point).stages[0], (4, 16), 1 << 20, 1)


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


def test_what_comes_together_needs_no_buffer() -> None:
    add = ops.Add("y", "a", "b", 0, 0, 7, False, "s8")
    found = _graph(_conv("a", "x"), _conv("b", "x"), add, outputs=("p.y", "p.a", "p.b"))
    folding = Folding(4, 1, 8, 4)  # a group of 8 is ready on both ways
    assert skew.analyse(found, {"p.a": folding, "p.b": folding}, (4, 10)).buffers == ()
    later = {"p.a": folding, "p.b": replace(folding, pixels=16)}
    (buffer,) = skew.analyse(found, later, (4, 10)).buffers
    assert buffer.tensor.name == "p.a" and buffer.depth >= 8


def test_memories_in_blocks() -> None:
    assert Memory("", "", 72, 512).resources == Resources(bram36=1)
    assert Memory("", "", 36, 512).resources == Resources(bram36=0.5)
    assert Memory("", "", 16, 128).resources == Resources(lut=2 * 8 * 3 + 16)
    deep = Memory("", "", 64, 4096)
    assert deep.taken(Home(4096, 0)) == Resources(uram=1)
    wide = Memory("", "", 128, 4097)
    assert wide.taken(Home(4097, 0)) == Resources(uram=4, lut=128)
    split = wide.taken(Home(4096, 0))
    assert (split.uram, split.bram36) == (2, 0) and 128 < split.lut < 300
    assert replace(wide, depth=4608).taken(Home(4096, 512)) == Resources(2 * 0, 2, 2, lut=128)


def test_homes_are_those_that_hardware_can_address() -> None:
    for depth in (30, 500, 1152, 4096, 4482, 5120, 9216):
        memory = Memory("", "", 64, depth)
        for home in memory.homes(True):
            leaf.Memory(64, depth, home=home)  # raises where it cannot
    assert Home(4096, 0) in Memory("", "", 64, 4482).homes(True)
    assert all(home.ultra == 0 for home in Memory("", "", 64, 4482).homes(False))
    with pytest.raises(ValueError, match="does not suit 1152 words"):
        leaf.Memory(64, 1152, home=Home(0, 600))


def test_what_is_scarce_decides() -> None:
    """64 x 1152 words: 3 block RAMs, or 2 and LUT RAM, or an UltraRAM."""
    memories = [Memory("s", f"{n}", 64, 1152) for n in range(40)]
    part = replace(KV260, resources=Resources(0, 100, 10, 100_000, 0))
    cheap = fold.place(memories, part).resources
    assert (cheap.uram, cheap.bram36) == (0, 80) and cheap.lut
    part = replace(KV260, resources=Resources(0, 90, 10, 100_000, 0))
    found = fold.place(memories, part).resources
    assert not shortfall(found, part)
    assert found.uram >= 2
    tight = replace(part, resources=Resources(0, 100, 10, 20_000, 0))
    assert shortfall(fold.place(memories, tight, taken=Resources(lut=15_000)).resources, tight)


def test_long_delays_leave_the_chip_only_where_they_must() -> None:
    delay, short = Memory("a", "delay", 64, 40_000), Memory("b", "delay", 64, 2_000)
    memories = [delay, short, Memory("a", "ring", 64, 270_000)]
    assert fold.place(memories, ZCU102, external=True).external == ()
    placed = fold.place(memories, KV260, external=True)
    assert placed.external == (delay,)
    inside = sum((memory.taken(home) for memory, home in placed.homes), Resources())
    assert placed.resources == inside + OUTSIDE_LOGIC
    assert fold.place(memories, KV260).external == ()


@pytest.mark.parametrize(
    ("lanes", "outputs", "beats", "words", "bits"),
    [
        (1, 1, 9, 1, 72),  # nine bytes in a word
        (3, 1, 3, 1, 72),
        (4, 1, 2, 1, 64),
        (4, 2, 9, 8, 72),  # a ninth beat in eight words
        (3, 2, 3, 2, 72),
        (4, 4, 9, 8, 144),
        (3, 3, 1, 1, 72),
        (1, 5, 6, 5, 48),
        (1, 11, 1, 1, 88),  # nothing is shared: it would take eleven words
    ],
)
def test_weights_fill_their_words(
    lanes: int, outputs: int, beats: int, words: int, bits: int
) -> None:
    packing = layers.packing(Folding(lanes, outputs, 2, 12))
    assert (packing.beats, packing.words(packing.beats), packing.bits) == (beats, words, bits)
    assert packing.words(3 * beats) == 3 * words
    # A pass that ends within a round needs the words of its beats and no more.
    assert packing.words(beats + 1) == words + 1


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
    placement = plan.place(part)
    assert {memory.role for memory in placement.external} <= {"delay"}
    kept = (*(memory for memory, _ in placement.homes), *placement.external)
    assert sorted(map(repr, kept)) == sorted(map(repr, plan.memories))


@pytest.mark.parametrize("board", sorted(TOGETHER))
def test_both_cores_of_the_student_fit_a_board(board: str) -> None:
    part, target = fold.PARTS[board], target_of(board, "both", None, None)
    plans = {core: plan_for(models.default(), core, part, target) for core in CORES}
    placed = cores.place(plans, part)
    taken = [plan.logic + placed[core].resources for core, plan in plans.items()]
    fold.require_fit(sum(taken, Resources()), part)
    for core, plan in plans.items():
        assert plan.cycles <= target.cycles and plan.occupancy >= 0.85
        assert plan.first_output_lines <= fold.LAG_LINES
        assert len(placed[core].external) <= DELAYS
        folded = [stage.cycles for stage in plan.stages if stage.folding]
        assert min(folded) >= (1 - fold.SPREAD) * max(folded)
