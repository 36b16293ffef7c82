"""Quantisation: grids, adaptive rounding, equalisation, budgets, the command; tiny models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="quantising needs the [train] extra")
pytest.importorskip("safetensors", reason="quantising needs the [train] extra")

from lichen import container  # noqa: E402
from lichen.api import Codec  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.errors import LichenError  # noqa: E402
from lichen.frugal import adaround, equalize, fit_tables, noise, quantize, ranges, sensitivity  # noqa: E402
from lichen.frugal.quantize import Plan, Snapshot, post_training  # noqa: E402
from lichen.frugal.ranges import Loss  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.model import from_bytes  # noqa: E402
from lichen.model import read as read_model  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.layers import Conv2d, ConvTranspose2d, Stack  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.program import ops  # noqa: E402
from lichen.training import run, scales  # noqa: E402
from lichen.training.recipe import Recipe  # noqa: E402

MODELS = {
    "balle2016": ("balle2016", {"n": 8, "m": 8}),
    "balle2018": ("balle2018", {"n": 8, "m": 8}),
    "relu": ("balle2018", {"n": 8, "m": 8, "activation": "relu"}),
    "means": ("balle2018", {"n": 8, "m": 8, "means": True}),
    "minnen2020": ("minnen2020", {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8]}),
    "student": ("student", {"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def network(kind: str, seed: int = 0):
    """Random weights whose branches are not silent and whose latents have some spread."""
    torch.manual_seed(seed)
    model = catalogue.build(*MODELS[kind]).eval()
    with torch.no_grad():
        model.gain.fill_(1.0)
        model.inverse_gain.fill_(-1.0)
        for layer in sensitivity.weighted(model).values():
            if not layer.weight.any():
                layer.weight.normal_(std=0.05)
    return model


def photographs(count: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some noise, (count, 3, 64, 64) in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    x = torch.nn.functional.interpolate(small, 64, mode="bilinear")
    x = x + 0.05 * torch.randn(x.shape, generator=generator)
    return torch.round(x.clamp(0, 1) * 255).sub(128) / 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of photographs."""
    path = tmp_path_factory.mktemp("photographs")
    for k, x in enumerate(photographs(3, seed=9)):
        pixels = (x * 128 + 128).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((96, 80)).save(path / f"{k}.png")
    return path


def checkpoint(where: Path, kind: str) -> Path:
    """Write a run's folder, as `lichen train` leaves it."""
    where.mkdir()
    name, arguments = MODELS[kind]
    made = Recipe(model=name, arguments=arguments, steps=10, batch=2, crop=64)
    (where / run.CONFIG).write_text(made.to_json())
    facts = {"step": "10", "quantized": "0"}
    run.save_tensors(network(kind).state_dict(), where / run.WEIGHTS, facts=facts)
    return where


# Programs


def weights_of(model) -> dict[str, np.ndarray]:
    return {
        f"{program.name}.{op.output}": op.weight
        for program in model.programs.values()
        for op in program.ops
        if isinstance(op, ops.Conv | ops.TransposedConv) and op.weight.size > 9
    }


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_torch_and_programs_agree_after_all_methods(kind):
    """What the calibration computes in torch is what the codec computes, at every width."""
    model = network(kind)
    plan = Plan(bits=6, methods=("bias", "adaround"))
    if kind == "relu":
        plan = Plan(bits=None, budget="75%", wide=True)
    report = post_training(model, [photographs()], plan)
    made = lower(model, kind, {})
    assert report.weight_bytes <= 0.76 * report.weight_bytes_8
    model.set_quantized(True)
    x = photographs(1, seed=5)
    pixels = (x[0] * 128 + 128).byte().permute(1, 2, 0).numpy()
    codec = Codec(from_bytes(made.to_bytes()))
    decoded = codec.decode(codec.encode(from_array(pixels), quality=50.0).data)
    with torch.no_grad():
        coded = model(x, torch.tensor([0.5]), noise=False)
    found = torch.round(coded.x_hat[0] * 128).add(128).clamp(0, 255).byte()
    # gains are the only constants that torch rounds otherwise: a symbol in a thousand may differ
    same = found.permute(1, 2, 0).numpy() == decoded.pixels
    assert same.mean() > 0.9


@pytest.mark.parametrize("bits", [4, 6])
def test_narrow_weights_are_narrow_in_the_program(bits):
    model = network("means")
    report = post_training(model, [photographs()], Plan(bits=bits))
    made = lower(model, "x", {})
    limit = 2 ** (bits - 1) - 1
    weights = weights_of(made)
    own = {k: w for k, w in weights.items() if "pixels" not in k and ".hat" not in k}
    assert len(own) == 14
    assert all(abs(w.astype(int)).max() <= limit for w in own.values())
    assert any(abs(w.astype(int)).max() == limit for w in own.values())
    assert report.weight_bytes_8 - report.weight_bytes == pytest.approx(
        sum(w.size for w in own.values()) * (8 - bits) / 8, abs=1
    )


# Adaptive rounding


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(3, 5, 3, dtype="s16", stride=2),
        Conv2d(3, 5, 5, dtype="s16", stride=2, padding=2),
        Conv2d(4, 5, 1, dtype="s16", attenuation=2),
        ConvTranspose2d(3, 5, 5, dtype="s16", stride=2),
        ConvTranspose2d(3, 5, 3, dtype="s16", stride=1),
    ],
)
@torch.no_grad()
def test_patches_times_weights_are_the_layer(layer):
    torch.manual_seed(0)
    x = torch.randn(2, layer.weight.shape[1 if isinstance(layer, Conv2d) else 0], 6, 8)
    weight, _ = layer.effective()
    whole = layer(x)
    padded, step = adaround._spread(layer, x)
    places = torch.tensor([[0, 0, 0], [1, 2, 1], [0, 2, 3], [1, *(s - 1 for s in whole.shape[2:])]])
    patches = adaround._patches(padded, layer.weight.shape[2], step, places)
    found = patches @ adaround.as_matrix(layer, weight).T + layer.effective()[1]
    wanted = torch.stack([whole[b, :, i, j] for b, i, j in places.tolist()])
    assert torch.allclose(found, wanted, atol=1e-5)
    back = adaround.from_matrix(layer, adaround.as_matrix(layer, layer.weight))
    assert torch.equal(back, layer.weight)


@torch.no_grad()
def known_inputs(width: int, seed: int = 0) -> adaround.Statistics:
    """Statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, width, generator=generator) + torch.randn(500, 1, generator=generator)
    square = x.T @ x / len(x)
    return adaround.Statistics(square, x.mean(0), x.mean(0))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_adaptive_rounding_errs_less_and_finds_the_best_of_few(bits):
    generator = torch.Generator().manual_seed(bits)
    real = torch.randn(6, 8, generator=generator)
    known = known_inputs(8)
    exponents = adaround.weight_exponents(real, 0, 2 ** (bits - 1) - 1)
    step = torch.exp2(-exponents.float())[:, None]
    nearest = torch.round(real / step) * step
    found = adaround.round_adaptively(real, exponents, bits, real, known)
    assert torch.equal(torch.round(found / step), found / step)
    assert bool(((found - real).abs() < step).all())
    error = adaround.output_error(found, real, known)
    assert bool((error <= adaround.output_error(nearest, real, known) + 1e-7).all())
    assert float(error.sum()) < float(adaround.output_error(nearest, real, known).sum())
    # all 256 roundings of a row: none that differs in one weight is better
    low = torch.floor(real / step)
    choices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    for row in range(6):
        every = (low[row] + choices).clamp(*(k * (2 ** (bits - 1) - 1) for k in (-1, 1)))
        every = every * step[row]
        errors = adaround.output_error(every, real[row].expand_as(every), known)
        near = (every != found[row]).sum(1) <= 1
        assert float(errors[near].min()) >= float(error[row]) - 1e-6


def test_a_search_clips_what_is_rare():
    """One large weight among many small ones, at 4 bits: clipping it errs less."""
    row = torch.cat([torch.full((1,), 1.0), 0.2 * torch.randn(400)])[None]
    assert adaround.search_grid(row, 4) > adaround.weight_exponents(row, 0, 7)
    flat = 0.99 * torch.linspace(-1, 1, 401)[None]
    assert adaround.search_grid(flat, 8) == adaround.weight_exponents(flat, 0, 127)


@torch.no_grad()
def test_bias_correction_keeps_the_mean_of_a_layer():
    torch.manual_seed(3)
    unit = Stack(Conv2d(4, 6, 3, dtype="u8"), Conv2d(6, 5, 3, dtype="s16", exponent=12))
    twin = Stack(Conv2d(4, 6, 3, dtype="u8"), Conv2d(6, 5, 3, dtype="s16", exponent=12))
    twin.load_state_dict(unit.state_dict())
    unit[0].set_exponent(2)  # coarse, so that rounding shifts the mean
    twin[0].set_exponent(2)
    calls = [(torch.rand(4, 4, 32, 32), 8)]

    def bias() -> float:
        adaround.quantize(unit, True)
        found = unit(*calls[0])
        adaround.quantize(unit, False)
        return float((found - twin(*calls[0])).mean((0, 2, 3)).abs().mean())

    before = bias()
    generator = torch.Generator().manual_seed(0)
    how = {"ranges": False, "adaptive": False, "bias": True}
    adaround.fit_unit(unit, twin, calls, **how, generator=generator)
    assert bias() < 0.3 * before


# Ranges and equalisation


@pytest.mark.parametrize(
    "kind, form",
    [
        ("student", "even"),
        ("relu", "even"),
        ("means", "even"),
        ("means", "peaks"),
        ("means", "noise"),
        ("balle2016", "noise"),
        ("minnen2020", "noise"),
    ],
)
@torch.no_grad()
def test_equalising_changes_nothing_in_float(kind, form, monkeypatch):
    monkeypatch.setattr(noise, "STEPS", 20)  # exact wherever the descent stops
    monkeypatch.setattr(scales, "HYPER_RANGE", 2.0)  # nothing is clipped
    model = network(kind)
    assert form in equalize.forms(model)
    x = photographs()
    for layer in list(sensitivity.weighted(model).values())[1::2]:  # uneven channels
        layer.weight.mul_(torch.logspace(-1, 1, layer.weight.shape[0])[:, None, None, None])
    before = model(x, torch.tensor([0.2, 0.8]), noise=False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert equalize.equalise(model, [x], form) > 0
    after = model(x, torch.tensor([0.2, 0.8]), noise=False)
    assert any(not torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    for one, other in zip(before, after):
        if one.numel():  # balle2016 has no z
            assert (one - other).abs().mean() < 1e-3 * one.abs().mean()


@torch.no_grad()
def test_a_pair_is_equalised_only_where_the_grids_gain():
    torch.manual_seed(0)
    first, reader = Conv2d(4, 6, 3, dtype="u8"), Conv2d(6, 4, 3, dtype="s16")
    even = torch.full((6,), 127 / 128)  # largest weights of 127 steps in every channel
    weight = first.weight / first.weight.abs().amax((1, 2, 3), keepdim=True)
    first.weight.copy_(weight * even[:, None, None, None])
    reader.weight.copy_(torch.randn(4, 1, 3, 3).expand_as(reader.weight))
    seen = scales.Seen(torch.full((6,), 0.99), torch.full((6,), 0.3), 0.3)
    pair = scales.Pair(first, (reader,))
    assert scales.best_scale(pair, seen) is None
    uneven = torch.tensor([1e-2, 1, 1, 1, 1, 30.0])
    first.weight.mul_(uneven[:, None, None, None])
    reader.weight.div_(uneven[None, :, None, None])
    scale = scales.best_scale(pair, scales.Seen(seen.peak * uneven, seen.power * uneven**2, 0.3))
    assert scale is not None and scale[0] / scale[1] > 10 and scale[5] / scale[1] < 0.2


def test_trained_exponents_are_what_others_have_to_beat():
    def exponents(model):
        return [layer.output_exponent for layer in ranges.free_layers(model)]

    model, x = network("student"), photographs()
    ranges.by_error(model, [x])
    wanted = exponents(model)
    for trained in (True, False):
        for layer in ranges.free_layers(model):
            layer.set_exponent(layer.output_exponent - 3)
        before = exponents(model)
        report = post_training(model, [x], Plan(methods=()), trained=trained)
        assert (exponents(model) == before) == trained
        assert report.steps[0]["step"] == ("as trained" if trained else "peaks")
    for layer, exponent in zip(ranges.free_layers(model), wanted, strict=True):
        layer.set_exponent(exponent - 3)
    report = post_training(model, [x], Plan(methods=("equalise",)), trained=True)
    assert [step["kept"] for step in report.steps] == [True, True]  # much too coarse: beaten


@torch.no_grad()
def test_ranges_by_peak_hold_and_by_error_clip():
    model = network("means")
    x = photographs()
    ranges.by_peak(model, [x])
    layer = model.g_a[0]  # s16
    top = float(layer((x + 1) / 2).abs().max()) * 2.0**layer.output_exponent
    assert 2**14 <= top < 2**15
    peaks = [layer.output_exponent for layer in ranges.free_layers(model)]
    ranges.by_error(model, [x])
    narrow = [layer for layer in ranges.free_layers(model) if layer.dtype != "s16"]
    by_error = [layer.output_exponent for layer in narrow]
    ranges.by_peak(model, [x])
    assert all(e >= layer.output_exponent for e, layer in zip(by_error, narrow, strict=True))
    assert peaks == [layer.output_exponent for layer in ranges.free_layers(model)]


def test_ranges_by_loss_never_raise_it():
    model, loss = network("relu"), Loss([photographs(4)])
    ranges.by_peak(model, loss.batches)
    for layer in ranges.free_layers(model):
        if layer.dtype == "u8":
            layer.set_exponent(layer.output_exponent - 2)  # much too wide
    before = loss(model)
    assert ranges.by_loss(model, loss) > 0
    assert loss(model) < before


# Mixed precision


def test_a_budget_goes_where_it_is_worth_most():
    table = {
        "dear": {4: 8.0, 5: 4.0, 6: 2.0, 7: 1.0, 8: 0.0},
        "cheap": {4: 0.4, 5: 0.2, 6: 0.1, 7: 0.05, 8: 0.0},
        "lucky": {4: -0.1, 5: 0.3, 6: -0.2, 7: 0.0, 8: 0.0},  # noise
    }
    counts = {"dear": 100, "cheap": 100, "lucky": 100}
    chosen = sensitivity.allocate(table, counts, 10, 10 + 225)
    assert chosen["dear"] > chosen["cheap"] > 0
    spent = sum(counts[k] * bits for k, bits in chosen.items()) / 8
    assert 225 - 100 / 8 < spent <= 225
    assert sensitivity.allocate(table, counts, 10, 309) == {"dear": 8, "cheap": 8, "lucky": 6}
    assert sensitivity.allocate(table, counts, 10, 310) == dict.fromkeys(table, 8)
    # the best of all choices, by trying them
    every = [(a, b, c) for a in range(4, 9) for b in range(4, 9) for c in range(4, 9)]
    fits = [k for k in every if sum(k) * 100 / 8 <= 225]
    cost = min(sum(table[n][bits] for n, bits in zip(table, k, strict=True)) for k in fits)
    assert sum(table[name][bits] for name, bits in chosen.items()) <= cost + 0.3
    with pytest.raises(LichenError, match=r"at least 160 bytes, 51\.6 % of the 310 bytes"):
        sensitivity.allocate(table, counts, 10, 100)


def test_the_table_is_what_one_narrow_layer_costs_and_leaves_the_model_alone():
    model, loss = network("relu"), Loss([photographs()])
    ranges.by_error(model, loss.batches)
    before = loss(model)
    table = sensitivity.measure(model, loss, widths=(4, 8))
    assert loss(model) == before
    assert list(table) == list(sensitivity.weighted(model))
    assert all(row[8] == 0 and row[4] != 0 for name, row in table.items() if "g_" in name)
    sensitivity.narrow(model.g_s[2], 4)
    assert table["g_s.2"][4] == loss(model) - before


@pytest.mark.parametrize("text", ["70%", "1000"])
def test_budgets_are_shares_or_bytes(text):
    assert sensitivity.budget_bytes(text, 10000) == (7000 if "%" in text else 1000)


@pytest.mark.parametrize("text", ["", "x", "-3", "0%", "nan", "inf"])
def test_other_budgets_are_refused(text):
    with pytest.raises(LichenError, match="a budget must be"):
        sensitivity.budget_bytes(text, 10000)


def test_wide_activations_keep_their_relu():
    model, x = network("relu"), photographs()
    ranges.by_error(model, [x])
    names = sensitivity.widenable(model)
    assert "g_a.0" in names and "g_a.6" not in names  # what makes the latents has 16 bits already
    sensitivity.widen(model.g_a[0], 3.0)
    program = lower(model, "x", {}).programs["g_a"]
    clamp = next(op for op in program.ops if op.output == "g_a.0")
    assert isinstance(clamp, ops.Clamp) and (clamp.low, clamp.high) == (0, 32767)
    model.set_quantized(True)
    assert float(model.g_a[0]((x + 1) / 2, 8).detach().min()) == 0


# The whole


def test_the_same_seed_gives_the_same_integers():
    digests = []
    for _ in range(2):
        model = network("relu")
        methods = ("bias", "adaround")
        post_training(model, [photographs()], Plan(bits=5, methods=methods, seed=1))
        digests.append(lower(model, "x", {}).to_bytes())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("kind", ["student", "balle2016", "minnen2020"])
def test_counted_tables_take_fewer_bits(kind):
    """They code the same symbols, sizes of tables stay, and a rare symbol can still be coded."""
    model = network(kind)
    post_training(model, [photographs()], Plan(methods=("ranges",)))
    before = from_bytes(lower(model, "x", {}).to_bytes())
    after, change = fit_tables.fit(before, [photographs(4, seed=1)], [photographs(2, seed=2)])
    assert change < 0.99
    assert np.array_equal(before.tables.lengths, after.tables.lengths)
    assert np.array_equal(before.tables.offsets, after.tables.offsets)
    assert after.tables.frequencies.min() >= 1
    after = from_bytes(after.to_bytes())
    sizes = {}
    for name, made in (("before", before), ("after", after)):
        sizes[name] = 0
        for pixels in fit_tables.pixels_of([photographs(2, seed=2)]):
            stream = Codec(made).encode(from_array(pixels), quality=50.0)
            sizes[name] += sum(len(z) + len(y) for z, y in container.read(stream.data).stripes)
            decoded = Codec(made).decode(stream.data).pixels
            assert np.array_equal(decoded, Codec(before).decode(
                Codec(before).encode(from_array(pixels), quality=50.0).data).pixels)  # fmt: skip
    assert sizes["after"] < sizes["before"]


def test_tables_that_do_not_help_are_not_taken():
    model = network("student")
    post_training(model, [photographs()], Plan(methods=("ranges",)))
    before = from_bytes(lower(model, "x", {}).to_bytes())
    flat = torch.full((8, 3, 64, 64), 0.25)
    after, change = fit_tables.fit(before, [flat], [photographs(2, seed=2)])
    assert change > 1 and after is before


def test_a_snapshot_restores_widths_grids_and_types():
    model = network("relu")
    post_training(model, [photographs()], Plan(bits=5, methods=("ranges",)))
    kept = Snapshot.of(model)
    state = lower(model, "x", {}).to_bytes()
    sensitivity.widen(model.g_a[0], 1.0)
    sensitivity.narrow(model.g_a[2], 4)
    assert lower(model, "x", {}).to_bytes() != state
    kept.restore(model)
    assert lower(model, "x", {}).to_bytes() == state
    other = network("relu", seed=4)
    kept.restore(other)
    assert lower(other, "x", {}).to_bytes() == state


def test_the_command_writes_a_model_that_codes(tmp_path, folder, capsys):
    ckpt, out = checkpoint(tmp_path / "run", "relu"), tmp_path / "m.safetensors"
    report = tmp_path / "report.json"
    options = ["--photographs", folder, "--crops", 2, "--crop", 64, "--seed", 3]
    mixed = ["--bits", "mixed", "--budget", "80%", "--report", report, "--activations", "mixed"]
    train = ["--qat-steps", 2, "--batch", 2]
    arguments = [ckpt, "-o", out, *mixed, *train, *options, "--threads", 1]
    assert main(["quantize", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert "4 bits" in printed.out and "g_a.0" in printed.out and "2 quantised steps" in printed.err
    told = json.loads(report.read_text())
    assert told["weight_bytes"] <= 0.8 * told["weight_bytes_at_8_bits"]
    bits = {row["layer"]: row["bits"] for row in told["layers"]}
    model = read_model(out)
    assert model.digest.hex() == told["weights"]
    said = json.loads(model.metadata["quantization"])
    assert said["layers"] == bits and min(bits.values()) < 8
    kept = [step["step"] for step in told["steps"] if step["kept"]]
    assert said["steps"] == kept + ["tables"] * (told["tables"] < 1)
    program = model.programs["g_a"]
    for op in program.ops:
        if isinstance(op, ops.Conv) and op.output in bits:
            assert abs(op.weight.astype(int)).max() < 2 ** (bits[op.output] - 1)
    picture = next(folder.iterdir())
    assert main(["encode", str(picture), str(tmp_path / "a.lic"), "--model", str(out)]) == 0
    assert main(["verify", str(tmp_path / "a.lic"), "--model", str(out)]) == 0
    assert main(["info", str(tmp_path / "a.lic")]) == 0


def test_quantised_training_keeps_widths_and_changes_weights(folder):
    model = network("student")
    post_training(model, [photographs()], Plan(bits=6, methods=("ranges",)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = Recipe(model="student", arguments=model.arguments, crop=64)
    quantize.fine_tune(model, made, sorted(folder.iterdir()), 2, batch=2, crop=64)
    assert all(layer.weight_bits == 6 for layer in sensitivity.weighted(model).values())
    after = model.state_dict()
    assert not torch.equal(after["index.weight"], before["index.weight"])
    exponents = [name for name in after if name.endswith("exponent")]
    assert all(torch.equal(after[name], before[name]) for name in exponents)
    limits = [abs(w.astype(int)).max() for w in weights_of(lower(model, "x", {})).values()]
    assert max(limits) <= 31


BAD = {
    "budget too small": (["--bits", "mixed", "--budget", "40%"], "the budget must be at least"),
    "no budget": (["--bits", "mixed"], "mixed bits need a budget"),
    "budget for 8 bits": (["--budget", "70%"], "a budget needs mixed bits"),
    "method": (["--method", "ranges,magic"], "a method must be one of ranges, .* not magic"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_options_are_one_line(case, tmp_path, folder, capsys):
    options, message = BAD[case]
    ckpt, out = checkpoint(tmp_path / "run", "relu"), tmp_path / "m.safetensors"
    common = ["--photographs", str(folder), "--crops", "2", "--crop", "64", "--quiet"]
    assert main(["quantize", str(ckpt), "-o", str(out), *common, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lichen: error: ")
    assert pytest.importorskip("re").search(message, error)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing half-written


def test_missing_things_are_named(tmp_path, folder, capsys):
    ckpt, out = checkpoint(tmp_path / "run", "relu"), str(tmp_path / "m.safetensors")
    assert main(["quantize", str(ckpt), "-o", out]) == 2
    assert "calibration photographs are missing: give --photographs" in capsys.readouterr().err
    photos = ["--photographs", str(folder)]
    assert main(["quantize", str(tmp_path / "none"), "-o", out, *photos]) == 2
    assert "expected a checkpoint" in capsys.readouterr().err
    assert main(["quantize", str(ckpt), "-o", out, "--photographs", str(tmp_path / "x")]) == 2
    assert "expected a folder of pictures" in capsys.readouterr().err
    config = ckpt / run.CONFIG
    config.write_text(config.read_text().replace("balle2018", "balle2099"))
    assert main(["quantize", str(ckpt), "-o", out, *photos]) != 0
    assert "no model is called 'balle2099'" in capsys.readouterr().err


def test_models_that_run_in_float_are_refused():
    arguments = {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8, 8, 8], "heads": 2}
    model = catalogue.build("zou2022-wacnn", arguments)
    with pytest.raises(LichenError, match="runs in float and cannot be quantised"):
        post_training(model, [photographs()], Plan())


def test_plans_that_contradict_themselves_are_refused():
    with pytest.raises(LichenError, match="4 to 8 bits, or mixed, not 3"):
        Plan(bits=3)
    assert dataclasses.replace(Plan(), seed=4).seed == 4
