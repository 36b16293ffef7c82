"""Exact rewritings of operations into others."""

from __future__ import annotations

import numpy as np

from lichen.program.ops import Conv, PixelShuffle, TransposedConv


def subpixel(op: TransposedConv) -> tuple[Conv, PixelShuffle]:
    """Rewrite a TransposedConv as a stride-1 Conv followed by a PixelShuffle; nothing rounds anew.

    Per axis, with stride s, padding p and kernel k, input i reaches output s*i - p + tap. Output
    s*q + phase therefore takes input q + d through tap = phase + p - s*d, wherever 0 <= tap < k:
    d runs from -((k - 1 - p) // s) to (s - 1 + p) // s, and taps outside the kernel weigh 0.

    The tensor between is named "<output>.phases" (rename it where that name is taken); its channel
    (o * s + dy) * s + dx holds the phase (dy, dx) of output channel o.
    """
    inputs, outputs, kernel, _ = op.weight.shape
    stride, first = op.stride, -((op.weight.shape[2] - 1 - op.padding) // op.stride)
    last = (stride - 1 + op.padding) // stride
    size = last - first + 1
    weight = np.zeros((outputs, stride, stride, inputs, size, size), np.int8)
    taps = [  # (phase, position in the new kernel, position in the old one)
        (phase, d - first, phase + op.padding - stride * d)
        for phase in range(stride)
        for d in range(first, last + 1)
        if 0 <= phase + op.padding - stride * d < kernel
    ]
    for phase_y, new_y, old_y in taps:
        for phase_x, new_x, old_x in taps:
            weight[:, phase_y, phase_x, :, new_y, new_x] = op.weight[:, :, old_y, old_x].T
    conv = Conv(
        output=f"{op.output}.phases",
        input=op.input,
        weight=weight.reshape(outputs * stride**2, inputs, size, size),
        bias=np.repeat(op.bias, stride**2),
        shift=np.repeat(op.shift, stride**2),
        stride=1,
        padding=(-first, -first, last, last),
        groups=1,
        dtype=op.dtype,
    )
    return conv, PixelShuffle(output=op.output, input=conv.output, factor=stride)
