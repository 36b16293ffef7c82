"""What a step of a chain costs and gives: rate and distortion, weights, kMAC/pixel, exactness.

A network that still computes in float is measured by the ideal code length under its own
likelihoods and the PSNR of its pictures from rounded latents, rounded to 8 bits: the best case of
these weights. A model file is measured by real files, coded and decoded.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lichen import model as models
from lichen.api import Codec
from lichen.errors import LichenError, ModelError, StreamError
from lichen.evaluation import measure as files
from lichen.evaluation.bd_rate import bd_rate
from lichen.evaluation.codecs import Spec
from lichen.evaluation.measure import Survey
from lichen.evaluation.metrics import Pixels, psnr
from lichen.executors import ReferenceExecutor, best
from lichen.executors.torch import TorchExecutor
from lichen.model import Model
from lichen.models.complexity import complexity
from lichen.models.layers import QuantizableModel
from lichen.picture import from_array
from lichen.program import ops

QUALITIES = (0.0, 25.0, 50.0, 75.0, 100.0)
FLOAT_BYTES = 4  # of a weight
BIAS_BYTES = 4  # of a bias in integers
EXACT_SIDES = (192, 128)  # of the crop that the reference, naive NumPy, codes too
EXACT_QUALITY = 60.0
Rate = Literal["ideal", "files"]


@dataclass(frozen=True)
class Measured:
    """One network or model on a set of pictures.

    rate: "ideal" code length (float), or sizes of "files". bpp, psnr: means over the pictures, one
    for each quality. weight_bytes: of all weights and biases, in integers at the width that each
    layer's weights need. file_bytes: of the model file. encode, decode: kMAC/pixel, one for each
    product whatever its width. exact: executors that gave equal streams and pixels (integers only).
    """

    rate: Rate
    pictures: str
    qualities: tuple[float, ...]
    bpp: tuple[float, ...]
    psnr: tuple[float, ...]
    weight_bytes: int
    file_bytes: int | None
    encode: float
    decode: float
    exact: tuple[str, ...] = ()

    def bd_rate_against(self, anchor: Measured) -> float | None:
        """Give the BD-rate in percent; None where the curves do not overlap."""
        try:
            return bd_rate(anchor.bpp, anchor.psnr, self.bpp, self.psnr).percent
        except LichenError:
            return None


def from_dict(values: dict[str, Any]) -> Measured:
    """Make it of what `dataclasses.asdict` gave and JSON kept."""
    return Measured(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def survey_of(paths: Sequence[Path]) -> Survey:
    """Read these pictures once. Raises ImageError, OSError for one that cannot be read."""
    digest, sizes = hashlib.sha256(), []
    for path in paths:
        pixels = files.load(path)
        digest.update(pixels.tobytes())
        sizes.append((pixels.shape[1], pixels.shape[0]))
    return Survey(paths[0].parent, tuple(paths), tuple(sizes), (), digest.hexdigest())


def measure_network(
    network: QuantizableModel, pictures: Survey, qualities: Sequence[float] = QUALITIES
) -> Measured:
    """Measure a network in float: one analysis a picture, the rest once for each quality."""
    device = next(network.parameters()).device
    network = network.to(memory_format=torch.channels_last)  # a third less time on a CPU
    rows: list[list[tuple[float, float]]] = []
    for path in pictures.paths:
        pixels = files.load(path)
        x = padded(pixels, network.REDUCTION).to(device, memory_format=torch.channels_last)
        rows.append(float_points(network, x, pixels, qualities))
    bpp, quality = (
        tuple(statistics.fmean(row[k][part] for row in rows) for k in range(len(qualities)))
        for part in (0, 1)
    )
    cost = complexity(network)
    return Measured(
        rate="ideal",
        pictures=pictures.sha256,
        qualities=tuple(qualities),
        bpp=bpp,
        psnr=quality,
        weight_bytes=FLOAT_BYTES * sum(p.numel() for p in network.parameters()),
        file_bytes=None,
        encode=cost.encode.macs_per_pixel / 1000,
        decode=cost.decode.macs_per_pixel / 1000,
    )


def padded(pixels: Pixels, reduction: int) -> Tensor:
    """Give float32 (1, 3, H, W) in -1..1, edges repeated to multiples of `reduction`."""
    height, width = pixels.shape[:2]
    padding = ((0, 0), (0, -height % reduction), (0, -width % reduction))
    planes = np.pad(pixels.transpose(2, 0, 1), padding, mode="edge")
    return torch.from_numpy(planes).float()[None] / 128 - 1


@torch.inference_mode()
def float_points(
    network: QuantizableModel, x: Tensor, pixels: Pixels, qualities: Sequence[float]
) -> list[tuple[float, float]]:
    """Give (bits per pixel, PSNR) at each quality of a picture; x: padded, as `padded` does."""
    height, width = pixels.shape[:2]
    y = network.analyse(x)  # type: ignore[operator]
    points = []
    network.analyse = lambda _: y  # type: ignore[assignment] # before gains: of all qualities
    try:
        for quality in qualities:
            coded = network(x, torch.tensor([quality / 100], device=x.device), noise=False)
            bits = -sum(
                float(torch.log2(p).sum()) for p in (coded.y_likelihood, coded.z_likelihood)
            )
            rounded = torch.round(coded.x_hat[0] * 128 + 128).clamp(0, 255).byte()
            decoded = rounded[:, :height, :width].permute(1, 2, 0).cpu().numpy()
            points.append((bits / (height * width), psnr(pixels, decoded)))
    finally:
        del network.analyse
    return points


def measure_model(path: Path, pictures: Survey, qualities: Sequence[float] = QUALITIES) -> Measured:
    """Measure a model file by real files, and check that executors agree. Raises LichenError."""
    model = models.read(path)
    spec = Spec("", "lichen", str(path), tuple(qualities))
    (curve,) = files.measure([spec], pictures, with_ms_ssim=False)
    encode, decode = models.kmac_per_pixel(model, wide_factor=1)
    bpp, quality = curve.points("psnr")
    in_float = model.network is not None
    return Measured(
        rate="files",
        pictures=pictures.sha256,
        qualities=tuple(qualities),
        bpp=tuple(bpp),
        psnr=tuple(quality),
        weight_bytes=weight_bytes(model),
        file_bytes=path.stat().st_size,
        encode=encode,
        decode=decode,
        exact=() if in_float else check_exact(model, files.load(pictures.paths[0])),
    )


def weight_bytes(model: Model) -> int:
    """Count bytes of weights at the bits that each layer's largest needs, and of biases.

    A layer whose weights lie in -8..7 takes half a byte each. GDN's gamma and beta count likewise.
    """
    if model.network is not None:
        return sum(array.nbytes for array in model.network.weights.values())
    bits = 0
    for program in model.programs.values():
        for op in program.ops:
            match op:
                case ops.Conv() | ops.TransposedConv():
                    bits += op.weight.size * _width(op.weight) + 8 * BIAS_BYTES * op.bias.size
                case ops.GDN():
                    bits += op.gamma.size * _width(op.gamma) + 8 * BIAS_BYTES * op.beta.size
    return -(-bits // 8)


def _width(array: np.ndarray[Any, Any]) -> int:
    """Give the bits of two's complement that hold all values."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return 1 + max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0)


def check_exact(model: Model, pixels: Pixels) -> tuple[str, ...]:
    """Code a picture with the native executor and torch, its crop with the reference too.

    Returns their names. Raises ModelError where a stream or a picture differs.
    """
    crop = np.ascontiguousarray(pixels[: EXACT_SIDES[1], : EXACT_SIDES[0]])
    everyday = best()
    names = [everyday.name]
    for other, seen in ((TorchExecutor(), pixels), (ReferenceExecutor(), crop)):
        if other.name == everyday.name:
            continue
        if not _agree(Codec(model, executor=everyday), Codec(model, executor=other), seen):
            raise ModelError(
                f"{everyday.name} and {other.name} differ on {model.name}: the model is not "
                "bit-exact; please report it"
            )
        names.append(other.name)
    return tuple(names)


def _agree(a: Codec, b: Codec, pixels: Pixels) -> bool:
    """Tell whether two codecs give equal streams, and equal pixels from them."""
    streams = [codec.encode(from_array(pixels), quality=EXACT_QUALITY).data for codec in (a, b)]
    if streams[0] != streams[1]:
        return False
    try:
        return np.array_equal(*(codec.decode(streams[0]).pixels for codec in (a, b)))
    except StreamError:  # one of them has lost its way among the tables
        return False
