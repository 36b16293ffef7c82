"""Scales by predicted noise, and the shortcuts of training in integers."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="quantising needs the [train] extra")

from torch.nn import functional as F  # noqa: E402

from lichen.frugal import noise, ranges  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.gdn import GDN  # noqa: E402
from lichen.models.layers import Conv2d, ConvTranspose2d, LowGradient  # noqa: E402
from lichen.training import quantize  # noqa: E402

C = 8

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int = 4) -> torch.Tensor:
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = F.interpolate(small, 64, mode="bilinear")
    return torch.round(x * 255).sub(128) / 128


@torch.no_grad()
def uneven_model():
    """A GDN model that integers hardly serve: channels between layers differ by 1 : 1000."""
    torch.manual_seed(3)
    model = catalogue.build("balle2018", {"n": C, "m": C, "means": True}).eval()
    model.gain.fill_(1.0)
    model.inverse_gain.fill_(-1.0)
    for place in noise.junctions(model):
        gamma = 0.1 * torch.rand(C, C) + 0.1 * torch.eye(C)
        place.gdn.set_effective(torch.ones(C), gamma)
        inner = torch.logspace(-1, 1, C)
        outer = torch.logspace(-1, 2, C)[torch.randperm(C)]
        inner = quantize.through_gdn(place.gdn, inner, outer)
        quantize.scale_outputs(place.before, inner)
        quantize.scale_inputs(place.reader, 1 / outer)
    return model


@pytest.fixture(scope="module")
def equalised():
    model, x = uneven_model(), pictures()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "STEPS", 60)
        noise.equalise(model, [x])
    ranges.by_error(model, [x])
    return model


def test_scales_by_noise_make_less_of_it(equalised):
    x = pictures()
    before, after = uneven_model(), copy.deepcopy(equalised)
    ranges.by_error(before, [x])
    losses = [ranges.Loss([x])(model) for model in (before, after)]
    exact = ranges.Loss([x])(before, integers=False)
    assert losses[1] - exact < 0.3 * (losses[0] - exact)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_noise_of_gamma_is_predicted(inverse):
    """What rounding gamma does to y, against `Seen.gamma` and the grid that scales give."""
    generator = torch.Generator().manual_seed(0)
    gdn = GDN(C, inverse=inverse, dtype="s16")
    with torch.no_grad():
        gdn.set_effective(torch.ones(C), torch.rand(C, C, generator=generator))
    before, reader = Conv2d(C, C, 1, dtype="s16"), Conv2d(C, C, 1, dtype="s16")
    x = torch.randn(4, C, 32, 32, generator=generator)
    with torch.no_grad():
        y = gdn(x)
        outputs = {before: x, gdn: y, reader: y}
        ones = {layer: torch.ones_like(y) for layer in outputs}
        seen = noise._seen(noise.Junction(before, gdn, reader), outputs, ones)
        beta, gamma = gdn.effective()
        step = float(gamma.max()) / 255
        predicted = noise.UNIFORM * step**2 * float(seen.gamma.sum())
        found = []
        for _ in range(8):
            error = (torch.rand(C, C, generator=generator) - 0.5) * step
            gdn.set_effective(beta, gamma + error)
            found.append(float((gdn(x) - y).square().sum()))
    assert sum(found) / len(found) == pytest.approx(predicted, rel=0.3)


@pytest.mark.parametrize("transposed", [False, True])
def test_low_gradients_are_nearly_those_of_float32(transposed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, C, 16, 16, generator=generator, requires_grad=True)
    weight = torch.randn(C, C, 5, 5, generator=generator, requires_grad=True)
    bias = torch.randn(C, generator=generator, requires_grad=True)
    extra = int(transposed)
    y = LowGradient.apply(x, weight, bias, 2, [2, 2], transposed, extra, 1)
    plain = F.conv_transpose2d(x, weight, bias, 2, 2, extra) if transposed else F.conv2d(
        x, weight, bias, 2, 2
    )  # fmt: skip
    assert torch.equal(y, plain)
    r = torch.randn(y.shape, generator=generator)
    low = torch.autograd.grad((y * r).sum(), (x, weight, bias))
    exact = torch.autograd.grad((plain * r).sum(), (x, weight, bias))
    for one, other in zip(low, exact):
        assert (one - other).norm() < 0.01 * other.norm()


def test_quick_training_is_nearly_that_of_the_integers(equalised):
    model = copy.deepcopy(equalised)
    model.set_quantized(True)
    y = model.analyse(pictures()).detach()
    exact = model.synthesise(y)  # with gradients: the values are those of the contract
    model.train_quickly()
    quick = model.synthesise(y)
    assert not torch.equal(exact, quick)
    assert (exact - quick).abs().mean() < 0.04 * exact.abs().mean()
    layers = [m for m in model.g_s if isinstance(m, GDN | ConvTranspose2d)]
    parameters = [p for layer in layers for p in layer.parameters()]
    for grad in torch.autograd.grad(quick.square().sum(), parameters):
        assert grad.isfinite().all() and grad.any()
