"""A quantised network as QDQ ONNX: symmetric int8, power-of-two scales, float between.

Every tensor that the DPU holds in int8 passes through QuantizeLinear and DequantizeLinear with the
zero point 0 and the scale 2**-fix; weights and biases are int8 initialisers before a
DequantizeLinear. Names are those of the network. This is what quantizers for ONNX Runtime's Vitis
AI provider write (vai_q_onnx: PowerOfTwoMethod, QInt8, symmetric, per tensor), and any ONNX Runtime
runs it.

It is not the DPU bit for bit: QuantizeLinear rounds halves to even, the DPU up, and with
power-of-two scales halves are frequent. `dpu.py` is exact; the difference is measured
(docs/vitis-ai.md). Needs the packages onnx and, to run, onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lichen.boards.vitis_ai.dpu import Int8, Quantized
from lichen.boards.vitis_ai.executor import Size
from lichen.boards.vitis_ai.network import Add, Conv, Node, Weighted, float32
from lichen.errors import DeviceError

OPSET, IR_VERSION = 13, 8  # what ONNX Runtime 1.12 reads


def to_onnx(q: Quantized, tile: Size | None = None) -> onnx.ModelProto:
    """Write a network as QDQ ONNX, float32 in and out, (1, C, H, W).

    tile: lines and columns of the picture that it is for; None: any.
    """
    return _Writer(q, tile).model()


class _Writer:
    def __init__(self, q: Quantized, tile: Size | None) -> None:
        self.q, self.tile = q, tile
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.channels, self.reductions = q.network.channels(), q.network.reductions()

    def model(self) -> onnx.ModelProto:
        network = self.q.network
        for feed in network.feeds:
            self._through_int8(f"{feed.name}.float", feed.name)
        for node in network.nodes:
            self._node(node)
        inputs = [self._value(f"{f.name}.float", f.name, f.margin) for f in network.feeds]
        outputs = [self._value(name, name, 0) for name in network.outputs]
        graph = helper.make_graph(
            self.nodes, network.name, inputs, outputs, list(self.constants.values())
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="lichen",
        )  # fmt: skip
        onnx.checker.check_model(model)
        return model

    def _value(self, name: str, tensor: str, margin: int) -> Any:
        shape: list[Any] = [1, self.channels[tensor], f"{tensor}.rows", f"{tensor}.columns"]
        if self.tile is not None:
            shape[2:] = [int(n / self.reductions[tensor]) + 2 * margin for n in self.tile]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _grid(self, fix: int) -> list[str]:
        """Name the scale and the zero point of a fix position."""
        return [
            self._constant(f"scale.{fix}", np.asarray(2.0**-fix, np.float32)),
            self._constant("zero", np.asarray(0, np.int8)),
        ]

    def _through_int8(self, source: str, name: str) -> None:
        grid = self._grid(self.q.fixes[name])
        q = f"{name}.int8"
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *grid], [q], f"{name}.q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [q, *grid], [name], f"{name}.dq"))

    def _parameter(self, name: str, value: Int8, fix: int) -> str:
        inputs = [self._constant(f"{name}.int8", value), *self._grid(fix)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}.dq"))
        return name

    def _node(self, node: Node) -> None:
        raw = f"{node.name}.float"
        last = f"{node.name}.sum" if node.relu else raw
        if isinstance(node, Add):
            self.nodes.append(helper.make_node("Add", [node.a, node.b], [last], node.name))
        else:
            self._weighted(node, last)
        if node.relu:
            self.nodes.append(helper.make_node("Relu", [last], [raw], f"{node.name}.relu"))
        self._through_int8(raw, node.name)

    def _weighted(self, node: Weighted, output: str) -> None:
        name, q = node.name, self.q
        weight = self._parameter(f"{name}.weight", q.weights[name], q.weight_fixes[name])
        bias = self._parameter(f"{name}.bias", q.biases[name], q.bias_fixes[name])
        attributes: dict[str, Any] = {
            "kernel_shape": list(node.weight.shape[2:]),
            "strides": [node.stride] * 2,
            "pads": [node.padding] * 4,
        }
        kind = "ConvTranspose"
        if isinstance(node, Conv):
            kind, attributes["group"] = "Conv", node.groups
        self.nodes.append(
            helper.make_node(kind, [node.input, weight, bias], [output], name, **attributes)
        )


class QdqDevice:
    """QDQ networks in ONNX Runtime, as a device: see `executor.Device`."""

    name = "qdq-onnxruntime"

    def __init__(self, networks: Mapping[str, Quantized], threads: int = 1) -> None:
        self.networks = networks
        self.tile: Size | None = None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # As written: optimised, integer kernels would take the place of float ones, with roundings
        # and saturations of their own.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.sessions = {
            name: onnxruntime.InferenceSession(
                to_onnx(q).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for name, q in networks.items()
        }

    def fix(self, network: str, tensor: str) -> int:
        return self.networks[network].fixes[tensor]

    def run(self, network: str, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
        q = self.networks[network]
        given = {
            f"{name}.float": float32(x[None] * 2.0 ** -q.fixes[name]) for name, x in inputs.items()
        }
        try:
            results = self.sessions[network].run(list(q.network.outputs), given)
        except Exception as error:  # onnxruntime's errors have no common class
            raise DeviceError(f"ONNX Runtime cannot run {network}: {error}") from error
        return {
            name: np.rint(x[0] * 2.0 ** q.fixes[name]).astype(np.int8)
            for name, x in zip(q.network.outputs, results, strict=True)
        }


def write(q: Quantized, path: Path, tile: Size | None = None) -> None:
    """Write a network's QDQ ONNX to a file."""
    path.write_bytes(to_onnx(q, tile).SerializeToString())
