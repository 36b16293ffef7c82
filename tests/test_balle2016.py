"""balle2016: both transforms, in float and in integers; the factorised order as a codec; X-LIC."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from PIL import Image  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lichen import cli, codec, container  # noqa: E402
from lichen import model as models  # noqa: E402
from lichen.api import Codec  # noqa: E402
from lichen.arguments import BAD_DATA  # noqa: E402
from lichen.errors import ModelError, StreamError  # noqa: E402
from lichen.executors import ReferenceExecutor, best  # noqa: E402
from lichen.executors.torch import TorchExecutor  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.lower.balle2016 import latent_tables  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.balle2016 import (  # noqa: E402
    FactorizedPrior,
    fit_prior,
    from_checkpoint,
    latent_histogram,
    load_checkpoint,
)
from lichen.models.gdn import GDN  # noqa: E402
from lichen.models.priors import EntropyBottleneck  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.program import ops  # noqa: E402
from lichen.training.loss import rate_distortion  # noqa: E402
from lichen.training.quantize import calibrate, correct_biases, equalise  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

ROOT = Path(__file__).parent.parent
XLIC = ROOT.parent / "shared" / "data" / "balle2016-xlic" / "balle2016_n128_lambda0.125.pt"
SAMPLE = Path(__file__).parent / "samples" / "kodim23.webp"
N, M = 6, 8
# kernels, power, activation
KINDS = {
    "2018": ("5-5-5-5", 2, "gdn"),
    "2018 relu": ("5-5-5-5", 2, "relu"),
    "2016": ("9-5-5", 2, "gdn"),
    "2016 simplified": ("9-5-5", 1, "gdn"),
}
HALF, TOP = torch.tensor([0.5]), torch.tensor([1.0])
POSITION = 400  # quality 50, which is HALF


def picture(height=64, width=64, seed=0):
    """Pixels uint8 (H, W, 3): smooth, with noise and two flat areas."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 9 + seed)[..., None] * np.cos(columns / 7)[..., None] * [90, 60, 75]
    pixels = waves + 128 + rng.normal(0, 6, (height, width, 3))
    pixels[: height // 4, : width // 4], pixels[-height // 4 :, -width // 4 :] = 0, 255
    return pixels.clip(0, 255).astype(np.uint8)


def as_tensor(pixels):
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None] / 128 - 1


def integers(x, exponent):
    """The integers that a float tensor (1, C, H, W) carries; exact or an error."""
    scaled = x[0].double().numpy() * 2.0**exponent
    assert np.array_equal(scaled, np.round(scaled))
    return scaled.astype(np.int64)


@torch.no_grad()
def tiny(kind, gains=False):
    """Make a calibrated model whose latents have some spread and whose medians are not 0."""
    torch.manual_seed(3)
    model = FactorizedPrior(N, M, *KINDS[kind])
    model.g_a[-1].weight.mul_(30)
    model.g_s[0].weight.mul_(0.1)
    model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-3, 3)
    model.entropy_bottleneck._bias0.uniform_(-1, 1)
    for layer in model.modules():
        if isinstance(layer, GDN):
            layer.set_effective(torch.rand(N) + 0.5, torch.rand(N, N) * 0.2)
        elif hasattr(layer, "bias"):
            layer.bias.normal_(std=0.1)
    if gains:
        rise = torch.linspace(-1.5, 0.4, len(model.gain))[:, None]
        model.gain.copy_(rise + 0.2 * torch.rand(M))
        model.inverse_gain.copy_(-rise + 0.2 * torch.rand(M))
    x_hat = model(as_tensor(picture()), HALF, noise=False).x_hat
    model.g_s[-1].weight.mul_(0.4 / x_hat.abs().mean())
    calibrate(model, [as_tensor(picture(seed=s)) for s in (0, 1)])
    return model


@pytest.fixture(scope="module")
def shipped():
    """Models as read from their files, one of each kind."""
    return {
        kind: models.from_bytes(lower(tiny(kind, gains=True), kind, {}).to_bytes())
        for kind in KINDS
    }


# In integers


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_torch_and_programs_agree_in_all_executors(kind):
    onnx = pytest.importorskip("lichen.executors.onnx", reason="needs the [onnx] extra")
    model = tiny(kind)
    shipped = lower(model, kind, {})
    model.set_quantized(True)
    pixels = picture(seed=5)  # not one of those that calibrated
    e_y = shipped.programs["g_a"].outputs[0].exponent
    y = integers(model.analyse(as_tensor(pixels)), e_y)
    symbols = integers(torch.round(model.analyse(as_tensor(pixels))), 0)
    x_hat = integers(model(as_tensor(pixels), HALF, noise=False).x_hat, 7)
    assert y.std() > 1 and symbols.std() > 1 and x_hat.std() > 5
    for executor in (ReferenceExecutor(), best(), TorchExecutor(), onnx.OnnxExecutor()):
        analysis = codec.analyse(shipped, executor, pixels)
        assert np.array_equal(analysis.y, y), executor.name
        coded = codec.encode(shipped, executor, analysis, POSITION)
        assert np.array_equal(coded.latents["symbols"], symbols), executor.name
        decoded = codec.synthesise(shipped, executor, coded.latents, POSITION, 64, 64)
        assert np.array_equal(decoded.transpose(2, 0, 1), x_hat + 128), executor.name


@torch.no_grad()
def test_medians_and_gains_in_integers():
    """Rounding is about the medians, at any rate; the synthesis puts them back."""
    model = tiny("2018", gains=True)
    shipped = lower(model, "x", {})
    model.set_quantized(True)
    position = POSITION + 8  # between rows of gains
    gains = shipped.gains(position)
    x, e = picture(seed=5), model.dequantized.output_exponent
    coded = codec.encode(shipped, best(), codec.analyse(shipped, best(), x), position)
    # gains have 15 bits in the Program
    scale = next(op for op in shipped.programs["quantize"].ops if isinstance(op, ops.Scale))
    e_y = shipped.programs["g_a"].outputs[0].exponent
    gain = torch.from_numpy(gains["gain"] * 2.0 ** (e_y - scale.shift)).float()
    v = model.analyse(as_tensor(x)) * gain[:, None, None]
    symbols = torch.round(v)
    assert np.array_equal(integers(symbols, 0), coded.latents["symbols"])
    floats = model.gains(torch.tensor([position / 800]))
    assert torch.allclose(floats[0].flatten(), gain, rtol=1e-3)

    scale = next(op for op in shipped.programs["g_s"].ops if isinstance(op, ops.Scale))
    inverse = torch.from_numpy(gains["inverse_gain"] * 2.0 ** -(scale.shift + e)).float()
    y = model.dequantize(symbols, inverse[:, None, None])
    found = codec.decode(shipped, best(), *stream_of(shipped, coded, 64, 64))
    assert np.array_equal(found.transpose(2, 0, 1), integers(model.synthesise(y), 7) + 128)


@torch.no_grad()
def test_rounding_is_about_the_medians_at_quality_100():
    """v = gain y - median and y' = inverse gain (symbols + median) there, as in CompressAI."""
    model, x = tiny("2018", gains=True), as_tensor(picture())
    medians, (gain, inverse) = model.entropy_bottleneck.medians().clone(), model.gains(TOP)
    assert medians.abs().min() > 0.1 and (gain - 1).abs().min() > 0.1
    found, symbols = model.analyse(x) * gain, torch.randn(1, M, 4, 4)
    y = model.dequantize(symbols, inverse)
    assert torch.allclose(y, (symbols + medians) * inverse, atol=1e-5)
    model.entropy_bottleneck.quantiles[:, 0, 1].zero_()
    assert torch.allclose(found, model.analyse(x) * gain - medians, atol=1e-4)


def stream_of(model, coded, width, height):
    header = container.Header(
        width, height, 3, False, False, 0, model.digest or bytes(8), coded.position, coded.stripe
    )
    return header, coded.stripes


@torch.no_grad()
def test_kernels_of_9_with_stride_4_are_torch_s():
    layer = FactorizedPrior(N, M, "9-5-5").g_s[-1]
    theirs = torch.nn.ConvTranspose2d(N, 3, 9, 4, padding=4, output_padding=3)
    theirs.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(1, N, 5, 6)
    assert torch.equal(layer(x), theirs(x)) and layer(x).shape == (1, 3, 20, 24)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_integers_cost_little(kind):
    """Equalised, calibrated and corrected, integers make nearly the picture of the floats."""
    model = tiny(kind)
    samples = [as_tensor(picture(seed=s)) for s in (0, 1, 2)]
    x = as_tensor(picture(seed=7))
    before = model(x, TOP, noise=False)
    equalise(model, samples)
    after = model(x, TOP, noise=False)
    # in float nothing but sums in another order, which may move a latent over an edge
    for one, other in zip(before[:2], after[:2]):
        assert (one - other).abs().mean() < 1e-3 * one.abs().mean()
    calibrate(model, samples)
    correct_biases(model, samples)
    y = torch.round(model.analyse(x) * torch.exp(model.gain[-1])[:, None, None])
    inverse = torch.exp(model.inverse_gain[-1])[:, None, None]
    real = model.synthesise(model.dequantize(y, inverse))
    inside = real.abs() < 1  # integers saturate, as pixels do
    assert inside.float().mean() > 0.3
    model.set_quantized(True)
    found = model.synthesise(model.dequantize(y, inverse))
    noise = ((found - real)[inside] * 128).square().mean()
    assert 10 * math.log10(255**2 / noise) > 30


def test_extreme_gains_lower():
    """Shifts stay within the contract where a rate needs no bits, or all of them."""
    for rise in (-9.0, 9.0):
        model = tiny("2016")
        with torch.no_grad():
            model.gain[0] += rise
            model.inverse_gain[-1] -= rise
        lower(model, "x", {})


# The prior and its tables


@torch.no_grad()
def test_tables_hold_the_prior_at_every_rate():
    model = tiny("2018", gains=True)
    tables, numbers = latent_tables(model)
    assert numbers.shape == (51, M) and len(tables) == 51 * M
    for row in (0, 20, 50):
        gain = model.gains(torch.tensor([row / 50]))[0]
        for symbol in (-2, 0, 3):
            v = torch.full((1, M, 1, 1), float(symbol))
            p = model.likelihood(v, gain).flatten()
            for channel, number in enumerate(numbers[row]):
                entry = symbol - tables.offsets[number]
                if not 0 <= entry < tables.lengths[number] - 1:
                    assert p[channel] < 1e-3
                    continue
                frequency = tables.frequencies[tables.bases[number] + entry]
                assert abs(frequency / 65536 - p[channel]) < 2e-3 * p[channel] + 3e-5
    # coarser steps, fewer symbols
    lengths = [tables.lengths[row].mean() for row in numbers]
    assert lengths[0] < 0.5 * lengths[50]
    # one rate, one row of tables
    model.gain.zero_()
    tables, numbers = latent_tables(model)
    assert len(tables) == M and (numbers == np.arange(M)).all()


@torch.no_grad()
def test_likelihood_is_that_of_the_bins():
    """At other gains the prior is the same, cut into other steps; all of it is used."""
    model = tiny("2018", gains=True)
    for position in (0.0, 0.3, 1.0):
        gain = model.gains(torch.tensor([position]))[0]
        v = torch.arange(-3000.0, 3001.0).expand(1, M, 1, -1)
        assert torch.allclose(model.likelihood(v, gain).sum(3), torch.ones(1), atol=2e-3)
    gain = model.gains(TOP)[0]
    v = torch.randn(1, M, 4, 4)
    expected = model.entropy_bottleneck.likelihood(v + model.entropy_bottleneck.medians())
    assert torch.allclose(model.likelihood(v, gain), expected, rtol=1e-4)


def test_the_prior_fits_what_it_sees():
    """Near the empirical entropy of each channel, whatever its width, from a poor beginning."""
    torch.manual_seed(0)
    model = FactorizedPrior(N, M, "9-5-5", 1)
    with torch.no_grad():
        model.g_a[-1].weight.mul_(torch.logspace(-0.5, 0.8, M)[:, None, None, None])
        model.g_a[-1].bias.normal_(std=5)
    batches = [as_tensor(picture(height, 96, seed)) for seed, height in enumerate((192, 256, 128))]
    before = [parameter.clone() for parameter in model.g_a.parameters()]
    counts, low = latent_histogram(model, batches)
    assert counts.sum(1).tolist() == [6 * (12 + 16 + 8)] * M
    p = counts / counts.sum(1, keepdim=True)
    entropy = float(-(p * torch.log2(p.clamp_min(1e-12))).sum(1).mean())
    bits = fit_prior(model, batches, steps=200)
    assert bits[0] > 1.1 * entropy and entropy < bits[-1] < 1.08 * entropy
    assert all(torch.equal(a, b) for a, b in zip(before, model.g_a.parameters()))
    with torch.no_grad():
        found = [-torch.log2(model(x, TOP, noise=False).y_likelihood).sum() for x in batches]
    assert float(sum(found)) / counts.sum() == pytest.approx(bits[-1], rel=1e-2)
    assert (low, low + counts.shape[1] - 1) == (
        min(int(torch.round(model.analyse(x)).min()) for x in batches),
        max(int(torch.round(model.analyse(x)).max()) for x in batches),
    )


def test_a_reset_prior_is_logistic():
    prior = EntropyBottleneck(3)
    scale = torch.tensor([0.3, 5.0, 80.0])
    prior.reset(scale)
    with torch.no_grad():
        for i in range(5):
            getattr(prior, f"_bias{i}").zero_()
        x = torch.linspace(-3, 3, 7) * scale[:, None]
        logits = prior.logits(x[:, None])[:, 0]
    assert torch.allclose(logits, x / scale[:, None], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    model = tiny(kind, gains=True)
    x = as_tensor(picture())
    for quantized in (False, True):
        model.set_quantized(quantized)
        model.zero_grad()
        coded = model(x, HALF)
        assert coded.z_likelihood.shape == (1, 0, 1, 1)
        rate_distortion(coded, x, HALF, "mse")["loss"].backward()
        for name, parameter in model.named_parameters():
            if name != "entropy_bottleneck.quantiles":
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name


# A codec


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (70, 33), (1, 1)])
def test_streams_are_the_same_everywhere(shipped, kind, size):
    pixels = picture(*size)
    codecs = [Codec(shipped[kind], executor=ReferenceExecutor()), Codec(shipped[kind])]
    streams = [c.encode(from_array(pixels), quality=50, digest=True).data for c in codecs]
    assert streams[0] == streams[1]
    first, second = (c.decode(streams[0]).pixels for c in codecs)
    assert np.array_equal(first, second) and first.shape == pixels.shape
    assert container.read_header(streams[0]).order == container.FACTORISED


def test_stripes_and_threads_do_not_change_pixels(shipped):
    """A stripe has 4 rows of y for each 64 lines; the last one what is left."""
    model, pixels = shipped["2018"], picture(230, 48)
    decoded = []
    for stripe, threads in ((1, 1), (1, 3), (3, 1), (8, 2)):
        coder = Codec(model, threads=threads)
        data = coder.encode(from_array(pixels), quality=30, stripe=stripe).data
        stripes = container.read(data).stripes
        assert len(stripes) == {1: 4, 3: 2, 8: 1}[stripe] and not any(z for z, _ in stripes)
        decoded.append(coder.decode(data).pixels)
    assert all(np.array_equal(decoded[0], other) for other in decoded)


def test_rows_of_stripes(shipped):
    model = shipped["2016"]
    analysis = codec.analyse(model, best(), picture(230, 48))
    assert analysis.y.shape == (M, 15, 3)  # padded to 240 lines, not to 256
    coded = codec.encode(model, best(), analysis, POSITION, stripe=3)
    tables = model.tables_at(POSITION)
    from lichen import entropy

    for (_, data), rows in zip(coded.stripes, (slice(0, 12), slice(12, 15)), strict=True):
        expected = coded.latents["symbols"][:, rows].transpose(1, 2, 0).reshape(-1)
        indices = np.resize(tables, len(expected))
        assert np.array_equal(entropy.decode(data, indices, model.tables, lanes=4), expected)


def test_tables_are_those_of_the_nearest_row_of_gains(shipped):
    model = shipped["2016"]
    for position, row in (
        (0, 0),
        (7, 0),
        (8, 1),
        (23, 1),
        (24, 2),
        (791, 49),
        (792, 50),
        (800, 50),
    ):
        assert np.array_equal(model.tables_at(position), model.z_tables[row])
    assert len(np.unique(model.z_tables)) == 51 * M


def test_quality_sets_rate_and_tables(shipped):
    """Rate rises with quality, near the ideal code length at each."""
    model, pixels = shipped["2018 relu"], picture(128, 128)
    module = tiny("2018 relu", gains=True)
    module.set_quantized(True)
    sizes = []
    for quality in (0, 35, 100):
        data = Codec(model).encode(from_array(pixels), quality=quality).data
        sizes.append(sum(len(y) for _, y in container.read(data).stripes))
        with torch.no_grad():
            coded = module(as_tensor(pixels), torch.tensor([quality / 100]), noise=False)
        ideal = float(-torch.log2(coded.y_likelihood).sum()) / 8
        assert abs(sizes[-1] - 16 - ideal) < 0.02 * ideal + 4  # four states of 32 bits
    assert sizes[0] < 0.9 * sizes[1] < 0.9 * 0.9 * sizes[2]


def test_command_line(shipped, tmp_path, capsys):
    model, source = tmp_path / "model.safetensors", tmp_path / "in.png"
    model.write_bytes(shipped["2016 simplified"].to_bytes())
    Image.fromarray(picture(100, 75)).save(source)
    stream, target = tmp_path / "out.lic", tmp_path / "out.png"

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, capsys.readouterr()

    assert run("encode", "--model", model, "--digest", "--stripe", 64, source, stream)[0] == 0
    code, output = run("info", stream)
    assert code == 0 and "factorised" in output.out and "2 of 64 lines" in output.out
    code, output = run("verify", "--model", model, stream)
    assert code == 0 and "pixel digest right" in output.out
    assert run("decode", "--model", model, stream, target)[0] == 0
    expected = Codec(shipped["2016 simplified"]).decode(stream.read_bytes()).pixels
    assert np.array_equal(np.asarray(Image.open(target)), expected)
    data = bytearray(stream.read_bytes())
    data[len(data) // 2] ^= 1
    stream.write_bytes(data)
    assert run("verify", "--model", model, stream)[0] == BAD_DATA


# Damage


@pytest.fixture(scope="module")
def coded(shipped):
    model, pixels = shipped["2018"], picture(100, 40)
    analysis = codec.analyse(model, best(), pixels)
    return model, codec.encode(model, best(), analysis, POSITION, stripe=1)


def decode(model, coded, **changes):
    header, stripes = stream_of(model, coded, 40, 100)
    stripes = changes.pop("stripes", stripes)
    return codec.decode(model, best(), dataclasses.replace(header, **changes), stripes)


def test_damage_behind_the_checksums(coded):
    """Every byte of a substream: the coder sees it, or other symbols, never a crash."""
    model, right = coded
    expected, refused = decode(model, right), 0
    (nothing, data), second = right.stripes
    places = range(0, len(data), max(1, len(data) // 60))
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 0x10
        try:
            found = decode(model, right, stripes=((nothing, bytes(changed)), second))
        except StreamError:
            refused += 1
        else:
            assert found.shape == expected.shape and not np.array_equal(found, expected)
    assert refused > len(places) // 2


def test_stripes_cut_off_swapped_or_too_long(coded):
    model, right = coded
    (_, first), (_, second) = right.stripes
    wrong = [
        ((b"", first[:-2]), (b"", second)),
        ((b"", first + b"\0\0"), (b"", second)),
        ((b"", b""), (b"", second)),
        ((b"", second), (b"", first)),
    ]
    for stripes in wrong:
        with pytest.raises(StreamError):
            decode(model, right, stripes=stripes)


def test_headers_of_other_streams(coded):
    model, right = coded
    with pytest.raises(StreamError, match="decoding order is 1"):
        decode(model, right, order=container.HYPERPRIOR)
    for changes in ({"height": 128}, {"width": 60}, {"position": 800}):
        with pytest.raises(StreamError):
            decode(model, right, **changes)
    header, stripes = stream_of(model, right, 40, 100)
    with pytest.raises(container.ContractError, match="must have no z"):
        container.write(container.Stream(header, ((b"z", stripes[0][1]), stripes[1])))


def test_extreme_symbols_decode(shipped):
    """Symbols that no encoder finds, at both ends of 16 bits, saturate."""
    model = shipped["2016"]
    symbols = np.random.default_rng(0).choice([-32768, -1, 32767], (M, 4, 4)).astype(np.int16)
    codecs = ReferenceExecutor(), best()
    first, second = (
        codec.synthesise(model, executor, {"symbols": symbols}, 800, 64, 64) for executor in codecs
    )
    assert np.array_equal(first, second)


def test_model_files_must_fit_together(shipped):
    model = shipped["2018"]
    for tables in (model.z_tables[0], model.z_tables[:50], model.z_tables[:, 1:]):
        wrong = dataclasses.replace(model, z_tables=np.ascontiguousarray(tables))
        with pytest.raises(ModelError, match=r"z_tables must have the shape \(51, 8\)"):
            models.from_bytes(wrong.to_bytes())
    wrong = dataclasses.replace(model, z_tables=model.z_tables + np.uint16(1))
    with pytest.raises(ModelError, match="below 408"):
        models.from_bytes(wrong.to_bytes())
    wrong = dataclasses.replace(model, reduction=32)
    with pytest.raises(ModelError, match=r"'y' of shape \(8, 1, 1\) from .*, not \(8, 2, 2\)"):
        models.from_bytes(wrong.to_bytes())
    for name, other in (("g_s", "quantize"), ("quantize", "g_s"), ("g_a", "g_s")):
        wrong = dataclasses.replace(
            model, programs={**model.programs, name: shipped["2016"].programs[other]}
        )
        with pytest.raises(ModelError, match=f"{name} (refuses|must make)"):
            models.from_bytes(wrong.to_bytes())


# Weights of others


def xlic_state(seed=0):
    """A state dict with the names, shapes and conventions of X-LIC's file."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, inputs, outputs, kernel, transposed in (
        ("g_a.0", 3, N, 9, False),
        ("g_a.2", N, N, 5, False),
        ("g_a.4", N, M, 5, False),
        ("g_s.0", M, N, 5, True),
        ("g_s.2", N, N, 5, True),
        ("g_s.4", N, 3, 9, True),
    ):
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        weight = torch.randn(*shape, kernel, kernel, generator=generator)
        state[f"{name}.weight"] = weight * 1.5 / math.sqrt(inputs * kernel**2)
        if name != "g_a.4":
            state[f"{name}.bias"] = 0.2 * torch.randn(outputs, generator=generator)
    for name in ("g_a.1", "g_a.3", "g_s.1", "g_s.3"):
        state[f"{name}.beta"] = torch.rand(N, generator=generator) + 0.5
        state[f"{name}.gamma"] = torch.rand(N, N, generator=generator) * 0.2
    return state


@torch.no_grad()
def test_xlic_weights_load_by_name():
    """The formulas written out: pixels in 0..1, padding with black, effective beta and gamma."""
    s = xlic_state()
    model = from_checkpoint(s)
    assert model.arguments == {
        "n": N,
        "m": M,
        "kernels": "9-5-5",
        "power": 1,
        "activation": "gdn",
    }
    x = as_tensor(picture(48, 64))

    def gdn(h, name, inverse):
        n = F.conv2d(h.abs(), s[f"{name}.gamma"][:, :, None, None], s[f"{name}.beta"])
        return h * n if inverse else h / n

    h = F.conv2d((x * 128 + 128) / 255, s["g_a.0.weight"], s["g_a.0.bias"], 4, 4)
    h = F.conv2d(gdn(h, "g_a.1", False), s["g_a.2.weight"], s["g_a.2.bias"], 2, 2)
    y = F.conv2d(gdn(h, "g_a.3", False), s["g_a.4.weight"], None, 2, 2)
    h = F.conv_transpose2d(y, s["g_s.0.weight"], s["g_s.0.bias"], 2, 2, 1)
    h = F.conv_transpose2d(gdn(h, "g_s.1", True), s["g_s.2.weight"], s["g_s.2.bias"], 2, 2, 1)
    x_hat = F.conv_transpose2d(gdn(h, "g_s.3", True), s["g_s.4.weight"], s["g_s.4.bias"], 4, 4, 3)
    assert torch.allclose(model.analyse(x), y, atol=1e-5 * float(y.abs().max()))
    found = (model.synthesise(y) * 128 + 128) / 255
    assert torch.allclose(found, x_hat, atol=1e-5 * float(x_hat.abs().max()))
    # the papers' GDN on the same parameters, where it is asked for
    assert from_checkpoint(s, power=2).g_a[1].power == 2


def test_own_weights_load_unchanged(tmp_path):
    model = tiny("2016 simplified", gains=True)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    again = from_checkpoint(tmp_path / "own.pt")
    assert again.arguments == model.arguments
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    built = catalogue.build("balle2016", model.arguments)
    load_checkpoint(built, tmp_path / "own.pt")
    assert catalogue.name_of(built) == "balle2016"


def test_wrong_files_are_named():
    state = xlic_state()
    del state["g_s.3.gamma"]
    with pytest.raises(ModelError, match=r"missing \['g_s.3.gamma'\]"):
        from_checkpoint(state)
    state = xlic_state() | {"entropy_bottleneck._matrix0": torch.zeros(M, 3, 1)}
    with pytest.raises(ModelError, match=r"missing \['entropy_bottleneck._bias0'"):
        from_checkpoint(state)  # half a prior is none
    with pytest.raises(ModelError, match=r"found no g_a.0.weight; give a file of bmshj2018-fact"):
        from_checkpoint({"h_a.0.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"missing .*unexpected \['g_a.1.beta'"):
        load_checkpoint(FactorizedPrior(N, M, activation="relu"), xlic_state())


def test_arguments_are_checked():
    for arguments, message in (
        ({"n": 0}, "positive integers, not 0"),
        ({"kernels": "7"}, "one of 5-5-5-5, 9-5-5, not '7'"),
        ({"power": 3}, "1 or 2, not 3"),
        ({"activation": "elu"}, "'gdn' or 'relu', not 'elu'"),
    ):
        with pytest.raises(ValueError, match=message):
            FactorizedPrior(**arguments)


@pytest.mark.skipif(not XLIC.exists(), reason=f"X-LIC's weights are not in {XLIC.parent}")
@torch.no_grad()
def test_xlic_s_weights_on_kodim23():
    """38.96 dB from rounded latents, as the file's README says."""
    model = from_checkpoint(XLIC)
    assert model.arguments["n"] == model.latent_channels == 128
    x = as_tensor(np.asarray(Image.open(SAMPLE).convert("RGB")))
    x_hat = model(x, TOP, noise=False).x_hat
    mse = ((x_hat - x).clamp(-1 - x, 127 / 128 - x) * 128 / 255).square().mean()
    assert 10 * math.log10(1 / mse) == pytest.approx(38.96, abs=0.01)
