"""Layers that a Program can express: each computes in float, or in float that carries integers.

A layer knows the type (u8, s8, s16) and the exponent of its output: real = q * 2**-exponent.
With `quantized` off it is an ordinary float layer (and saturates nowhere but at its ReLU). With
`quantized` on, weights, biases and outputs are rounded and saturated just as the contract says,
with straight-through gradients; the values that flow are then the integers of the contract times
a power of two, exact in float32 while accumulators stay below 2**24.

`lower.py` reads the same attributes: nothing is decided twice.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RANGES = {"u8": (0, 255), "s8": (-128, 127), "s16": (-32768, 32767)}
MAX_WEIGHT_EXPONENT = 16  # a channel of tiny weights gains nothing from a finer grid
KEPT_OPEN = 0.02  # of the values of a ReLU's channel: with fewer it counts as closed


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes through."""
    return x + (torch.round(x) - x).detach()


class Rounding(torch.autograd.Function):
    """Multiply by `scale`, a power of two, round half to even, saturate to low..high, divide.

    The gradient is 1 inside the range and 0 outside. As torch.fake_quantize_per_tensor_affine,
    which takes several times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.limits = (low - 0.5) / scale, (high + 0.5) / scale
        return torch.mul(x, scale).round_().clamp_(low, high).mul_(1 / scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (
            torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, *ctx.limits),
            None,
            None,
            None,
        )


def fake_quantize(x: Tensor, exponent: int, dtype: str) -> Tensor:
    """Round to multiples of 2**-exponent and saturate; gradient 1 inside the range, 0 outside."""
    return Rounding.apply(x, 2.0**exponent, *RANGES[dtype])


def weight_exponents(weight: Tensor, output_axis: int = 0, limit: int = 127) -> Tensor:
    """Give for each output channel the largest e with max|w| * 2**e <= limit, as int64 (O,)."""
    axes = [axis for axis in range(weight.dim()) if axis != output_axis]
    peak = weight.detach().abs().amax(dim=axes).clamp_min(2.0**-40)
    return torch.floor(torch.log2(limit / peak)).clamp_max(MAX_WEIGHT_EXPONENT).to(torch.int64)


def held_exponents(
    exponents: Tensor, bias: Tensor, input_exponent: int, output_exponent: int
) -> Tensor:
    """Hold weight exponents to what biases below 2**29 and right shifts in 0..31 allow.

    Biases are a limit only where a layer's inputs are so small that it hardly reads them.
    """
    room = torch.floor(torch.log2(2.0**29 / bias.detach().abs().clamp_min(2.0**-30)))
    exponents = torch.minimum(exponents, room.to(torch.int64) - input_exponent)
    low = output_exponent - input_exponent
    return exponents.clamp(min=low, max=low + 31)


def on_grid(
    weight: Tensor,
    bias: Tensor,
    exponents: Tensor,
    input_exponent: int,
    output_axis: int = 0,
    limit: int = 127,
) -> tuple[Tensor, Tensor]:
    """Round weights to -limit..limit and biases to the accumulator's grid, straight-through."""
    shape = [-1 if axis == output_axis else 1 for axis in range(weight.dim())]
    scale = torch.exp2(exponents.float()).view(shape)
    weight = Rounding.apply(weight * scale, 1.0, -limit, limit) / scale
    grid = torch.exp2((exponents + input_exponent).float())
    return weight, round_ste(bias * grid) / grid


@functools.cache
def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether this processor multiplies in bfloat16 faster than in float32."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def low_gradients(x: Tensor) -> bool:
    """Tell whether gradients of products in float32 are worth computing by bfloat16 ones."""
    trains = torch.is_grad_enabled() and x.device.type == "cpu" and fast_bfloat16(x.device)
    return trains and not torch.is_autocast_enabled("cpu")


class Pointwise(torch.autograd.Function):
    """1x1 convolution of (B, C, H, W) in float32, its gradients by bfloat16 products on CPUs.

    The values need float32, the steps of an optimiser do not; oneDNN's bfloat16 is several times
    as fast where a CPU has instructions for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        y = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        g = grad.permute(0, 2, 3, 1).flatten(0, 2)
        g16 = g.to(torch.bfloat16)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            flat = (g16 @ weight.flatten(1).to(torch.bfloat16)).float()
            grad_x = flat.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            rows = x.permute(0, 2, 3, 1).flatten(0, 2).to(torch.bfloat16)
            grad_weight = (g16.T @ rows).float().view_as(weight)
        return grad_x, grad_weight, g.sum(0)


class KeepAlive(torch.autograd.Function):
    """A ReLU that opens again: a channel closed nearly everywhere gets a gradient that opens it.

    Large steps of an optimiser close channels for good, for a closed ReLU has no gradient. Where
    fewer than KEPT_OPEN of a channel's values are positive, those below zero pass on gradients that
    ask for more; open channels get their true gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        axes = [0, *range(2, y.dim())]
        closing = torch.sign(y).mean(axes, dtype=torch.float32, keepdim=True) < KEPT_OPEN
        # on a CPU `where` takes ten times as long, and is seldom needed
        if y.device.type == "cpu" and not torch.compiler.is_compiling() and not closing.any():
            return torch.ops.aten.threshold_backward(grad, y, 0)
        return torch.where((y > 0) | (closing & (grad < 0)), grad, 0.0)


class LowGradient(torch.autograd.Function):
    """A convolution in float32, its gradients by bfloat16 products: see `Pointwise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> Tensor:  # type: ignore[override]
        """settings: stride, padding, whether transposed, output padding, groups."""
        stride, padding, transposed, extra, groups = settings
        ctx.save_for_backward(x, weight)
        ctx.settings = [stride] * 2, padding, [1, 1], transposed, [extra] * 2, groups
        return torch.convolution(x, weight, bias, *ctx.settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        low = [value.to(torch.bfloat16) for value in (grad, *ctx.saved_tensors)]
        needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        grads = torch.ops.aten.convolution_backward(*low, None, *ctx.settings, needs)
        x, weight = (None if g is None else g.float() for g in grads[:2])
        return x, weight, grad.sum((0, 2, 3)), None, None, None, None, None


class Quantizable(nn.Module):
    """A layer whose output has a type and, once calibrated, an exponent."""

    quick = False  # trains in integers with shortcuts: see `QuantizableModel.train_quickly`
    exponent: Tensor  # int64 scalar: exponent of the output
    peak: Tensor  # float scalar: largest |output| seen while observing

    def __init__(self, dtype: str, exponent: int | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.rectified = dtype == "u8"  # saturating to u8 is a ReLU
        self.fixed = exponent is not None  # the exponent is part of the design, never calibrated
        self.quantized = False
        self.observing = False
        self.register_buffer("exponent", torch.tensor(0 if exponent is None else exponent))
        self.register_buffer("peak", torch.tensor(0.0))
        self._exponent: int | None = None  # host copy of `exponent`

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._exponent = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self._exponent = None
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def output_exponent(self) -> int:
        if self._exponent is None:
            self._exponent = int(self.exponent)
        return self._exponent

    def set_exponent(self, value: int) -> None:
        self.exponent.fill_(value)
        self._exponent = value

    def widen(self) -> None:
        """Carry the output in 16 bits; a ReLU that u8 implied stays."""
        self.dtype = "s16"

    def finish(self, y: Tensor) -> Tensor:
        """Apply what the output type implies: the ReLU of u8, rounding and saturation."""
        if self.rectified:
            y = KeepAlive.apply(y) if torch.is_grad_enabled() else F.relu(y)
        if self.quantized:
            return fake_quantize(y, self.output_exponent, self.dtype)
        if self.observing:
            # A saturating outlier costs less than a coarser grid for all: 99.99 % of the values.
            flat = y.detach().abs().flatten().float()
            count = max(1, flat.numel() // 10000)
            self.peak.copy_(torch.maximum(self.peak, flat.topk(count).values[-1]))
        return y


class Weighted(Quantizable):
    """A layer with integer weights of `weight_bits` bits: 8, or fewer where a budget asks for it.

    `grid` holds their exponents, int64 (O,), where calibration chose them; None: the finest that
    hold the largest weight of each output channel.
    """

    weight: Tensor
    OUTPUT_AXIS: int  # of the weight

    def __init__(self, dtype: str, exponent: int | None) -> None:
        super().__init__(dtype, exponent)
        self.weight_bits = 8
        self.grid: Tensor | None = None

    @property
    def weight_limit(self) -> int:
        """The largest |integer weight|."""
        return 2 ** (self.weight_bits - 1) - 1

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as the layer applies them."""
        raise NotImplementedError

    def integer_weight_exponents(self, weight: Tensor, input_exponent: int) -> Tensor:
        """Exponents of the integer weights (O,)."""
        bias = self.effective()[1]
        if self.grid is None:
            exponents = weight_exponents(weight, self.OUTPUT_AXIS, self.weight_limit)
        else:
            exponents = self.grid.to(weight.device)
        return held_exponents(exponents, bias, input_exponent, self.output_exponent)

    def rounded(self, input_exponent: int) -> tuple[Tensor, Tensor]:
        """Weight and bias on their grids, straight-through."""
        weight, bias = self.effective()
        exponents = self.integer_weight_exponents(weight, input_exponent)
        return on_grid(weight, bias, exponents, input_exponent, self.OUTPUT_AXIS, self.weight_limit)


class Conv2d(Weighted):
    """Convolution, bias, and the output type's saturation (u8: ReLU).

    Padding keeps the size at stride 1 and divides it by the stride otherwise: zero padding of
    (kernel - stride) split with the smaller half first, or `padding` on each of the four sides.
    """

    OUTPUT_AXIS = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        dtype: str,
        stride: int = 1,
        groups: int = 1,
        exponent: int | None = None,
        attenuation: int = 0,
        padding: int | None = None,
    ) -> None:
        """`attenuation`: the layer computes 2**-attenuation times what its parameters say, so that
        steps of the optimiser are small where the output is small by nature."""
        super().__init__(dtype, exponent)
        self.stride, self.groups, self.attenuation = stride, groups, attenuation
        total = max(0, kernel - stride)
        before = total // 2
        self.padding = (before, before, total - before, total - before)  # top left bottom right
        if padding is not None:
            self.padding = (padding,) * 4
        self.pointwise = kernel == stride == groups == 1 and not any(self.padding)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as the layer applies them."""
        factor = 2.0**-self.attenuation
        return self.weight * factor, self.bias * factor

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        weight, bias = self.effective()
        if self.quantized:
            assert input_exponent is not None
            weight, bias = self.rounded(input_exponent)
        top, left, bottom, right = self.padding
        low = low_gradients(x)
        if self.pointwise and low:
            return self.finish(Pointwise.apply(x, weight, bias))
        if self.quick and low and self.quantized and (top, left) == (bottom, right):
            settings = self.stride, [top, left], False, 0, self.groups
            return self.finish(LowGradient.apply(x, weight, bias, *settings))
        if top == bottom and left == right:
            return self.finish(F.conv2d(x, weight, bias, self.stride, (top, left), 1, self.groups))
        x = F.pad(x, (left, right, top, bottom))
        return self.finish(F.conv2d(x, weight, bias, self.stride, 0, 1, self.groups))


class ConvTranspose2d(Weighted):
    """Transposed convolution that multiplies the size by its stride, bias, output saturation."""

    OUTPUT_AXIS = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        dtype: str,
        stride: int,
        exponent: int | None = None,
    ) -> None:
        super().__init__(dtype, exponent)
        self.stride, self.padding = stride, kernel // 2
        self.output_padding = stride + 2 * self.padding - kernel
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # each output sees (kernel / stride)**2 taps of every input channel
        nn.init.normal_(self.weight, std=math.sqrt(2 / in_channels) * stride / kernel)

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight (I, O, k, k) and bias as the layer applies them."""
        return self.weight, self.bias

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        weight, bias = self.effective()
        if self.quantized:
            assert input_exponent is not None
            weight, bias = self.rounded(input_exponent)
        if self.quick and low_gradients(x) and self.quantized:
            settings = self.stride, [self.padding] * 2, True, self.output_padding, 1
            return self.finish(LowGradient.apply(x, weight, bias, *settings))
        y = F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)
        return self.finish(y)


@torch.no_grad()
def input_limit(layer: Conv2d | ConvTranspose2d, input_exponent: int) -> int:
    """Give the largest |input|, in integers, at most 32767, that an int32 accumulator allows.

    Only s16 inputs can be held by it, and only where nearly all weights are large.
    """
    weight, bias = (parameter.double() for parameter in layer.effective())
    exponents = layer.integer_weight_exponents(weight, input_exponent)
    step = 1
    if isinstance(layer, ConvTranspose2d):
        weight, step = weight.transpose(0, 1), layer.stride
    weight = torch.round(weight.abs() * torch.exp2(exponents.double())[:, None, None, None])
    weight = weight.clamp_max(layer.weight_limit)
    # an output of a transposed convolution sees every step-th tap
    phases = [
        weight[:, :, dy::step, dx::step].sum((1, 2, 3)) for dy in range(step) for dx in range(step)
    ]
    shift = input_exponent + exponents - layer.output_exponent
    taken = bias.abs() * torch.exp2((exponents + input_exponent).double()) + torch.exp2(shift - 1.0)
    room = (2.0**31 - 2 - taken) / torch.stack(phases).amax(0).clamp_min(1)
    return int(room.min().clamp(1, 32767))


def held(x: Tensor, layer: Conv2d | ConvTranspose2d, exponent: int) -> Tensor:
    """Hold an s16 tensor that `layer` reads to its `input_limit`, where quantised."""
    if not layer.quantized:
        return x
    limit = input_limit(layer, exponent) * 2.0**-exponent
    return x.clamp(-limit, limit)


class Sum(Quantizable):
    """Add tensors that may differ in exponent; one rounding."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.finish(a + b)


class Requantize(Quantizable):
    """Multiply each channel by a constant and change type: a Scale operation.

    Multipliers are positive; as integers they have `bits` significant bits for the largest.
    """

    def __init__(self, multiplier: Tensor, *, dtype: str, exponent: int | None = None) -> None:
        super().__init__(dtype, exponent)
        self.register_buffer("multiplier", multiplier.clone())

    def integer_multiplier(self) -> tuple[Tensor, int]:
        """Give int32 multipliers (C,) of at most 15 bits and their exponent."""
        exponent = math.floor(math.log2(32767.0 / float(self.multiplier.max())))
        exponent = min(exponent, 24)
        integers = torch.round(self.multiplier * 2.0**exponent).clamp(0, 32767)
        return integers.to(torch.int32), exponent

    def forward(self, x: Tensor) -> Tensor:
        multiplier = self.multiplier
        if self.quantized:
            integers, exponent = self.integer_multiplier()
            multiplier = integers.float() * 2.0**-exponent
        return self.finish(x * multiplier.view(1, -1, 1, 1))


class ResidualBlock(nn.Module):
    """x -> x + conv(ReLU(conv(x))): s8 in, s8 out, the branch in s16 up to the sum.

    No ReLU on the sum: with one, whole stacks died within two thousand steps of training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, dtype="u8")
        self.conv2 = Conv2d(channels, channels, 3, dtype="s16")
        self.sum = Sum("s8")
        nn.init.normal_(self.conv2.weight, std=0.1 / math.sqrt(9 * channels))

    @property
    def output_exponent(self) -> int:
        return self.sum.output_exponent

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        h = self.conv1(x, input_exponent)
        return self.sum(x, self.conv2(h, self.conv1.output_exponent))


class Stack(nn.Sequential):
    """Layers in a row; each is told the exponent of its input."""

    @property
    def output_exponent(self) -> int:
        for layer in reversed(self):
            if not isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle | nn.Identity):
                return layer.output_exponent  # type: ignore[union-attr, return-value]
        raise ValueError("a Stack needs a layer with an exponent")

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        wide = False  # s16 between layers; who calls the stack holds its input
        for layer in self:
            if isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle | nn.Identity):
                x = layer(x)
                continue
            if wide and isinstance(layer, Conv2d | ConvTranspose2d):
                assert input_exponent is not None
                x = held(x, layer, input_exponent)
            x = layer(x, input_exponent)
            input_exponent = layer.output_exponent  # type: ignore[assignment]
            wide = getattr(layer, "dtype", "") == "s16"
        return x


class QuantizableModel(nn.Module):
    """A model of such layers: computes in float or in integers, and can be calibrated."""

    arguments: dict[str, Any]  # what it was made with, by name; JSON can hold it
    REDUCTION: int  # pictures are padded to a multiple of this
    integers_in_bfloat16 = False  # may train in integers under autocast

    def quantized_layers(self) -> list[Quantizable]:
        return [layer for layer in self.modules() if isinstance(layer, Quantizable)]

    def set_quantized(self, quantized: bool) -> None:
        """Compute in integers (carried by floats) or in float."""
        for layer in self.quantized_layers():
            layer.quantized = quantized

    def train_in_integers(self) -> None:
        """Compute in integers, but for what training alone wants otherwise."""
        self.set_quantized(True)

    def train_quickly(self) -> None:
        """Take shortcuts where it is trained in integers.

        Gradients are by bfloat16 products where a CPU is fast at these, and a GDN is computed by
        its rounded gamma, but without the rounding of its squares and its tables (0.1 %).
        """
        for layer in self.quantized_layers():
            layer.quick = True

    def calibrate_begin(self) -> None:
        """Observe ranges during the forward passes that follow."""
        for layer in self.quantized_layers():
            layer.observing = True
            layer.peak.zero_()

    def calibrate_end(self) -> None:
        """Choose each exponent: the finest grid that holds what was observed."""
        for layer in self.quantized_layers():
            layer.observing = False
            if not layer.fixed:
                peak = max(float(layer.peak), 2.0**-20)
                layer.set_exponent(min(20, math.floor(math.log2(RANGES[layer.dtype][1] / peak))))
