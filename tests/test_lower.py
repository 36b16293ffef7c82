"""Lowering: the quantised torch forward pass and the integer Programs agree to the last bit."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="lowering needs the [train] extra")

from lichen import model as models  # noqa: E402
from lichen.api import Codec  # noqa: E402
from lichen.errors import ModelError  # noqa: E402
from lichen.executors import ReferenceExecutor  # noqa: E402
from lichen.lower import Builder, lower_balle2018, lower_student  # noqa: E402
from lichen.models.balle2018 import ScaleHyperprior, scale_thresholds  # noqa: E402
from lichen.models.gdn import GDN  # noqa: E402
from lichen.models.layers import Conv2d, Stack, held  # noqa: E402
from lichen.models.priors import scale_table  # noqa: E402
from lichen.models.student import QUALITY_ROWS, Student, to_symbols  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.program import ops, run  # noqa: E402
from lichen.program.check import accumulator_bound  # noqa: E402
from lichen.training.quantize import calibrate, correct_biases, equalise  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

HALF = torch.tensor([0.5])
POSITION = 400  # the same quality
KINDS = ["student", "student fine", "relu", "gdn", "relu means", "gdn means"]


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


def tiny(kind):
    """Make a calibrated model with random weights whose latents and scales have some spread."""
    torch.manual_seed(3)
    if "student" in kind:
        fine = {"fine_width": 8, "coarse_width": 24, "latents": 40, "hyper_reduction": 32,
                "hyper_levels": 3}  # fmt: skip
        model = (
            Student(8, (1, 1, 0), (1, 1, 0), **fine)
            if "fine" in kind
            else Student(8, (1, 1), (1, 1))
        )
        with torch.no_grad():
            for layer in (model.analysis_branch[-1], model.mean, model.synthesis_branch[-2]):
                layer.weight.normal_(std=0.05)
            model.index.weight.normal_(std=0.5)
            model.gain.fill_(2.0)
            model.inverse_gain.fill_(-2.0)
    else:
        model = ScaleHyperprior(8, 12, "means" in kind, "gdn" if "gdn" in kind else "relu")
        with torch.no_grad():
            model.g_a[6].weight.mul_(30)
            model.g_s[0].weight.mul_(0.1)
            model.h_a[4].weight.mul_(8)
            model.h_s[4].weight.mul_(2)
            model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-3, 3)
            for layer in model.modules():
                if isinstance(layer, GDN):
                    layer.set_effective(torch.rand(8) + 0.5, torch.rand(8, 8) * 0.2)
                elif hasattr(layer, "bias"):
                    layer.bias.normal_(std=0.1)
            model.h_s[4].bias.add_(1.0)
            x_hat = model(as_tensor(picture()), HALF, noise=False).x_hat
            model.g_s[6].weight.mul_(0.3 / x_hat.abs().mean())
    calibrate(model, [as_tensor(picture(seed=s)) for s in (0, 1)], (0.0, 0.5, 1.0))
    return model


def lowered(model, kind):
    return (lower_student if "student" in kind else lower_balle2018)(model, kind, {})


def integers(x, exponent):
    """The integers that a float tensor (1, C, H, W) carries; exact or an error."""
    scaled = x[0].double().numpy() * 2.0**exponent
    assert np.array_equal(scaled, np.round(scaled))
    return scaled.astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_torch_and_programs_agree(kind):
    model = tiny(kind)
    programs = lowered(model, kind).programs
    exponents = {output.name: output.exponent for p in programs.values() for output in p.outputs}
    gains = lowered(model, kind).gains(POSITION)
    model.set_quantized(True)
    pixels = picture(seed=5)  # not one of those that calibrated
    x, centred = as_tensor(pixels), (pixels ^ 0x80).view(np.int8).transpose(2, 0, 1)

    y = run(programs["g_a"], {"x": centred})["y"]
    assert np.array_equal(integers(model.analyse(x), exponents["y"]), y) and y.std() > 0

    latents = run(programs["h_a"], {"y": y}, {"gain": gains["gain"]})
    v = torch.from_numpy(latents["v"].astype(np.float32))[None] * 2.0 ** -exponents["v"]
    if "student" not in kind:  # whose gain has 15 bits in the Program and 24 in torch
        found = model.latent.finish(model.analyse(x) * model.gains(HALF)[0])
        assert torch.equal(found, v)
    z = model.hyper_analyse(v)
    assert np.array_equal(integers(z, 0), latents["z"]) and len(np.unique(latents["z"])) > 3

    hyper = run(programs["h_s"], {"z": latents["z"]})
    mean, second = model.hyper_synthesise(z)
    index = second if "student" in kind else model.table_index(second)
    assert np.array_equal(integers(mean, exponents["mean"]), hyper["mean"])
    assert np.array_equal(integers(index, 0), hyper["index"])
    assert len(np.unique(hyper["index"])) > 3
    assert (hyper["mean"].std() > 0) == ("student" in kind or "means" in kind)

    quantize, given = programs["quantize"], latents | hyper
    symbols = run(quantize, {x.name: given[x.name] for x in quantize.inputs})["symbols"]
    rounded = to_symbols(v - mean, index) if "student" in kind else torch.round(v - mean)
    assert np.array_equal(integers(rounded, 0), symbols) and symbols.std() > 0.5

    inputs = {"symbols": symbols, "mean": hyper["mean"]}
    x_hat = run(programs["g_s"], inputs, {"inverse_gain": gains["inverse_gain"]})["x"]
    if "student" in kind:
        inverse = torch.from_numpy(gains["inverse_gain"].astype(np.float32))[None, :, None, None]
        product = next(op for op in programs["g_s"].ops if isinstance(op, ops.Scale))
        e = product.shift + model.dequantized.output_exponent - 4  # of inverse_gain
        y_hat = model.dequantized.finish((rounded + mean) * inverse * 2.0**-e)
        found = model.synthesise(y_hat)
    else:
        found = model(x, HALF, noise=False).x_hat
    assert np.array_equal(integers(found, 7), x_hat) and x_hat.std() > 5


@pytest.mark.parametrize("kind", ["relu", "gdn means", "student fine"])
def test_encode_and_decode_through_the_codec(kind):
    """Bytes of a real stream, with and without padding, in the reference and the native code."""
    model = models.from_bytes(lowered(tiny(kind), kind).to_bytes())
    for shape in ((64, 64), (70, 33), (161, 33)):  # the last one in two stripes
        pixels = picture(*shape)
        codecs = [Codec(model, executor=ReferenceExecutor()), Codec(model)]
        streams = [
            codec.encode(from_array(pixels), quality=50, digest=True, stripe=2) for codec in codecs
        ]
        assert streams[0].data == streams[1].data
        first, second = (codec.decode(streams[0].data).pixels for codec in codecs)
        assert np.array_equal(first, second) and first.shape == pixels.shape


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("exponent", [-2, 3, 9])  # of the input: peaks of 2**17, 4096, 64
@torch.no_grad()
def test_gdn_is_exact_in_torch_and_near_its_float(power, inverse, exponent):
    generator = torch.Generator().manual_seed(power)
    channels = 16
    top = 32767 * 2.0**-exponent
    layer = GDN(channels, inverse=inverse, power=power, dtype="s16")
    gamma = torch.rand(channels, channels, generator=generator) / channels / top**power
    layer.set_effective(torch.rand(channels, generator=generator) + 0.5, 4 * gamma)
    x = torch.randn(1, channels, 24, 24, generator=generator) * 6000
    x[0, :, 0, :3] = torch.tensor([0.0, -32768.0, 32767.0])
    x = x.round().clamp(-32768, 32767) * 2.0**-exponent
    real = layer(x)
    layer.set_exponent(math.floor(math.log2(32767 / float(real.abs().max()))))
    layer.quantized = True
    found = layer(x, exponent)
    with torch.enable_grad():  # as in training
        assert torch.equal(layer(x, exponent), found)

    builder = Builder()
    builder.input("x", channels, "s16", exponent)
    builder.gdn("y", "x", layer)
    program = builder.build("gdn", ["y"])
    y = run(program, {"x": integers(x, exponent).astype(np.int16)})["y"]
    assert np.array_equal(integers(found, layer.output_exponent), y)
    noise = (found - real).square().mean()
    assert 10 * math.log10(real.square().mean() / noise) > 50  # dB; 8-bit gamma sets the limit


@pytest.mark.parametrize("power", [1, 2])
@torch.no_grad()
def test_gdn_of_many_channels_keeps_its_sums_in_31_bits(power):
    e, channels = (20, 300) if power == 1 else (17, 250)
    layer = GDN(channels, power=power, dtype="s16", exponent=e)
    # nearly 255 / 256: as large as 8 bits make it, so that gamma must give up bits
    layer.set_effective(torch.ones(channels), torch.full((channels, channels), 0.99))
    builder = Builder()
    builder.input("x", channels, "s16", 7)
    builder.gdn("y", "x", layer)
    program = builder.build("gdn", ["y"])  # which checks the bound
    assert accumulator_bound(program.ops[0], 32768).max() > 0.35 * 2**31  # none too many
    x = torch.randn(1, channels, 2, 2).mul(1000).round().clamp(-32768, 32767) * 2.0**-7
    real = layer(x)
    layer.quantized = True
    y = run(program, {"x": integers(x, 7).astype(np.int16)})["y"]
    assert np.array_equal(integers(layer(x, 7), e), y) and abs(y).max() < 32767
    assert (layer(x, 7) - real).abs().max() < 0.02 * real.abs().max()


@torch.no_grad()
def test_corrected_biases_keep_the_mean():
    model = tiny("relu")
    x = as_tensor(picture())
    for k in (0, 2, 4):
        layer = model.g_a[k]
        layer.set_exponent(layer.output_exponent - 3)  # coarse, so that rounding shifts the mean
    real = model.analyse(x).mean(dim=(0, 2, 3))
    errors = []
    for _ in range(2):
        model.set_quantized(True)
        errors.append((model.analyse(x).mean(dim=(0, 2, 3)) - real).abs().mean())
        correct_biases(model, [x])
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("means", [False, True])
@torch.no_grad()
def test_integers_cost_little(means):
    """The picture that the integers make of float latents is near the float one."""
    model = tiny("gdn means" if means else "gdn")
    samples = [as_tensor(picture(seed=s)) for s in (0, 1, 2)]
    equalise(model, samples)
    calibrate(model, samples)
    correct_biases(model, samples)
    x = as_tensor(picture(seed=7))
    y = torch.round(model.analyse(x))
    real = model.synthesise(y)
    inside = real.abs() < 1  # integers saturate, as pixels do
    assert inside.float().mean() > 0.3
    model.set_quantized(True)
    found = model.synthesise(model.dequantized.finish(y))
    noise = ((found - real)[inside] * 128).square().mean()
    assert 10 * math.log10(255**2 / noise) > 28


@torch.no_grad()
def test_pixels_are_padded_with_black():
    """A black border around a picture changes nothing but where the picture lies."""
    model = ScaleHyperprior(4, 4, activation="relu")
    calibrate(model, [as_tensor(picture())], (0.5,))
    program = lower_balle2018(model, "x", {}).programs["g_a"]
    inside = picture(64, 64)
    framed = np.zeros((128, 128, 3), np.uint8)
    framed[32:96, 32:96] = inside
    conv, first, second = program.ops[0], [], []
    for found, pixels in ((first, inside), (second, framed)):
        centred = (pixels ^ 0x80).view(np.int8).transpose(2, 0, 1)
        short = Builder()
        short.input("x", 3, "s8", 7)
        short.add(conv, 8)
        short.stack("g", "pixels", Stack(model.g_a[0]))
        found.append(run(short.build("short", ["g.0"]), {"x": centred})["g.0"])
    assert np.array_equal(first[0], second[0][:, 16:48, 16:48]) and first[0].std() > 1


@torch.no_grad()
def test_wide_inputs_are_held_where_int32_needs_it():
    model = ScaleHyperprior(200, 200)
    readers = [model.g_a[6], model.h_a[0], model.h_s[0], model.g_s[0]]
    for layer in readers:
        layer.weight.fill_(127)
        layer.set_exponent(0)
    programs = lower_balle2018(model, "x", {}).programs  # which checks the bounds
    clamps = [op for p in programs.values() for op in p.ops if op.output.endswith(".held")]
    assert len(clamps) == 4
    model.set_quantized(True)
    for op, name, layer in zip(clamps, ("g_a", "h_a", "h_s", "g_s"), readers):
        reader = next(o for o in programs[name].ops if getattr(o, "input", "") == op.output)
        assert accumulator_bound(reader, op.high).max() < 2**31
        assert accumulator_bound(reader, op.high + op.high // 1000).max() > 2**31 - 2**22
        assert -op.low == op.high == held(torch.tensor(1e9), layer, 0)


@torch.no_grad()
def test_a_stack_holds_its_wide_tensors_in_torch_too():
    stack = Stack(GDN(200, dtype="s16", exponent=0), Conv2d(200, 1, 3, dtype="s16", exponent=-12))
    stack[0].set_effective(torch.full((200,), 1e-4), torch.zeros(200, 200))  # 100 x
    stack[1].weight.fill_(127)
    stack[1].bias.fill_(-390e6)  # near the sum below, so that the output does not saturate
    for layer in stack:
        layer.quantized = True
    builder = Builder()
    builder.input("x", 200, "s16", 0)
    builder.stack("s", "x", stack)
    program = builder.build("s", ["s.1"])
    limit = next(op.high for op in program.ops if isinstance(op, ops.Clamp))
    x = torch.tensor([limit // 100 - 60, 400.0]).expand(1, 200, 1, 2)
    y = run(program, {"x": integers(x, 0).astype(np.int16)})["s.1"]
    assert np.array_equal(integers(stack(x, 0), -12), y) and abs(y).max() < 32767


def test_a_scale_takes_the_nearest_table_in_ratio():
    thresholds, scales = scale_thresholds().numpy(), np.array(scale_table())
    for integer in (0, 1, 14, 15, 40, 1000, 20000, 32767):
        index = np.searchsorted(thresholds, integer, side="right")
        nearest = np.argmin(np.abs(np.log(scales / max(integer / 128, 1e-3))))
        assert index == nearest
    assert len(thresholds) == 63


@torch.no_grad()
def test_tables_of_z_are_centred_on_its_medians():
    """An integer z means z + median: its table holds the prior's probability of that."""
    model = ScaleHyperprior(3, 4, activation="relu")
    model.entropy_bottleneck.quantiles[:, 0, 1] = torch.tensor([-7.3, 0.2, 5.6])
    result = lower_balle2018(model, "x", {})
    tables = result.tables
    for channel, number in enumerate(result.z_tables):
        median = model.entropy_bottleneck.medians()[0, channel, 0, 0]
        for z in (-2, 0, 3):
            value = torch.zeros(1, 3, 1, 1)
            value[0, channel] = z + median
            p = float(model.entropy_bottleneck.likelihood(value)[0, channel])
            entry = tables.bases[number] + z - tables.offsets[number]
            assert abs(tables.frequencies[entry] / 65536 - p) < 2e-4


@torch.no_grad()
def test_each_quality_has_the_tables_of_its_level():
    model = tiny("student fine")
    result = lowered(model, "student fine")
    assert result.z_tables.shape == (models.GAIN_ROWS, model.hyper_channels)
    assert QUALITY_ROWS == models.GAIN_ROWS
    seen = set()
    for position in (0, 263, 264, 400, 535, 536, 800):
        level = model.level(torch.tensor([position / 800]))
        numbers = result.tables_at(position)
        first = 64 + model.hyper_channels * int(level)
        seen.add(int(level))
        assert list(numbers) == list(range(first, first + model.hyper_channels))
        value = torch.ones(1, model.hyper_channels, 1, 1)
        p = model.prior.likelihood(value, level=level).flatten()
        entries = result.tables.bases[numbers] + 1 - result.tables.offsets[numbers]
        assert np.abs(result.tables.frequencies[entries] / 65536 - p.numpy()).max() < 2e-4
    assert seen == {0, 1, 2}


def test_layers_without_integer_form_are_named():
    builder = Builder()
    builder.input("x", 3, "s8", 7)
    with pytest.raises(ModelError, match=r"Tanh at g\.1 has no integer form"):
        builder.stack("g", "x", Stack(Conv2d(3, 3, 1, dtype="s8"), torch.nn.Tanh()))


def _quantized(v: np.ndarray, mean: np.ndarray, index: np.ndarray) -> np.ndarray:
    program = lower_student(Student(8, (1, 1), (1, 1)), "s", {}).programs["quantize"]
    shape = (program.inputs[0].channels, 1, -1)
    given = {
        "v": v.astype(np.int16),
        "mean": mean.astype(np.int16),
        "index": index.astype(np.uint8),
    }
    return run(program, {k: x.reshape(shape) for k, x in given.items()})["symbols"].reshape(-1)


def test_an_encoder_rounds_towards_zero_where_the_table_tells_to():
    rng = np.random.default_rng(9)
    v, mean = rng.integers(-9000, 9000, (2, 36000))
    v[::2] = mean[::2] + rng.integers(-40, 40, 18000)
    index = rng.integers(0, 64, 36000)
    residual = torch.from_numpy((v - mean) / 16.0)
    found = _quantized(v, mean, index)
    assert np.array_equal(to_symbols(residual, torch.from_numpy(index * 1.0)).numpy(), found)
    plain = np.round((v - mean) / 16)
    assert np.array_equal(found[index >= 9], plain[index >= 9])
    assert (np.abs(found) <= np.abs(plain)).all() and (np.abs(plain - found) <= 1).all()

    # half a step is 8 sixteenths; the zone is 3, 2, 1, 0 of them wide from table 0, 3, 6, 9 on
    index = np.repeat([0, 2, 3, 5, 6, 8, 9, 63, 0], 4)
    wide = np.repeat([3, 3, 2, 2, 1, 1, 0, 0, 3], 4)
    residual = (8 + wide) * np.tile([1, 1, -1, -1], 9) + np.tile([0, 1, 0, -1], 9)
    expected = np.tile([0, 1, 0, -1], 9)
    assert np.array_equal(_quantized(residual, 0 * residual, index), expected)

    high, low = np.full(36, 32767), np.full(36, -32768)
    assert (_quantized(high, low, index) == 2048).all()
    assert (_quantized(low, high, index) == -2048).all()


def test_gradients_pass_through_the_dead_zone():
    residual = torch.tensor([0.2, 0.6, -0.6, 5.7], requires_grad=True)
    symbols = to_symbols(residual, torch.tensor([0.0, 0.4, 20.0, 2.6]))
    assert symbols.tolist() == [0, 0, -1, 6]
    symbols.sum().backward()
    assert residual.grad.tolist() == [1, 1, 1, 1]
