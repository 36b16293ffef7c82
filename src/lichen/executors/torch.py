"""Run Programs in PyTorch, on a CPU or a GPU, with floats that carry integers exactly.

A sum of integers whose `accumulator_bound` is below 2**24 is exact in float32 in any order, and
below 2**53 in float64; so a layer runs in float32 where its bound allows it and in float64
elsewhere. Multiplying by 2**-shift is exact, torch.round rounds half to even, and clamping
saturates: the contract's arithmetic. Between operations every tensor is float32.

Convolutions are matrix products of unfolded windows, not conv2d: a convolution library may pick
Winograd or FFT algorithms, whose intermediate fractions are not exact. TF32 and bfloat16 matrix
products are switched off around each run, and autocast with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lichen.errors import DeviceError
from lichen.program import DType, Op, Program, ops
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE, gdn_tables
from lichen.program.check import (
    FLOAT32_BOUND,
    accumulator_bound,
    check,
    check_inputs,
    operands,
    tensors,
)
from lichen.program.rewrite import subpixel

COLUMNS_MAX = 2**26  # elements of unfolded windows held at a time: 256 MiB of float32


class TorchExecutor:
    """Run Programs in PyTorch, equal to the reference.

    device: "cpu", "cuda" or "cuda:N". threads: CPU threads of torch during a run (None: torch's
    own number). Raises DeviceError where the device is absent.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = torch.device(device)
        self.threads = threads
        if self.device.type not in ("cpu", "cuda"):
            raise DeviceError(f"device must be cpu or cuda, not {device}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise DeviceError("device cuda needs a GPU that torch can see; use device='cpu'")
        self.name = f"torch-{device}"
        self._prepared: WeakKeyDictionary[Program, _Prepared] = WeakKeyDictionary()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        if program not in self._prepared:
            self._prepared[program] = _prepare(program, self.device)
        check_inputs(program, inputs, vectors)
        prepared = self._prepared[program]
        with _exact(self.device, self.threads):
            values = {name: self._load(array) for name, array in inputs.items()}
            multipliers = {name: self._load(array) for name, array in vectors.items()}
            for step in prepared.steps:
                values[step.op.output] = _run_step(step, values, multipliers)
                for name in step.last_uses:
                    del values[name]
            return {
                name: values[name].cpu().numpy().astype(dtype)
                for name, dtype in prepared.outputs.items()
            }

    def _load(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)


@dataclass(frozen=True)
class _Step:
    """One operation with its arrays on the device, in the float type that is exact for it.

    conv: the convolution that a Conv or TransposedConv comes to.
    last_uses: tensors that nothing reads after this step.
    """

    op: Op
    conv: ops.Conv | None
    float_type: torch.dtype
    arrays: Mapping[str, Tensor]
    last_uses: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    steps: list[_Step]
    outputs: Mapping[str, np.dtype[Any]]


def _prepare(program: Program, device: torch.device) -> _Prepared:
    check(program)
    known = tensors(program)
    outputs = {output.name: NUMPY_DTYPE[known[output.name].dtype] for output in program.outputs}
    keep = set(outputs)
    steps: list[_Step] = []
    for op in reversed(program.ops):
        bound = accumulator_bound(op, *(known[name].magnitude for name in operands(op))).max()
        conv = subpixel(op)[0] if isinstance(op, ops.TransposedConv) else op
        conv = conv if isinstance(conv, ops.Conv) else None
        float_type = torch.float32 if bound < FLOAT32_BOUND else torch.float64
        arrays = {
            name: torch.tensor(array).to(device, float_type if floats else None)
            for name, (array, floats) in _arrays(op, conv).items()
        }
        unread = {op.output, *operands(op)} - keep
        keep |= unread
        steps.append(_Step(op, conv, float_type, arrays, tuple(unread)))
    return _Prepared(steps[::-1], outputs)


def _arrays(op: Op, conv: ops.Conv | None) -> dict[str, tuple[NDArray[Any], bool]]:
    """The constants of an operation, and whether they take the operation's float type."""
    if conv is not None:
        scale = 0.5 ** conv.shift.astype(np.float64)[:, None]
        return {
            "weight": (conv.weight.reshape(conv.groups, len(conv.bias) // conv.groups, -1), True),
            "bias": (conv.bias.astype(np.float64)[:, None], True),
            "scale": (scale, True),
        }
    match op:
        case ops.Scale(multiplier=np.ndarray() as multiplier):
            return {"multiplier": (multiplier, True)}
        case ops.GDN():
            tables = gdn_tables(op.power, op.inverse, op.shift)
            return {
                "gamma": (op.gamma, True),
                "beta": (op.beta.astype(np.float64)[:, None], True),
                "normalise": (0.5**tables.normalise, False),
                "total": (0.5**tables.total, False),
                "factors": (tables.factors.astype(np.float64), False),
            }
        case ops.TableIndex():
            # Beyond 16 bits a threshold has no effect, and within them float32 is exact.
            clipped = np.clip(op.thresholds, -32769, 32768).astype(np.float32)
            return {"thresholds": (clipped, False)}
        case _:
            return {}


def _run_step(step: _Step, values: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Tensor:
    op, arrays = step.op, step.arrays
    x, *others = (values[name] for name in operands(op))
    match op:
        case ops.Conv() | ops.TransposedConv():
            assert step.conv is not None
            y = _conv(step.conv, x.to(step.float_type), arrays)
            return y if op is step.conv else functional.pixel_shuffle(y, op.stride)
        case ops.PixelShuffle():
            return functional.pixel_shuffle(x, op.factor)
        case ops.PixelUnshuffle():
            return functional.pixel_unshuffle(x, op.factor)
        case ops.Add():
            a = x.to(step.float_type) * 2**op.shift_a
            b = others[0].to(step.float_type) * 2**op.shift_b
            return _saturate((a - b if op.subtract else a + b) * 0.5**op.shift, op.dtype)
        case ops.Concat():
            return torch.cat([x, *others])
        case ops.Slice():
            return x[op.start : op.stop]
        case ops.Scale():
            m = vectors[op.multiplier] if isinstance(op.multiplier, str) else arrays["multiplier"]
            exact = x.to(step.float_type) * m.to(step.float_type)[:, None, None]
            return _saturate(exact * 0.5**op.shift, op.dtype)
        case ops.Clamp():
            return x.clamp(op.low, op.high)
        case ops.GDN():
            return _gdn(op, step, x)
        case ops.TableIndex():
            return torch.bucketize(x, arrays["thresholds"], right=True).float()


def _saturate(x: Tensor, dtype: DType) -> Tensor:
    """Round half to even and clip; what is left fits float32."""
    return x.round().clamp(*DTYPE_RANGE[dtype]).float()


def _conv(op: ops.Conv, x: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """Correlate a few rows of the output at a time. op.weight gives only its shape."""
    top, left, bottom, right = op.padding
    outputs, _, kernel_h, kernel_w = op.weight.shape
    x = functional.pad(x, (left, right, top, bottom))
    height = (x.shape[1] - kernel_h) // op.stride + 1
    width = (x.shape[2] - kernel_w) // op.stride + 1
    rows = max(1, COLUMNS_MAX // (x.shape[0] * kernel_h * kernel_w * width))
    parts = []
    for row in range(0, height, rows):
        count = min(rows, height - row)
        slab = x[:, row * op.stride :][:, : (count - 1) * op.stride + kernel_h]
        columns = functional.unfold(slab[None], (kernel_h, kernel_w), stride=op.stride)
        sums = arrays["weight"] @ columns.reshape(op.groups, -1, count * width)
        exact = sums.reshape(outputs, -1) + arrays["bias"]
        part = _saturate(exact * arrays["scale"], op.dtype)
        parts.append(part.reshape(outputs, count, width))
    return torch.cat(parts, dim=1)


def _gdn(op: ops.GDN, step: _Step, x: Tensor) -> Tensor:
    arrays, exact = step.arrays, x.double()
    u = (
        (exact * exact * 0.5**op.square_shift).round().clamp(max=65535)
        if op.power == 2
        else x.abs()
    )
    sums = arrays["gamma"] @ u.to(step.float_type).reshape(len(x), -1)
    n = (sums + arrays["beta"]).double().reshape(x.shape)
    bits = torch.frexp(n).exponent.long()  # the bit length of an integer
    factor = n
    if len(arrays["factors"]) > 0:
        mantissa = (n * arrays["normalise"][bits]).round().long()
        factor = arrays["factors"][mantissa - (256 if op.power == 2 else 512)]
    return _saturate(exact * factor * arrays["total"][bits], op.dtype)


@contextmanager
def _exact(device: torch.device, threads: int | None) -> Iterator[None]:
    """Hold torch to plain float32 matrix products, without gradients, and restore it after."""
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
    except AttributeError:  # torch before 2.9
        before = None
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_num_threads(threads_before)
        if before is None:
            torch.set_float32_matmul_precision(legacy)
        else:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
