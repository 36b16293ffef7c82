"""Builder: writes torch layers down as operations of a Program."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models import balle2018
from lichen.models.gdn import GDN
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Requantize,
    ResidualBlock,
    Stack,
    Sum,
    input_limit,
)
from lichen.program import Input, Op, Output, Program, Vector, check, ops
from lichen.program.ops import DType


class Builder:
    """Collects operations; knows the exponent of every tensor so far."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.vectors: list[Vector] = []
        self.ops: list[Op] = []
        self.exponents: dict[str, int] = {}

    def input(self, name: str, channels: int, dtype: DType, exponent: int) -> str:
        self.inputs.append(Input(name, channels, dtype, exponent))
        self.exponents[name] = exponent
        return name

    def add(self, op: Op, exponent: int) -> str:
        self.ops.append(op)
        self.exponents[op.output] = exponent
        return op.output

    def build(self, name: str, outputs: list[str]) -> Program:
        program = Program(
            name,
            tuple(self.inputs),
            tuple(self.vectors),
            tuple(self.ops),
            tuple(Output(output, self.exponents[output]) for output in outputs),
        )
        check(program)
        return program

    def conv(self, output: str, source: str, layer: Conv2d) -> str:
        """Round weights and biases to the grids that the layer's exponents imply."""
        weight, bias, shift = integer_parameters(layer, self.exponents[source], output_axis=0)
        op = ops.Conv(
            self._before_relu(output, layer),
            source,
            weight,
            bias,
            shift,
            layer.stride,
            layer.padding,
            layer.groups,
            layer.dtype,
        )
        return self._relu(output, self.add(op, layer.output_exponent))

    def _before_relu(self, output: str, layer: Conv2d | ConvTranspose2d) -> str:
        """Name what a layer leaves: `output`, unless a ReLU in 16 bits follows."""
        return f"{output}.signed" if layer.rectified and layer.dtype == "s16" else output

    def _relu(self, output: str, source: str) -> str:
        """Do the ReLU that `_before_relu` asked for; u8 needs none."""
        if source == output:
            return output
        return self.add(ops.Clamp(output, source, 0, 32767), self.exponents[source])

    def transposed_conv(self, output: str, source: str, layer: ConvTranspose2d) -> str:
        """Round weights and biases to the grids that the layer's exponents imply."""
        weight, bias, shift = integer_parameters(layer, self.exponents[source], output_axis=1)
        op = ops.TransposedConv(
            self._before_relu(output, layer),
            source,
            weight,
            bias,
            shift,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.dtype,
        )
        return self._relu(output, self.add(op, layer.output_exponent))

    def gdn(self, output: str, source: str, layer: GDN) -> str:
        integers = layer.integer_parameters(self.exponents[source])
        op = ops.GDN(
            output,
            source,
            integers.beta.numpy().astype(np.int32),
            integers.gamma.numpy().astype(np.uint8),
            layer.power,
            layer.inverse,
            integers.square_shift,
            integers.shift,
            layer.dtype,
        )
        return self.add(op, layer.output_exponent)

    def leaky_relu(self, output: str, source: str, layer: balle2018.LeakyReLU) -> str:
        """max(x, 0) + leak * min(x, 0), aligned to the leak's finer grid."""
        e_in, e_out, bits = self.exponents[source], layer.output_exponent, layer.LEAK_BITS
        channels = channels_of(self.ops[-1])
        multiplier = np.full(channels, balle2018.LEAK, np.int32)
        shift = balle2018.LEAK_EXPONENT - bits
        above = self.add(ops.Clamp(f"{output}.above", source, 0, 32767), e_in)
        below = self.add(ops.Clamp(f"{output}.below", source, -32768, 0), e_in)
        leak = ops.Scale(f"{output}.leak", below, multiplier, shift, "s16")
        self.add(leak, e_in + bits)
        op = ops.Add(output, above, leak.output, bits, 0, e_in + bits - e_out, False, layer.dtype)
        return self.add(op, e_out)

    def hold(self, source: str, layer: Conv2d | ConvTranspose2d, output: str | None = None) -> str:
        """Hold an s16 tensor to what the int32 accumulators of the layer that reads it allow."""
        limit = input_limit(layer, self.exponents[source])
        if limit >= 32767:
            return source
        output = f"{source}.held" if output is None else output
        return self.add(ops.Clamp(output, source, -limit, limit), self.exponents[source])

    def sum(self, output: str, a: str, b: str, layer: Sum) -> str:
        """Align both terms to the finer exponent, then round once."""
        e_a, e_b, e_out = self.exponents[a], self.exponents[b], layer.output_exponent
        fine = max(e_a, e_b, e_out)
        op = ops.Add(output, a, b, fine - e_a, fine - e_b, fine - e_out, False, layer.dtype)
        return self.add(op, e_out)

    def requantize(self, output: str, source: str, layer: Requantize) -> str:
        integers, exponent = layer.integer_multiplier()
        e_out = layer.output_exponent
        shift = self.exponents[source] + exponent - e_out
        op = ops.Scale(output, source, integers.numpy(), shift, layer.dtype)
        return self.add(op, e_out)

    def scale(self, output: str, source: str, vector: str, shift: int, exponent: int) -> str:
        """Multiply by a vector given at run time: a rate gain, s16 to s16."""
        return self.add(ops.Scale(output, source, vector, shift, "s16"), exponent)

    def stack(self, prefix: str, source: str, layers: Stack) -> str:
        wide = False
        for number, layer in enumerate(layers):
            name = f"{prefix}.{number}"
            if wide and isinstance(layer, Conv2d | ConvTranspose2d):
                source = self.hold(source, layer)
            if not isinstance(layer, nn.Identity):
                wide = getattr(layer, "dtype", "") == "s16"
            match layer:
                case Conv2d():
                    source = self.conv(name, source, layer)
                case ResidualBlock():
                    h = self.conv(f"{name}.conv1", source, layer.conv1)
                    h = self.conv(f"{name}.conv2", h, layer.conv2)
                    source = self.sum(name, source, h, layer.sum)
                case ConvTranspose2d():
                    source = self.transposed_conv(name, source, layer)
                case GDN():
                    source = self.gdn(name, source, layer)
                case balle2018.LeakyReLU():
                    source = self.leaky_relu(name, source, layer)
                case nn.Identity():
                    pass
                case nn.PixelShuffle():
                    op = ops.PixelShuffle(name, source, layer.upscale_factor)
                    source = self.add(op, self.exponents[source])
                case nn.PixelUnshuffle():
                    unshuffle = ops.PixelUnshuffle(name, source, layer.downscale_factor)
                    source = self.add(unshuffle, self.exponents[source])
                case Stack():
                    source = self.stack(name, source, layer)
                case _:
                    raise ModelError(
                        f"{type(layer).__name__} at {name} has no integer form; use the layers "
                        "of lichen.models.layers or pixel shuffles"
                    )
        return source


def channels_of(op: Op) -> int:
    """Count the output channels of a convolution."""
    assert isinstance(op, ops.Conv | ops.TransposedConv)
    return len(op.bias)


def depthwise(
    output: str,
    source: str,
    channels: int,
    weight: int,
    bias: NDArray[np.int64] | NDArray[np.float64],
    dtype: DType,
) -> ops.Conv:
    """weight * x + bias[c], without rounding."""
    weights = np.full((channels, 1, 1, 1), weight, np.int8)
    none = np.zeros(channels, np.uint8)
    return ops.Conv(
        output, source, weights, bias.astype(np.int32), none, 1, (0, 0, 0, 0), channels, dtype
    )


def rename(program: Program, old: str, new: str) -> Program:
    """Give a Program's last tensor the name that the codec knows it by."""
    from dataclasses import replace

    renamed = tuple(replace(op, output=new) if op.output == old else op for op in program.ops)
    outputs = tuple(replace(o, name=new) if o.name == old else o for o in program.outputs)
    return replace(program, ops=renamed, outputs=outputs)


def integer_parameters(
    layer: Conv2d | ConvTranspose2d, e_in: int, output_axis: int
) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.uint8]]:
    """Give weights, biases and right shifts of a layer whose input has exponent `e_in`."""
    real_weight, real_bias = (tensor.detach() for tensor in layer.effective())
    e_weight = layer.integer_weight_exponents(real_weight, e_in)
    scale = torch.exp2(e_weight.double())
    axes = [1, 1, 1, 1]
    axes[output_axis] = -1
    weight = real_weight.double() * scale.reshape(axes)
    bias = real_bias.double() * scale * 2.0**e_in
    return (
        integers(weight, -layer.weight_limit, layer.weight_limit).astype(np.int8),
        integers(bias, -(2**31) + 1, 2**31 - 1).astype(np.int32),
        (e_in + e_weight - layer.output_exponent).numpy().astype(np.uint8),
    )


def integers(x: Tensor, low: int, high: int) -> NDArray[np.float64]:
    return torch.round(x).clamp(low, high).cpu().numpy()
