"""The factorised prior: a transform, a uniform quantiser, one fixed distribution per channel.

    x --[g_a]-- y -[* gain]- v -[round]- symbols -> rANS, by the table of the channel
                                            |
    x' -[g_s]-- y' ------ [* inverse gain] -+

Balle, Laparra & Simoncelli 2016, "End-to-end optimized image compression" (ICLR 2017). Transforms:

    kernels    layers of g_a                                   from
    5-5-5-5    5x5 with stride 2 four times, GDN between them  Balle 2018 (its factorised prior)
    9-5-5      9x9 with stride 4, 5x5 with stride 2 twice      Balle 2016, figure 3

g_s mirrors g_a. As in the authors' later code (`bls2017.py` of TensorFlow Compression), the GDN
after the last layer of 9-5-5 is left out. GDN divides by a root of squares (power 2, as in the
papers) or by a sum of magnitudes (power 1, see `gdn`). The prior is that of Balle 2018, appendix
6.1, which is smoother than the piecewise linear one of 2016.

State dicts load by name (`load_checkpoint`): CompressAI's `bmshj2018-factorized` (also its ReLU
variant), and those of X-LIC (github.com/sjtu-tcloud/X-LIC), which have 9-5-5, power 1, and no
entropy parameters: `fit_prior` finds those from photographs. Pixels as in `balle2018`.

Rate gains: the prior is that of v at quality 100, of u = v * gain(100) / gain(quality). At
other qualities the same distribution is cut into other steps. Rounding is about its medians.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models.checkpoint import (
    check_fit,
    from_unit_pixels,
    is_foreign,
    names_of,
    own_values,
    read_state,
)
from lichen.models.gdn import GDN, PEDESTAL
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
    held,
    round_ste,
)
from lichen.models.priors import EntropyBottleneck
from lichen.models.student import ANCHORS, PIXEL_EXPONENT, Coded, full_precision, interpolate

Kernels = Literal["5-5-5-5", "9-5-5"]
# (kernel, stride) of the layers of g_a, from the picture on
LAYERS: dict[Kernels, tuple[tuple[int, int], ...]] = {
    "5-5-5-5": ((5, 2), (5, 2), (5, 2), (5, 2)),
    "9-5-5": ((9, 4), (5, 2), (5, 2)),
}
FIT_STEPS = 500  # of `fit_prior`
FIT_RATE = 0.1  # its first step size; it ends at a hundredth


class Centred(Conv2d):
    """The last layer of g_a: gives y minus the median of its prior, so that rounding is about 0.

    Rounding about the medians is CompressAI's; in integers it is a matter of this layer's bias.
    """

    def __init__(self, *args: Any, model: FactorizedPrior, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["model"] = model  # not a submodule: it is the other way round

    def effective(self) -> tuple[Tensor, Tensor]:
        weight, bias = super().effective()
        medians = self.model.entropy_bottleneck.medians().flatten()
        return weight, bias - medians * torch.exp(-self.model.gain[-1])


class FactorizedPrior(QuantizableModel):
    """Balle 2016, and the factorised prior of Balle 2018.

    Args:
        n, m: the papers' N (channels inside) and M (of y).
        kernels: "5-5-5-5" or "9-5-5", see above.
        power: of GDN, 2 (the papers) or 1 (the simplified one).
        activation: "gdn" (the papers) or "relu", in g_a and g_s.
    """

    REDUCTION = 16  # pictures are padded to a multiple of this

    def __init__(
        self,
        n: int = 128,
        m: int = 192,
        kernels: Kernels = "5-5-5-5",
        power: Literal[1, 2] = 2,
        activation: Literal["gdn", "relu"] = "gdn",
    ) -> None:
        super().__init__()
        if n < 1 or m < 1:
            raise ValueError(f"n and m must be positive integers, not {n} and {m}")
        if kernels not in LAYERS:
            raise ValueError(f"kernels must be one of {', '.join(LAYERS)}, not {kernels!r}")
        if power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, not {power!r}")
        if activation not in ("gdn", "relu"):
            raise ValueError(f"activation must be 'gdn' or 'relu', not {activation!r}")
        self.arguments = {
            "n": n,
            "m": m,
            "kernels": kernels,
            "power": power,
            "activation": activation,
        }
        self.latent_channels = m
        self.entropy_bottleneck = EntropyBottleneck(m)
        # rate gains, as logarithms, at ANCHORS qualities evenly spaced over 0 .. 1
        self.gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.inverse_gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.dequantized = Quantizable("s16")  # y'
        layers = LAYERS[kernels]
        inside = "u8" if activation == "relu" else "s16"  # what a convolution leaves

        def act(inverse: bool, dtype: str = "s8") -> nn.Module:
            # the convolution before it has done the ReLU, by saturating to u8
            if activation == "relu":
                return nn.Identity()
            return GDN(n, inverse=inverse, power=power, dtype=dtype)

        # (3, H, W) -> N at 1/4 (9-5-5) or 1/2 .. 1/8 -> (M, H/16, W/16)
        self.g_a = Stack()
        for number, (kernel, stride) in enumerate(layers[:-1]):
            shape = (n if number else 3, n, kernel)
            self.g_a.append(Conv2d(*shape, stride=stride, padding=kernel // 2, dtype=inside))
            # what makes the latents, and below the picture, is worth 16 bits
            self.g_a.append(act(False, "s16" if number == len(layers) - 2 else "s8"))
        kernel, stride = layers[-1]
        self.g_a.append(
            Centred(n, m, kernel, stride=stride, padding=kernel // 2, dtype="s16", model=self)
        )
        # (M, H/16, W/16) -> N at 1/8 .. 1/2 or 1/4 (9-5-5) -> (3, H, W)
        self.g_s = Stack()
        for number, (kernel, stride) in enumerate(reversed(layers[1:])):
            shape = (n if number else m, n, kernel)
            self.g_s.append(ConvTranspose2d(*shape, stride=stride, dtype=inside))
            self.g_s.append(act(True, "s16" if number == len(layers) - 2 else "s8"))
        kernel, stride = layers[0]
        self.g_s.append(
            ConvTranspose2d(n, 3, kernel, stride=stride, dtype="s8", exponent=PIXEL_EXPONENT)
        )
        if activation == "gdn":  # which raises what it inverts: begin with pictures near -1..1
            with torch.no_grad():
                for layer in self.g_s[::2]:
                    layer.weight.mul_(0.5)

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give gain and inverse gain, each (B, M, 1, 1), for quality positions (B,) in 0..1."""
        return interpolate(self.gain, position), interpolate(self.inverse_gain, position)

    def analyse(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> y minus its medians, (B, M, H/16, W/16)."""
        return self.g_a((x + 1) * 0.5, PIXEL_EXPONENT + 1)

    def likelihood(self, v: Tensor, gain: Tensor) -> Tensor:
        """Probability of the unit bin around v (B, M, H, W), at gains (B, M, 1, 1)."""
        prior = self.entropy_bottleneck
        ratio = torch.exp(self.gain[-1]).reshape(1, -1, 1, 1) / gain
        return prior.likelihood(v * ratio + prior.medians(), 0.5 * ratio)

    def offsets(self) -> Tensor:
        """Give what the synthesis adds to y' (M,): the medians; whole steps where quantised."""
        medians = self.entropy_bottleneck.medians().flatten()
        offsets = medians * torch.exp(self.inverse_gain[-1])
        if self.dequantized.quantized:
            scale = 2.0**self.dequantized.output_exponent
            offsets = round_ste(offsets * scale).clamp(-32768, 32767) / scale
        return offsets

    def dequantize(self, v: Tensor, inverse_gain: Tensor) -> Tensor:
        """Rounded v (B, M, H, W), inverse gains (B, M, 1, 1) -> y' (B, M, H, W)."""
        y = self.dequantized.finish(v * inverse_gain)
        return self.dequantized.finish(y + self.offsets().reshape(1, -1, 1, 1))

    def synthesise(self, y: Tensor) -> Tensor:
        """Dequantised latents y' -> pixels in -1..1 (not clamped where not quantised)."""
        e = self.dequantized.output_exponent
        return self.g_s(held(y, self.g_s[0], e), e)

    def forward(self, x: Tensor, position: Tensor, noise: bool = True) -> Coded:
        """Code pixels (B, 3, H, W) in -1..1 at quality positions (B,) in 0..1.

        With `noise`, rates are those of latents with uniform noise (Balle 2016, eq. 10) while the
        picture is made from rounded ones; without, both are the rounded ones. There is no z: its
        likelihoods are (B, 0, 1, 1).
        """
        gain, inverse_gain = self.gains(position)
        y = self.analyse(x)
        with full_precision(x):
            v = y.float() * gain
        symbols = round_ste(v)
        v = v + torch.rand_like(v) - 0.5 if noise else symbols
        return Coded(
            self.synthesise(self.dequantize(symbols, inverse_gain)),
            self.likelihood(v, gain),
            v.new_ones(len(v), 0, 1, 1),
        )


def latent_histogram(model: FactorizedPrior, batches: Iterable[Tensor]) -> tuple[Tensor, int]:
    """Count the symbols of pictures at quality 100: float64 (M, values) and the first value.

    batches: pixels (B, 3, H, W) in -1..1.
    """
    with torch.no_grad():
        gain = torch.exp(model.gain[-1]).reshape(1, -1, 1, 1)
        flat = [
            torch.round(model.analyse(x) * gain).transpose(0, 1).flatten(1).to(torch.int64)
            for x in batches
        ]
    symbols = torch.cat(flat, 1)
    low, high = int(symbols.min()), int(symbols.max())
    counts = torch.zeros(len(symbols), high - low + 1, dtype=torch.float64)
    counts.scatter_add_(1, symbols - low, torch.ones_like(symbols, dtype=torch.float64))
    return counts, low


def fit_prior(
    model: FactorizedPrior, batches: Iterable[Tensor], steps: int = FIT_STEPS
) -> list[float]:
    """Fit the prior to the rounded latents of photographs, for weights that came without one.

    batches: pixels (B, 3, H, W) in -1..1; sizes may differ. The medians stay where they are (for a
    fresh prior at 0, about which such weights round); the transforms are not touched. Returns the
    mean code length per latent in bits, at each of `steps` steps.
    """
    counts, low = latent_histogram(model, batches)
    share = (counts / counts.sum()).float()
    prior = model.entropy_bottleneck
    values = torch.arange(low, low + counts.shape[1]) + prior.medians()[0, :, 0]
    power = (share * values.square()).sum(1) / share.sum(1)
    prior.reset(torch.sqrt(power + 1 / 12))
    parameters = [value for name, value in prior.named_parameters() if name != "quantiles"]
    optimizer = torch.optim.Adam(parameters, FIT_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    bits = []
    with torch.enable_grad():
        for _ in range(steps):
            likelihood = prior.likelihood(values[None, :, None])[0, :, 0]
            loss = -(share * torch.log2(likelihood)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bits.append(float(loss.detach()))
    return bits


@torch.no_grad()
def load_checkpoint(model: FactorizedPrior, path_or_state: Path | str | dict[str, Tensor]) -> None:
    """Load weights of CompressAI or X-LIC, or ones that lichen has saved, into `model`.

    Files of others have no rate gains (they become 1), no exponents (calibrate before quantising),
    and code pixels / 255 in 0..1: the first and the last layer are scaled to the pixels of this
    model. Those for 9-5-5, X-LIC's, hold beta and gamma as they are applied, and no prior: it
    stays what it was; call `fit_prior`. Raises ModelError naming what is missing, unexpected or
    misshapen.
    """
    where = "the state dict" if isinstance(path_or_state, dict) else str(path_or_state)
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    state = names_of(state)
    if not is_foreign(state):
        check_fit(model, state, where)
        model.load_state_dict(state)
        return
    own = own_values(model)
    last = f"g_a.{len(model.g_a) - 1}.bias"
    if model.arguments["kernels"] == "9-5-5":
        own[last] = torch.zeros_like(model.g_a[-1].bias)
        if not any(name.startswith("entropy_bottleneck.") for name in state):
            own |= model.entropy_bottleneck.state_dict(prefix="entropy_bottleneck.")
        state = {
            name: torch.sqrt(value.clamp_min(0) + PEDESTAL)
            if name.endswith((".beta", ".gamma"))
            else value
            for name, value in state.items()
        }
    check_fit(model, state, where, own)
    first, last = "g_a.0", f"g_s.{len(model.g_s) - 1}"
    model.load_state_dict(own | from_unit_pixels(state, first, last))


def from_checkpoint(
    path_or_state: Path | str | dict[str, Tensor], power: Literal[1, 2] | None = None
) -> FactorizedPrior:
    """Make the model whose weights these are and load them. Raises ModelError.

    power: of its GDN, which weights do not tell; None: 1 for 9-5-5 (X-LIC's), 2 for 5-5-5-5.
    """
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    names = names_of(state)
    kernels: Kernels = "5-5-5-5" if "g_a.6.weight" in names else "9-5-5"
    try:
        n = len(names["g_a.0.weight"])
        m = len(names["g_a.6.weight" if kernels == "5-5-5-5" else "g_a.4.weight"])
    except KeyError as error:
        raise ModelError(
            f"expected the weights of a factorised prior, found no {error.args[0]}; give a file "
            "of bmshj2018-factorized or of X-LIC"
        ) from error
    if power is None:
        power = 1 if kernels == "9-5-5" else 2
    model = FactorizedPrior(n, m, kernels, power, "gdn" if "g_a.1.beta" in names else "relu")
    load_checkpoint(model, names)
    return model
