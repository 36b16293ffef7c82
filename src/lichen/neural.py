"""Run the steps of float models in PyTorch, on the CPU.

Encoder and decoder must come to the same floats in h_s, context and refine, or the decoder reads
the wrong tables. Both run these steps here, in float32, one picture at a time, in ONE thread, from
the same inputs: so on one machine, with one PyTorch, they do. Nothing more is promised.
docs/decisions/0004-float-models.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lichen.errors import ContractError, DeviceError, ModelError
from lichen.floating import FloatProgram, Network
from lichen.models import catalogue
from lichen.models.checkpoint import check_fit
from lichen.models.zou2022 import FloatCodec
from lichen.program import Program

ARGUMENT_MAX = 4096  # no number in a model's arguments is larger, nor a list longer than 16
ENCODER_ONLY = ("g_a", "h_a")  # steps that no decoder repeats

_torch = Lock()  # the number of threads is torch's own, one for the whole process


class FloatExecutor:
    """Run FloatPrograms; `threads` are for what the encoder alone computes."""

    name = "torch-float"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._modules: WeakKeyDictionary[Network, FloatCodec] = WeakKeyDictionary()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name: (C, H, W), float32, but for z, index, symbols and x.

        Raises ContractError for integer Programs, ModelError for weights that do not fit or do
        not compute, MemoryError for pictures that are too large.
        """
        if not isinstance(program, FloatProgram):
            raise ContractError(
                f"{program.name} is a Program of integers; expected a step of a float model"
            )
        _check_given(program, inputs, vectors)
        with _torch, _plain(self.threads if program.name in ENCODER_ONLY else 1):
            try:
                module = self._module(program.network)
                tensors = {n: torch.from_numpy(np.array(a))[None] for n, a in inputs.items()}
                outputs = _step(module, program, tensors, vectors)
                return {name: value[0].numpy() for name, value in outputs.items()}
            except RuntimeError as error:
                if "not enough memory" in str(error):
                    raise MemoryError(str(error)) from error
                raise DeviceError(f"step {program.name} failed in PyTorch: {error}") from error

    def _module(self, network: Network) -> FloatCodec:
        if network not in self._modules:
            self._modules[network] = module_of(network)
        return self._modules[network]


def module_of(network: Network) -> FloatCodec:
    """Make the module of a network, with its weights. Raises ModelError."""
    for value in network.arguments.values():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > 16 or any(isinstance(n, int) and n > ARGUMENT_MAX for n in numbers):
            raise ModelError(
                f"the arguments of the network are out of bounds: {network.arguments}; the model "
                "file is damaged"
            )
    try:
        with torch.device("meta"):  # no memory and no time for weights that are replaced
            module = catalogue.build(network.architecture, dict(network.arguments))
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot build {network.architecture}: {error}") from error
    if not isinstance(module, FloatCodec):
        raise ModelError(
            f"{network.architecture} is not a float model; lower it to integer Programs"
        )
    sizes = (module.latent_channels, module.hyper_channels, module.slices)
    if sizes != (network.latent_channels, network.hyper_channels, network.slices):
        raise ModelError(
            f"the network {network.architecture} has channels and slices {sizes}, its model file "
            "says otherwise; the file is damaged"
        )
    state = {name: torch.from_numpy(np.array(array)) for name, array in network.state.items()}
    check_fit(module, state, f"the network {network.architecture}")
    for name, value in module.state_dict().items():
        if state[name].dtype != value.dtype:
            raise ModelError(f"{name} must be {value.dtype}, not {state[name].dtype}")
    module.load_state_dict(state, assign=True)
    return module.eval()


def _check_given(
    program: FloatProgram,
    inputs: Mapping[str, NDArray[Any]],
    vectors: Mapping[str, NDArray[Any]],
) -> None:
    """Raise ContractError unless a step is given what it asks for."""
    for x in program.inputs:
        if x.name not in inputs or inputs[x.name].shape[:1] != (x.channels,):
            raise ContractError(f"{program.name} needs {x.name} of {x.channels} channels")
    for vector in program.vectors:
        found = vectors.get(vector.name)
        if found is None or found.shape != (vector.channels,):
            raise ContractError(f"{program.name} needs {vector.channels} numbers {vector.name}")


def _step(
    module: FloatCodec,
    program: FloatProgram,
    given: Mapping[str, Tensor],
    vectors: Mapping[str, NDArray[Any]],
) -> dict[str, Tensor]:
    """Run one step on tensors (1, C, H, W)."""
    step, _, number = program.name.partition(".")
    k = int(number or 0)
    seen = [given[f"y.{i}"] for i in range(module.slices) if f"y.{i}" in given]
    gain_exponent, inverse_exponent = program.network.gain_exponents
    match step:
        case "g_a":
            return {"y": module.analyse(given["x"].float() / 128)}
        case "h_a":
            v = given["y"] * _gains(vectors["gain"], gain_exponent)
            z = module.hyper_analyse(v)
            if not (v.isfinite().all() and z.isfinite().all()):
                raise ModelError("the network gives infinities: its weights are damaged")
            return {"v": v, "z": z.round().clamp(-128, 127).to(torch.int8)}
        case "h_s":
            means, scales = module.hyper_synthesise(given["z"].float())
            return {"means": means, "scales": scales}
        case "context":
            mean, scale = module.context(k, given["means"], given["scales"], seen)
            return {"mean": mean, "index": module.table_index(scale).to(torch.uint8)}
        case "quantize":
            residual = given["v"].chunk(module.slices, 1)[k] - given["mean"]
            return {"symbols": residual.round().clamp(-32768, 32767).to(torch.int16)}
        case "refine":
            symbols = given["symbols"].float()
            return {f"y.{k}": module.refine(k, symbols, given["mean"], given["means"], seen)}
        case "g_s":
            y = torch.cat(seen, 1) * _gains(vectors["inverse_gain"], inverse_exponent)
            x = module.synthesise(y) * 128
            return {"x": x.round().clamp(-128, 127).to(torch.int8)}
        case _:
            raise ContractError(f"a float model has no step {program.name!r}")


def _gains(vector: NDArray[Any], exponent: int) -> Tensor:
    """(M,) integers -> (1, M, 1, 1) real multipliers."""
    return torch.from_numpy(vector.astype(np.float32) * np.float32(2.0**-exponent))[:, None, None]


@contextmanager
def _plain(threads: int) -> Iterator[None]:
    """Hold torch to float32, without gradients, in so many threads; restore it after."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
