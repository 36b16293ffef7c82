"""Pruning: what is left computes what the whole network computes with those channels at zero."""

import copy
import functools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from PIL import Image  # noqa: E402

from lichen import cli  # noqa: E402
from lichen.api import Codec  # noqa: E402
from lichen.errors import LichenError, ModelError  # noqa: E402
from lichen.executors import ReferenceExecutor, best  # noqa: E402
from lichen.frugal import importance  # noqa: E402
from lichen.frugal.choose import choose, fixed_groups, kmac, macs_limit, total  # noqa: E402
from lichen.frugal.mask_decay import DECAYED, LEARNED, MaskDecay  # noqa: E402
from lichen.frugal.prune import Request, prune  # noqa: E402
from lichen.lower import lower  # noqa: E402
from lichen.model import from_bytes  # noqa: E402
from lichen.models import catalogue, channels  # noqa: E402
from lichen.models.complexity import complexity  # noqa: E402
from lichen.models.gdn import GDN  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.training import quantize, run  # noqa: E402
from lichen.training.commands import Options  # noqa: E402
from lichen.training.recipe import Recipe, read  # noqa: E402
from lichen.training.train import load_run  # noqa: E402
from lichen.training.warmstart import load_weights  # noqa: E402

torch.set_num_threads(1)  # the models are tiny

KINDS = {
    "balle2016": ("balle2016", {"n": 8, "m": 12}),
    "balle2016-9-5-5": ("balle2016", {"n": 8, "m": 12, "kernels": "9-5-5", "power": 1}),
    "balle2018": ("balle2018", {"n": 8, "m": 12}),
    "balle2018-relu": ("balle2018", {"n": 8, "m": 12, "activation": "relu"}),
    "balle2018-means": ("balle2018", {"n": 8, "m": 12, "means": True}),
    "minnen2020": (
        "minnen2020",
        {"n": 8, "m": 12, "slices": 3, "max_support_slices": 2, "hidden": [8, 6]},
    ),
    "minnen2020-relu": (
        "minnen2020",
        {"n": 8, "m": 12, "slices": 2, "hidden": [8, 6], "activation": "relu"},
    ),
    "student": ("student", {"width": 16, "encoder_blocks": [2, 1], "decoder_blocks": [1, 1]}),
    "student-fine": (
        "student",
        {"width": 8, "encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 0], "fine_width": 8,
         "latents": 16, "hyper_reduction": 32, "hyper_levels": 3},
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("kind", KINDS)
HALF = torch.tensor([0.5])


def network(kind):
    """Give a model none of whose parts is silent: fresh ones begin with zeros here and there."""
    return copy.deepcopy(made(kind))


@functools.cache
def made(kind):
    torch.manual_seed(0)
    model = catalogue.build(*KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".weight") and not value.any():
                value.normal_(std=0.05, generator=generator)
            elif name.endswith((".bias", "quantiles")) or name in ("gain", "inverse_gain"):
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    model.gain.data.add_(2.0)  # so that latents are not all zero
    if kind != "balle2016-9-5-5":  # whose layers attenuate: others give pictures of hundreds
        model.inverse_gain.data.sub_(2.0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, GDN):
                mix = 0.05 * torch.rand(layer.gamma.shape, generator=generator)
                layer.set_effective(torch.linspace(0.5, 1.5, len(layer.beta)), 0.1 + mix)
    return model


def picture(side=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(-1, 1)


def random_kept(found, seed=0, part=0.5):
    """Keep about half of each group, as many of each of its parts."""
    rng = np.random.default_rng(seed)
    kept = {}
    for name, group in found.groups.items():
        each = group.units // group.parts
        mask = np.zeros((group.parts, each), bool)
        for row in mask:
            row[rng.choice(each, max(1, round(part * each)), replace=False)] = True
        kept[name] = mask.reshape(-1)
    return kept


@torch.no_grad()
def silence(model, found, kept):
    """Set to zero what makes the units that leave, and the medians of priors."""
    state = model.state_dict()
    for name, mask in kept.items():
        for member in found.groups[name].members:
            if member.makes or member.tensor.endswith("quantiles"):
                gone = np.flatnonzero((member.units >= 0) & ~mask[member.units])
                state[member.tensor].index_fill_(member.axis, torch.from_numpy(gone), 0.0)


@EACH
def test_pruned_is_the_whole_with_zeros(kind):
    """For each group alone, and for all of them together."""
    found = channels.trace(network(kind))
    every = random_kept(found)
    for chosen in [*({name: every[name]} for name in every), every]:
        whole, pruned = network(kind), network(kind)
        silence(whole, found, chosen)
        channels.keep(pruned, found, chosen)
        with torch.no_grad():
            wanted, got = (m(picture(), HALF, noise=False) for m in (whole, pruned))
        torch.testing.assert_close(got.x_hat, wanted.x_hat, atol=1e-5, rtol=1e-5)
        y = np.ones(wanted.y_likelihood.shape[1], bool)
        z = np.ones(wanted.z_likelihood.shape[1], bool)
        if "latent" in chosen:
            y &= chosen["latent"]
        if "hyper_latent" in chosen:
            z &= chosen["hyper_latent"]
        for a, b, mask in (
            (got.y_likelihood, wanted.y_likelihood, y), (got.z_likelihood, wanted.z_likelihood, z),
        ):  # fmt: skip
            torch.testing.assert_close(a, b[:, torch.from_numpy(mask)], atol=1e-5, rtol=1e-4)


@EACH
def test_pruning_leaves_the_rest_alone(kind):
    """Tensors are those of before without the positions of one group; all others are untouched."""
    found = channels.trace(network(kind))
    for name, mask in random_kept(found).items():
        before, model = network(kind).state_dict(), network(kind)
        channels.keep(model, found, {name: mask})
        for member in found.groups[name].members:
            own = torch.from_numpy((member.units < 0) | mask[member.units])
            before[member.tensor] = before[member.tensor].index_select(
                member.axis, own.nonzero()[:, 0]
            )
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in after)
        assert model.arguments["pruned"] == {name: int(mask.sum())}


@EACH
def test_every_inner_channel_is_in_a_group(kind):
    """Only pixels are outside: the first layers' inputs and the last layers' outputs."""
    found = channels.trace(network(kind))
    outside = [layer for layer in found.layers if "" in {**layer.inputs, **layer.outputs}]
    assert {tuple(c) for la in outside for c in (la.inputs, la.outputs) if "" in c} == {("",)}
    assert len(outside) == (4 if "student" in kind else 2)
    assert "latent" in found.groups
    # nothing that has channels is forgotten
    tensors = {m.tensor for group in found.groups.values() for m in group.members}
    state = network(kind).state_dict()
    sized = {n for n in state if not n.endswith((".exponent", ".peak"))}
    ends = {n for la in outside if "" in la.outputs for n in (f"{la.name}.bias",)}
    assert sized - tensors == ends


@EACH
def test_costs_are_those_of_complexity(kind):
    model = network(kind)
    found = channels.trace(model)
    kept = random_kept(found)
    counts = {name: int(mask.sum()) for name, mask in kept.items()}
    channels.keep(model, found, kept)
    for now, known in ((channels.trace(model), None), (found, counts)):
        encode, decode = kmac(now, known or now.counts)
        cost = complexity(model)
        assert 1000 * encode == pytest.approx(cost.encode.macs_per_pixel)
        assert 1000 * decode == pytest.approx(cost.decode.macs_per_pixel)


@EACH
def test_catalogue_builds_it_again(kind):
    name, _ = KINDS[kind]
    model = network(kind)
    found = channels.trace(model)
    channels.keep(model, found, random_kept(found))
    again = catalogue.build(name, json.loads(json.dumps(model.arguments)))
    again.load_state_dict(model.state_dict())
    assert again.arguments == model.arguments
    assert again.latent_channels == model.latent_channels
    with torch.no_grad():
        a, b = (m(picture(), HALF, noise=False) for m in (model, again))
    assert torch.equal(a.x_hat, b.x_hat)
    # and once more
    more = channels.trace(again)
    assert more.counts == {**found.counts, **model.arguments["pruned"]}
    channels.keep(again, more, random_kept(more, seed=5, part=0.7))
    third = catalogue.build(name, again.arguments)
    third.load_state_dict(again.state_dict())


@EACH
def test_pruned_codes_in_integers(kind):
    """A pruned network lowers, and two executors code a picture alike."""
    model = network(kind)
    found = channels.trace(model)
    channels.keep(model, found, random_kept(found, part=0.6))
    x = (picture() * 128).round() / 128
    x = x.clamp(-1, 127 / 128)
    quantize.fit(model, [x], rescale=False, correct=False)
    lowered = from_bytes(lower(model, "pruned", {}).to_bytes())
    pixels = (x[0] * 128 + 128).to(torch.uint8).permute(1, 2, 0).numpy()
    streams, pictures = set(), []
    for executor in (best(), ReferenceExecutor()):
        codec = Codec(lowered, executor=executor)
        streams.add(codec.encode(from_array(pixels), quality=50).data)
        pictures.append(codec.decode(next(iter(streams))).pixels)
    assert len(streams) == 1
    assert np.array_equal(*pictures)
    assert lowered.gain.shape[1] == model.arguments["pruned"]["latent"]


def test_trace_leaves_the_model_as_it_was():
    model = network("balle2018-means")
    model.set_quantized(True)
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    channels.trace(model)
    assert before == {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert all(layer.quantized for layer in model.quantized_layers())
    assert not any(m._forward_hooks for m in model.modules())
    from lichen.models.gdn import LowerBound

    x = torch.tensor([-1.0], requires_grad=True)
    LowerBound.apply(x, 0.0).backward()
    assert x.grad == 0


# Choosing


def simple_scores(found, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(group.units) for name, group in found.groups.items()}


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_the_share_of_macs_is_met(share):
    found = channels.trace(catalogue.build("balle2018", {"n": 48, "m": 64, "means": True}))
    kept = choose(found, simple_scores(found), [macs_limit(found, share)], multiple=4)
    counts = {name: int(mask.sum()) for name, mask in kept.items()}
    assert total(found, counts) / total(found, found.counts) == pytest.approx(share, abs=0.02)
    assert all(c == found.counts[n] or c % 4 == 0 for n, c in counts.items())


def test_the_least_needed_units_go_first():
    found = channels.trace(network("minnen2020"))
    scores = simple_scores(found)
    kept = choose(found, scores, [macs_limit(found, 0.6)], multiple=1)
    assert kept["latent"].reshape(3, 4).sum(1).tolist() == [kept["latent"].sum() / 3] * 3
    for name, mask in kept.items():
        group = found.groups[name]
        for own, score in zip(mask.reshape(group.parts, -1), scores[name].reshape(group.parts, -1)):
            assert own.all() or score[own].min() >= score[~own].max()
    # what is worth most per product stays, and what is dear and worth little goes
    found = channels.trace(network("balle2018"))
    name, scores = "g_a.0", simple_scores(found)
    dear = {**{n: s + 1e3 for n, s in scores.items()}, name: scores[name] * 1e-6}
    kept = choose(found, dear, [macs_limit(found, 0.95)], multiple=1)
    assert all(mask.all() for n, mask in kept.items() if n != name) and not kept[name].all()


def test_what_cannot_be_met_names_the_nearest():
    found = channels.trace(network("balle2018"))
    with pytest.raises(LichenError, match=r"-50.0% MACs cannot be met, the nearest is \+0.0%"):
        choose(found, simple_scores(found), [macs_limit(found, 0.5)], multiple=64)
    with pytest.raises(
        LichenError, match=r"no group of channels is called 'g_b.\*'; there are g_a"
    ):
        fixed_groups(found, ["g_b.*"])
    fixed = fixed_groups(found, ["h_*", "latent"])
    assert {"latent", "h_a.0", "h_s.2"} <= fixed and "hyper_latent" not in fixed
    kept = choose(found, simple_scores(found), [macs_limit(found, 0.6)], multiple=1, fixed=fixed)
    assert all(kept[name].all() for name in fixed)


# Importance


@pytest.mark.parametrize("kind", ["balle2018-means", "student", "minnen2020"])
def test_scores_find_dead_channels(kind):
    """A unit whose weights are zero scores least; others do not, by either score."""
    model = network(kind)
    found = channels.trace(model)
    name = "hyper_synthesis.0" if kind == "student" else "g_s.2"
    mask = np.ones(found.groups[name].units, bool)
    mask[3] = False
    silence(model, found, {name: mask})
    scores = {
        "magnitude": importance.magnitude(model, found),
        "taylor": importance.taylor(model, found, [torch.cat([picture(), picture(seed=2)])]),
    }
    for kind_of, score in scores.items():
        assert score.keys() == found.groups.keys()
        assert score[name][3] == score[name].min(), kind_of
        assert (np.delete(score[name], 3) > score[name][3]).all(), kind_of
    assert scores["taylor"][name][3] == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_is_the_slope_of_a_mask():
    """The gradient of a unit's mask is what the loss changes by, per change of that mask."""
    model = network("balle2018-relu")
    found = channels.trace(model)
    group = found.groups["g_s.4"]

    def loss(factor):
        whole = network("balle2018-relu")
        with torch.no_grad():
            for member in group.members:
                if member.makes:
                    value = whole.get_parameter(member.tensor)
                    value.select(member.axis, 2).mul_(factor)
        coded = whole(picture(), HALF, noise=False)
        return whole, coded.x_hat.square().mean()

    whole, value = loss(1.0)
    value.backward()
    slope = importance.mask_gradient(whole, group)[2]
    assert float(slope) != 0
    difference = (loss(1.25)[1] - loss(0.75)[1]) / 0.5  # exact: the loss is a square of the mask
    assert float(slope) == pytest.approx(float(difference.detach()), rel=1e-3)


def test_masks_decay_to_zero():
    """Through a small loop: masks learn, then decay; at the end cutting changes nothing."""
    model = network("balle2018-relu")
    found = channels.trace(model)
    limit = macs_limit(found, 0.6)
    masks = MaskDecay(found, lambda scores: choose(found, scores, [limit], multiple=1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    steps, x = 20, picture()
    norms = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        coded = model(x, HALF)
        (coded.x_hat - x).square().mean().backward()
        optimizer.step()
        masks.after_step(model, step, steps)
        if masks.chosen:
            name, mask = next((n, m) for n, m in masks.kept.items() if not m.all())
            weight = model.get_parameter(f"{name}.weight").detach()
            axis = next(m.axis for m in found.groups[name].members if m.makes)
            norms.append(float(weight.transpose(0, axis)[torch.from_numpy(~mask)].norm()))
        if step == int(LEARNED * steps):
            state = {k: v.clone() for k, v in masks.state_dict().items()}
            masks = MaskDecay(found, lambda scores: choose(found, scores, [limit], multiple=1))
            masks.load_state_dict(state)  # as a resumed run does
    assert norms == sorted(norms, reverse=True) and norms[0] > 0
    assert norms[-1] == 0 and norms[round(DECAYED * steps) - round(LEARNED * steps)] == 0
    kept = masks.kept
    with torch.no_grad():
        before = model(x, HALF, noise=False).x_hat
        if not kept["hyper_latent"].all():  # medians have no mask
            silence(model, found, {"hyper_latent": kept["hyper_latent"]})
            before = model(x, HALF, noise=False).x_hat
        channels.keep(model, found, kept)
        after = model(x, HALF, noise=False).x_hat
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    costs = [complexity(m).encode.macs_per_pixel for m in (model, network("balle2018-relu"))]
    assert costs[0] < costs[1]


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run's folder, as `lichen train` writes it, and a folder of pictures."""
    root = tmp_path_factory.mktemp("prune")
    (root / "run").mkdir()
    model = network("balle2018-means")
    recipe = Recipe(model="balle2018", arguments=model.arguments, crop=64, batch=2, steps=4)
    (root / "run" / run.CONFIG).write_text(recipe.to_json())
    facts = {"step": "4", "quantized": "1"}
    run.save_tensors(model.state_dict(), root / "run" / run.WEIGHTS, facts=facts)
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (12, 14, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((112, 96), Image.Resampling.BICUBIC)
        image.save(root / "photos" / f"{number}.png")
    return root


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_command(folders, score, capsys, tmp_path):
    out = tmp_path / "pruned"
    photographs = ["--photographs", str(folders / "photos")] if score == "taylor" else []
    command = ["prune", str(folders / "run"), "-o", str(out), "--macs", "-40%", "--multiple", "1"]
    command += ["--importance", score, "--samples", "3", "--json", *photographs]
    assert cli.main(command) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    assert told["macs"][1] / told["macs"][0] == pytest.approx(0.6, abs=0.02)
    recipe, model, facts = load_run(out)
    assert facts["quantized"] == "0"
    assert complexity(model).encode.macs_per_pixel == pytest.approx(1000 * told["encode"][1])
    assert recipe.arguments["pruned"] == {n: b for n, (a, b) in told["groups"].items() if a != b}
    assert read(out / run.CONFIG) == recipe
    # `lichen train --weights`, `lichen lower`, and pruning once more take it
    again = catalogue.build(recipe.model, recipe.arguments)
    load_weights(again, out / run.WEIGHTS)
    lowered = tmp_path / "model.safetensors"
    command = ["lower", str(out), str(lowered), "--photographs", str(folders / "photos")]
    assert cli.main([*command, "--quiet"]) == 0, capsys.readouterr().err
    stream = tmp_path / "0.lic"
    command = ["encode", str(folders / "photos" / "0.png"), str(stream), "--model", str(lowered)]
    assert cli.main(command) == 0
    second = ["prune", str(out), "-o", str(tmp_path / "twice"), "--macs=-20%"]
    second += ["--multiple", "1", "--importance", "magnitude"]
    assert cli.main([*second, "--quiet"]) == 0
    twice = complexity(load_run(tmp_path / "twice")[1])
    both = twice.encode.macs_per_pixel + twice.decode.macs_per_pixel
    assert both < 1000 * (told["encode"][1] + told["decode"][1])


def test_command_with_mask_decay_goes_on(folders, capsys, tmp_path):
    """Stopped and gone on with, it ends where an uninterrupted run does."""
    photographs = sorted((folders / "photos").iterdir())
    request = Request(share=0.6, importance="mask-decay", multiple=1, steps=8)
    options = Options(device="cpu")
    results = []
    for name, minutes in (("whole", [1.0]), ("parts", [0.0, 1.0])):
        for limit in minutes:
            options = Options(device="cpu", minutes=limit)
            number, done = prune(folders / "run", tmp_path / name, request, photographs, options)
            assert number == 0 and (done is None) == (limit == 0)
        assert done.macs[1] / done.macs[0] == pytest.approx(0.6, abs=0.02)
        results.append(load_run(tmp_path / name)[1].state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_bad_requests(folders, capsys, tmp_path):
    out = str(tmp_path / "out")

    def error(*more, source=folders / "run"):
        assert cli.main(["prune", str(source), "-o", out, *more]) != 0
        text = capsys.readouterr().err
        assert text.startswith("lichen: error: ") and text.count("\n") == 1, text
        assert not (tmp_path / "out").exists()
        return text

    weights = ("--importance", "magnitude")
    assert "give --photographs FOLDER" in error("--macs", "-50%")
    assert "no folder at" in error("--macs", "-50%", "--photographs", str(tmp_path / "none"))
    assert "found none" in error("--macs", "-50%", "--photographs", str(folders / "run"))
    assert "like -50%" in error("--macs", "50", *weights)
    assert "either a share of the MACs (--macs -50%) or a board" in error(*weights)
    assert "give --board and --video" in error("--board", "kv260", *weights)
    assert "takes --steps" in error("--macs", "-50%", "--importance", "mask-decay")
    assert "the nearest is" in error("--macs", "-99.5%", *weights)
    assert "no group of channels" in error("--macs", "-50%", "--keep", "x", *weights)
    assert "found no" in error("--macs", "-50%", *weights, source=tmp_path / "nothing")
    strange = tmp_path / "strange.safetensors"
    run.save_tensors({"a.weight": torch.zeros(2)}, strange)
    assert "of an unknown architecture" in error("--macs", "-50%", *weights, source=strange)


def test_unknown_counts_and_models_are_refused():
    for pruned, text in (
        ({"g_q.0": 4}, "groups of channels of ScaleHyperprior in `pruned`, found 'g_q.0'"),
        ({"g_a.0": 9}, r"expected 1\.\.8 channels of g_a.0"),
        ({"g_a.0": 0}, r"expected 1\.\.8 channels of g_a.0"),
        ({"g_a.0": "4"}, "found '4'"),
    ):
        with pytest.raises(ModelError, match=text):
            catalogue.build("balle2018", {"n": 8, "m": 12, "pruned": pruned})
    with pytest.raises(ModelError, match="a multiple of 3"):
        name, arguments = KINDS["minnen2020"]
        catalogue.build(name, {**arguments, "pruned": {"latent": 10}})
    with pytest.raises(ModelError, match="attention"):
        arguments = {"n": 8, "m": 16, "slices": 2, "heads": 2, "hidden": [8, 8, 8, 8]}
        catalogue.build("zou2022-wacnn", {**arguments, "pruned": {"g_a.0": 4}})
