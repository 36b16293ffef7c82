"""Several components side by side in one model, and random tensors to send through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In
from numpy.typing import NDArray

from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE
from lichen.program.ops import Conv, DType
from lichen.rtl.core import from_beats, to_beats
from lichen.rtl.lanes import beat, connect
from lichen.rtl.leaf import LoadBus
from lichen.rtl.load import Load
from lichen.rtl.simulate import Result, Simulation


class Bench(wiring.Component):
    """Components by name; port p of component n is the bench's "n_p". `bus` fills memories."""

    def __init__(self, parts: Mapping[str, wiring.Component], bus: LoadBus) -> None:
        self.parts, self.bus = dict(parts), bus
        ports: dict[str, Any] = {"load": In(beat(32))}
        for name, part in self.parts.items():
            ports |= {f"{name}_{port}": member for port, member in part.signature.members.items()}
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.load = load = Load(self.bus)
        connect(m, self.load, load.input)
        for name, part in self.parts.items():
            m.submodules[name] = part
            for port, member in part.signature.members.items():
                inner, outer = getattr(part, port), getattr(self, f"{name}_{port}")
                if member.is_port:
                    ends = (inner, outer) if member.flow == wiring.In else (outer, inner)
                    m.d.comb += ends[0].eq(ends[1])
                else:
                    assert isinstance(member.signature, stream.Signature)
                    ends = (outer, inner) if member.flow == wiring.In else (inner, outer)
                    connect(m, *ends)
        return m


def random_tensor(
    rng: np.random.Generator, dtype: DType, shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Random values, a quarter of them the extremes of the type."""
    low, high = DTYPE_RANGE[dtype]
    values = rng.integers(low, high + 1, shape)
    extremes = rng.choice([low, high], shape)
    return np.where(rng.random(shape) < 0.25, extremes, values).astype(NUMPY_DTYPE[dtype])


def random_conv(
    rng: np.random.Generator,
    outputs: int,
    inputs: int,
    kernel: int,
    stride: int,
    dtype: DType,
    shifts: tuple[int, int],
    names: tuple[str, str] = ("y", "x"),
) -> Conv:
    """A convolution whose padding is kernel - stride, the smaller half first."""
    total = kernel - stride
    before = total // 2
    return Conv(
        names[0],
        names[1],
        rng.integers(-128, 128, (outputs, inputs, kernel, kernel)).astype(np.int8),
        rng.integers(-3000, 3000, outputs).astype(np.int32),
        rng.integers(shifts[0], shifts[1] + 1, outputs).astype(np.uint8),
        stride,
        (before, before, total - before, total - before),
        1,
        dtype,
    )


def depthwise_conv(
    rng: np.random.Generator,
    channels: int,
    kernel: int,
    stride: int,
    dtype: DType,
    shifts: tuple[int, int],
    names: tuple[str, str] = ("y", "x"),
) -> Conv:
    """One kernel for each channel, padding as `random_conv`."""
    op = random_conv(rng, channels, 1, kernel, stride, dtype, shifts, names)
    return replace(op, groups=channels)


def through(
    simulation: Simulation,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    lanes: int,
    *,
    chance: float = 1.0,
    frames: int = 1,
    seed: int = 1,
) -> Result:
    """Run tensors through a model and assert that it gives the wanted ones, frame after frame.

    chance: of every stream to offer or take a beat in a cycle.
    """
    result = simulation.run(
        {name: np.concatenate([to_beats(x, lanes)] * frames) for name, x in inputs.items()},
        {name: frames * y.size // lanes for name, y in outputs.items()},
        chances=dict.fromkeys([*inputs, *outputs], chance),
        seed=seed,
        patience=20_000,
    )
    for name, wanted in outputs.items():
        beats = result.outputs[name].reshape(frames, wanted.size // lanes, -1)
        for frame in range(frames):
            found = from_beats(beats[frame], wanted.shape, wanted.dtype, lanes)
            wrong = np.argwhere(found != wanted)
            assert not len(wrong), (
                f"{name}, frame {frame}: {len(wrong)} of {wanted.size} differ, first at {wrong[0]}"
            )
    return result
