"""What the authors' code of Zou 2022 does: names and shapes of its weights, and its results.

    python tests/zou2022_golden.py STF      writes tests/golden/zou2022-{keys,results}.json

STF is a clone of github.com/Googolxx/STF (Apache-2.0), commit 0adbd29. The committed files were
made from the classes of that commit, copied out of it one by one without `compress`, `decompress`
and the training helpers, for want of a network; GDN is CompressAI 1.2.8's, which is the same. Only
Python is needed: timm's three helpers, and the compiled rANS and CDF functions, which a forward
pass does not call, have stand-ins. Weights and picture come from a formula, not from a random
generator, so that `test_zou2022.py` makes the same ones without the authors' code.
"""

from __future__ import annotations

import json
import math
import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"
SIDE = 64  # of the picture
SAMPLES = 24  # values kept of each tensor
MARGIN = 2e-4  # no latent of the picture is so near to where rounding goes the other way


def uniform(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Numbers in -1..1 that look random: an integer hash of a name and a position."""
    x = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float32) * np.float32(2.0**-31) - 1).reshape(shape)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Give the parameter of this name: sizes that keep signals alive through the layers."""
    u = uniform(name, shape)
    layer, last = name.rpartition(".")[::2]
    if last == "quantiles":
        return u * 1.5 + np.float32([-9, 0, 9])
    if last.startswith(("_matrix", "_bias", "_factor")):
        return u * np.float32(0.3)
    if last == "relative_position_bias_table":
        return u
    if last == "beta":
        return 1 + u * np.float32(0.3)
    if last == "gamma":
        return np.abs(u) * np.float32(0.1) + np.float32(0.3) * np.eye(shape[0], dtype=np.float32)
    if "norm" in layer.rpartition(".")[2] and last == "weight":
        return 1 + u * np.float32(0.3)
    if last == "bias":
        scales = layer.startswith("cc_scale_transforms") and layer.endswith(".8")
        return u * np.float32(0.1) + np.float32(1.2 if scales else 0)
    fan_in = math.prod(shape[1:])
    if layer.startswith("g_s.") and len(shape) == 4 and layer.count(".") == 1:  # transposed
        fan_in = shape[0] * math.prod(shape[2:]) // 4
    gains = {"g_a.7": 5.0, "h_a.8": 3.0, "layers.3.blocks.1.mlp.fc2": 3.0, "g_s.1": 0.3}
    gain = gains.get(layer, 0.7 if layer in ("g_s.3", "g_s.6", "g_s.8") else 1.2)
    if layer.startswith(("h_mean_s", "h_scale_s", "cc_", "lrp_")):
        gain = 2.0
    if ".conv_" in layer:  # residual branches
        gain = 0.7
    return u * np.float32(gain * math.sqrt(3 / fan_in))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Give all parameters among these names; what is not one (buffers) is left out."""
    buffers = ("target", "bound", "pedestal", "scale_table", "scale_bound", "_offset")
    buffers += ("_quantized_cdf", "_cdf_length", "relative_position_index")
    return {
        name: weight(name, shape)
        for name, shape in shapes.items()
        if name.rpartition(".")[2] not in buffers
    }


def picture(number: int) -> NDArray[np.uint8]:
    """Give a picture (SIDE, SIDE, 3) with coarse and fine detail."""
    coarse = uniform(f"coarse {number}", (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    fine = uniform(f"fine {number}", (SIDE, SIDE, 3))
    return np.rint(127.5 + 90 * coarse + 30 * fine).clip(0, 255).astype(np.uint8)


def samples(name: str, tensor: NDArray[Any]) -> dict[str, Any]:
    """Keep a few values of a tensor, and its size."""
    flat = tensor.astype(np.float64).ravel()
    places = ((uniform(name, (SAMPLES,)).astype(np.float64) + 1) / 2 * (len(flat) - 1)).astype(int)
    return {
        "peak": float(np.abs(flat).max()),
        "mean_magnitude": float(np.abs(flat).mean()),
        "values": [float(np.float32(value)) for value in flat[places]],
    }


def tree(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Nest dotted names: {"a.b": (2, 3)} -> {"a": {"b": [2, 3]}}."""
    root: dict[str, Any] = {}
    for name, shape in names.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(shape)
    return root


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Undo `tree`."""
    names: dict[str, tuple[int, ...]] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            names |= flat(value, f"{prefix}{key}.")
        else:
            names[prefix + key] = tuple(value)
    return names


def _import_authors(clone: Path) -> tuple[Any, Any]:
    """Import WACNN and SymmetricalTransFormer from a clone, with stand-ins for what is compiled."""
    import torch

    def module(name: str, **content: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)

    module("timm")
    module("timm.models")
    module(
        "timm.models.layers",
        DropPath=lambda p: torch.nn.Identity(),  # as in evaluation
        to_2tuple=lambda x: (x, x),
        trunc_normal_=torch.nn.init.trunc_normal_,
    )
    module("compressai._CXX", pmf_to_quantized_cdf=None)
    module("compressai.ans", BufferedRansEncoder=object, RansDecoder=object, RansEncoder=object)
    sys.path.insert(0, str(clone))
    from compressai.models.cnn import WACNN  # type: ignore[import-not-found]
    from compressai.models.stf import (  # type: ignore[import-not-found]
        SymmetricalTransFormer,
    )

    return WACNN, SymmetricalTransFormer


def _results(model: Any, number: int) -> tuple[dict[str, Any], float]:
    """Run a picture; give samples of what flows, and the least distance to another rounding."""
    import torch

    found: dict[str, Any] = {}
    means: list[Any] = []

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output)

    handles = [getattr(model, part).register_forward_hook(keep(part)) for part in
               ("h_a", "h_mean_s", "h_scale_s")]  # fmt: skip
    handles.append(model.h_a.register_forward_pre_hook(lambda m, x: found.update(y=x[0])))
    for transform in model.cc_mean_transforms:
        handles.append(transform.register_forward_hook(lambda m, x, mean: means.append(mean)))
    first = model.syn_layers[0] if model.g_s is None else model.g_s

    def latents(module: Any, inputs: Any) -> None:
        y = inputs[0]
        if y.dim() == 3:  # (1, H * W, C)
            side = SIDE // 16
            y = y.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        found["y_hat"] = y

    handles.append(first.register_forward_pre_hook(latents))
    x = torch.from_numpy(picture(number)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    medians = model.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
    residuals = torch.cat([found["y"].flatten() - torch.cat(means, 1).flatten(),
                           (found["h_a"] - medians).flatten()])  # fmt: skip
    margin = float((0.5 - (residuals - residuals.round()).abs()).min().detach())
    tensors = {
        "y": found["y"],
        "z": found["h_a"],
        "means": found["h_mean_s"],
        "scales": found["h_scale_s"],
        "y_hat": found["y_hat"],
        "x_hat": output["x_hat"],
        "y_likelihood": output["likelihoods"]["y"],
        "z_likelihood": output["likelihoods"]["z"],
    }
    return {name: samples(name, t.detach().numpy()) for name, t in tensors.items()}, margin


def main() -> None:
    import torch

    keys: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for name, kind in zip(("wacnn", "stf"), _import_authors(Path(sys.argv[1]))):
        model = kind().eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        keys[name] = tree(shapes)
        ours = {key: torch.from_numpy(value) for key, value in weights(shapes).items()}
        assert set(ours) == {key for key, _ in model.named_parameters()}
        model.load_state_dict(ours, strict=False)
        parameters = sum(p.numel() for p in model.parameters())
        # rounding must go the same way wherever the test runs
        number, (found, margin) = 0, _results(model, 0)
        while margin < MARGIN:
            number += 1
            found, margin = _results(model, number)
        print(f"{name}: {parameters} parameters, picture {number}, margin {margin:.2e}")
        results[name] = {"parameters": parameters, "picture": number, "tensors": found}
    for file, content in (("keys", keys), ("results", results)):
        text = json.dumps(content, separators=(",", ":"), indent=None if file == "keys" else 1)
        (GOLDEN / f"zou2022-{file}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
