"""Stand-in of VART's Python module, computing as the DPU does: see README.md beside."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import xir

from lichen.boards.vitis_ai import dpu

FINGERPRINT = "0x101000056010407"


class Runner:
    def __init__(self) -> None:
        raise TypeError("use Runner.create_runner")

    @staticmethod
    def create_runner(subgraph: xir.Subgraph, mode: str = "") -> Runner:
        assert isinstance(subgraph, xir.Subgraph) and mode == "run"
        assert subgraph.get_attr("device") == "DPU"
        if subgraph.get_attr("dpu_fingerprint") != FINGERPRINT:
            raise RuntimeError("CHECK fingerprint fail! model_fingerprint differs from dpu's")
        runner = object.__new__(Runner)
        q = runner._q = subgraph._q
        channels = q.network.channels()
        runner._inputs = [
            _tensor(f"Network__Network_{feed.name}_fix", (s[0], s[2], s[3], s[1]), q, feed.name)
            for feed, s in zip(q.network.feeds, subgraph._shapes, strict=True)
        ]
        pairs = zip(q.network.feeds, subgraph._shapes, strict=True)
        first = dpu.run(q, {feed.name: np.zeros(shape[1:], np.int8) for feed, shape in pairs})
        runner._outputs = [
            _tensor(f"Network__Network_{n}_fix", (1, *first[n].shape[1:], channels[n]), q, n)
            for n in q.network.outputs
        ]
        runner._jobs, runner._next = {}, 0
        return runner

    def get_input_tensors(self) -> list[xir.Tensor]:
        return self._inputs

    def get_output_tensors(self) -> list[xir.Tensor]:
        return self._outputs

    def execute_async(
        self, inputs: list[Any], outputs: list[Any], enable_dynamic_array: bool = False
    ) -> tuple[int, int]:
        assert enable_dynamic_array is False
        for arrays, tensors in ((inputs, self._inputs), (outputs, self._outputs)):
            assert isinstance(arrays, list) and len(arrays) == len(tensors)
            for array, tensor in zip(arrays, tensors, strict=True):
                assert array.dtype == np.int8 and array.flags.c_contiguous
                assert list(array.shape) == tensor.dims, (array.shape, tensor.dims)
        assert all(array.flags.writeable for array in outputs)
        number, self._next = self._next, self._next + 1
        self._jobs[number] = inputs, outputs
        return number, 0

    def wait(self, job_id: tuple[int, int]) -> int:
        inputs, outputs = self._jobs.pop(job_id[0])
        if os.environ.get("STAND_IN_DPU_HANGS"):
            time.sleep(60)
        given = {
            feed.name: x[0].transpose(2, 0, 1)
            for feed, x in zip(self._q.network.feeds, inputs, strict=True)
        }
        for y, name in zip(outputs, self._q.network.outputs, strict=True):
            y[0] = dpu.run(self._q, given)[name].transpose(1, 2, 0)
        return 0


def _tensor(name: str, dims: tuple[int, ...], q: dpu.Quantized, ours: str) -> xir.Tensor:
    return xir.Tensor(name, [int(n) for n in dims], q.fixes[ours])
