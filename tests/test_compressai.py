"""With equal weights, our models compute what CompressAI's compute: stored outputs, or made here.

tests/golden/compressai/generate.py runs CompressAI and says how the stored files were made.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from safetensors.torch import load_file  # noqa: E402

from lichen.errors import ModelError  # noqa: E402
from lichen.models import balle2016, balle2018  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

GOLDEN = Path(__file__).parent / "golden" / "compressai"
FROM = {
    "bmshj2018-factorized": balle2016.from_checkpoint,
    "bmshj2018-hyperprior": balle2018.from_checkpoint,
    "mbt2018-mean": balle2018.from_checkpoint,
}
OLD_SPELLING = (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor"))
TOP = torch.tensor([1.0])


@pytest.fixture(scope="module", params=["stored", "made here"])
def files(request, tmp_path_factory):
    if request.param == "stored":
        return GOLDEN
    if importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI is not installed: its stored outputs are compared alone")
    folder = tmp_path_factory.mktemp("compressai")
    command = [sys.executable, GOLDEN / "generate.py", folder]
    subprocess.run(command, check=True, timeout=300)
    return folder


def read(folder, name):
    """State dict, and the other tensors, of one file."""
    contents = load_file(folder / f"{name}.safetensors")
    state = {k.removeprefix("state."): v for k, v in contents.items() if k.startswith("state.")}
    return state, {k: v for k, v in contents.items() if not k.startswith("state.")}


def assert_near(found, expected):
    """Equal within 1e-5, of each value and of their root mean square."""
    assert found.shape == expected.shape
    bound = 1e-5 * (expected.abs() + expected.square().mean().sqrt())
    assert ((found - expected).abs() <= bound).all()


@pytest.mark.parametrize("name", FROM)
@torch.no_grad()
def test_forward_pass(files, name):
    state, expected = read(files, name)
    model = FROM[name](state)
    x = expected["x"].permute(2, 0, 1)[None].float() / 128 - 1
    y = model.analyse(x)
    if name == "bmshj2018-factorized":  # whose y comes without its medians
        y = y + model.entropy_bottleneck.medians()
    assert_near(y, expected["y"])
    coded = model(x, TOP, noise=False)
    assert_near(coded.y_likelihood, expected["likelihood.y"])
    if "likelihood.z" in expected:
        assert_near(coded.z_likelihood, expected["likelihood.z"])
    else:
        assert coded.z_likelihood.numel() == 0
    found = (coded.x_hat * 128 + 128) / 255
    assert_near(found.flatten()[::5], expected["x_hat"])
    assert expected["x_hat"].std() > 0.1 and expected["y"].std() > 1  # the test sees something


@pytest.mark.parametrize("name", FROM)
@torch.no_grad()
def test_older_names_of_the_prior(name):
    """Older releases call the parameters of the entropy bottleneck _matrix0, _bias0, .."""
    state, _ = read(GOLDEN, name)
    older = {}
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        for new, old in OLD_SPELLING if prefix == "entropy_bottleneck" else ():
            rest = rest.replace(new, old)
        older[f"{prefix}.{rest}"] = value
    assert older.keys() != state.keys()
    first, second = FROM[name](state).state_dict(), FROM[name](older).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", FROM)
def test_wrong_files_are_named(name):
    state, _ = read(GOLDEN, name)
    state["g_s.7.bias"] = state.pop("g_s.5.beta")
    with pytest.raises(ModelError) as error:
        FROM[name](state)
    assert "missing ['g_s.5.beta'], unexpected ['g_s.7.bias']" in str(error.value)
