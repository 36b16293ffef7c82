"""Zou 2022: weights and results against the authors' code; float models as codecs."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from lichen import api, cli, container, neural  # noqa: E402
from lichen import model as models  # noqa: E402
from lichen.api import Codec, DigestError, FloatWarning  # noqa: E402
from lichen.errors import ContractError, ModelError, StreamError  # noqa: E402
from lichen.executors import ReferenceExecutor, best  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.models import catalogue, window_attention  # noqa: E402
from lichen.models.checkpoint import names_of, own_values  # noqa: E402
from lichen.models.complexity import complexity  # noqa: E402
from lichen.models.zou2022 import STF, WACNN, from_checkpoint, load_checkpoint  # noqa: E402
from lichen.picture import Picture, from_array  # noqa: E402
from zou2022_golden import GOLDEN, flat, picture, samples, weights  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

KINDS = {"wacnn": WACNN, "stf": STF}
RELEASE = json.loads((GOLDEN / "zou2022-keys.json").read_text(encoding="utf-8"))
RESULTS = json.loads((GOLDEN / "zou2022-results.json").read_text(encoding="utf-8"))
HALF = torch.tensor([0.5])
pytestmark = pytest.mark.filterwarnings("ignore::lichen.api.FloatWarning")


def tiny(kind):
    """A small model with weights from the formula, and rate gains that rise."""
    hidden = (16, 12, 12, 8)
    if kind == "wacnn":
        model = WACNN(16, 24, slices=4, max_support_slices=2, hidden=hidden, heads=4)
    else:
        model = STF(8, (1, 2, 1, 2), (1, 2, 2, 4), slices=4, hidden=hidden)
    ours = weights({name: value.shape for name, value in model.named_parameters()})
    rising = np.linspace(-1, 1, 8, dtype=np.float32)[:, None].repeat(model.latent_channels, 1)
    ours |= {"gain": rising, "inverse_gain": -rising}
    for name in ours:  # latents that are likely, so that their code length is not its bound
        if name.startswith(("cc_", "lrp_")) and name.endswith(".8.weight"):
            ours[name] *= 0.005
        elif name.startswith("cc_scale") and name.endswith(".8.bias"):
            ours[name] += 2
        elif name.startswith("entropy_bottleneck._matrix"):
            ours[name] -= 1
    model.load_state_dict({k: torch.from_numpy(v) for k, v in ours.items()}, strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def made():
    """The Model of each tiny network, as read from its file."""
    found = {}
    for kind in KINDS:
        module = tiny(kind)
        found[kind] = models.from_bytes(lower(module, f"tiny-{kind}", {"made": "here"}).to_bytes())
    return found


def photo(height, width, number=0):
    """A picture (H, W, 3), smooth with some detail."""
    square = picture(number).astype(float)
    tall = np.resize(square, (max(height, 64), 64, 3))[:height]
    wide = np.concatenate([tall, tall[:, ::-1]] * math.ceil(width / 128), 1)[:, :width]
    return np.ascontiguousarray(wide).astype(np.uint8)


# The models


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_the_release_s(kind):
    with torch.device("meta"):
        model = KINDS[kind]()
        theirs = {f"module.{k}": torch.empty(shape) for k, shape in flat(RELEASE[kind]).items()}
    ours = {name: value.shape for name, value in model.state_dict().items()}
    extra = set(own_values(model))
    assert {"gain", "inverse_gain", "latent.peak"} <= extra
    wanted = {name: value.shape for name, value in names_of(theirs).items()}
    assert {name: shape for name, shape in ours.items() if name not in extra} == wanted
    gains = sum(p.numel() for p in (model.gain, model.inverse_gain))
    parameters = sum(p.numel() for p in model.parameters()) - gains
    assert parameters == RESULTS[kind]["parameters"]
    assert round(parameters / 1e6, 2) == {"wacnn": 75.24, "stf": 99.86}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_authors_within_1e_5(kind):
    """At full size, in every stage; `zou2022_golden.py` made the values with the authors' code."""
    names = flat(RELEASE[kind])
    state = {f"module.{k}": torch.from_numpy(v) for k, v in weights(names).items()}
    with torch.device("meta"):
        buffers = KINDS[kind]().state_dict()
    index = [k for k in names if k.endswith("relative_position_index")]
    assert index and set(index) < set(buffers)
    for name in index:  # not from the formula: what the windows' sides imply
        side = math.isqrt(names[name][0])
        attention = window_attention.WindowAttention(1, side, 1)
        state[f"module.{name}"] = attention.relative_position_index
    model = from_checkpoint(state).eval()
    assert type(model) is KINDS[kind]
    defaults = KINDS[kind].__init__.__defaults__
    assert list(model.arguments.values()) == [
        list(value) if isinstance(value, tuple) else value for value in defaults
    ]
    x = torch.from_numpy(picture(RESULTS[kind]["picture"]) / np.float32(128) - 1)
    x = x.permute(2, 0, 1)[None]
    with torch.no_grad():
        y = model.analyse(x)
        z = model.hyper_analyse(y)
        means, scales = model.hyper_synthesise(z.round())
        y_hat, y_likelihood = model.code(y, means, scales, noise=False)
        x_hat = model.synthesise(y_hat)
        coded = model(x, HALF, noise=False)
    assert torch.equal(coded.x_hat, x_hat) and torch.equal(coded.y_likelihood, y_likelihood)
    found = {
        "y": y,
        "z": z + model.entropy_bottleneck.medians(),
        "means": means,
        "scales": scales,
        "y_hat": y_hat,
        "x_hat": (x_hat * 128 + 128) / 255,
        "y_likelihood": y_likelihood,
        "z_likelihood": coded.z_likelihood,
    }
    for name, expected in RESULTS[kind]["tensors"].items():
        ours = samples(name, found[name].numpy())
        for part in expected:
            close = np.abs(np.subtract(ours[part], expected[part])).max()
            assert close <= 1e-5 * expected["peak"], (name, part, close)


def test_a_file_of_the_release_s_form_loads(tmp_path):
    for kind in KINDS:
        module = tiny(kind)
        own = own_values(module)
        state = {f"module.{k}": v for k, v in module.state_dict().items() if k not in own}
        state["module.gaussian_conditional.scale_table"] = torch.zeros(64)
        state["module.entropy_bottleneck._quantized_cdf"] = torch.zeros(8, 5, dtype=torch.int32)
        torch.save({"epoch": 1, "state_dict": state, "loss": 0.5}, tmp_path / "best.pth.tar")
        loaded = from_checkpoint(tmp_path / "best.pth.tar")
        assert type(loaded) is type(module)
        arguments = module.arguments | ({"drop_path": 0.2} if kind == "stf" else {})
        assert loaded.arguments == arguments
        gain, inverse = loaded.gains(HALF)
        assert (gain == 1).all() and (inverse == 1).all()
        wanted = {k.removeprefix("module."): v for k, v in state.items()}
        assert all(torch.equal(v, wanted[k]) for k, v in loaded.state_dict().items() if k in wanted)
        # what lichen saves keeps its gains
        again = from_checkpoint(module.state_dict())
        assert torch.equal(again.gain, module.gain) and module.gain.abs().max() > 0


def test_wrong_files_are_named():
    state = tiny("stf").state_dict()
    lacking = {k: v for k, v in state.items() if k != "layers.1.blocks.1.mlp.fc1.bias"}
    with pytest.raises(ModelError, match=r"missing \['layers.1.blocks.1.mlp.fc1.bias'\]"):
        from_checkpoint(lacking)
    with pytest.raises(ModelError, match=r"unexpected \['head.weight'\]"):
        load_checkpoint(tiny("stf"), state | {"head.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="found no model of theirs"):
        from_checkpoint({"g_a.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="slices must divide"):
        WACNN(16, 24, slices=5, heads=4)
    with pytest.raises(ValueError, match="heads must divide the 16 channels"):
        WACNN(16, 24, slices=4, heads=3)
    with pytest.raises(ModelError, match="it takes n, m, slices"):
        catalogue.build("zou2022-wacnn", {"width": 3})


def test_attention_against_positions_one_by_one():
    """Windows, their cyclic shift and its mask, written out for a single head."""
    torch.manual_seed(0)
    side, shift, c, (h, w) = 3, 1, 4, (6, 9)
    attention = window_attention.WindowAttention(c, side, 1)
    x = torch.randn(1, h, w, c)
    y = window_attention.attend(x, attention, shift)
    q, k, v = attention.qkv(x[0]).split(c, -1)
    table = attention.relative_position_bias_table.reshape(2 * side - 1, 2 * side - 1)

    def window(i, size):  # by the position before the shift; the two edges never share one
        return ((i - shift) % size) // side + (10 if i < shift else 0)

    expected = torch.empty_like(x[0])
    for i, j in np.ndindex(h, w):
        seen = [
            (m, n)
            for m, n in np.ndindex(h, w)
            if window(m, h) == window(i, h) and window(n, w) == window(j, w)
        ]
        logits = torch.stack(
            [q[i, j] @ k[m, n] / c**0.5 + table[i - m + side - 1, j - n + side - 1]
             for m, n in seen]
        )  # fmt: skip
        expected[i, j] = torch.stack([v[m, n] for m, n in seen]).T @ logits.softmax(0)
    assert torch.allclose(y[0], attention.proj(expected), atol=1e-6)
    # a side that does not divide: zeros fill up the last windows
    part = x[:, :4, :7]
    filled = torch.nn.functional.pad(part, (0, 0, 0, 2, 0, 2))
    whole = window_attention.attend(filled, attention, shift)[:, :4, :7]
    assert torch.equal(window_attention.attend(part, attention, shift), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    model = tiny(kind).train()
    for block in model.modules():
        if isinstance(block, window_attention.SwinBlock):
            block.drop = 0.0  # none of its branches is left out of the one picture
    x = torch.from_numpy(photo(64, 64)).permute(2, 0, 1)[None] / 128 - 1
    coded = model(x, HALF)
    rate = -coded.y_likelihood.log().mean() - coded.z_likelihood.log().mean()
    (rate + (coded.x_hat - x).square().mean()).backward()
    for name, parameter in model.named_parameters():
        if name != "entropy_bottleneck.quantiles":
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
    with pytest.raises(ModelError, match="runs in float"):
        model.set_quantized(True)
    assert model.quantized_layers() == []


def test_stochastic_depth_keeps_the_mean():
    torch.manual_seed(0)
    block = window_attention.SwinBlock(4, 2, 0, 1, drop=0.4)
    branch = torch.ones(4000, 1, 1, 4)
    kept = block.train()._kept(branch)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert kept.mean() == pytest.approx(1, abs=0.05)
    assert block.eval()._kept(branch) is branch


# Float models as codecs


@pytest.mark.parametrize("kind", KINDS)
def test_model_file(made, kind):
    model, module = made[kind], tiny(kind)
    assert model.to_bytes() == models.from_bytes(model.to_bytes()).to_bytes()
    assert model.order == "channel-wise" and model.slices == 4 and model.reduction == 64
    assert model.network.arguments == module.arguments and model.metadata == {"made": "here"}
    again = neural.module_of(model.network)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())
    assert not again.training
    counts = complexity(module)
    kmac = (counts.encode.macs_per_pixel / 1000, counts.decode.macs_per_pixel / 1000)
    assert models.kmac_per_pixel(model) == kmac and min(kmac) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (100, 65), (200, 128)])
def test_round_trip(made, kind, size):
    """Whatever the size, the decoder comes to the encoder's pixels: the digest is checked."""
    codec = Codec(made[kind])
    assert codec.executor.name == "torch-float"
    data = {}
    for quality in (20, 80):
        encoded = codec.encode(from_array(photo(*size)), quality=quality, digest=True, stripe=1)
        picture = Codec(made[kind]).decode(encoded.data)
        assert picture.pixels.shape == (*size, 3)
        data[quality] = encoded.data
    assert len(data[20]) < len(data[80])
    header = container.read_header(data[80])
    assert header.float_arithmetic and header.order == 2 and header.weights == made[kind].digest


@pytest.mark.parametrize("kind", KINDS)
def test_codec_and_forward_agree(made, kind):
    """Pixels equal those of the forward pass, bytes its code length, both nearly."""
    image = photo(128, 192)
    codec = Codec(made[kind])
    encoded = codec.encode(from_array(image), quality=50)
    pixels = codec.decode(encoded.data).pixels
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 128 - 1
        coded = tiny(kind)(x, HALF, noise=False)
        bits = -sum(float(p.double().log2().sum()) for p in coded[1:])
    expected = (coded.x_hat[0] * 128 + 128).round().clamp(0, 255).permute(1, 2, 0).numpy()
    # gains are 15-bit integers in the file: a symbol may be another one here and there
    assert np.mean(np.abs(pixels - expected) > 1) < 0.02
    assert len(np.unique(pixels)) > 50  # the test sees something
    assert 8 * len(encoded.data) == pytest.approx(bits, rel=0.05)


def test_grey_alpha_and_metadata(made):
    codec = Codec(made["wacnn"])
    grey = Picture(photo(40, 50)[:, :, :1], photo(40, 50)[:, :, 1], icc=b"i", exif=b"e", xmp=b"x")
    back = codec.decode(codec.encode(grey, digest=True).data)
    assert back.pixels.shape == (40, 50, 1) and np.array_equal(back.alpha, grey.alpha)
    assert (back.icc, back.exif, back.xmp) == (b"i", b"e", b"x")


def test_target_size(made):
    codec = Codec(made["stf"])
    encoded = codec.encode(from_array(photo(64, 64)), target_bytes=1200)
    assert 0.5 * 1200 < len(encoded.data) <= 1200


def test_threads_of_the_decoder_change_nothing(made, monkeypatch):
    data = Codec(made["stf"], threads=2).encode(from_array(photo(128, 64)), digest=True).data
    before, seen = torch.get_num_threads(), []
    for name in ("analyse", "hyper_synthesise", "context", "refine", "synthesise"):
        inner = getattr(STF, name)

        def watched(self, *given, inner=inner, name=name):
            seen.append((name, torch.get_num_threads()))
            return inner(self, *given)

        monkeypatch.setattr(STF, name, watched)
    codecs = [Codec(made["stf"], threads=n) for n in (1, 2)]
    assert np.array_equal(*(codec.decode(data).pixels for codec in codecs))
    assert codecs[1].encode(from_array(photo(128, 64)), digest=True).data == data
    assert torch.get_num_threads() == before
    assert {n for name, n in seen if name != "analyse"} == {1}
    assert ("analyse", 2) in seen and ("synthesise", 1) in seen


def test_warnings_say_what_the_flag_means(made):
    codec = Codec(made["wacnn"])
    with pytest.warns(FloatWarning, match="decodes only on a machine like"):
        data = codec.encode(from_array(photo(16, 16))).data
    with pytest.warns(FloatWarning, match="was coded in float arithmetic"):
        codec.decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integer = api.encode(photo(16, 16))
        api.decode(integer)
    assert not container.read_header(integer).float_arithmetic


def test_another_machine_is_told_apart(made, monkeypatch):
    """Pixels that differ: DigestError; tables that differ: StreamError; both say why."""
    codec = Codec(made["wacnn"])
    data = codec.encode(from_array(photo(64, 64)), digest=True).data
    synthesise, hyper = WACNN.synthesise, WACNN.hyper_synthesise
    monkeypatch.setattr(WACNN, "synthesise", lambda self, y: synthesise(self, y) + 1 / 256)
    with pytest.raises(DigestError, match="decodes only on a machine like its encoder's"):
        codec.decode(data)
    monkeypatch.setattr(WACNN, "synthesise", synthesise)
    monkeypatch.setattr(
        WACNN, "hyper_synthesise", lambda self, z: tuple(h * 1.01 for h in hyper(self, z))
    )
    with pytest.raises(StreamError, match="or another machine made it: coded in float"):
        codec.decode(data)
    monkeypatch.setattr(WACNN, "hyper_synthesise", hyper)
    codec.decode(data)


def test_flag_and_model_must_agree(made):
    for model in (made["stf"], models.default()):
        codec = Codec(model)
        stream = container.read(codec.encode(from_array(photo(16, 16))).data)
        header = stream.header
        other = replace(header, float_arithmetic=not header.float_arithmetic)
        with pytest.raises(StreamError, match="disagree about float arithmetic"):
            codec.decode(container.write(replace(stream, header=other)))


def test_an_installed_float_model_decodes(made, monkeypatch):
    """A Codec without a model of its own finds the executor that the stream's model needs."""
    data = Codec(made["wacnn"]).encode(from_array(photo(16, 16)), digest=True).data
    monkeypatch.setattr(api, "_installed_model", lambda digest: made["wacnn"])
    codec = Codec()
    assert codec.decode(data).pixels.shape == (16, 16, 3)
    assert codec.executor.name != "torch-float"


def test_without_torch(made, monkeypatch):
    api._float_executor.cache_clear()
    monkeypatch.delitem(sys.modules, "lichen.neural")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"needs the package torch: pip install 'lichen\[train\]'"):
        Codec(made["wacnn"])


def test_executors_refuse_the_other_kind(made):
    program = made["wacnn"].programs["quantize.0"]
    inputs = {x.name: np.zeros((x.channels, 4, 4), np.float32) for x in program.inputs}
    for executor in (ReferenceExecutor(), best()):
        with pytest.raises(ContractError):
            executor.run(program, inputs)
    integers = models.default().programs["quantize"]
    with pytest.raises(ContractError, match="Program of integers"):
        neural.FloatExecutor().run(integers, {})


def test_damaged_models_are_model_errors(made):
    model = made["stf"]
    network = model.network

    def coding(**changes):
        programs = {
            name: replace(program, network=replace(network, **changes))
            for name, program in model.programs.items()
        }
        Codec(replace(model, programs=programs)).encode(from_array(photo(16, 16)))

    name = "layers.0.blocks.0.norm1.bias"
    bias = network.state[name]
    for changes, message in (
        ({"state": network.state | {name: bias[:-1]}}, "of another shape"),
        ({"state": network.state | {name: bias.astype(np.float64)}}, "must be torch.float32"),
        ({"state": network.state | {name: bias * np.float32(np.inf)}}, "infinities"),
        ({"arguments": dict(network.arguments) | {"window": 10**9}}, "out of bounds"),
        ({"arguments": dict(network.arguments) | {"slices": 5}}, "slices must divide"),
        ({"arguments": dict(network.arguments) | {"heads": [0, 1, 1, 1]}}, "cannot build"),
        ({"arguments": dict(network.arguments) | {"slices": 2}}, "its model file says otherwise"),
        ({"architecture": "student", "arguments": {}}, "is not a float model"),
        ({"architecture": "nothing"}, "no model is called 'nothing'"),
    ):
        with pytest.raises(ModelError, match=message):
            coding(**changes)
    document = json.loads(made_text(model)["lichen"])
    for key, value in (
        ("slices", 3),
        ("slices", 2**40),
        ("latent_channels", math.inf),
        ("gain_exponents", [1]),
        ("gain_exponents", [0, 5000]),
        ("kmac_per_pixel", None),
        ("arguments", 5),
    ):
        with pytest.raises(ModelError, match="not a lichen model file"):
            models.from_bytes(with_network(model, document["network"] | {key: value}))
    infinite = tiny("stf")
    with torch.no_grad():
        infinite.h_a[0].bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"weight h_a.0.bias is not finite"):
        lower(infinite, "x", {})


def made_text(model):
    """The texts in a model file."""
    return models.program_file.from_bytes(model.to_bytes())[1]


def with_network(model, description):
    """A model file whose network is described otherwise."""
    arrays, text = models.program_file.from_bytes(model.to_bytes())
    document = json.loads(text["lichen"]) | {"network": description}
    return models.program_file.to_bytes(arrays, text | {"lichen": json.dumps(document)})


def test_command_line(made, tmp_path, capsys):
    """A file made here decodes in another process, whatever its environment says of threads."""
    from PIL import Image

    weights_file, png, lic = (tmp_path / name for name in ("m.safetensors", "a.png", "a.lic"))
    weights_file.write_bytes(made["wacnn"].to_bytes())
    Image.fromarray(photo(64, 96)).save(png)
    model = ["--model", str(weights_file)]
    assert cli.main(["encode", str(png), str(lic), "--digest", *model]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and notes[0].startswith("lichen: note: the stream is coded in float")
    assert cli.main(["info", str(lic)]) == 0
    assert "arithmetic float, decodes only on a like machine" in capsys.readouterr().out
    assert cli.main(["info", "--json", str(lic)]) == 0
    assert json.loads(capsys.readouterr().out)["arithmetic"] == "float"
    code = "import sys; from lichen.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", str(lic), *model],
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="2"),
    )
    assert done.returncode == 0 and "pixel digest right" in done.stdout, done.stderr
    assert "was coded in float arithmetic" in done.stderr


def environment(**changes):
    import os

    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent), **changes}
