"""What CompressAI computes: small models, their weights, and the results for one picture.

    python tests/golden/compressai/generate.py [FOLDER]

writes FOLDER/NAME.safetensors (without FOLDER: beside this file) for each of MODELS. Needs
CompressAI (the committed files: 1.2.8) and safetensors; packages that CompressAI imports and these
models do not need, torchvision above all, may be missing. Each file holds the state dict
("state.NAME"), the picture x (uint8) and, computed in float32 without noise, y, the likelihoods
and every fifth value of x_hat. `tests/test_compressai.py` compares lichen with these files and,
where CompressAI is installed, with files made anew.
"""

from __future__ import annotations

import math
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

MODELS = {
    "bmshj2018-factorized": "FactorizedPrior",
    "bmshj2018-hyperprior": "ScaleHyperprior",
    "mbt2018-mean": "MeanScaleHyperprior",
}
N, M = 5, 7
WIDTH, HEIGHT = 128, 64
MARGIN = 1e-3  # least distance of a latent from where rounding goes the other way
# what makes latents of several steps, scales of about one, pictures in 0..1
GAINS = {"g_a.6": 5.0, "h_a.4": 8.0, "g_s.0": 0.4, "g_s.2": 0.8, "g_s.4": 0.8, "g_s.6": 0.2}
KEPT = 5  # every fifth value of x_hat


class StandIn:
    """Imports empty modules in place of packages that CompressAI wants and these models do not."""

    NAMES = ("torchvision", "torch_geometric", "pandas", "matplotlib", "pointops", "tqdm")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] in self.NAMES:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        class Empty(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                if name[0].isupper():
                    return type(name, (), {})
                return lambda *_, **__: lambda function: function  # a decorator

        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def fill(model: Any, seed: int) -> None:
    """Set every parameter: convolutions that keep signals alive, GDN that mixes channels, priors
    that differ from channel to channel and are not centred."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        value = torch.randn(parameter.shape, generator=generator)
        if name.startswith("entropy_bottleneck"):
            value *= 0.3
            if "matri" in name:
                value -= 1
            elif name.endswith("quantiles"):
                value = 5 * value + torch.tensor([-8.0, 0.0, 8.0])
        elif kind == "weight":
            fan = parameter[0].numel()
            if isinstance(model.get_submodule(layer), torch.nn.ConvTranspose2d):
                fan = parameter.shape[0] * 25 / 4
            value *= GAINS.get(layer, 1.5) / math.sqrt(fan)
        elif kind == "beta":
            value = 1 + 0.2 * value
        elif kind == "gamma":  # some below the lower bound
            value = 0.15 * value + 0.3 * torch.eye(len(value))
        else:
            value *= 0.2
            if name == "h_s.4.bias":
                value[:M] += 1.5  # scales are positive
        parameter.data.copy_(value)


def results(model: Any, x: Any) -> tuple[dict[str, Any], float]:
    """Run the model on x, uint8 (H, W, 3); give tensors, and the margin of all that is rounded."""
    import torch

    pixels = x.permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        found = model(pixels)
        y = model.g_a(pixels)
        medians = model.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
        if not hasattr(model, "h_a"):
            rounded = [y - medians]
        else:
            means = type(model).__name__ == "MeanScaleHyperprior"
            z = model.h_a(y if means else y.abs())
            hyper = model.h_s(torch.round(z - medians) + medians)
            rounded = [z - medians, y - hyper[:, M:] if means else y]
    margin = min(float((0.5 - (r - r.round()).abs()).min()) for r in rounded)
    tensors = {f"likelihood.{name}": p for name, p in found["likelihoods"].items()}
    x_hat = found["x_hat"].flatten()[::KEPT].clone()
    return {"x": x, "y": y, "x_hat": x_hat, **tensors}, margin


def picture() -> Any:
    """Smooth areas with a little noise: uint8 (HEIGHT, WIDTH, 3)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 4, 8, generator=generator) * 1.4 - 0.2
    size = (HEIGHT, WIDTH)
    x = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    x = x + 0.03 * torch.randn(x.shape, generator=generator)
    return (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    sys.meta_path.append(StandIn())  # type: ignore[arg-type]  # the last of the finders
    import compressai  # type: ignore[import-not-found]
    from compressai.models import google  # type: ignore[import-not-found]
    from safetensors.torch import save_file

    for name, kind in MODELS.items():
        model = getattr(google, kind)(N, M).eval()
        margin, seed = 0.0, -1
        while margin < MARGIN:  # rounding must go the same way wherever the test runs
            seed += 1
            fill(model, seed)
            tensors, margin = results(model, picture())
        state = {f"state.{key}": value for key, value in model.state_dict().items() if len(value)}
        contents = {key: value.contiguous() for key, value in (tensors | state).items()}
        version = {"compressai": compressai.__version__, "seed": str(seed)}
        save_file(contents, folder / f"{name}.safetensors", version)
        spread = {key: round(float(t.float().std()), 4) for key, t in tensors.items()}
        print(f"{name}: seed {seed}, margin {margin:.1e}, standard deviations {spread}")


if __name__ == "__main__":
    main()
