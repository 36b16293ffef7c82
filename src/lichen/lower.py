"""Lower a trained torch module to integer Programs, tables and gains: a `Model` that runs anywhere.

Every rounding decision was made by the layers (`models/layers.py`): exponents of outputs by
calibration, exponents of weights by their peaks. This file only writes them down, so that the
quantised forward pass in torch and the Programs agree to the last bit (a test holds that).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lichen.entropy.tables import Tables
from lichen.errors import ModelError
from lichen.model import GAIN_ROWS, Model
from lichen.models import balle2018, student
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
from lichen.models.priors import SCALE_LEVELS, EntropyBottleneck, scale_table
from lichen.program import Input, Op, Output, Program, Vector, check, ops
from lichen.program.ops import DType

TAIL = 1e-7  # probability beyond a hyper-latent's table, on each side


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
        weight, bias, shift = _integer_parameters(layer, self.exponents[source], output_axis=0)
        op = ops.Conv(
            output,
            source,
            weight,
            bias,
            shift,
            layer.stride,
            layer.padding,
            layer.groups,
            layer.dtype,
        )
        return self.add(op, layer.output_exponent)

    def transposed_conv(self, output: str, source: str, layer: ConvTranspose2d) -> str:
        """Round weights and biases to the grids that the layer's exponents imply."""
        weight, bias, shift = _integer_parameters(layer, self.exponents[source], output_axis=1)
        op = ops.TransposedConv(
            output,
            source,
            weight,
            bias,
            shift,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.dtype,
        )
        return self.add(op, layer.output_exponent)

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
        channels = _channels(self.ops[-1])
        multiplier = np.full(channels, balle2018.LEAK, np.int32)
        shift = balle2018.LEAK_EXPONENT - bits
        above = self.add(ops.Clamp(f"{output}.above", source, 0, 32767), e_in)
        below = self.add(ops.Clamp(f"{output}.below", source, -32768, 0), e_in)
        leak = ops.Scale(f"{output}.leak", below, multiplier, shift, "s16")
        self.add(leak, e_in + bits)
        op = ops.Add(output, above, leak.output, bits, 0, e_in + bits - e_out, False, layer.dtype)
        return self.add(op, e_out)

    def hold(self, source: str, layer: Conv2d | ConvTranspose2d) -> str:
        """Hold an s16 tensor to what the int32 accumulators of the layer that reads it allow."""
        limit = input_limit(layer, self.exponents[source])
        if limit >= 32767:
            return source
        return self.add(ops.Clamp(f"{source}.held", source, -limit, limit), self.exponents[source])

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


def lower_student(model: student.Student, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated Student (its exponents set by `calibrate_end`)."""
    m, z_channels = model.latent_channels, model.hyper_channels
    e_latent = student.LATENT_EXPONENT

    a = Builder()
    x = a.input("x", 3, "s8", student.PIXEL_EXPONENT)
    linear = a.stack("linear", x, model.analysis_linear)
    branch = a.stack("branch", x, model.analysis_branch)
    y = a.sum("y", linear, branch, model.analysis_sum)
    g_a = a.build("g_a", [y])

    h = Builder()
    h.input("y", m, "s16", a.exponents[y])
    h.vectors.append(Vector("gain", m))
    gain, gain_exponent = _gain_rows(model, 0)
    v = h.scale("v", "y", "gain", h.exponents["y"] + gain_exponent - e_latent, e_latent)
    z = h.stack("h_a", h.requantize("input", v, model.hyper_input), model.hyper_analysis)
    h_a = _rename(h.build("h_a", [v, z]), z, "z")

    s = Builder()
    features = s.stack("h_s", s.input("z", z_channels, "s8", 0), model.hyper_synthesis)
    mean = s.conv("mean", features, model.mean)
    raw = s.conv("index.raw", features, model.index)
    s.add(ops.Clamp("index", raw, 0, SCALE_LEVELS - 1), 0)
    h_s = s.build("h_s", [mean, "index"])

    g = Builder()
    g.input("symbols", m, "s16", 0)
    g.input("mean", m, "s16", e_latent)
    v_hat = g.add(ops.Add("v", "symbols", "mean", e_latent, 0, 0, False, "s16"), e_latent)
    g.vectors.append(Vector("inverse_gain", m))
    inverse, inverse_exponent = _gain_rows(model, 1)
    e_y = model.dequantized.output_exponent
    y_hat = g.scale("y", v_hat, "inverse_gain", e_latent + inverse_exponent - e_y, e_y)
    linear = g.stack("linear", y_hat, model.synthesis_linear)
    narrow = g.requantize("narrow", y_hat, model.synthesis_input)
    branch = g.stack("branch", narrow, model.synthesis_branch)
    g.sum("x", linear, branch, model.picture_sum)
    g_s = g.build("g_s", ["x"])

    tables, first = _tables(model.prior)
    return Model(
        name=name,
        order="hyperprior",
        reduction=model.REDUCTION,
        programs={
            "g_a": g_a,
            "h_a": h_a,
            "quantize": _quantize_program(m, e_latent, e_latent),
            "h_s": h_s,
            "g_s": g_s,
        },
        tables=tables,
        z_tables=first + np.arange(z_channels, dtype=np.uint16),
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )


def lower_balle2018(model: balle2018.ScaleHyperprior, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated ScaleHyperprior: means or not, GDN or ReLU."""
    m, n = model.latent_channels, model.hyper_channels
    e_latent, e_hyper = student.LATENT_EXPONENT, balle2018.HYPER_EXPONENT

    a = Builder()
    pixels = a.input("x", 3, "s8", student.PIXEL_EXPONENT)
    # 0 is black: see balle2018. Dense, not depthwise: executors are made fast for that
    identity, raised = np.eye(3, dtype=np.int8)[..., None, None], np.full(3, 128, np.int32)
    no_shift, no_padding = np.zeros(3, np.uint8), (0, 0, 0, 0)
    black = ops.Conv("pixels", pixels, identity, raised, no_shift, 1, no_padding, 1, "u8")
    y = a.stack("g_a", a.add(black, student.PIXEL_EXPONENT + 1), model.g_a)
    g_a = _rename(a.build("g_a", [y]), y, "y")

    h = Builder()
    h.input("y", m, "s16", a.exponents[y])
    h.vectors.append(Vector("gain", m))
    gain, gain_exponent = _gain_rows(model, 0)
    v = h.scale("v", "y", "gain", h.exponents["y"] + gain_exponent - e_latent, e_latent)
    source = v
    if not model.means:  # |v| = 2 max(v, 0) - v
        h.add(ops.Clamp("above", v, 0, 32767), e_latent)
        source = h.add(ops.Add("magnitude", "above", v, 1, 0, 0, True, "s16"), e_latent)
    z = h.stack("h_a", h.hold(source, model.h_a[0]), model.h_a)
    h_a = _rename(h.build("h_a", [v, z]), z, "z")

    s = Builder()
    s.input("z", n, "s8", 0)
    medians = model.entropy_bottleneck.medians().flatten().double() * 2.0**e_hyper
    add_medians = _depthwise(
        "z.hat", "z", n, 2**e_hyper, _integers(medians, -(2**15), 2**15), "s16"
    )
    source = s.hold(s.add(add_medians, e_hyper), model.h_s[0])
    scale = s.stack("h_s", source, model.h_s)
    e_mean = s.exponents[scale]
    if model.means:
        s.add(ops.Slice("mean", scale, m, 2 * m), e_mean)
        scale = s.add(ops.Slice("scale", scale, 0, m), e_mean)
    else:
        s.add(ops.Scale("mean", scale, np.zeros(m, np.int32), 0, "s16"), e_mean)
    thresholds = balle2018.scale_thresholds().numpy().astype(np.int32)
    s.add(ops.TableIndex("index", scale, thresholds), 0)
    h_s = s.build("h_s", ["mean", "index"])

    g = Builder()
    g.input("symbols", m, "s16", 0)
    g.input("mean", m, "s16", e_mean)
    v_hat = ops.Add("v", "symbols", "mean", e_mean, 0, e_mean - e_latent, False, "s16")
    g.add(v_hat, e_latent)
    g.vectors.append(Vector("inverse_gain", m))
    inverse, inverse_exponent = _gain_rows(model, 1)
    e_y = model.dequantized.output_exponent
    y_hat = g.scale("y", "v", "inverse_gain", e_latent + inverse_exponent - e_y, e_y)
    x = g.stack("g_s", g.hold(y_hat, model.g_s[0]), model.g_s)
    g_s = _rename(g.build("g_s", [x]), x, "x")

    tables, first = _tables(model.entropy_bottleneck, model.entropy_bottleneck.medians())
    return Model(
        name=name,
        order="hyperprior",
        reduction=model.REDUCTION,
        programs={
            "g_a": g_a,
            "h_a": h_a,
            "quantize": _quantize_program(m, e_latent, e_mean),
            "h_s": h_s,
            "g_s": g_s,
        },
        tables=tables,
        z_tables=first + np.arange(n, dtype=np.uint16),
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )


def _channels(op: Op) -> int:
    """Count the output channels of a convolution."""
    assert isinstance(op, ops.Conv | ops.TransposedConv)
    return len(op.bias)


def _depthwise(
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


def _rename(program: Program, old: str, new: str) -> Program:
    """Give a Program's last tensor the name that the codec knows it by."""
    from dataclasses import replace

    renamed = tuple(replace(op, output=new) if op.output == old else op for op in program.ops)
    outputs = tuple(replace(o, name=new) if o.name == old else o for o in program.outputs)
    return replace(program, ops=renamed, outputs=outputs)


def _quantize_program(channels: int, exponent: int, mean_exponent: int) -> Program:
    """v, mean -> symbols: subtract the mean, round to whole steps."""
    b = Builder()
    v = b.input("v", channels, "s16", exponent)
    mean = b.input("mean", channels, "s16", mean_exponent)
    fine = max(exponent, mean_exponent)
    b.add(ops.Add("symbols", v, mean, fine - exponent, fine - mean_exponent, fine, True, "s16"), 0)
    return b.build("quantize", ["symbols"])


def _gain_rows(
    model: student.Student | balle2018.ScaleHyperprior, which: int
) -> tuple[NDArray[np.int16], int]:
    """Give the gains of GAIN_ROWS evenly spaced qualities as int16 (rows, M), and the exponent."""
    with torch.no_grad():
        rows = model.gains(torch.linspace(0, 1, GAIN_ROWS))[which].flatten(1).double()
    exponent = math.floor(math.log2(32767.0 / float(rows.max())))
    return _integers(rows * 2.0**exponent, 1, 32767).astype(np.int16), exponent


def _tables(prior: EntropyBottleneck, medians: Tensor | None = None) -> tuple[Tables, int]:
    """Gaussian tables first, then one per hyper-latent channel; returns the number of the first.

    medians: what was taken off z before rounding, (1, channels, 1, 1).
    """
    grid = torch.arange(-128, 128, dtype=torch.float64)
    if medians is not None:
        grid = grid + medians.double().reshape(-1, 1, 1)
    with torch.no_grad():
        double = EntropyBottleneck(prior.channels, prior.filters).double()
        double.load_state_dict(prior.state_dict())
        logits = [double.logits((grid + d).expand(prior.channels, 1, -1)) for d in (-0.5, 0.5)]
        pmf = (torch.sigmoid(logits[1]) - torch.sigmoid(logits[0])).squeeze(1).numpy()
    pmfs, offsets = [], []
    for row in pmf:
        inside = np.flatnonzero((np.cumsum(row) > TAIL) & (np.cumsum(row[::-1])[::-1] > TAIL))
        pmfs.append(row[inside[0] : inside[-1] + 1])
        offsets.append(int(inside[0]) - 128)
    return join(Tables.gaussian(scale_table()), Tables.from_pmf(pmfs, offsets)), SCALE_LEVELS


def join(first: Tables, second: Tables) -> Tables:
    """Put the tables of `second` after those of `first`."""
    return Tables(
        first.precision,
        np.concatenate([first.lengths, second.lengths]),
        np.concatenate([first.offsets, second.offsets]),
        np.concatenate([first.frequencies, second.frequencies]),
    )


def _integer_parameters(
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
        _integers(weight, -127, 127).astype(np.int8),
        _integers(bias, -(2**31) + 1, 2**31 - 1).astype(np.int32),
        (e_in + e_weight - layer.output_exponent).numpy().astype(np.uint8),
    )


def _integers(x: Tensor, low: int, high: int) -> NDArray[np.float64]:
    return torch.round(x).clamp(low, high).cpu().numpy()
