"""The parts of a cut Program compute what the Program does; what the DPU refuses is named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import MODELS, tiny
from lichen import model
from lichen.boards.vitis_ai import network as net
from lichen.boards.vitis_ai.cut import HIGH_SHIFT, Cut, cut
from lichen.boards.vitis_ai.executor import Linear, halves, parts_of
from lichen.boards.vitis_ai.exponents import exponents
from lichen.errors import LichenError, ModelError
from lichen.models import catalogue
from lichen.program import Input, Output, Program, ops
from lichen.study.models import lowered


def real(program: Program, values: dict[str, np.ndarray], vectors: dict) -> dict[str, np.ndarray]:
    """Run a Program in real numbers: nothing is rounded, only ReLUs saturate, and only below."""
    e = exponents(program)
    t = {k: torch.from_numpy(np.asarray(v, np.float64))[None] for k, v in values.items()}
    for op in program.ops:
        match op:
            case ops.Conv():
                scale = 2.0 ** -(op.shift.astype(float) + e[op.output] - e[op.input])
                weight = torch.from_numpy(op.weight * scale[:, None, None, None])
                bias = torch.from_numpy(op.bias * scale * 2.0 ** -e[op.input])
                top, left, bottom, right = op.padding
                x = F.pad(t[op.input], (left, right, top, bottom))
                y = F.conv2d(x, weight, bias, op.stride, groups=op.groups)
            case ops.TransposedConv():
                scale = 2.0 ** -(op.shift.astype(float) + e[op.output] - e[op.input])
                weight = torch.from_numpy(op.weight * scale[:, None, None])
                bias = torch.from_numpy(op.bias * scale * 2.0 ** -e[op.input])
                y = F.conv_transpose2d(
                    t[op.input], weight, bias, op.stride, op.padding, op.output_padding
                )
            case ops.PixelShuffle():
                y = F.pixel_shuffle(t[op.input], op.factor)
            case ops.PixelUnshuffle():
                y = F.pixel_unshuffle(t[op.input], op.factor)
            case ops.Add():
                y = t[op.a] + t[op.b]
            case ops.Scale():
                m = vectors[op.multiplier] if isinstance(op.multiplier, str) else op.multiplier
                shift = op.shift + e[op.output] - e[op.input]
                y = t[op.input] * torch.from_numpy(m * 2.0**-shift)[:, None, None]
            case ops.Clamp():
                low, high = (n * 2.0 ** -e[op.input] for n in (op.low, op.high))
                y = t[op.input].clamp(low, high)
            case ops.Concat():
                y = torch.cat([t[name] for name in op.inputs], 1)
            case _:
                raise AssertionError(op)
        t[op.output] = y.clamp_min(0) if getattr(op, "dtype", "") == "u8" else y
    return {o.name: t[o.name][0].numpy() for o in program.outputs}


def in_parts(part: Cut, values: dict[str, np.ndarray], vectors: dict) -> dict[str, np.ndarray]:
    """Run a cut Program in real numbers."""
    known = values | real(part.before, values, vectors)
    for network in part.networks:
        feeds = {}
        for feed in network.feeds:
            source = part.sources[feed.name]
            x = known[source.tensor]
            if source.part != "whole":  # as `halves`, but a real number's low half is the rest
                step = 2.0 ** (HIGH_SHIFT - source.exponent)
                high = np.floor(x / step + 0.5) * step
                x = high if source.part == "high" else x - high
            edge = (feed.margin, feed.margin)
            fill = source.fill * 2.0**-source.exponent
            feeds[feed.name] = np.pad(x, ((0, 0), edge, edge), constant_values=fill)
        known |= net.run(network, feeds)
    return real(part.after, known, vectors)


def check_part(part: Cut, seed: int = 0) -> None:
    """Compare, on integers at random."""
    rng = np.random.default_rng(seed)
    side = 64 if any(x.name == "x" for x in part.program.inputs) else 4
    values = {
        x.name: rng.integers(-100, 100, (x.channels, side, side)) * 2.0**-x.exponent
        for x in part.program.inputs
    }
    vectors = {v.name: np.full(v.channels, 512, np.int32) for v in part.program.vectors}
    wanted, found = real(part.program, values, vectors), in_parts(part, values, vectors)
    assert wanted.keys() == found.keys()
    for name, y in wanted.items():
        scale = np.abs(y).max()
        assert scale > 0
        assert np.abs(found[name] - y).max() < 2e-5 * scale, (part.program.name, name)


@pytest.mark.parametrize("linear", ["arm", "dpu"])
@pytest.mark.parametrize("name", ["student", "student-fine", "relu"])
def test_parts_compute_the_program(name: str, linear: Linear) -> None:
    parts = tiny(name, linear)
    for part in parts.by_name.values():
        check_part(part)


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("balle2016", {"n": 8, "m": 12, "activation": "relu"}),
        ("minnen2020", {"n": 8, "m": 8, "slices": 2, "hidden": (8, 8), "activation": "relu"}),
        ("balle2018", {"n": 8, "m": 12, "means": True, "activation": "relu"}),
    ],
)
def test_other_models_with_relu(family: str, arguments: dict) -> None:
    module = catalogue.build(family, arguments)
    with torch.no_grad():  # so that latents of noise have a size that steps of 16 bits hold
        module.g_a[-1].weight *= 16
    for part in parts_of(lowered(module, family)).by_name.values():
        check_part(part)


def test_what_is_written_has_no_rest_that_the_dpu_refuses() -> None:
    """No output_padding, no pixel shuffle, one padding: by the types; 12 channels at the end."""
    network = tiny("relu").networks["g_s"]
    assert network.channels()[network.outputs[0]] == 12
    for node in network.nodes:
        if isinstance(node, net.Deconv):
            k, s, p = node.weight.shape[2], node.stride, node.padding
            assert k - 2 * p == s  # the size is multiplied by the stride
    assert tiny("relu").networks["g_a"].feeds[0].margin == 2


def test_linear_paths() -> None:
    """In 16 bits: the encoder's stays with the host, the decoder's goes to the DPU if asked."""
    arm, dpu = tiny("student"), tiny("student", "dpu")
    assert set(arm.networks) == {"g_a", "g_s"}
    assert set(dpu.networks) == {"g_a", "g_s", "g_s_2"}
    (halved,) = [n for n in dpu.networks.values() if len(n.feeds) == 2]
    assert [feed.name.split(".")[-1] for feed in halved.feeds] == ["high", "low"]
    kept = [op.output for op in arm.by_name["g_a"].before.ops if isinstance(op, ops.Conv)]
    assert len(kept) == 1


def test_halves_are_exact() -> None:
    high, low = sorted(tiny("relu").by_name["g_s"].sources.values(), key=lambda s: s.part)
    x = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
    x = np.minimum(x, 127 * 256 + 127)  # the highest 128 integers saturate
    total = np.zeros(x.shape)
    for source in (high, low):
        half, exponent = halves(x, source)
        assert half.min() >= -128 and half.max() <= 127
        total += half * 2.0**-exponent
    assert np.array_equal(total, x * 2.0**-low.exponent)


@pytest.mark.parametrize("name", ["gdn-means", "factorised", "channel-wise"])
def test_gdn_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        tiny(name)
    text = str(caught.value)
    for word in ("g_a", "gdn", "limit", "dpu_partition.py", "In its place: ReLU", "lichen study"):
        assert word in text


def test_micro_has_nothing_for_the_dpu() -> None:
    with pytest.raises(ModelError, match="nothing for the DPU"):
        tiny("micro")


def convolution(**changes: object) -> Program:
    """A Program of two convolutions, the second one changed."""
    zeros = {"bias": np.zeros(8, np.int32), "shift": np.full(8, 7, np.uint8)}
    first = ops.Conv("a", "x", np.ones((8, 3, 3, 3), np.int8), stride=1, padding=(1, 1, 1, 1),
                     groups=1, dtype="u8", **zeros)  # fmt: skip
    second = ops.Conv("b", "a", np.ones((8, 8, 3, 3), np.int8), stride=1, padding=(1, 1, 1, 1),
                      groups=1, dtype="s8", **zeros)  # fmt: skip
    return Program(
        "g_a", (Input("x", 3, "s8", 7),), (), (first, replace(second, **changes)),
        (Output("b", 7),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"weight": np.ones((8, 8, 17, 17), np.int8), "padding": (8,) * 4}, "kernel up to 16"),
        ({"stride": 9, "weight": np.ones((8, 8, 9, 9), np.int8)}, "stride up to 8"),
        ({"groups": 2, "weight": np.ones((8, 4, 3, 3), np.int8)}, "groups must be 1"),
        (
            {"weight": np.ones((4097, 8, 1, 1), np.int8), "padding": (0,) * 4,
             "bias": np.zeros(4097, np.int32), "shift": np.full(4097, 7, np.uint8)},
            "256 * 16 = 4096",
        ),
    ],
)  # fmt: skip
def test_limits(changes: dict, limit: str) -> None:
    cut(convolution(), 1)
    with pytest.raises(LichenError) as caught:
        cut(convolution(**changes), 1, "model")
    assert limit in str(caught.value) and "model: layers of g_a" in str(caught.value)
    assert ": b (" in str(caught.value)


def test_depthwise_convolutions_run_there() -> None:
    weight = np.random.default_rng(0).integers(-99, 99, (8, 1, 3, 3)).astype(np.int8)
    part = cut(convolution(weight=weight, groups=8), 1)
    (network,) = part.networks
    assert [node.groups for node in network.nodes] == [1, 8]  # type: ignore[union-attr]
    check_part(part)


def test_what_the_export_cannot_write_is_refused_as_such() -> None:
    """A multiplication between two convolutions: the DPU has it, networks here have not."""
    program = convolution()
    first, second = program.ops
    scale = ops.Scale("half", "a", np.full(8, 1, np.int32), 1, "u8")
    changed = replace(program, ops=(first, scale, replace(second, input="half")))
    with pytest.raises(ModelError, match=r"half \(scale: .* no form of it inside a network"):
        cut(changed, 1)


def test_float_models_are_refused() -> None:
    in_float = SimpleNamespace(name="wacnn", network=object())
    with pytest.raises(ModelError, match="wacnn runs in float"):
        parts_of(in_float)  # type: ignore[arg-type]


def test_the_cut_of_a_file_is_the_same_each_time() -> None:
    path = MODELS / "student.safetensors"
    digests = [
        {k: n.digest() for k, n in parts_of(model.read(path)).networks.items()} for _ in range(2)
    ]
    assert digests[0] == digests[1]
