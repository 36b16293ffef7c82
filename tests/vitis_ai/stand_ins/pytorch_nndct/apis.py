"""torch_quantizer as vai_q_pytorch 3.0 documents it (pytorch_binding/pytorch_nndct/apis.py)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lichen.boards.vitis_ai import calibrate, dpu
from lichen.boards.vitis_ai.network import Add, Conv, Deconv, Feed, Network


class torch_quantizer:
    def __init__(
        self,
        quant_mode: str,
        module: nn.Module,
        input_args: Any = None,
        state_dict_file: str | None = None,
        output_dir: str = "quantize_result",
        bitwidth: int | None = None,
        mix_bit: bool = False,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - the real default
        lstm: bool = False,
        app_deploy: str = "CV",
        qat_proc: bool = False,
        custom_quant_ops: list[str] | None = None,
        quant_config_file: str | None = None,
        target: str | None = None,
    ) -> None:
        assert quant_mode in ("calib", "test"), quant_mode
        assert isinstance(module, nn.Module) and not module.training
        assert isinstance(device, torch.device), device
        if device.type == "cuda":
            assert torch.cuda.is_available(), "the default device is cuda"
        assert isinstance(input_args, torch.Tensor | tuple), type(input_args)
        inputs = (input_args,) if isinstance(input_args, torch.Tensor) else input_args
        assert all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in inputs)
        for value, usual in (
            (state_dict_file, None), (mix_bit, False), (lstm, False), (app_deploy, "CV"),
            (qat_proc, False), (custom_quant_ops, None), (quant_config_file, None),
        ):  # fmt: skip
            assert value == usual, "an option that this stand-in does not know"
        assert bitwidth in (None, 8)
        with torch.no_grad():
            torch.jit.trace(module, inputs)  # the real one does
        self.mode, self.folder, self.module = quant_mode, Path(output_dir), module
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = traced(module, inputs)
        self.tuned = False
        if quant_mode == "calib":
            self.model: _Seen | _Quantized = _Seen(module)
        else:
            json.loads((self.folder / "quant_info.json").read_text())
            q = pickle.loads((self.folder / "positions.pkl").read_bytes())
            self.model = _Quantized(q)

    @property
    def quant_model(self) -> nn.Module:
        return self.model

    def fast_finetune(self, run_fn: Any, run_args: tuple[Any, ...]) -> None:
        assert self.mode == "calib" and isinstance(run_args, tuple)
        loss = run_fn(*run_args)
        assert isinstance(loss, float) and loss >= 0
        (self.folder / "param.pth").write_bytes(b"tuned")
        self.model.inputs.clear()

    def load_ft_param(self) -> None:
        assert self.mode == "test"
        if not (self.folder / "param.pth").exists():
            raise RuntimeError("no fast finetuned parameters: run fast_finetune in calib mode")

    def export_quant_config(self) -> None:
        assert self.mode == "calib" and isinstance(self.model, _Seen)
        if not self.model.inputs:
            raise RuntimeError("Quantization is not performed completely, no forward was run")
        feeds = [feed.name for feed in self.network.feeds]
        batches = [dict(zip(feeds, x, strict=True)) for x in self.model.inputs]
        q = calibrate.quantize(self.network, batches)
        info = {"output": {name: [8, fix] for name, fix in q.fixes.items()}}
        (self.folder / "quant_info.json").write_text(json.dumps(info))
        (self.folder / "bias_corr.pth").write_bytes(b"")
        (self.folder / "positions.pkl").write_bytes(pickle.dumps(q))

    def export_xmodel(
        self, output_dir: str = "quantize_result", deploy_check: bool = False
    ) -> None:
        assert self.mode == "test" and isinstance(self.model, _Quantized)
        assert isinstance(output_dir, str) and isinstance(deploy_check, bool)
        if len(self.model.shapes) != 1 or any(s[0] != 1 for s in self.model.shapes[0]):
            raise RuntimeError("xmodels need exactly one forward pass of batch 1 before")
        name = type(self.module).__name__
        data = pickle.dumps({"q": self.model.q, "shapes": self.model.shapes[0]})
        (Path(output_dir) / f"{name}_int.xmodel").write_bytes(data)


class _Seen(nn.Module):
    """Calibration: computes in float and keeps what it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.inputs = module, []

    def forward(self, *inputs: torch.Tensor) -> Any:
        assert not torch.is_grad_enabled()
        self.inputs += [[x[k].numpy().copy() for x in inputs] for k in range(len(inputs[0]))]
        return self.module(*inputs)


class _Quantized(nn.Module):
    """Test: computes as the DPU does."""

    def __init__(self, q: dpu.Quantized) -> None:
        super().__init__()
        self.q, self.shapes = q, []

    def forward(self, *inputs: torch.Tensor) -> Any:
        self.shapes.append([tuple(x.shape) for x in inputs])
        assert all(len(x) == 1 for x in inputs)
        feeds = [feed.name for feed in self.q.network.feeds]
        given = {
            name: calibrate.to_fix(x[0].numpy(), self.q.fixes[name])
            for name, x in zip(feeds, inputs, strict=True)
        }
        found = dpu.run(self.q, given)
        results = [
            torch.from_numpy(np.float32(found[name] * 2.0 ** -self.q.fixes[name]))[None]
            for name in self.q.network.outputs
        ]
        return tuple(results) if len(results) > 1 else results[0]


class _Trace(TorchFunctionMode):
    """Notes the operations of a forward pass; others than the DPU's are an error."""

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.names = {id(x): f"input_{k}" for k, x in enumerate(inputs)}
        self.nodes: dict[str, Any] = {}
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.conv2d, torch.conv2d, F.conv_transpose2d, torch.conv_transpose2d):
            self._convolution(func, args, kwargs or {}, result)
        elif func in (F.relu, torch.relu):
            name = self.names[id(args[0])]
            self.nodes[name] = type(self.nodes[name])(**(vars(self.nodes[name]) | {"relu": True}))
            self._name(result, name)
        elif func is torch.add:
            name = f"op_{len(self.nodes)}"
            a, b = (self.names[id(x)] for x in args)
            self.nodes[name] = Add(name, a, b, False)
            self._name(result, name)
        elif isinstance(result, torch.Tensor) and any(id(x) in self.names for x in args):
            raise RuntimeError(f"QUANTIZER_TORCH_UNSUPPORTED_OPS: {func}")
        return result

    def _name(self, tensor: torch.Tensor, name: str) -> None:
        self.names[id(tensor)] = name
        self.alive.append(tensor)

    def _convolution(self, func: Any, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        x, weight, bias, stride, padding, *rest = args
        name, source = f"op_{len(self.nodes)}", self.names[id(x)]
        shared = source, weight.detach().numpy(), bias.detach().numpy(), stride[0], padding[0]
        assert stride[0] == stride[1] and padding[0] == padding[1] and not kwargs
        if func in (F.conv2d, torch.conv2d):
            dilation, groups = rest
            assert tuple(dilation) == (1, 1)
            assert groups in (1, x.shape[1]), "groups go to the CPU"
            self.nodes[name] = Conv(name, *shared, groups, False)
        else:
            output_padding, groups, dilation = rest
            assert tuple(output_padding) == (0, 0), "output_padding must be 0"
            assert groups == 1 and tuple(dilation) == (1, 1)
            self.nodes[name] = Deconv(name, *shared, False)
        self._name(result, name)


def traced(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Network:
    """Give a module's graph."""
    trace = _Trace(inputs)
    with torch.no_grad(), trace:
        results = module(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    feeds = tuple(Feed(f"input_{k}", x.shape[1], 1) for k, x in enumerate(inputs))
    outputs = tuple(trace.names[id(y)] for y in results)
    return Network("Network", feeds, tuple(trace.nodes.values()), outputs)
