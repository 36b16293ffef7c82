"""The study's numbers: layers, costs, the DPU's model and rules, boards, pipelines, advice."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lichen import model as model_files
from lichen.errors import LichenError
from lichen.models import catalogue
from lichen.models.complexity import complexity
from lichen.rtl import fold, report, trial
from lichen.study import (
    advice,
    boards,
    changes,
    costs,
    dpu,
    dpu_plan,
    dpu_rules,
    facts,
    models,
    networks,
    predictors,
    quality,
    roofline,
)
from lichen.study.dpu import Step
from lichen.study.layers import Layer, layers_of
from lichen.study.result import Video
from lichen.study.study import check, study

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT.parent / "shared" / "reference"
VIDEO = Video(1920, 1080, 30)
SMALL = {"n": 32, "m": 48}


def _facts(family: str, **arguments: object) -> facts.Facts:
    module = catalogue.build(family, dict(arguments))
    return facts.of_subject(models.Subject(family, "", "", "catalogue", module, module.arguments))


@pytest.fixture(scope="module")
def balle() -> facts.Facts:
    return _facts("balle2018", **SMALL)


@pytest.fixture(scope="module")
def charm() -> facts.Facts:
    return _facts("minnen2020", **SMALL, slices=4, hidden=[16, 8])


def _layer(kind: str, **changed: object) -> Layer:
    layer = Layer("x", "g_a", kind, 32, 32, 0.5, 0.5, 0.0, 0, (8.0,), 8.0, (-1,))
    return replace(layer, **changed)  # type: ignore[arg-type]


# Layers


@pytest.mark.parametrize(
    "family, arguments",
    [("balle2016", SMALL), ("balle2018", SMALL | {"means": True}), ("student", {"width": 8})],
)
def test_layers_sum_to_the_complexity(family: str, arguments: dict[str, object]) -> None:
    module = catalogue.build(family, arguments)
    layers = layers_of(module)
    for part, cost in complexity(module).parts.items():
        own = [layer for layer in layers if layer.part == part]
        assert sum(layer.macs for layer in own) == pytest.approx(cost.macs_per_pixel, rel=1e-12)
        assert sum(layer.parameters for layer in own) == cost.parameters


def test_kinds_of_a_hyperprior(balle: facts.Facts) -> None:
    def kinds(part: str) -> dict[str, int]:
        own = [layer for layer in balle.layers if layer.part == part]
        return {count.kind: count.count for count in costs.histogram(own)}

    assert kinds("g_a") == {"conv": 4, "gdn": 3}
    assert kinds("h_a") == {"conv": 3, "relu": 2, "abs": 1}
    assert kinds("g_s") == {"deconv": 4, "gdn": 3}
    assert balle.symbols == 48 / 256 + 32 / 4096
    quarter = _facts("student", width=8, latents=32, hyper_width=8, hyper_reduction=32)
    assert quarter.symbols == 32 / 256 + 6 / 1024
    assert balle.decoding_steps == 2


class Foreign(nn.Module):
    """Convolutions without padding, a function instead of a module, an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 5), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.encoder(x)
        return self.decoder(F.relu(y) + y)


def test_foreign_modules_are_counted_without_borders() -> None:
    layers = layers_of(Foreign())
    assert [(layer.part, layer.kind) for layer in layers] == [
        ("encoder", "conv"), ("encoder", "gelu"), ("encoder", "conv"),
        ("(root)", "relu"), ("(root)", "add"), ("decoder", "deconv"),
    ]  # fmt: skip
    assert [layer.macs for layer in layers] == pytest.approx(
        [25 * 24, 0, 9 * 64 / 4, 0, 0, 16 * 24 / 4], rel=1e-9
    )
    assert layers[4].sources == (3, 2)
    assert layers[0].parameters == 25 * 24 + 8


# Costs


def test_costs_of_a_chain() -> None:
    a = _layer("conv", inputs=3, outputs=16, rows_in=1.0, kernel=(5, 5), stride=2,
               input_values=(3.0,), output_values=4.0, parameters=1216)  # fmt: skip
    b = _layer("relu", inputs=16, outputs=16, input_values=(4.0,), output_values=4.0, sources=(0,))
    c = _layer("deconv", inputs=16, outputs=3, rows_out=1.0, kernel=(4, 4), stride=2,
               input_values=(4.0,), output_values=3.0, sources=(1,))  # fmt: skip
    chain = [a, b, c]
    assert costs.receptive_field(chain, "g_a") == 1 + 4 + 2
    # 4 rows of 3 channels at full size, 1 row of 16 at half of it
    assert costs.line_buffer_bytes(chain, "g_a", 100) == 4 * 300 + 50 * 16
    assert costs.traffic(chain) == 3 + 4 + 4 + 3
    assert costs.peak(chain, "g_a") == 7
    assert costs.weight_bytes([a], 8) == 1200 + 16 * 4
    assert costs.weight_bytes([a], 4) == 600 + 16 * 4


def test_receptive_field_of_the_papers_analysis(balle: facts.Facts) -> None:
    assert costs.receptive_field(balle.layers, "g_a") == 1 + 4 * (1 + 2 + 4 + 8)


def test_roofline() -> None:
    board = boards.load("kv260")
    layer = _layer("conv", macs=1000.0, parameters=0, kernel=(0, 0))
    point = roofline.point([layer], "g_a", board, 100)
    assert point.intensity_mac_per_byte == 1000 / 16
    assert point.bound == "compute"
    assert point.attainable_gmac_per_s == 2048 * 0.3
    thin = roofline.point([replace(layer, macs=16.0)], "g_a", board, 100)
    assert (thin.bound, thin.attainable_gmac_per_s) == ("memory", 19.2)
    assert thin.frames_per_second_at_roof == pytest.approx(19.2e9 / 1600)


# The DPU's cycles


@pytest.mark.parametrize(
    "step, cycles",
    [
        (Step("", "conv", 64, 60, 128, 130, (5, 5), 2), 64 * 8 * 9 * 25 * 8),
        (Step("", "conv", 64, 64, 3, 16, (5, 5), first=True), 64 * 8 * 5 * 1),
        (Step("", "deconv", 32, 32, 16, 16, (5, 5), 2), 4 * 16 * 2 * 9),
        (Step("", "depthwise", 10, 9, 17, 17, (3, 3)), 10 * 3 * 2 * 9),
        (Step("", "add", 10, 9, 16, 16), 10 * 3),
    ],
)
def test_cycles_of_the_array(step: Step, cycles: int) -> None:
    assert dpu.ideal_cycles(step) == cycles


def test_time_of_a_step() -> None:
    constants = dpu.Constants(10.0, 0.5, 1.0, 7.0, 0.25, 0.5)
    step = Step("", "conv", 8, 8, 16, 16, loads=700, saves=28)  # 8 cycles; 700+28+272 bytes
    spent = dpu.cycles(step, constants)
    assert (spent.compute, spent.exposed, spent.overhead) == (8, 100 + 4 - 8, 7)
    assert dpu.cycles(step, constants, 3).exposed == 200 + 4 - 8
    assert dpu.milliseconds([step], constants, 1e6, calls=2) == pytest.approx(0.5 + 0.111)


def _rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = dpu.model_values()["rows"]
    return rows


def test_the_committed_predictions_are_the_formulas() -> None:
    made = {f"{model} {part}": make for (model, part), make in networks.SUBGRAPHS.items()}
    made |= {name: make for (_, name), make in networks.NETWORKS.items()}
    steps = {name: make() for name, make in made.items()}
    clocks = {"ZCU102": 281e6, "KV260": 300e6}
    for row in _rows():
        name = str(row["name"]).removesuffix(", by xdputil")
        predicted = dpu.milliseconds(
            steps[name], dpu.constants(), clocks[str(row["board"])], 1, int(str(row["busy_cores"]))
        )
        assert predicted == pytest.approx(row["predicted_ms"], abs=1e-4), name
        error = 100 * (predicted / float(str(row["measured_ms"])) - 1)
        assert error == pytest.approx(row["error_percent"], abs=0.02), name


def test_subgraphs_are_predicted_within_what_was_asked() -> None:
    rows = [r for r in _rows() if r["kind"] == "subgraph"]
    assert len(rows) == 11
    for row in rows:
        tiny = " h_" in str(row["name"])  # maps of 2 to 8 pixels
        limit = 25 if tiny else 6
        assert abs(float(str(row["error_percent"]))) <= limit, row["name"]
    networks_seen = {row["name"] for row in _rows() if row["kind"] == "network"}
    assert len(networks_seen) >= 10
    assert {row["role"] for row in _rows()} == {"fit", "check"}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the folder of references is not here")
def test_measurements_and_networks_are_those_of_the_references() -> None:
    with (REFERENCE / "dpu_perf.csv").open(newline="", encoding="utf-8") as file:
        lines = {(r["vai_version"], r["zoo_name"], r["board"]): r for r in csv.DictReader(file)}
    measured = {(row["name"], row["board"]): row["measured_ms"] for row in _rows()}
    for (release, name), make in networks.NETWORKS.items():
        for board, cores in (("KV260", 1), ("ZCU102", 3)):
            line = lines[release, name, board]
            ms = 1000 * cores / float(line["fps_multithread"])
            assert measured[name, board] == pytest.approx(ms, abs=1e-4)
        gops = float(line["gops"])
        if name.startswith("tf_mobilenetv2_1.0"):
            gops /= 103  # 62.0 in the table, where its name says 602M
        assert 2e-9 * sum(step.macs for step in make()) == pytest.approx(gops, rel=0.1), name
    with (REFERENCE / "dpu_lic_zcu102.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ms = float(row["sw_rt_ms"] or 0) or 1000 / float(row["xdputil_fps"])
            key = (f"{row['model']} {row['subgraph']}", "ZCU102")
            assert measured[key] == pytest.approx(ms, abs=1e-4)
            steps = networks.SUBGRAPHS[row["model"], row["subgraph"]]()
            gop = 2e-9 * sum(step.macs for step in steps)
            assert gop == pytest.approx(float(row["workload_gop"]), rel=0.01)
            if row["LdWB_MiB"]:
                weights = sum(step.weight_bytes for step in steps)
                assert weights / 2**20 == pytest.approx(float(row["LdWB_MiB"]), rel=0.01)
                saves = sum(step.saves for step in steps) / 2**20
                assert saves == pytest.approx(float(row["StFM_MiB"]), abs=0.1)


# The DPU's rules


@pytest.mark.parametrize(
    "layer, place",
    [
        (_layer("conv", kernel=(5, 5), inputs=320), "dpu"),
        (_layer("conv", kernel=(7, 7), inputs=400), "rewrite"),  # 49 * 25 > 1024
        (_layer("conv", kernel=(17, 17)), "rewrite"),
        (_layer("conv", inputs=4097), "rewrite"),
        (_layer("deconv", kernel=(5, 5), stride=2, output_padding=1), "rewrite"),
        (_layer("deconv", kernel=(4, 4), stride=2), "dpu"),
        (_layer("deconv", kernel=(2, 2), stride=4), "rewrite"),
        (_layer("deconv", kernel=(16, 16), stride=8, outputs=768), "rewrite"),
        (_layer("leaky_relu", slope=26 / 256), "free"),
        (_layer("leaky_relu", slope=0.01), "rewrite"),
        (_layer("grouped", groups=4), "rewrite"),
        (_layer("gdn"), "rewrite"),
        (_layer("gelu"), "rewrite"),
        (_layer("softmax"), "cpu"),
        (_layer("matmul"), "cpu"),
        (_layer("permute"), "cpu"),
        (_layer("add"), "dpu"),
        (_layer("relu"), "free"),
        (_layer("erfinv"), "cpu"),
    ],
)
def test_verdicts(layer: Layer, place: str) -> None:
    found = dpu_rules.verdict(layer)
    assert found.place == place
    assert found.source and found.reason and found.limit
    assert bool(found.rewrite) == (place == "rewrite")


def test_a_kernel_filled_up_with_zeros_is_the_same_function() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(1, 4, 7, 6).double(), torch.randn(4, 3, 5, 5).double()
    wanted = F.conv_transpose2d(x, w, stride=2, padding=2, output_padding=1)
    found = F.conv_transpose2d(x, F.pad(w, (0, 1, 0, 1)), stride=2, padding=2)
    assert torch.equal(wanted, found)
    before = _layer("deconv", kernel=(5, 5), stride=2, output_padding=1, macs=25.0)
    after = dpu_rules._rewrite(before)
    assert (after.kernel, after.output_padding, after.macs) == ((6, 6), 0, 36.0)


def test_subgraphs(balle: facts.Facts) -> None:
    found = {
        (r.direction, r.variant): r
        for r in facts.on_dpu(balle, boards.load("zcu102"), VIDEO)
    }  # fmt: skip
    # three GDNs leave four convolutions alone; abs comes before h_a; h_s is not taken as it is
    # but for its last convolution
    assert found["encode", "as published"].subgraphs == 4 + 1 + 1
    assert found["encode", "rewritten"].subgraphs == 3
    assert found["decode", "rewritten"].subgraphs == 2
    assert found["decode", "rewritten"].runs_on_dpu_share == 1
    for result in found.values():
        parts = (result.compute_ms, result.memory_ms, result.weights_ms, result.overhead_ms)
        assert sum(parts) == pytest.approx(result.dpu_ms)
        assert result.efficiency <= 1


def test_small_results_stay_in_the_image_banks() -> None:
    def chain(rows: float) -> list[Layer]:
        big = dict(inputs=16, outputs=16, rows_in=rows, rows_out=rows, kernel=(3, 3))
        values = 16 * rows * rows
        first = _layer("conv", **big, input_values=(values,), output_values=values)
        return [first, replace(first, sources=(0,))]

    frame = dpu_plan.Frame(1024, 1024)
    for rows, saved in ((1 / 64, 0), (1 / 2, 16 * 512 * 512)):
        layers = chain(rows)
        (graph,) = dpu_plan.subgraphs(layers, dpu_rules.verdicts(layers), frame)
        assert next(step.saves for _, step in graph.steps) == saved


def test_an_operation_of_the_cpu_cuts_what_goes_around_it() -> None:
    conv = _layer("conv", input_values=(8.0,))
    softmax = _layer("softmax", sources=(0,))
    joined = _layer("add", input_values=(8.0, 8.0), sources=(0, 1))
    layers = [conv, softmax, joined]
    frame = dpu_plan.Frame(64, 64)
    assert len(dpu_plan.subgraphs(layers, dpu_rules.verdicts(layers), frame)) == 2
    layers[1] = _layer("relu", sources=(0,))
    assert len(dpu_plan.subgraphs(layers, dpu_rules.verdicts(layers), frame)) == 1


def test_slices_are_calls(charm: facts.Facts) -> None:
    rewritten = [r for r in facts.on_dpu(charm, boards.load("kv260"), VIDEO)
                 if (r.direction, r.variant) == ("decode", "rewritten")]  # fmt: skip
    # the two hyper-syntheses, means, scales and predictions of four slices, g_s
    assert rewritten[0].subgraphs == 2 + 3 * 4 + 1
    assert charm.decoding_steps == 5


# Boards


@pytest.mark.parametrize("name", fold.PARTS)
def test_boards_are_the_parts_of_rtl(name: str) -> None:
    board = boards.load(name)
    assert board.part == fold.PARTS[name]
    assert board.dpu_peak_macs == board.dpu_cores * 2048 * board.dpu_clock_hz


def test_a_board_of_ones_own(tmp_path: Path) -> None:
    text = (boards.FOLDER / "kv260.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("dsp = 1248", "dsp = 100"), encoding="utf-8")
    assert (boards.load(str(path)).name, boards.load(str(path)).dsp) == ("mine", 100)
    for old, new, wanted in (
        ("dsp = 1248", "", "part.dsp is missing"),
        ("dsp = 1248", 'dsp = "many"', "part.dsp must be int"),
        ("dsp = 1248", "dsp = 0", "part.dsp must be positive"),
        ("lut = ", "luts = ", "part.luts is not known"),
        ("B4096", "B512", "must be 'B4096'"),
        ("[dram]", "[dram", "must be TOML"),
    ):
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(LichenError, match=wanted):
            boards.load(str(path))
    for name in ("zcu999", str(tmp_path / "none.toml")):
        with pytest.raises(LichenError):
            boards.load(name)


# Our core


def test_a_model_with_hardware_has_the_plan_of_lichen_synth() -> None:
    subject = models.one("student-s")
    board = boards.load("zcu102")
    found = facts.as_pipeline(facts.of_subject(subject), board, VIDEO)[1]
    target = fold.Target(1920, 1080, 30)
    plan = trial.plan_for(model_files.default(), "decoder", fold.ZCU102, target)
    total, _ = report.totals(plan, fold.ZCU102)
    assert found.exact and found.has_hardware
    assert found.cycles_per_frame == plan.cycles
    assert {use.resource: use.used for use in found.resources} == {
        name: getattr(total, name) for name in ("dsp", "bram36", "uram", "lut", "ff")
    }
    assert len(found.stages) == len(plan.stages)


def test_a_model_without_hardware_is_bounded(balle: facts.Facts) -> None:
    found = facts.as_pipeline(balle, boards.load("kv260"), VIDEO)[0]
    assert not found.exact and not found.has_hardware and not found.meets_video
    assert found.missing[0].startswith("3 x gdn: a ReLU")
    macs = sum(layer.macs for layer in balle.layers if layer.part in balle.of("encode"))
    rate = macs * 1920 * 1080 * 30
    assert found.dsp_for_video == -(-rate // 600e6)
    assert found.frames_per_second_at_most == pytest.approx(30 * 0.85 * 1248 * 600e6 / rate)


def test_measured_cycles_are_within_two_percent() -> None:
    found = {p.name: p for p in predictors.all_of_them()}
    assert len(found["pipeline cycles"].checks) >= 4
    assert found["pipeline cycles"].worst_percent is not None
    assert found["pipeline cycles"].worst_percent < 2
    for predictor in found.values():
        errors = [abs(check.error_percent) for check in predictor.checks]
        assert errors == sorted(errors, reverse=True)
        assert bool(predictor.checks) != bool(predictor.missing)


# Advice


def test_changes_of_layers(balle: facts.Facts, charm: facts.Facts) -> None:
    relu = changes.without_gdn(balle.layers)
    gdn = sum(layer.macs for layer in balle.layers if layer.kind == "gdn")
    before = sum(layer.macs for layer in balle.layers)
    assert sum(layer.macs for layer in relu) == before - gdn
    wanted = layers_of(catalogue.build("balle2018", SMALL | {"activation": "relu"}))
    assert sum(layer.macs for layer in relu) == sum(layer.macs for layer in wanted)

    narrow = changes.narrower_finest(balle.layers)
    # 5x5 of 3 -> 32 and of 32 -> 32 channels, at 1/2 and 1/4; GDN at 1/2
    saved = (25 * 96 / 4 + 25 * 32 * 32 / 16) / 2 + 32 * 32 / 4 * 3 / 4
    assert before - sum(layer.macs for layer in narrow) == pytest.approx(2 * saved)

    board = changes.checkerboard(charm.layers, 48)
    assert not [layer for layer in board if layer.part == "lrp"]
    own = sum(layer.macs for layer in board if layer.part == "slices")
    m = 48
    a, b = 10 * m // 3, 8 * m // 3
    assert own == pytest.approx(2 * (25 * m * 2 * m + 4 * m * a + a * b + b * 2 * m) / 256)


def test_attention_becomes_a_gate() -> None:
    fact = _facts("zou2022-wacnn", n=32, m=48, slices=4)
    gates = changes.without_attention(fact.layers)
    kinds = {layer.kind for layer in gates if layer.part in ("g_a", "g_s")}
    assert not kinds & {"softmax", "matmul", "roll", "permute", "linear", "sigmoid"}
    assert {"depthwise", "hardsigmoid", "mul"} <= kinds
    for number, layer in enumerate(gates):
        assert all(-1 <= source < number for source in layer.sources)


def test_advice_is_computed_from_changed_layers(balle: facts.Facts) -> None:
    module = catalogue.build("balle2018", SMALL)
    subject = models.Subject("x", "", "", "catalogue", module, dict(module.arguments))
    targets = [boards.load("kv260")]
    found = advice.for_model(subject, balle, targets, VIDEO)
    assert 2 <= len(found) <= 3
    assert found[0].title == "ReLU instead of GDN"
    narrower = next(a for a in found if a.title.startswith("N = 16"))
    products = {e.quantity: e for e in narrower.effects}["decode: products"]
    small = _facts("balle2018", n=16, m=48)
    assert products.after == facts.direction(small, "decode", VIDEO).kmac_per_pixel
    assert products.factor < 0.5


# The whole


def test_study_of_a_foreign_module(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2))\n",
        encoding="utf-8",
    )
    result = study([f"{source}:net"], ["kv260"], Video(640, 480, 10))
    (model,) = result.models
    assert (model.name, model.recognised, model.order) == ("net", False, "unknown")
    assert model.parts[0].kmac_per_pixel == pytest.approx(0.15)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["boards"][0]["dsp"] == 1248
    assert {curve.name for curve in result.curves} >= {quality.VTM, quality.JPEG}


def test_a_recipe_is_a_model(tmp_path: Path) -> None:
    text = 'model = "student"\narguments = {width = 8, latents = 32, hyper_reduction = 32}\n'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(text, encoding="utf-8")  # no weights yet
    for name, path in (("mine", tmp_path / "mine.toml"), ("run", tmp_path / "run")):
        subject = models.one(str(path))
        assert (subject.name, subject.family) == (name, "student")
        assert subject.arguments["hyper_reduction"] == 32
        assert facts.of_subject(subject).programs is not None, "it has hardware: a plan is made"
    (tmp_path / "mine.toml").write_text('model = "student"\nwidht = 8\n', encoding="utf-8")
    with pytest.raises(LichenError, match="widht"):
        models.one(str(tmp_path / "mine.toml"))


def test_bad_input(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "odd.pt")
    for name, wanted in (
        ("balle1066", "no model and no file"),
        (str(tmp_path / "odd.pt"), "unknown architecture"),
        (f"{tmp_path / 'none.py'}:net", "must make a torch module"),
        ("json:dumps", "must make a torch module"),
    ):
        with pytest.raises(LichenError, match=wanted):
            models.one(name)
    for video in (Video(0, 1080, 30), Video(1920, 10**6, 30), Video(64, 64, 0)):
        with pytest.raises(LichenError, match=r"the (width|height|video)"):
            check(video)
    with pytest.raises(LichenError, match="without looking at values"):
        layers_of(nn.Linear(5, 3))


def test_curves_belong_to_models_at_their_published_size() -> None:
    assert quality.names_of(models.one("balle2016")) == quality.OF_MODEL["balle2016"]
    module = catalogue.build("balle2016", SMALL)
    other = models.Subject("mine", "", "", "checkpoint", module, dict(module.arguments))
    assert quality.names_of(other) == ()
    assert quality.names_of(models.one("student-s")) == ("lichen:student-s",)
