"""A neutral list of the layers of any torch model: what it computes, on which shapes, on what.

A picture of FakeTensors (shapes without values) goes through the model; a dispatch mode sees every
operation that reaches PyTorch's kernels, and hooks tell which module it stands in. So layers that
are written as functions count, too, and any model will do that takes pictures (B, 3, H, W). GDN,
whose arithmetic is one operation of hardware, is one layer.

Figures are per pixel of picture. Borders: the models of `lichen.models` map multiples of their
reduction to exact fractions, so one size gives the figures. Of other models three sizes in
arithmetic progression are passed through; what grows with the area is half their second difference,
what grows with the border drops out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lichen.errors import ModelError
from lichen.models.balle2018 import LEAK_SLOPE
from lichen.models.complexity import MODULES
from lichen.models.layers import Quantizable

SIDE = 256  # rows of the picture; it has twice as many columns, to tell (C, H, W) from (H, W, C)
WIDE = 2
HOST = "host"  # the part of what the codec itself does: rounding, gains, the entropy coder
ROOT = "(root)"  # the part of what a foreign model does outside of its modules

# Operations of PyTorch, by what the study calls them.
KINDS = {
    "relu": "relu", "relu_": "relu", "leaky_relu": "leaky_relu", "leaky_relu_": "leaky_relu",
    "gelu": "gelu", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu", "silu_": "silu",
    "hardsigmoid": "hardsigmoid", "hardswish": "hardswish", "hardswish_": "hardswish",
    "hardtanh": "clamp", "_prelu_kernel": "prelu", "elu": "elu", "softplus": "softplus",
    "clamp": "clamp", "clamp_min": "clamp", "clamp_max": "clamp", "abs": "abs", "neg": "neg",
    "add": "add", "add_": "add", "sub": "sub", "rsub": "sub", "mul": "mul", "mul_": "mul",
    "div": "div", "sqrt": "sqrt", "rsqrt": "sqrt", "pow": "pow", "exp": "exp", "log": "log",
    "cat": "concat", "pixel_shuffle": "pixel_shuffle", "pixel_unshuffle": "pixel_unshuffle",
    "constant_pad_nd": "pad", "reflection_pad2d": "pad", "replication_pad2d": "pad",
    "_softmax": "softmax", "native_layer_norm": "layer_norm", "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm", "cudnn_batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "upsample_nearest2d": "upsample", "upsample_bilinear2d": "upsample_bilinear",
    "avg_pool2d": "pool", "max_pool2d_with_indices": "pool", "_adaptive_avg_pool2d": "pool",
    "mean": "mean", "round": "round", "roll": "roll", "erfc": "erfc",
    "permute": "permute", "transpose": "permute", "slice": "slice", "split": "slice",
    "split_with_sizes": "slice", "select": "slice", "unbind": "slice", "narrow": "slice",
}  # fmt: skip
# Another way to look at the same values.
VIEWS = {
    "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "detach", "alias", "clone",
    "_to_copy", "t", "as_strided", "lift_fresh", "copy", "_reshape_alias", "contiguous",
    "_fused_dropout", "native_dropout", "dropout",
}  # fmt: skip
# Classes of modules that are one layer.
MERGED = {"GDN": "gdn", "GDN1": "gdn", "IGDN": "gdn", "LeakyReLU": "leaky_relu"}
ACTIVATIONS = {
    "relu", "leaky_relu", "gelu", "sigmoid", "tanh", "silu", "hardsigmoid", "hardswish", "prelu",
    "elu", "softplus", "clamp",
}  # fmt: skip
# Operations outside of all modules that belong to the part that reads them, in a known model.
GLUE = {"concat", "abs", "tanh", "clamp", "slice", "relu", "sigmoid"}
ENTROPY = ("entropy_bottleneck", "prior", "gaussian_conditional", "gaussian")


@dataclass(frozen=True)
class Layer:
    """An operation on tensors. Values are per pixel of picture.

    inputs, outputs: channels. rows_in, rows_out: rows of the tensors per row of the picture.
    input_values: of each tensor that it reads. sources: the numbers of the layers that make those,
    -1 for what comes from outside of the list. window: positions on a side of an attention window.
    """

    name: str
    part: str
    kind: str
    inputs: int
    outputs: int
    rows_in: float
    rows_out: float
    macs: float
    parameters: int
    input_values: tuple[float, ...]
    output_values: float
    sources: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    output_padding: int = 0
    slope: float = 0.0  # of a leaky ReLU
    inverse: bool = False  # of a GDN
    window: int = 0

    @property
    def shape(self) -> str:
        """Such as "5x5 /2, 128 -> 192"."""
        text = f"{self.inputs} -> {self.outputs}"
        if self.kind in ("conv", "deconv", "depthwise", "grouped", "pool"):
            sign = "x" if self.kind == "deconv" else "/"
            text = f"{self.kernel[0]}x{self.kernel[1]} {sign}{self.stride}, {text}"
            if self.groups > 1 and self.kind == "grouped":
                text += f" in {self.groups} groups"
        return text

    @property
    def weights(self) -> int:
        """Parameters that are weights: without biases."""
        if self.kind in ("conv", "deconv", "depthwise", "grouped"):
            return self.kernel[0] * self.kernel[1] * self.inputs * self.outputs // self.groups
        if self.kind in ("linear", "gdn"):
            return self.inputs * self.outputs
        return self.parameters


@dataclass
class _Record:
    """A layer as it was seen: with its tensors' shapes."""

    name: str
    top: str
    kind: str
    sources: list[int]
    shapes_in: list[tuple[int, ...]]
    shape_out: tuple[int, ...]
    macs: int = 0
    parameters: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class _Trace(TorchDispatchMode):
    """Records operations on tensors that come from the picture."""

    def __init__(self, model: nn.Module, picture: Tensor) -> None:
        super().__init__()
        self.records: list[_Record] = []
        self.makers: dict[int, int] = {id(picture): -1}  # id of a tensor -> its record
        self.alive: list[Any] = [picture]  # so that no id is used twice
        self.stack: list[str] = []
        self.merged: list[_Record] = []
        self.counted: set[int] = set()  # parameters
        self.model = model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive.append(out)
        inputs = [x for x in _tensors(args) if id(x) in self.makers]
        outputs = list(_tensors((out,)))
        if not inputs:
            return out
        name = func._schema.name.split("::")[1]
        maker = self.makers[id(inputs[0])]
        if self.merged:
            maker = len(self.records) - 1
        elif name not in VIEWS:
            known = _record(name, args, kwargs or {}, inputs, outputs)
            if known is not None:
                known.sources = [self.makers[id(x)] for x in inputs]
                known.name, known.top = ".".join(self.stack), (self.stack or [""])[0].split(".")[0]
                known.name = self.stack[-1] if self.stack else ""
                self._count(known, args)
                self.records.append(known)
                maker = len(self.records) - 1
        for x in outputs:
            self.makers[id(x)] = maker
        return out

    def _count(self, record: _Record, args: tuple[Any, ...]) -> None:
        """Count the parameters of the layer: those that it reads, each once in the model."""
        for x in _tensors(args):
            if id(x) not in self.makers and id(x) not in self.counted and x.dim():
                self.counted.add(id(x))
                record.extra.setdefault("read", []).append(x)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow the modules that are called."""
        handles = []
        for name, module in self.model.named_modules():
            if not name:
                continue
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.stack.append(name)
            kind = MERGED.get(type(module).__name__)
            if kind is None:
                return
            x = args[0]
            record = _Record(
                name, name.split(".")[0], kind, [self.makers.get(id(x), -1)], [tuple(x.shape)],
                tuple(x.shape),
            )  # fmt: skip
            if kind == "gdn":
                record.macs = x.shape[1] * x.numel()
                record.parameters = sum(p.numel() for p in module.parameters())
                record.extra = {"inverse": bool(getattr(module, "inverse", False))}
            else:
                record.extra = {"slope": float(getattr(module, "negative_slope", LEAK_SLOPE))}
            self.records.append(record)
            self.merged.append(record)

        return hook

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.stack.pop()
        if type(module).__name__ in MERGED and self.merged:
            self.merged.pop()


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _record(
    name: str, args: tuple[Any, ...], kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]
) -> _Record | None:
    """Describe one operation; None where it makes nothing that a layer reads."""
    if not outputs or not outputs[0].is_floating_point():
        return None
    record = _Record(
        "", "", KINDS.get(name, name), [], [tuple(x.shape) for x in inputs], tuple(outputs[0].shape)
    )
    if name in ("convolution", "mkldnn_convolution"):
        _convolution(record, args, outputs[0])
    elif name in ("addmm", "mm", "bmm", "baddbmm", "linear", "matmul"):
        a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
        record.kind = "linear" if len(inputs) == 1 else "matmul"
        record.macs = outputs[0].numel() * a.shape[-1]
        if record.kind == "linear":
            record.extra["weight"] = b.numel()
    elif name.startswith("_scaled_dot_product"):
        q, k = args[0], args[1]
        record.kind = "matmul"
        record.macs = 2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]
        record.extra["window"] = _window(k.shape[2])
    elif name == "_softmax":
        record.extra["window"] = _window(outputs[0].shape[-1])
    elif name in ("add", "mul", "add_", "mul_", "sub", "rsub", "div") and len(inputs) == 1:
        record.kind = "scale" if name[:3] in ("mul", "div") else "offset"
    elif name in ("clamp_min", "clamp") and _is_zero(args[1]) and args[2:] in ((), (None,)):
        record.kind = "relu"
    elif name in ("leaky_relu", "leaky_relu_"):
        record.extra["slope"] = float(args[1]) if len(args) > 1 else 0.01
    elif record.kind == "pool":
        size = args[1] if isinstance(args[1], list | tuple) else [args[1]] * 2
        stride = args[2] if len(args) > 2 and args[2] else size
        record.extra |= {"kernel": (int(size[0]), int(size[-1])), "stride": int(stride[0])}
    return record


def _convolution(record: _Record, args: tuple[Any, ...], out: Tensor) -> None:
    x, weight, _, stride, _, dilation, transposed, output_padding, groups = args
    kernel = tuple(int(n) for n in weight.shape[2:])
    record.kind = "deconv" if transposed else "conv"
    if groups > 1:
        record.kind = "depthwise" if groups == x.shape[1] and not transposed else "grouped"
    record.macs = (x.numel() if transposed else out.numel()) * weight[0].numel()
    record.extra |= {
        "kernel": kernel, "stride": int(stride[0]), "groups": groups, "dilation": int(dilation[0]),
        "output_padding": int(max(output_padding)),
    }  # fmt: skip


def _is_zero(bound: Any) -> bool:
    """Tell whether a bound of clamp, None or a number or a tensor, is the number 0."""
    return isinstance(bound, int | float) and bound == 0


def _window(tokens: int) -> int:
    side = math.isqrt(tokens)
    return side if side * side == tokens else 0


def trace(model: nn.Module, side: int = SIDE) -> list[_Record]:
    """Pass a picture of side x 2 side through the model. Raises ModelError where it cannot."""
    model.eval()
    for module in model.modules():
        if isinstance(module, Quantizable):
            _ = module.output_exponent  # read once, then kept: FakeTensors have no values
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        picture = torch.zeros(1, 3, side, WIDE * side)
        seen = _Trace(model, picture)
        extra = (torch.zeros(1),) if hasattr(model, "gains") else ()
        keywords = {"noise": False} if extra else {}
        try:
            with seen.hooks(), seen:
                model(picture, *extra, **keywords)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} must take pictures (1, 3, H, W) of {side} x {WIDE * side} "
                f"without looking at values, but: {type(error).__name__}: {str(error)[:300]}; give "
                "a model whose forward(x) does so"
            ) from error
    for record in seen.records:
        read = record.extra.pop("read", [])
        if record.kind in ("conv", "deconv", "depthwise", "grouped", "linear", "layer_norm",
                           "batch_norm", "group_norm", "prelu"):  # fmt: skip
            record.parameters = sum(x.numel() for x in read)
    return seen.records


def layers_of(model: nn.Module) -> list[Layer]:
    """Give the layers of a model, in the order in which they run.

    Of a model of `lichen.models` (and others with the same names of modules) parts are those of
    `models.complexity`; else the names of its top-level modules. Raises ModelError.
    """
    tops = {name: part for part, names in MODULES.items() for name in names}
    # the children that a picture passes, in a known model all have a part
    known = recognised(model)
    if known:
        made = [_layer(record, SIDE) for record in trace(model)]
    else:
        sizes = [trace(model, n * SIDE) for n in (1, 2, 3)]
        if len({tuple(r.kind for r in records) for records in sizes}) != 1:
            raise ModelError(
                f"{type(model).__name__} computes different layers for pictures of different "
                "sizes; the study needs one whose layers stay the same"
            )
        made = [_without_border(three) for three in zip(*sizes, strict=True)]
    parts = []
    for layer in made:
        top = layer.part
        if known:
            parts.append(tops.get(top, HOST))
        else:
            parts.append(HOST if top in ENTROPY else top or ROOT)
    placed = [replace(layer, part=part) for layer, part in zip(made, parts, strict=True)]
    owned = [bool(layer.part) and layer.part not in ENTROPY for layer in made]
    return _reached(placed, owned, known)


def recognised(model: nn.Module) -> bool:
    """Tell whether all that the model multiplies with has the name of a known part."""
    names = {name for names in MODULES.values() for name in names}
    own = {name for name, child in model.named_children() if any(True for _ in child.parameters())}
    return bool(own & names) and own <= names | set(ENTROPY) and {"g_a", "analysis_branch",
        "patch_embed"} & own != set()  # fmt: skip


def _layout(shape: tuple[int, ...]) -> tuple[int, float]:
    """Channels of a tensor, and its positions."""
    values = math.prod(shape)
    if len(shape) == 4 and shape[3] == WIDE * shape[2] and shape[2] > 0:
        channels = shape[1]
    elif len(shape) == 4 and shape[2] == WIDE * shape[1]:
        channels = shape[3]
    elif len(shape) == 4 and shape[2] > 1 and abs(shape[3] / shape[2] - WIDE) < 0.5:
        channels = shape[1]  # without padding the ratio is only about that
    else:
        channels = shape[-1]
    return channels, values / max(1, channels)


def _layer(record: _Record, side: int) -> Layer:
    pixels = WIDE * side * side
    inputs, positions_in = _layout(record.shapes_in[0])
    outputs, positions_out = _layout(record.shape_out)
    if record.kind == "concat":
        inputs = sum(_layout(shape)[0] for shape in record.shapes_in)
    extra = {key: value for key, value in record.extra.items() if key != "weight"}
    return Layer(
        name=record.name or record.kind,
        part=record.top,
        kind=record.kind,
        inputs=inputs,
        outputs=outputs,
        rows_in=math.sqrt(positions_in / pixels),
        rows_out=math.sqrt(positions_out / pixels),
        macs=record.macs / pixels,
        parameters=record.parameters,
        input_values=tuple(math.prod(shape) / pixels for shape in record.shapes_in),
        output_values=math.prod(record.shape_out) / pixels,
        sources=tuple(record.sources),
        **extra,
    )


def _without_border(three: tuple[_Record, ...]) -> Layer:
    """Give a layer's figures from three sizes, without what the borders add or take away."""
    a, b, c = (_layer(record, n * SIDE) for n, record in zip((1, 2, 3), three, strict=True))

    def area(x: float, y: float, z: float) -> float:
        # x, y, z are per pixel at sides 1, 2, 3: p(n) = n**2 * value = A n**2 + B n + C
        return max(0.0, (9 * z - 2 * 4 * y + x) / 2)

    return replace(
        a,
        rows_in=math.sqrt(area(a.rows_in**2, b.rows_in**2, c.rows_in**2)),
        rows_out=math.sqrt(area(a.rows_out**2, b.rows_out**2, c.rows_out**2)),
        macs=area(a.macs, b.macs, c.macs),
        input_values=tuple(
            area(*values)
            for values in zip(a.input_values, b.input_values, c.input_values, strict=True)
        ),
        output_values=area(a.output_values, b.output_values, c.output_values),
    )


def _reached(layers: list[Layer], owned: list[bool], known: bool) -> list[Layer]:
    """Leave out what leads to no layer of a part: likelihoods. Give glue to the part it serves.

    owned: whether a layer stands in a module; one without a part of its own is glue, too.
    """
    needed = [layer.part != HOST or own for layer, own in zip(layers, owned, strict=True)]
    readers = [""] * len(layers)
    for number in reversed(range(len(layers))):
        if not needed[number]:
            continue
        layer = layers[number]
        glue = layer.kind in GLUE or owned[number]
        serves = layer.part if layer.part != HOST else readers[number] if glue else ""
        for source in layer.sources:
            if source >= 0:
                needed[source] = True
                readers[source] = readers[source] or serves
    kept: dict[int, int] = {-1: -1}
    found: list[Layer] = []
    for number, layer in enumerate(layers):
        if not needed[number]:
            continue
        sources = tuple(kept[source] for source in layer.sources)
        part = layer.part
        if part == HOST and known and (layer.kind in GLUE or owned[number]):
            made = next((found[s].part for s in sources if s >= 0), HOST)
            part = (made if layer.kind in ACTIVATIONS else readers[number] or made) or HOST
        kept[number] = len(found)
        found.append(replace(layer, part=part, sources=sources))
    return found
