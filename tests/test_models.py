"""Models: GDN and the scale hyperprior against formulas written out by hand; checkpoints."""

import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from torch.nn import functional as F  # noqa: E402

from lichen.errors import ModelError  # noqa: E402
from lichen.lower import lower_balle2018  # noqa: E402
from lichen.models.balle2018 import (  # noqa: E402
    ScaleHyperprior,
    from_checkpoint,
    load_checkpoint,
)
from lichen.models.complexity import complexity  # noqa: E402
from lichen.models.gdn import GDN  # noqa: E402
from lichen.models.layers import Conv2d, ConvTranspose2d, input_limit  # noqa: E402
from lichen.models.student import Student  # noqa: E402
from lichen.training.quantize import calibrate, equalise  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

N, M = 8, 12
HALF = torch.tensor([0.5])


def smooth_picture(height=64, width=64, seed=0):
    """Pixels (1, 3, H, W) in -1..1 on the grid of 8 bits, with large dark and bright areas."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 2.4 - 1.2
    x = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (x.clamp(-1, 127 / 128) * 128).round() / 128


def compressai_state(means, spelling="_matrix", seed=0):
    """Make a state dict as CompressAI writes it: its names, its buffers, random values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, gain=1.0):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 100
        return torch.randn(*shape, generator=generator) * gain / math.sqrt(fan)

    state = {}
    # transform, layer, inputs, outputs, kernel, transposed, gain
    layers = [
        (f"g_a.{i}", a, b, 5, False) for i, a, b in ((0, 3, N), (2, N, N), (4, N, N), (6, N, M))
    ]
    layers += [
        (f"g_s.{i}", a, b, 5, True) for i, a, b in ((0, M, N), (2, N, N), (4, N, N), (6, N, 3))
    ]
    layers += [("h_a.0", M, N, 3, False), ("h_a.2", N, N, 5, False), ("h_a.4", N, N, 5, False)]
    first, second, last = (M, M * 3 // 2, 2 * M) if means else (N, N, M)
    layers += [("h_s.0", N, first, 5, True), ("h_s.2", first, second, 5, True)]
    layers += [("h_s.4", second, last, 3, False)]
    for name, inputs, outputs, kernel, transposed in layers:
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        gain = {"g_a.6": 12.0, "h_a.4": 8.0, "g_s.0": 0.3, "g_s.6": 1.0}.get(name, 2.0)
        state[f"{name}.weight"] = normal(*shape, kernel, kernel, gain=gain)
        state[f"{name}.bias"] = normal(outputs)
    state["h_s.4.bias"][:M] += 1.5  # scales are positive
    for transform in ("g_a", "g_s"):
        for layer in (1, 3, 5):
            name = f"{transform}.{layer}"
            state[f"{name}.beta"] = torch.rand(N, generator=generator) + 0.5
            state[f"{name}.gamma"] = torch.rand(N, N, generator=generator) * 0.2 + 0.1 * torch.eye(
                N
            )
            state[f"{name}.beta_reparam.pedestal"] = torch.tensor([2.0**-36])
            state[f"{name}.beta_reparam.lower_bound.bound"] = torch.tensor([0.001])
            state[f"{name}.gamma_reparam.pedestal"] = torch.tensor([2.0**-36])
            state[f"{name}.gamma_reparam.lower_bound.bound"] = torch.tensor([2.0**-18])
    sizes = (1, 3, 3, 3, 3, 1)
    names = {
        "_matrix": ("_matrix{}", "_bias{}", "_factor{}"),
        "_matrices": ("_matrices.{}", "_biases.{}", "_factors.{}"),
        "matrices": ("matrices.{}", "biases.{}", "factors.{}"),
    }[spelling]
    for i in range(5):
        shapes = ((N, sizes[i + 1], sizes[i]), (N, sizes[i + 1], 1), (N, sizes[i + 1], 1))
        for name, shape in zip(names[: 3 if i < 4 else 2], shapes):
            key = f"entropy_bottleneck.{name.format(i)}"
            state[key] = torch.randn(*shape, generator=generator) * 0.3 - float("matri" in name)
    quantiles = torch.tensor([-8.0, 0.0, 8.0]).repeat(N, 1, 1)
    quantiles[:, 0, 1] = torch.rand(N, generator=generator) * 3 - 1.5
    state["entropy_bottleneck.quantiles"] = quantiles
    state["entropy_bottleneck.target"] = torch.tensor([-20.0, 0.0, 20.0])
    state["entropy_bottleneck._quantized_cdf"] = torch.zeros(N, 10, dtype=torch.int32)
    state["entropy_bottleneck._offset"] = torch.zeros(N, dtype=torch.int32)
    state["entropy_bottleneck._cdf_length"] = torch.zeros(N, dtype=torch.int32)
    state["entropy_bottleneck.likelihood_lower_bound.bound"] = torch.tensor([1e-9])
    state["gaussian_conditional.scale_table"] = torch.zeros(64)
    state["gaussian_conditional._quantized_cdf"] = torch.zeros(64, 5, dtype=torch.int32)
    return state


def gdn_by_hand(x, beta, gamma, power, inverse):
    """Balle 2016, eq. 1 and 2, element by element; beta and gamma as CompressAI stores them."""
    beta = np.maximum(beta, np.sqrt(1e-6 + 2.0**-36)) ** 2 - 2.0**-36
    gamma = np.maximum(gamma, 2.0**-18) ** 2 - 2.0**-36
    y = np.empty_like(x)
    for _, row, column in np.ndindex(1, *x.shape[1:]):
        vector = x[:, row, column]
        for i, value in enumerate(vector):
            n = beta[i] + sum(gamma[i, j] * abs(vector[j]) ** power for j in range(len(vector)))
            n = n ** (1 / power)
            y[i, row, column] = value * n if inverse else value / n
    return y


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_gdn_is_its_formula(power, inverse):
    rng = np.random.default_rng(power)
    x, beta = rng.normal(size=(4, 3, 2)) * 3, rng.normal(size=4)
    gamma = rng.normal(size=(4, 4)) * 0.4  # about half below the lower bound, and not symmetric
    layer = GDN(4, inverse=inverse, power=power)
    with torch.no_grad():
        layer.beta.copy_(torch.from_numpy(beta))
        layer.gamma.copy_(torch.from_numpy(gamma))
        y = layer(torch.from_numpy(x)[None].float())[0].numpy()
    np.testing.assert_allclose(y, gdn_by_hand(x, beta, gamma, power, inverse), rtol=2e-5)


def test_gdn_lower_bound_lets_the_gradient_lift_a_parameter():
    for direction, passes in ((1.0, False), (-1.0, True)):
        layer = GDN(1)
        with torch.no_grad():
            layer.gamma.fill_(-0.5)
        gamma = layer.effective()[1]
        (direction * gamma).sum().backward()
        # d gamma / d stored = 2 * bound there; only a gradient that lifts it passes
        assert (layer.gamma.grad.item() != 0) == passes


def test_transposed_convolution_is_torch_s():
    torch.manual_seed(0)
    layer = ConvTranspose2d(3, 4, 5, stride=2, dtype="s16")
    theirs = torch.nn.ConvTranspose2d(3, 4, 5, 2, padding=2, output_padding=1)
    theirs.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(1, 3, 5, 6)
    assert torch.equal(layer(x), theirs(x)) and layer(x).shape == (1, 4, 10, 12)


@pytest.mark.parametrize("means", [False, True])
def test_forward_is_compressai_s(means):
    """The same formulas as CompressAI's models, on pixels in 0..1 padded with black."""
    s = compressai_state(means)
    model = from_checkpoint(s)
    x = smooth_picture(64, 128)
    pixels = (x * 128 + 128) / 255

    def conv(h, name, stride=2):
        w, b = s[f"{name}.weight"], s[f"{name}.bias"]
        return F.conv2d(h, w, b, stride, w.shape[2] // 2)

    def deconv(h, name):
        return F.conv_transpose2d(h, s[f"{name}.weight"], s[f"{name}.bias"], 2, 2, 1)

    def gdn(h, name, inverse):
        parameters = (s[f"{name}.{part}"].numpy() for part in ("beta", "gamma"))
        beta, gamma = (torch.from_numpy(p) ** 2 for p in parameters)
        n = torch.sqrt(F.conv2d(h**2, gamma[:, :, None, None], beta))
        return h * n if inverse else h / n

    act = (lambda h: F.leaky_relu(h, 0.01)) if means else F.relu
    y = pixels
    for i in (0, 2, 4):
        y = gdn(conv(y, f"g_a.{i}"), f"g_a.{i + 1}", False)
    y = conv(y, "g_a.6")
    z = conv(act(conv(act(conv(y if means else y.abs(), "h_a.0", 1)), "h_a.2")), "h_a.4")
    medians = s["entropy_bottleneck.quantiles"][:, 0, 1].reshape(1, -1, 1, 1)
    z_hat = torch.round(z - medians) + medians
    h = conv(act(deconv(act(deconv(z_hat, "h_s.0")), "h_s.2")), "h_s.4", 1)
    scale, mean = h.chunk(2, 1) if means else (F.relu(h), torch.zeros_like(h))
    y_hat = torch.round(y - mean) + mean
    h = y_hat
    for i in (0, 2, 4):
        h = gdn(deconv(h, f"g_s.{i}"), f"g_s.{i + 1}", True)
    x_hat = deconv(h, "g_s.6")
    scale = scale.clamp_min(0.11)
    normal = torch.distributions.Normal(0, 1)
    residual = (y_hat - mean).abs()
    p = normal.cdf((0.5 - residual) / scale) - normal.cdf((-0.5 - residual) / scale)

    assert residual.max() > 3 and (z - medians).abs().max() > 2  # the test sees something
    with torch.no_grad():
        close = {"atol": 2e-3, "rtol": 1e-3}  # our LeakyReLU has a slope of 0.01001
        assert torch.allclose(model.analyse(x), y, atol=1e-4)
        assert torch.allclose(model.hyper_analyse(y), z - medians, **close)
        found_mean, found_scale = model.hyper_synthesise(torch.round(z - medians))
        assert torch.allclose(found_mean, mean, **close)
        assert torch.allclose(found_scale.clamp_min(0.11), scale, **close)
        found = model.synthesise(y_hat)
        assert torch.allclose((found * 128 + 128) / 255, x_hat, atol=1e-3)
        coded = model(x, HALF, noise=False)
    assert torch.allclose(coded.y_likelihood, p.clamp_min(1e-9), atol=5e-3)
    likelihood = model.entropy_bottleneck.likelihood(z_hat)
    assert torch.allclose(coded.z_likelihood, likelihood, atol=1e-5) and likelihood.max() > 0.01
    if not means:  # with them the slope moves a few latents across a rounding boundary
        assert torch.allclose(coded.x_hat, found, atol=1e-3)


@pytest.mark.parametrize("spelling", ["_matrix", "_matrices", "matrices"])
def test_every_spelling_of_the_prior_loads(spelling):
    state = compressai_state(False, spelling)
    model = from_checkpoint({f"module.{name}": value for name, value in state.items()})
    assert model.arguments == {"n": N, "m": M, "means": False, "activation": "gdn"}
    expected = compressai_state(False)["entropy_bottleneck._factor2"]
    assert torch.equal(model.entropy_bottleneck._factor2, expected)


def test_files_round_trip(tmp_path):
    from safetensors.torch import save_file

    state = compressai_state(True)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth.tar")
    save_file(state, tmp_path / "a.safetensors")
    models = [from_checkpoint(tmp_path / name) for name in ("a.pth.tar", "a.safetensors")]
    calibrate(models[0], [smooth_picture()])
    # what lichen saves it loads without scaling for the pixels once more
    torch.save(models[0].state_dict(), tmp_path / "own.pt")
    models.append(from_checkpoint(tmp_path / "own.pt"))
    with torch.no_grad():
        first, *others = (model(smooth_picture(), HALF, noise=False).x_hat for model in models)
    assert all(torch.equal(first, other) for other in others)
    exponents = [model.g_a[0].output_exponent for model in models]
    assert exponents[0] == exponents[2] != exponents[1]


def test_wrong_keys_are_named():
    state = compressai_state(False)
    model = ScaleHyperprior(N, M)
    del state["g_s.3.gamma"]
    with pytest.raises(ModelError, match=r"missing \['g_s.3.gamma'\]"):
        load_checkpoint(model, state)
    state = compressai_state(False) | {"context_prediction.weight": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"unexpected \['context_prediction.weight'\]"):
        load_checkpoint(model, state)
    with pytest.raises(ModelError, match=r"g_a.0.weight \(8, 3, 5, 5\) for \(16, 3, 5, 5\)"):
        load_checkpoint(ScaleHyperprior(16, M), compressai_state(False))
    with pytest.raises(ModelError, match=r"found no g_a.6.weight"):
        from_checkpoint({"g_a.0.weight": torch.zeros(1)})


class Trap:
    """A pickle that touches a file where it is loaded as objects."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "junk", "empty"])
def test_a_malicious_file_does_not_run(tmp_path, form):
    trap, file = tmp_path / "sprung", tmp_path / "weights.pt"
    content = {"g_a.0.weight": Trap(trap)}
    if form in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=form == "zip")
        file.write_bytes(buffer.getvalue())
    else:
        file.write_bytes({"pickle": pickle.dumps(content, 2), "junk": b"junk"}.get(form, b""))
    with pytest.raises(ModelError, match=r"weights\.pt"):
        from_checkpoint(file)
    assert not trap.exists()
    if form == "pickle":  # the trap does work
        pickle.loads(file.read_bytes())
        assert trap.exists()


def test_damaged_or_absent_files_are_model_errors(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name in ("a.safetensors", "list.pt", "absent.pt", "absent.safetensors"):
        with pytest.raises(ModelError, match=name):
            from_checkpoint(tmp_path / name)


def test_gains_are_one_until_trained():
    model = from_checkpoint(compressai_state(False))
    gain, inverse = model.gains(torch.tensor([0.0, 0.3, 1.0]))
    assert torch.equal(gain, torch.ones(3, M, 1, 1)) and torch.equal(inverse, gain)


@pytest.mark.parametrize("activation", ["gdn", "relu"])
@pytest.mark.parametrize("means", [False, True])
def test_gradients_reach_every_parameter(means, activation):
    torch.manual_seed(0)
    model = ScaleHyperprior(N, M, means, activation)
    x = smooth_picture()
    calibrate(model, [x])
    for quantized in (False, True):
        model.set_quantized(quantized)
        model.zero_grad()
        coded = model(x, HALF)
        rate = -coded.y_likelihood.log().mean() - coded.z_likelihood.log().mean()
        (rate + (coded.x_hat - x).square().mean()).backward()
        for name, parameter in model.named_parameters():
            if name != "entropy_bottleneck.quantiles":
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name


def test_complexity_is_the_published_one():
    found = complexity(ScaleHyperprior(128, 192))
    assert found.encode.macs_per_pixel == 44_904 and found.decode.macs_per_pixel == 43_540
    # CompressAI's class has 5,075,843 parameters, 5,888 of them in the entropy bottleneck
    g_a, h_a, h_s, g_s = (
        sum(p.numel() for p in part.parameters())
        for model in [ScaleHyperprior(128, 192)]
        for part in (model.g_a, model.h_a, model.h_s, model.g_s)
    )
    assert found.encode.parameters == g_a + h_a + h_s
    assert found.decode.parameters == h_s + g_s
    student = complexity(Student())
    assert 6000 < student.encode.macs_per_pixel <= 9000
    assert 6000 < student.decode.macs_per_pixel <= 9000


@pytest.mark.parametrize("activation", ["gdn", "relu"])
@pytest.mark.parametrize("means", [False, True])
def test_equalising_changes_nothing_in_float(means, activation):
    torch.manual_seed(1)
    if activation == "gdn":
        model = from_checkpoint(compressai_state(means))
    else:
        model = ScaleHyperprior(N, M, means, "relu")
    x = smooth_picture()
    with torch.no_grad():
        for stack in (model.g_a, model.g_s, model.h_a, model.h_s):
            stack[2].weight.mul_(
                torch.logspace(-1, 1, stack[2].weight.shape[0])[:, None, None, None]
            )
        before = model(x, HALF, noise=False)
        weights = model.g_a[2].weight.clone()
        equalise(model, [x])
        after = model(x, HALF, noise=False)
    assert not torch.allclose(model.g_a[2].weight, weights, rtol=0.01)
    for one, other in zip(before, after):
        # float32 sums in another order, through three squarings
        assert (one - other).abs().mean() < 1e-3 * one.abs().mean()


def test_calibration_holds_what_was_seen():
    model = ScaleHyperprior(N, M, activation="gdn")
    with torch.no_grad():
        model.g_a[0].weight.mul_(37)
    calibrate(model, [smooth_picture()], (0.5,))
    with torch.no_grad():
        top = model.g_a[0]((smooth_picture() + 1) / 2).abs().max() * 2.0 ** (
            model.g_a[0].output_exponent
        )
    assert 2**13 <= top < 2**14  # of s16: one bit is left for what calibration has not seen
    assert model.h_a[4].output_exponent == 0  # fixed by design


def test_silent_layers_get_a_usable_range():
    model = ScaleHyperprior(N, M, activation="relu")
    with torch.no_grad():
        model.g_a[6].weight.zero_()  # all latents are 0, and so is all that follows from them
    calibrate(model, [smooth_picture()])
    assert model.dequantized.output_exponent == 13
    lower_balle2018(model, "x", {})  # which checks shifts and bounds


def test_input_limit_is_the_largest_that_int32_holds():
    layer = Conv2d(64, 2, 5, dtype="s16", exponent=0)
    with torch.no_grad():
        layer.weight.fill_(127)
        layer.bias.fill_(1000)
    limit = input_limit(layer, 0)
    bound = 64 * 25 * 127 * limit + 1000
    assert bound < 2**31 <= bound + 64 * 25 * 127
    transposed = ConvTranspose2d(64, 2, 5, stride=2, dtype="s16", exponent=0)
    with torch.no_grad():
        transposed.weight.fill_(127)
        transposed.bias.fill_(1000)
    limit = input_limit(transposed, 0)
    bound = 64 * 9 * 127 * limit + 1000  # the fullest phase has 3 x 3 of the 5 x 5 taps
    assert bound < 2**31 <= bound + 64 * 9 * 127
