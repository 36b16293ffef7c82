"""Fit: closed formulas against those of the accelerator's plan, and the widths that they find."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")
pytest.importorskip("amaranth", reason="boards need the [rtl] extra")

from lichen import cli  # noqa: E402
from lichen.errors import LichenError  # noqa: E402
from lichen.frugal import fit  # noqa: E402
from lichen.frugal.budget import CORES, array_products, budget, memory_bits, needs  # noqa: E402
from lichen.frugal.choose import choose  # noqa: E402
from lichen.frugal.importance import magnitude  # noqa: E402
from lichen.frugal.prune import Request, chooser, limits, planned, prune  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.models import catalogue, channels  # noqa: E402
from lichen.models.complexity import complexity  # noqa: E402
from lichen.models.layers import ConvTranspose2d  # noqa: E402
from lichen.rtl import fold, graph  # noqa: E402
from lichen.rtl import layer as layers  # noqa: E402
from lichen.training import quantize, run  # noqa: E402
from lichen.training.recipe import Recipe  # noqa: E402

torch.set_num_threads(1)  # the models are tiny

VIDEO = (1280, 720, 30.0)


@pytest.fixture(scope="module")
def student():
    """A small student, its channels, and the graphs of its two cores."""
    torch.manual_seed(0)
    model = catalogue.build("student", {"width": 24, "latents": 104})
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantize.fit(model, [picture])
    programs = lower(model, "x", {}).programs
    graphs = {"encoder": graph.encoder(programs), "decoder": graph.decoder(programs)}
    return model, channels.trace(model), graphs


def test_budgets_of_the_design():
    """design.md, section 4: GMAC/s and kMAC/pixel of the boards."""
    for board, video, gmac, kmac in (
        ("kv260", (1920, 1080, 30.0), 570, 9),
        ("zcu102", (1920, 1080, 30.0), 1160, 18),
        ("zcu102", (3840, 2160, 30.0), 1160, 4.6),
    ):
        within = budget(board, video)
        per_second = within.products * within.pixels * video[2]
        assert per_second == pytest.approx(1e9 * gmac, rel=0.01)
        assert within.products == pytest.approx(1e3 * kmac, rel=0.03)
        assert within.pixels % 64**2 == 0 and within.pixels >= video[0] * video[1]
    kv260 = budget("kv260", VIDEO).memory_bits
    assert kv260 == pytest.approx(0.85 * (144 * 36 * 1024 + 64 * 4096 * 72))


@pytest.mark.parametrize("core", CORES)
def test_formulas_are_those_of_the_stages(student, core):
    """Products and weights layer by layer; lines without the slack of whole groups."""
    _, found, graphs = student
    within = budget("zcu102", VIDEO)
    units = within.target.units(64)
    stages = [stage for stage in graphs[core].stages if stage.layer is not None]
    own = [layer for layer in found.layers if layer.part in CORES[core]]
    assert len(stages) == len(own)
    products = weights = lines = 0.0
    for stage in stages:
        layer = stage.layer
        rows, columns = fold.size(stage, units)
        positions = rows // layer.stride[0] * (columns // layer.stride[1])
        products += positions * layer.macs * layers.BITS[layer.x] / 8 / within.pixels
        weights += 8 * layer.macs
        folding = layers.Folding(1, 1, 2, 1)
        slack = 2 * 2 * layer.stride[1] + layer.kernel[1] + 2
        words = layers.ring_words(layer, folding, columns) - slack * layer.channels
        lines += words * layers.BITS[layer.x]
    need = needs(found, found.counts, within)[core]
    assert need.products == pytest.approx(products)
    assert need.memory_bits == pytest.approx(weights + lines, rel=1e-3)  # whole words


def test_a_transposed_convolution_costs_its_phases():
    """A 5x5 of stride 2 is four phases of 3x3 each; a 9x9 of stride 4 is sixteen of 3x3."""
    for arguments, name, kernel, phases in (
        ({"n": 8, "m": 12}, "g_s.2", 3, 4),
        ({"n": 8, "m": 12, "kernels": "9-5-5"}, "g_s.4", 3, 16),
    ):
        found = channels.trace(catalogue.build("balle2016", arguments))
        layer = next(layer for layer in found.layers if layer.name == name)
        assert layer.kind is ConvTranspose2d
        pairs = math.prod(sum(c.values()) for c in (layer.inputs, layer.outputs))
        wide = layer.bits / 8
        expected = pairs * kernel**2 * phases * layer.density[0] * wide
        assert array_products(found, layer, found.counts) == pytest.approx(expected)
        weights = memory_bits(found, layer, found.counts, 0)
        assert weights == pytest.approx(8 * pairs * kernel**2 * phases)


def test_the_widest_that_fits():
    """By formulas for a model without a plan: it fits, the next width does not."""
    within = budget("zcu102", (1280, 720, 60.0))
    found = fit.search("balle2018", within, {"means": True, "activation": "relu"})
    assert found.fits and found.no_hardware
    n = found.arguments["n"]
    assert found.arguments == {"n": n, "m": 3 * n // 2, "means": True, "activation": "relu"}
    wider = catalogue.build("balle2018", {**found.arguments, "n": n + 8, "m": 3 * (n + 8) // 2})
    traced = channels.trace(wider)
    costs = needs(traced, traced.counts, within)
    assert not all(need.fit(within) for need in costs.values())
    cost = complexity(catalogue.build("balle2018", found.arguments))
    assert 1000 * found.encode_kmac == pytest.approx(cost.encode.macs_per_pixel)
    assert 1000 * found.decode_kmac == pytest.approx(cost.decode.macs_per_pixel)
    assert fit.width_for("balle2018", "zcu102", (1280, 720, 60.0), {"means": True}).keys() >= {
        "n", "m", "means",
    }  # fmt: skip


def test_a_student_keeps_the_proportions_of_student_s(monkeypatch):
    shape = {
        "width": 64, "encoder_blocks": [1, 0, 0], "decoder_blocks": [2, 2, 0], "fine_width": 32,
        "coarse_width": 96, "latents": 256, "hyper_width": 40, "hyper_reduction": 32,
    }  # fmt: skip
    shipped = SimpleNamespace(metadata={"recipe": json.dumps({"arguments": shape})})
    monkeypatch.setattr(fit.model_files, "default", lambda: shipped)
    built = catalogue.build("student", fit.width_arguments("student", 64, {}))
    assert built.arguments == catalogue.build("student", shape).arguments
    half = fit.width_arguments("student", 32, {"latents": 200})
    assert (half["width"], half["fine_width"], half["coarse_width"]) == (32, 16, 48)
    assert half["latents"] == 200 and half["hyper_width"] == 16
    assert half["encoder_blocks"] == [1, 0, 0]
    assert fit.width_arguments("student", 8, {})["fine_width"] == 8, "no less than a step"
    for width in (8, 24, 40):
        catalogue.build("student", fit.width_arguments("student", width, {}))


def test_command(capsys):
    """A student's plan has the last word: both cores fit, at the frame rate that was asked for."""
    command = ["fit", "--board", "kv260", "--video", "1920x1080@120"]
    assert cli.main([*command, "--json"]) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    assert told["arguments"]["width"] % 8 == 0 and told["no_hardware"] == ""
    assert told["weight_bytes"] > 0
    for core in told["cores"]:
        assert core["fits"] and core["source"] == "plan" and core["frames_per_second"] >= 120
        assert max(core["taken"].values()) <= fold.LIMIT
        assert core["taken"][core["limits"]] == max(core["taken"].values())
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert f"width={told['arguments']['width']}" in text and "frames/s" in text


def test_what_cannot_be_met(capsys):
    def error(*command):
        assert cli.main(list(command)) != 0
        text = capsys.readouterr().err
        assert text.startswith("lichen: error: ") and text.count("\n") == 1, text
        return text

    video = ("--video", "1280x720@60")
    assert "there are kv260, zcu102" in error("fit", "--board", "zcu104", *video)
    assert "no model is called" in error("fit", "--board", "kv260", *video, "--model", "balle")
    assert "attention" in error("fit", "--board", "kv260", *video, "--model", "zou2022-stf")
    told = error("fit", "--board", "kv260", "--video", "7680x4320@500", "--model", "balle2018")
    assert "the narrowest (n=8, m=12" in told and "frames/s of this size; give that" in told
    assert "leave it out" in error("fit", "--board", "kv260", *video, "--arguments", "width=8")
    assert "like 1280x720@60" in error("fit", "--board", "kv260", "--video", "720p")


# Pruning for a board


def test_prune_for_a_board(student, tmp_path):
    """What is left meets the formulas and, where there is hardware, the plan."""
    model, found, _ = student
    within = budget("kv260", (1920, 1080, 120.0))
    request = Request(within=within, importance="magnitude")
    assert not fit.measure(model, found, within).fits
    made = Recipe(model="student", arguments=model.arguments)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / run.CONFIG).write_text(made.to_json())
    run.save_tensors(model.state_dict(), tmp_path / "run" / run.WEIGHTS)
    number, done = prune(tmp_path / "run", tmp_path / "out", request)
    assert number == 0
    pruned = {name: after for name, (before, after) in done.groups.items() if after != before}
    left = catalogue.build("student", {**model.arguments, "pruned": pruned})
    traced = channels.trace(left)
    for need in needs(traced, traced.counts, within).values():
        assert need.fit(within)
    measured = fit.measure(left, traced, within)
    assert measured.fits and not measured.no_hardware


def test_a_board_that_is_too_small_says_what_it_can(student):
    _, found, _ = student
    scores = magnitude(student[0], found)
    request = Request(within=budget("kv260", (7680, 4320, 120.0)), importance="magnitude")
    with pytest.raises(LichenError, match=r"120.0 frames/s of the \w+ cannot be met, the nearest"):
        choose(found, scores, limits(found, request))


def test_the_plan_has_the_last_word(student, monkeypatch):
    """Where the plan takes more than the formulas say, memory is tightened; not for ever."""
    model, found, _ = student
    made = Recipe(model="student", arguments=model.arguments)
    request = Request(within=budget("kv260", (1920, 1080, 120.0)), importance="magnitude")
    scores = magnitude(model, found)
    kept = chooser(found, request)(scores)
    found_once, asked = fit.measure(model, found, request.within), []

    def refuse(*arguments):
        asked.append(arguments)
        cores = tuple(fit.CoreFit(core, "plan", False, 1.0, "uram", {}) for core in CORES)
        return dataclasses.replace(found_once, cores=cores)

    monkeypatch.setattr(fit, "measure", refuse)
    with pytest.raises(LichenError, match="the plan of the cores is not"):
        planned(made, found, request, scores, kept)
    assert len(asked) > 1
