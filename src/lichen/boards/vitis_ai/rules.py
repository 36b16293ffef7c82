"""Which layers the DPU takes, by the limits of DPUCZDX8G B4096 and of the Vitis AI 3.0 toolchain.

Each verdict names its rule and its source: UG1414 (Vitis AI user guide 3.5, "Currently Supported
Operators"), PG338 (DPUCZDX8G product guide), Vitis AI's quantizer, which partitions the graph
(Xilinx/Vitis-AI, vai_q_pytorch: dpu_op_filter.py and dpu_partition.py), or a thread there. The
study predicts with these rules, the export refuses by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, Protocol

OPERATORS = "UG1414 3.5, Currently Supported Operators"
FILTER = "Vitis AI, vai_q_pytorch dpu_op_filter.py"
PARTITION = "Vitis AI, vai_q_pytorch dpu_partition.py"
GUIDE = "PG338 v4.1, DPUCZDX8G product guide"
CHANNEL_PARALLEL = 16
MAX_CHANNELS = 256 * CHANNEL_PARALLEL
MAX_KERNEL, MAX_STRIDE = 16, 8
MAX_DEPTH = 1024  # kh * kw * ceil(Cin / 16); prototxt: 2048, PG338 3.3: half of it
MAX_DEPTHWISE_TAPS = 2048
LEAKY_SLOPE = 26 / 256
CUT = "an operation of the CPU; it cuts the subgraph in two"
Place = Literal["dpu", "cpu", "rewrite", "free"]
# dpu: runs there. rewrite: would run there once changed as `rewrite` says. cpu: neither.
# free: no work of its own on the DPU (ReLU fused into a convolution, addressing, the host's copy).


@dataclass(frozen=True)
class LayerVerdict:
    """Where the DPU toolchain puts a layer. limit: the rule; source: document and table."""

    place: Place
    reason: str
    limit: str
    source: str
    rewrite: str  # "" where nothing needs to be rewritten or nothing can be


class Layer(Protocol):
    """What a verdict depends on. kind: as `study.layers` names operations."""

    @property
    def kind(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def kernel(self) -> tuple[int, int]: ...
    @property
    def stride(self) -> int: ...
    @property
    def dilation(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def output_padding(self) -> int: ...
    @property
    def slope(self) -> float: ...


def verdict(layer: Layer, feeds_host: bool = False) -> LayerVerdict:
    """Say where a layer runs. feeds_host: only the host reads its result."""
    match layer.kind:
        case "conv":
            return _convolution(layer)
        case "deconv":
            return _transposed(layer)
        case "depthwise":
            return _depthwise(layer)
        case "grouped":
            return _change(
                f"a convolution in {layer.groups} groups goes to the CPU",
                "groups must be 1 or the number of channels", FILTER,
                "a dense convolution with zeros between the groups, or a depthwise and a 1x1 one",
            )  # fmt: skip
        case "linear":
            return _change(
                "a product with weights over the last axis needs (H, W, C) to be made",
                "matmul with constants becomes a 1x1 convolution where its input is a feature map",
                OPERATORS, "a 1x1 convolution on (C, H, W), without the permutations around it",
            )  # fmt: skip
        case "relu":
            return _free("fused into the convolution or addition before it", "ReLU, ReLU6", GUIDE)
        case "leaky_relu":
            return _leaky(layer)
        case "add" | "concat" | "scale" | "upsample" | "pool" | "hardsigmoid" | "hardswish":
            return _on(*ON_ALU[layer.kind])
        case "mul":
            return _on("product of two feature maps on the ALU", "eltwise add and mul", OPERATORS)
        case "pixel_shuffle":
            return _free(
                "done by the addresses of loads and saves (not verified with the closed compiler)",
                "pixel-shuffle is in the inspector's list", OPERATORS,
            )  # fmt: skip
        case "slice" if feeds_host:
            return _free("the host reads the parts of one output", "", "")
        case kind if kind in FREE:
            return _free(*FREE[kind])
        case kind if kind in REWRITES:
            return _change(*REWRITES[kind])
        case kind:
            reason, limit, source = CPU.get(
                kind, (f"no operator of the DPU: {CUT}", "not in the list", OPERATORS)
            )
            return LayerVerdict("cpu", reason, limit, source, "")


# kind: reason, limit, source
ON_ALU = {
    "add": ("sum of two feature maps", "eltwise add; ReLU may follow", OPERATORS),
    "concat": ("inputs are written beside one another", "channel-wise; one fix point", OPERATORS),
    "scale": ("product with constants becomes a depthwise convolution", "mul by constant", FILTER),
    "upsample": ("nearest neighbour", "nearest, any factor", OPERATORS),
    "pool": ("runs on the ALU", "kernel and stride up to 256", f"{GUIDE}, ALU"),
    "hardsigmoid": ("runs on the ALU", "Vitis AI 2.5 and later, 2731 * (x + 3)", OPERATORS),
    "hardswish": ("runs on the ALU", "Vitis AI 2.5 and later", OPERATORS),
}
FREE = {
    "pad": ("padding of the convolution behind it", "constant or symmetric", OPERATORS),
    "offset": ("goes into a bias", "constants are folded", PARTITION),
    "batch_norm": ("folds into the convolution before it", "must follow it directly", FILTER),
    "clamp": ("saturation to int8 where its bounds are the grid's", "int8, power-of-two scale",
              "Vitis AI, Quant_Config.md"),
}  # fmt: skip
# kind: reason, limit, source, rewrite
REWRITES = {
    "gdn": ("squares, roots and divisions between channels are operations of the CPU, and every "
            "one cuts the graph (CedricLeon/SAR_DDC_FPGA: 19 subgraphs before, 4 after)",
            "pow, sqrt, rsqrt and div are not in XIR's DPU set", PARTITION,
            "ReLU, or LeakyReLU of slope 26/256, and training"),
    "gelu": (f"not in XIR: {CUT}", "ReLU, ReLU6, LeakyReLU, Hard-Sigmoid, Hard-Swish", OPERATORS,
             "ReLU or Hard-Swish, and training"),
    "silu": (f"{CUT}", "ReLU, ReLU6, LeakyReLU, Hard-Sigmoid, Hard-Swish", OPERATORS,
             "Hard-Swish, and training"),
    "sigmoid": (f"{CUT}", "hard-sigmoid only", PARTITION, "Hard-Sigmoid, and training"),
    "tanh": (f"{CUT}", "tanh is CPU-only", PARTITION,
             "on the host behind the last convolution, where its result is needed anyway"),
    "abs": (f"{CUT}", "abs is not in XIR", PARTITION,
            "on the host while it copies the latents, or a prior with means, which needs none"),
    "sub": (f"{CUT}", "add and mul only", PARTITION, "an addition, the sign in the weights before"),
    "layer_norm": (f"mean and root over channels: {CUT}", "not in XIR", PARTITION,
                   "batch normalisation, which folds into a convolution, and training"),
    "pixel_unshuffle": ("not in the list", "pixel-shuffle only", OPERATORS,
                        "by the host's copy of the picture, or a convolution with stride"),
    "mean": ("mean over the picture", "reduce mean as average pool, up to 256 x 256", OPERATORS,
             "an average pool"),
}  # fmt: skip
CPU = {
    "matmul": (f"a product of two activations is no convolution: {CUT}",
               "matmul needs constants", OPERATORS),
    "softmax": (f"a kernel of its own, outside of DPU subgraphs, or the CPU: {CUT}",
                "the optional softmax core", f"{GUIDE}, Softmax"),
    "permute": (f"order of axes: {CUT}", "permute is CPU-only", PARTITION),
    "slice": (f"strided_slice: {CUT}", "strided_slice is CPU-only", PARTITION),
    "roll": (f"cyclic shift of windows: {CUT}", "not in XIR", PARTITION),
    "round": ("rounding of the latents is the host's", "not in XIR", PARTITION),
}  # fmt: skip


def _on(reason: str, limit: str, source: str) -> LayerVerdict:
    return LayerVerdict("dpu", reason, limit, source, "")


def _free(reason: str, limit: str, source: str) -> LayerVerdict:
    return LayerVerdict("free", reason, limit, source, "")


def _change(reason: str, limit: str, source: str, rewrite: str) -> LayerVerdict:
    return LayerVerdict("rewrite", reason, limit, source, rewrite)


def _convolution(layer: Layer) -> LayerVerdict:
    kh, kw = layer.kernel
    depth = kh * kw * ceil(layer.inputs / CHANNEL_PARALLEL)
    if max(kh, kw) > MAX_KERNEL or layer.stride > MAX_STRIDE:
        return _change(
            f"kernel {kh}x{kw}, stride {layer.stride}", f"kernel up to {MAX_KERNEL}, stride up to "
            f"{MAX_STRIDE}", OPERATORS, "the host rearranges the picture (space to depth) first",
        )  # fmt: skip
    if max(layer.dilation * layer.inputs, layer.outputs) > MAX_CHANNELS:
        return _change(
            f"{layer.inputs} -> {layer.outputs} channels", f"up to 256 * {CHANNEL_PARALLEL} = "
            f"{MAX_CHANNELS}", OPERATORS, "two convolutions of half the channels, and a sum",
        )  # fmt: skip
    if depth > MAX_DEPTH:
        return _change(
            f"kh * kw * ceil(Cin / 16) = {depth}", f"at most bank_depth / 2 = {MAX_DEPTH}",
            f"{GUIDE}, section 3.3", "two convolutions of half the input channels, and a sum",
        )  # fmt: skip
    return _on(
        f"kh * kw * ceil(Cin / 16) = {depth}", f"at most {MAX_DEPTH}; kernel up to {MAX_KERNEL}, "
        f"stride up to {MAX_STRIDE}, channels up to {MAX_CHANNELS}", OPERATORS,
    )  # fmt: skip


def _depthwise(layer: Layer) -> LayerVerdict:
    kh, kw = layer.kernel
    if kh * kw > MAX_DEPTHWISE_TAPS:
        return _change(
            f"kh * kw = {kh * kw}", f"at most {MAX_DEPTHWISE_TAPS}", OPERATORS,
            "a smaller kernel and training",
        )  # fmt: skip
    return _on(
        "runs on the ALU; only ReLU or ReLU6 may follow", "kernel and stride up to 256",
        f"{GUIDE}, DepthwiseConv-ALU; Vitis AI issue #1161",
    )  # fmt: skip


def _transposed(layer: Layer) -> LayerVerdict:
    k, s = layer.kernel[0], layer.stride
    if layer.output_padding:
        return _change(
            f"output_padding {layer.output_padding}", "output_padding must be 0", FILTER,
            f"the same function with the kernel filled up with zeros to {k + 1}x{k + 1} "
            "(exact, no training; a ninth to four ninths more taps), or a kernel of "
            f"{2 * s}x{2 * s} and training",
        )  # fmt: skip
    if s > k:
        return _change(
            f"stride {s} above kernel {k}", "stride up to kernel", "Vitis AI issue #517",
            "a convolution and a pixel shuffle",
        )  # fmt: skip
    depth = k * k * ceil(layer.inputs / CHANNEL_PARALLEL)
    if depth > MAX_DEPTH or max(layer.inputs, layer.outputs) > MAX_CHANNELS:
        return _change(
            f"kh * kw * ceil(Cin / 16) = {depth}, {layer.inputs} -> {layer.outputs} channels",
            f"at most bank_depth / 2 = {MAX_DEPTH}, channels up to {MAX_CHANNELS}",
            f"{GUIDE}, section 3.3", "two layers of half the input channels, and a sum",
        )  # fmt: skip
    if -(-k // s) > MAX_KERNEL:
        return _change(
            f"kernel {k} at stride {s}", f"kernel / stride up to {MAX_KERNEL}", FILTER,
            "a smaller kernel and training",
        )  # fmt: skip
    if s * layer.outputs > MAX_CHANNELS:
        return _change(
            f"stride * Cout = {s * layer.outputs}", f"at most {MAX_CHANNELS}",
            f"{GUIDE}, section 3.2", "two layers of half the outputs, and a concatenation",
        )  # fmt: skip
    return _on("no output_padding", "output_padding 0, stride up to kernel", FILTER)


def _leaky(layer: Layer) -> LayerVerdict:
    limit = "LeakyReLU has the one slope 26/256 = 0.1015625"
    if layer.slope == LEAKY_SLOPE:
        return _free("fused into the convolution before it", limit, GUIDE)
    return _change(
        f"slope {layer.slope:g}", limit, GUIDE, "LeakyReLU of slope 26/256, or ReLU, and training"
    )
