"""Minnen 2020: shapes, counts, gradients; integers to the last bit; real streams; damage."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the models need the [train] extra")

from lichen import container  # noqa: E402
from lichen import model as models  # noqa: E402
from lichen.api import Codec  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.errors import ModelError, StreamError  # noqa: E402
from lichen.executors import ReferenceExecutor  # noqa: E402
from lichen.executors.torch import TorchExecutor  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.balle2018 import ScaleHyperprior  # noqa: E402
from lichen.models.checkpoint import check_fit, own_values  # noqa: E402
from lichen.models.complexity import complexity  # noqa: E402
from lichen.models.gdn import GDN  # noqa: E402
from lichen.models.minnen2020 import (  # noqa: E402
    LATENT_EXPONENT,
    LRP_EXPONENT,
    LRP_LEVELS,
    ChannelWise,
    from_checkpoint,
    load_checkpoint,
    lrp_thresholds,
)
from lichen.models.student import quality_to_lambda  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.program import run  # noqa: E402
from lichen.program.check import macs_per_pixel  # noqa: E402
from lichen.training.loss import rate_distortion  # noqa: E402
from lichen.training.quantize import calibrate, correct_biases, equalise  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

HALF = torch.tensor([0.5])
POSITION = 400  # the same quality
SLICES = 3
TINY = {"n": 6, "m": 12, "slices": SLICES, "max_support_slices": 1, "hidden": (8, 6)}


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


@torch.no_grad()
def spread(model):
    """Give every part of a fresh model something to do."""
    model.g_a[6].weight.mul_(30)
    model.h_a[4].weight.mul_(8)
    model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-3, 3)
    for layer in model.modules():
        if isinstance(layer, GDN):
            channels = len(layer.beta)
            layer.set_effective(torch.rand(channels) + 0.5, torch.rand(channels, channels) * 0.2)
        elif hasattr(layer, "bias"):
            layer.bias.normal_(std=0.1)
    for k in range(model.slices):
        for transforms, size in (
            (model.cc_mean_transforms, 0.05),
            (model.cc_scale_transforms, 0.1),
            (model.lrp_transforms, 0.02),
        ):
            transforms[k][-1].weight.normal_(std=size)
        model.cc_scale_transforms[k][-1].bias.fill_(1.0)
    x_hat = model(as_tensor(picture()), HALF, noise=False).x_hat
    model.g_s[6].weight.mul_(0.3 / x_hat.abs().mean())


@pytest.fixture(scope="module")
def tiny():
    """A calibrated model whose means, scales and residuals have some spread."""
    torch.manual_seed(3)
    model = ChannelWise(**TINY)
    spread(model)
    calibrate(model, [as_tensor(picture(seed=s)) for s in (0, 1)])
    return model


@pytest.fixture(scope="module")
def shipped(tiny):
    tiny.set_quantized(False)
    return models.from_bytes(lower(tiny, "tiny", {}).to_bytes())


def integers(x, exponent):
    """The integers that a float tensor (1, C, H, W) carries; exact or an error."""
    scaled = x[0].double().numpy() * 2.0**exponent
    assert np.array_equal(scaled, np.round(scaled))
    return scaled.astype(np.int64)


def test_counts_are_the_published_ones():
    """93.8 + 93.8 + 256.5 kMAC/pixel: Yang & Mandt 2023 publish 187.6, 187.6 and 513.0 kFLOP.

    Their last figure is that of means and scales: hyper-synthesis and contexts, without h_a and
    latent residual prediction; their first two count additions of biases and the like too.
    """
    parts = complexity(ChannelWise()).parts
    macs = {part: cost.macs_per_pixel for part, cost in parts.items()}
    assert macs["g_a"] == pytest.approx(93_800, rel=2e-3) == macs["g_s"]
    assert macs["h_s"] + macs["slices"] == pytest.approx(256_500, abs=50)
    assert (macs["h_a"], macs["lrp"]) == (5_900, 130_940)


def test_every_parameter_learns_and_the_loss_falls():
    torch.manual_seed(0)
    model = catalogue.build("minnen2020", TINY)
    assert catalogue.name_of(model) == "minnen2020"
    with torch.no_grad():
        model.h_a[4].weight.mul_(8)  # so that some z do not round to 0, which teaches h_s nothing
    x = torch.cat([as_tensor(picture(seed=s)) for s in range(2)])
    position = torch.tensor([0.2, 0.8])
    weight = quality_to_lambda(position)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        terms = rate_distortion(model(x, position), x, weight, "mse")
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < 0.8 * losses[0]
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert silent == ["entropy_bottleneck.quantiles"]


@torch.no_grad()
def test_slices_see_the_first_slices_and_nothing_else():
    torch.manual_seed(0)
    model = ChannelWise(n=4, m=8, slices=4, max_support_slices=2, hidden=(6, 4))
    spread(model)
    means, scales = torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4)
    v = 3 * torch.randn(1, 8, 4, 4)
    y_hat, likelihood = model.code(v, means, scales, noise=False)
    for changed in range(4):
        other = v.clone()
        other[:, 2 * changed : 2 * changed + 2] += 2.3
        found, rates = model.code(other, means, scales, noise=False)
        for k in range(4):
            own = slice(2 * k, 2 * k + 2)
            sees = changed == k or (changed < k and changed < 2)
            assert torch.equal(found[:, own], y_hat[:, own]) != sees
            assert torch.equal(rates[:, own], likelihood[:, own]) != sees


@torch.no_grad()
def test_the_residual_is_the_nearest_level_of_the_hyperbolic_tangent():
    x = torch.arange(-(2**15), 2**15, dtype=torch.float64)
    level = torch.bucketize(x, lrp_thresholds(), right=True) - LRP_LEVELS // 2
    exact = torch.tanh(x / 2**LRP_EXPONENT) / 2 * 2**LATENT_EXPONENT
    assert torch.equal(level, torch.round(exact).long())
    assert (level.min(), level.max()) == (-LRP_LEVELS // 2, LRP_LEVELS // 2)


@torch.no_grad()
def test_torch_and_programs_agree(tiny):
    programs, gains = lower(tiny, "tiny", {}).programs, lower(tiny, "tiny", {}).gains(POSITION)
    tiny.set_quantized(True)
    pixels = picture(64, 128, seed=5)  # not one of those that calibrated
    x = as_tensor(pixels)
    tensors = {"x": (pixels ^ 0x80).view(np.int8).transpose(2, 0, 1)}

    def step(name):
        program = programs[name]
        inputs = {i.name: tensors[i.name] for i in program.inputs}
        tensors.update(run(program, inputs, {v.name: gains[v.name] for v in program.vectors}))

    for name in ("g_a", "h_a", "h_s"):
        step(name)
    v = tiny.latent.finish(tiny.analyse(x) * tiny.gains(HALF)[0])
    z = tiny.hyper_analyse(v)
    hyper = means, scales = tiny.hyper_synthesise(z)
    e = LATENT_EXPONENT
    for found, name, exponent in ((v, "v", e), (z, "z", 0), (means, "means", e)):
        assert np.array_equal(integers(found, exponent), tensors[name])
    assert np.array_equal(integers(scales, e), tensors["scales"])
    assert len(np.unique(tensors["z"])) > 3 and tensors["means"].std() > 0 < tensors["scales"].std()

    y_hat = []
    for k, part in enumerate(v.chunk(SLICES, 1)):
        for name in ("context", "quantize", "refine"):
            step(f"{name}.{k}")
        mean, scale = tiny.context(k, *hyper, y_hat)
        symbols = torch.round(part - mean)
        y_hat.append(tiny.refine(k, symbols, mean, means, y_hat))
        assert np.array_equal(integers(mean, e), tensors["mean"]) and mean.std() > 0
        assert np.array_equal(integers(tiny.table_index(scale), 0), tensors["index"])
        assert np.array_equal(integers(symbols, 0), tensors["symbols"]) and symbols.std() > 0.5
        assert np.array_equal(integers(y_hat[-1], e), tensors[f"y.{k}"])
        residual = y_hat[-1] - symbols - mean
        assert residual.std() > 0.05 and residual.abs().max() <= 0.5
        assert len(np.unique(tensors["index"])) > 3

    step("g_s")
    x_hat = tiny(x, HALF, noise=False).x_hat
    assert np.array_equal(integers(x_hat, 7), tensors["x"]) and tensors["x"].std() > 5


def executors():
    from lichen.executors.onnx import OnnxExecutor

    return [ReferenceExecutor(), TorchExecutor("cpu"), OnnxExecutor()]


def test_streams_are_the_same_everywhere(shipped):
    """Two stripes, sizes that need padding, every executor, one and three threads."""
    for shape, stripe in (((130, 70), 1), ((33, 64), 8)):
        pixels = from_array(picture(*shape))
        codec = Codec(shipped)
        encoded = codec.encode(pixels, quality=50, digest=True, stripe=stripe)
        decoded = codec.decode(encoded.data).pixels
        assert decoded.shape == pixels.pixels.shape
        assert len(container.read(encoded.data).stripes) == -(-shape[0] // 64 // stripe)
        others = [Codec(shipped, executor=executor) for executor in executors()]
        for other in (*others, Codec(shipped, threads=3)):
            again = other.encode(pixels, quality=50, digest=True, stripe=stripe)
            assert again.data == encoded.data
            assert np.array_equal(other.decode(encoded.data).pixels, decoded)


def test_quality_changes_the_rate_and_grey_pictures_work(shipped):
    codec, pixels = Codec(shipped), from_array(picture())
    sizes = [len(codec.encode(pixels, quality=q).data) for q in (0, 100)]
    assert sizes[0] != sizes[1] or np.array_equal(shipped.gain[0], shipped.gain[-1])
    grey = from_array(picture()[..., 0])
    assert codec.decode(codec.encode(grey).data).pixels.shape == (64, 64, 1)


def test_damaged_streams_are_refused(shipped):
    """Whatever the substreams hold: StreamError, or pixels where rANS cannot know."""
    codec = Codec(shipped)
    stream = container.read(codec.encode(from_array(picture(130, 70)), stripe=1).data)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        number, part = rng.integers(len(stream.stripes)), rng.integers(2)
        stripe = list(stream.stripes[number])
        data = bytearray(stripe[part])
        match rng.integers(3):
            case 0:
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            case 1:
                del data[rng.integers(len(data)) :]
            case 2:
                data += rng.bytes(2)
        stripe[part] = bytes(data)
        stripes = list(stream.stripes)
        stripes[number] = tuple(stripe)
        damaged = container.write(dataclasses.replace(stream, stripes=tuple(stripes)))
        try:
            assert codec.decode(damaged).pixels.shape == (130, 70, 3)
        except StreamError:
            refused += 1
    assert refused > 50


def test_every_symbol_of_a_stripe_is_in_one_substream_slice_after_slice(shipped):
    """docs/stream.md, section 2, written down again with the definition of the coder."""
    from lichen import codec as order
    from lichen.entropy import rans

    executor = ReferenceExecutor()
    analysis = order.analyse(shipped, executor, picture(130, 70))
    coded = order.encode(shipped, executor, analysis, POSITION, stripe=2)
    gains = shipped.gains(POSITION)
    tensors = run(shipped.programs["h_a"], {"y": analysis.y}, {"gain": gains["gain"]})
    tensors |= run(shipped.programs["h_s"], {"z": tensors["z"]})
    symbols = [[], []]
    decoders = [rans.Decoder(y, shipped.tables, lanes=4) for _, y in coded.stripes]
    for k in range(SLICES):
        for name in ("context", "quantize", "refine"):
            program = shipped.programs[f"{name}.{k}"]
            tensors |= run(program, {i.name: tensors[i.name] for i in program.inputs})
        for rows, found, decoder in zip((slice(0, 8), slice(8, 12)), symbols, decoders):
            index = tensors["index"][:, rows].transpose(1, 2, 0).reshape(-1)
            found.append(decoder.decode(index))
            wanted = tensors["symbols"][:, rows].transpose(1, 2, 0).reshape(-1)
            assert np.array_equal(found[-1], wanted)
    for decoder in decoders:
        decoder.finish()


def test_model_files_must_fit_together(shipped):
    def refused(match, **changes):
        with pytest.raises(ModelError, match=match):
            models.from_bytes(dataclasses.replace(shipped, **changes).to_bytes())

    programs = dict(shipped.programs)
    without = {k: v for k, v in programs.items() if k != "refine.1"}
    refused(r"a Program refine\.1 that gives 'y\.1'", programs=without)
    refused("context", programs={k: v for k, v in programs.items() if "." not in k})
    refused(r"refine\.1 that gives 'y\.1'", programs=programs | {"refine.1": programs["refine.0"]})
    refused(r"its input 'y\.0'", programs=programs | {"context.0": programs["context.2"]})
    short = dataclasses.replace(programs["h_s"], outputs=programs["h_s"].outputs[:1])
    refused("its input 'scales'", programs=programs | {"h_s": short})


def test_cost_is_counted_in_both_directions(shipped):
    encode, decode = models.kmac_per_pixel(shipped)
    model = ChannelWise(**TINY)
    parts = complexity(model).parts
    shared = sum(parts[part].macs_per_pixel for part in ("h_s", "slices", "lrp"))
    # layers that read 16 bits count twice in Programs: the first of each transform
    shared += sum(layers[0].weight.numel() / 16**2 for layers in model.slice_transforms())
    shared += 2 * model.h_mean_s[0].weight.numel() / 64**2
    shared += TINY["n"] / 64**2 + TINY["m"] / 16**2  # medians, and the centre of the residual
    alone = {k: macs_per_pixel(shipped.programs[k], r) for k, r in (("g_a", 1), ("g_s", 16))}
    h_a = macs_per_pixel(shipped.programs["h_a"], 16)
    assert decode == pytest.approx((shared + alone["g_s"]) / 1000)
    assert encode == pytest.approx((shared + alone["g_a"] + h_a) / 1000)


def test_checkpoints_load_by_name_and_wrong_ones_say_why(tmp_path, tiny):
    path = tmp_path / "tiny.pt"
    tiny.set_quantized(False)
    torch.save(tiny.state_dict(), path)
    model = from_checkpoint(path)
    assert model.arguments == tiny.arguments
    x = as_tensor(picture())
    with torch.no_grad():
        assert torch.equal(model(x, HALF, noise=False).x_hat, tiny(x, HALF, noise=False).x_hat)
        # of others: no gains, no exponents, pixels in 0..1
        own = own_values(tiny)
        foreign = {k: v.clone() for k, v in tiny.state_dict().items() if k not in own}
        other = from_checkpoint(foreign)
        assert torch.allclose(other.g_a[0].weight, tiny.g_a[0].weight * 256 / 255)
        assert not other.gain.any()
    state = tiny.state_dict()
    state["cc_mean_transforms.0.5.weight"] = state.pop("lrp_transforms.1.2.bias")
    with pytest.raises(ModelError) as error:
        load_checkpoint(ChannelWise(**TINY), state)
    assert "missing ['lrp_transforms.1.2.bias']" in str(error.value)
    assert "unexpected ['cc_mean_transforms.0.5.weight']" in str(error.value)
    with pytest.raises(ModelError, match=r"g_a\.6\.weight"):
        from_checkpoint({"g_a.0.weight": torch.zeros(3, 3, 5, 5)})
    with pytest.raises(ModelError, match="channel-wise"):
        from_checkpoint(ScaleHyperprior(4, 4).state_dict())


def test_transforms_of_a_hyperprior_start_it():
    """g_a, g_s, gains and prior have the names and shapes of balle2018 with means."""
    source = ScaleHyperprior(TINY["n"], TINY["m"], means=True)
    model = ChannelWise(**TINY)
    own, other = model.state_dict(), source.state_dict()
    same = ("g_a.", "g_s.", "gain", "inverse_gain", "entropy_bottleneck.")
    warm = {name: value for name, value in other.items() if name.startswith(same)}
    check_fit(model, warm, "the hyperprior", own.keys() - warm.keys())
    assert {name for name in own if name.startswith(same)} == warm.keys()


@pytest.mark.parametrize("arguments", [{"slices": 5}, {"slices": 0}, {"max_support_slices": -1},
                                       {"hidden": (3,)}, {"n": 0}])  # fmt: skip
def test_impossible_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ChannelWise(**TINY | arguments)


@torch.no_grad()
def test_fitting_to_integers_changes_little():
    """Equalisation is exact in float; after calibration and correction, integers stay near."""
    torch.manual_seed(5)
    model = ChannelWise(**TINY)
    spread(model)
    samples = [as_tensor(picture(seed=s)) for s in (0, 1)]
    x = as_tensor(picture(seed=7))
    before = model(x, HALF, noise=False)
    equalise(model, samples)
    after = model(x, HALF, noise=False)
    assert (before.x_hat - after.x_hat).abs().mean() < 0.02  # a symbol may round the other way
    calibrate(model, samples)
    correct_biases(model, samples[:1], (0.5,))
    model.set_quantized(True)
    found = model(x, HALF, noise=False)
    error = (found.x_hat - before.x_hat.clamp(-1, 1)).abs().mean()
    bits, real = (float(-torch.log2(coded.y_likelihood).sum()) for coded in (found, before))
    assert error < 0.05 and bits == pytest.approx(real, rel=0.03)


def test_the_command_line_codes_a_real_file(shipped, tmp_path, capsys):
    Image.fromarray(picture(70, 90)).save(tmp_path / "x.png")
    (tmp_path / "tiny.safetensors").write_bytes(shipped.to_bytes())
    of_model = ["--model", str(tmp_path / "tiny.safetensors")]
    stream, decoded = str(tmp_path / "x.lic"), str(tmp_path / "y.png")

    def shell(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    shell("encode", tmp_path / "x.png", stream, "--digest", *of_model)
    assert json.loads(shell("info", "--json", stream))["order"] == "channel-wise"
    shell("verify", stream, *of_model)
    shell("decode", stream, decoded, *of_model)
    pixels = Codec(shipped).decode((tmp_path / "x.lic").read_bytes()).pixels
    assert np.array_equal(np.asarray(Image.open(decoded)), pixels) and pixels.shape == (70, 90, 3)


@torch.no_grad()
def test_wide_inputs_are_held_where_int32_needs_it():
    """Weights of 127 on inputs of 16 bits: Programs pass their check, and torch agrees."""
    torch.manual_seed(1)
    model = ChannelWise(n=80, m=24, slices=2, hidden=(4, 3))
    wide = (model.h_mean_s, model.h_scale_s, *model.slice_transforms())
    for layers in wide:
        layers[0].weight.fill_(127)
        layers[0].bias.fill_(0)
        layers[0].set_exponent(-19)
        layers[2].set_exponent(-19)
        layers[-1].weight.normal_(std=1e-6)
    programs = lower(model, "wide", {}).programs  # which checks the bounds
    clamps = [op for p in programs.values() for op in p.ops if getattr(op, "low", 0) < 0]
    assert len(clamps) == len(wide)
    model.set_quantized(True)
    tensors = {
        name: np.random.default_rng(0).integers(low, 32768, (channels, 4, 4)).astype(np.int16)
        for name, low, channels in (("means", 0, 24), ("scales", 0, 24), ("y.0", -32768, 12))
    }
    inputs = {input.name: tensors[input.name] for input in programs["context.1"].inputs}
    found = run(programs["context.1"], inputs)
    means, scales, y = (torch.from_numpy(a[None] / 2.0**LATENT_EXPONENT).float()
                        for a in tensors.values())  # fmt: skip
    mean, scale = model.context(1, means, scales, [y])
    assert np.array_equal(integers(mean, LATENT_EXPONENT), found["mean"])
    assert np.array_equal(integers(model.table_index(scale), 0), found["index"])
    assert found["mean"].std() > 0
