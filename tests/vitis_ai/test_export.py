"""An exported folder, from photographs to a picture that the DPU has coded."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import MODELS, STAND_INS, photograph, tiny
from lichen import cli
from lichen.api import Codec
from lichen.arguments import MODEL
from lichen.boards.vitis_ai import targets
from lichen.boards.vitis_ai.executor import DpuExecutor, EmulatedDpu, parts_of
from lichen.boards.vitis_ai.measure import psnr
from lichen.boards.vitis_ai.worker import WorkerDevice, matched
from lichen.errors import DeviceError, LichenError
from lichen.model import Model
from lichen.model import read as read_model
from lichen.picture import from_array

SOURCE = Path(__file__).parents[2] / "src"
TILE = 256, 256  # of student-fine, which looks far around


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, the stand-ins at hand."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    compiler = tools / "vai_c_xir"
    compiler.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_INS}/vai_c_xir.py" "$@"\n')
    compiler.chmod(0o755)
    variables = {
        **os.environ,
        "PYTHONPATH": f"{STAND_INS}:{SOURCE}",
        "PATH": f"{tools}:{os.environ['PATH']}",
        **environment,
    }
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def export(output: Path, photographs: Path, model: str = "student-fine", *more: str) -> int:
    path = MODELS / f"{model}.safetensors"
    return cli.main(
        ["export", "vitis-ai", str(path if path.exists() else model), "--board", "kv260",
         "-o", str(output), "--photographs", str(photographs), "--crop", "64", "--crops", "4",
         "--tile", "x".join(map(str, TILE)), "--quiet", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A folder of the tiny student, with a linear path on the DPU, not yet quantised."""
    output = tmp_path_factory.mktemp("export") / "out"
    assert export(output, photographs, "student-fine", "--linear", "dpu") == 0
    return output


def quantize(folder: Path, *runs: list[str]) -> list[str]:
    """Run quantize.py once for each list of options, in one process; gives what each said."""
    code = (
        "import contextlib, io, json, runpy, sys\n"
        "for options in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['quantize.py', *options]\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        try:\n"
        "            runpy.run_path('quantize.py', run_name='__main__')\n"
        "        except SystemExit as end:\n"
        "            print(end.code)\n"
        "    print(json.dumps(said.getvalue()))\n"
    )
    done = run(folder, sys.executable, "-c", code, json.dumps(runs))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Path:
    """The same after quantize.py and compile.sh, as README.md says; and in the wrong order."""
    refused(run(folder, "./compile.sh"), "Network_int.xmodel is not there")
    early, calib, test, deploy, tune, tuned = quantize(
        folder,
        ["--quant_mode", "test"],
        ["--quant_mode", "calib"],
        ["--quant_mode", "test"],
        ["--quant_mode", "test", "--deploy"],
        ["--quant_mode", "calib", "--fast_finetune", "--network", "g_s_2"],
        ["--quant_mode", "test", "--fast_finetune", "--deploy", "--network", "g_s_2"],
    )
    assert "run --quant_mode calib first" in early
    assert calib == tune == ""
    assert test.count("signal to quantisation noise") == 3
    assert "quantize_result/g_a" in deploy and "g_s_2" in tuned
    done = run(folder, "./compile.sh")
    assert done.returncode == 0, done.stderr
    return folder


def on_board(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python = f"{sys.executable}"
    return run(folder, sys.executable, "run.py", "--dpu-python", python, *command, **environment)


def test_what_is_in_the_folder(folder: Path) -> None:
    made = json.loads((folder / "export.json").read_text())
    assert made["board"] == "kv260" and made["fingerprint"] == targets.FINGERPRINT
    assert json.loads((folder / "arch.json").read_text()) == {"fingerprint": targets.FINGERPRINT}
    assert set(made["networks"]) == {"g_a", "g_s", "g_s_2"} and set(made["measured"]) >= {"dpu"}
    for row in made["measured"]["dpu"]:
        assert 0 < row["equal_latents"] <= 1 and row["psnr"] > 5
    assert len(list((folder / "calibration").glob("*.npy"))) == 4
    x = np.load(next((folder / "calibration").glob("g_a.*.npy")))
    assert x.dtype == np.int8 and x.shape[0] == made["calibration_pictures"]
    readme = (folder / "README.md").read_text()
    for word in ("docker run", "--quant_mode calib", "--deploy", "./compile.sh", "run.py encode"):
        assert word in readme
    assert "@" not in (folder / "compile.sh").read_text().replace('"$@"', "")
    assert not list(folder.parent.glob(".*part"))


def test_the_pytorch_network_is_ours(folder: Path) -> None:
    """network.py computes what `lichen` cut, without importing lichen."""
    code = (
        "import sys, numpy, torch, network\n"
        "for name in network.names():\n"
        "    description, model = network.describe(name), network.load(name)\n"
        "    shapes = network.tile_inputs(description, (64, 64))\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    given = [torch.rand(s, generator=g) for s in shapes]\n"
        "    y = model(*given)\n"
        "    numpy.savez(name + '.npz', y=y[0].detach(), *[x[0] for x in given])\n"
        "assert not any(m.split('.')[0] == 'lichen' for m in sys.modules)\n"
    )
    done = run(folder, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    from lichen.boards.vitis_ai import network as net

    for name, network in tiny("student-fine", "dpu").networks.items():
        held = np.load(folder / f"{name}.npz")
        inputs = {feed.name: held[f"arr_{k}"] for k, feed in enumerate(network.feeds)}
        found = net.run(network, inputs)[network.outputs[0]]
        assert np.allclose(found, held["y"], atol=1e-5 * np.abs(found).max())


def test_from_photograph_to_picture(compiled: Path) -> None:
    """quantize.py, compile.sh and run.py, end to end; what comes out is the DPU's arithmetic."""
    pixels = photograph(70, 90, 3)
    Image.fromarray(pixels).save(compiled / "in.png")
    for command in (("encode", "in.png", "out.lic"), ("decode", "out.lic", "back.png")):
        done = on_board(compiled, *command)
        assert done.returncode == 0, done.stderr
    data = (compiled / "out.lic").read_bytes()
    back = np.asarray(Image.open(compiled / "back.png"))
    parts = tiny("student-fine", "dpu")
    anywhere = Codec(parts.model).decode(data).rgb
    assert psnr(back, anywhere) > 25

    weights = parts.model.digest.hex()
    networks = {}
    for name, network in parts.networks.items():
        held = pickle.loads((compiled / "xmodel" / f"{name}-{weights}.xmodel").read_bytes())["q"]
        networks[name] = _renamed(held, network)
    emulated = DpuExecutor(parts, EmulatedDpu(networks, TILE))
    codec = Codec(parts.model, executor=emulated)
    assert codec.encode(from_array(pixels), quality=50).data == data
    assert np.array_equal(codec.decode(data).rgb, back)


def _renamed(q, network):  # type: ignore[no-untyped-def]
    """Give a quantised network of the stand-in's names ours: both are in order."""
    from dataclasses import replace

    from lichen.boards.vitis_ai.dpu import Quantized

    theirs = [*(f.name for f in q.network.feeds), *(n.name for n in q.network.nodes)]
    ours = [*(f.name for f in network.feeds), *(n.name for n in network.nodes)]
    name = dict(zip(theirs, ours, strict=True))
    parts = [
        {name[k]: v for k, v in part.items()}
        for part in (q.fixes, q.weights, q.biases, q.weight_fixes, q.bias_fixes)
    ]
    nodes = tuple(
        replace(n, relu=o.relu) for n, o in zip(network.nodes, q.network.nodes, strict=True)
    )
    return Quantized(replace(network, nodes=nodes), *parts)


def test_the_test_command(compiled: Path) -> None:
    Image.fromarray(photograph(64, 64, 1)).save(compiled / "small.png")
    done = on_board(compiled, "test", "small.png", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "equal latents" in done.stdout and "pictures of 64x64 per second" in done.stdout


def test_a_stream_with_a_digest_decodes(compiled: Path) -> None:
    codec = Codec(tiny("student-fine").model)
    data = codec.encode(from_array(photograph(40, 40, 1)), quality=50, digest=True).data
    (compiled / "digest.lic").write_bytes(data)
    done = on_board(compiled, "decode", "digest.lic", "digest.png")
    assert done.returncode == 0 and "digest of the pixels is not checked" in done.stderr


@pytest.fixture
def copied(compiled: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(compiled, tmp_path / "copy")
    Image.fromarray(photograph(64, 64, 1)).save(tmp_path / "copy" / "in.png")
    yield tmp_path / "copy"


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on stderr that says it, and a non-zero exit."""
    assert done.returncode != 0
    lines = [x for x in done.stderr.strip().splitlines() if "error:" in x]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], done.stderr


def test_a_stream_of_another_model(copied: Path) -> None:
    other = Codec(tiny("student").model).encode(from_array(photograph(64, 64, 1))).data
    (copied / "other.lic").write_bytes(other)
    refused(on_board(copied, "decode", "other.lic", "x.png"), "made with weights", "right model")
    assert not (copied / "x.png").exists()


def test_xmodels_of_other_weights(copied: Path) -> None:
    for path in (copied / "xmodel").glob("g_a-*"):
        path.rename(path.with_name("g_a-0123456789abcdef.xmodel"))
    refused(on_board(copied, "encode", "in.png", "x.lic"), "is not in xmodel/", "compile.sh")


def test_a_folder_of_two_exports(copied: Path) -> None:
    shutil.copy(MODELS / "student.safetensors", copied / "model.safetensors")
    refused(on_board(copied, "encode", "in.png", "x.lic"), "mixed of two exports")


def test_another_lichen_that_cuts_otherwise(copied: Path) -> None:
    made = json.loads((copied / "export.json").read_text())
    made["networks"]["g_a"]["digest"] = "0" * 16
    (copied / "export.json").write_text(json.dumps(made))
    refused(on_board(copied, "encode", "in.png", "x.lic"), "install lichen")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subgraphs": 2}, ("2 DPU subgraphs, expected one",)),
        ({"fingerprint": "0x101000016010407"}, ("fingerprint",)),
    ],
)
def test_xmodels_that_do_not_fit(copied: Path, change: dict, words: tuple[str, ...]) -> None:
    (path,) = (copied / "xmodel").glob("g_a-*")
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | change))
    refused(on_board(copied, "encode", "in.png", "x.lic"), "process ended with status", *words)


def test_a_dpu_that_hangs(copied: Path) -> None:
    done = on_board(copied, "--timeout", "1", "encode", "in.png", "x.lic", STAND_IN_DPU_HANGS="1")
    refused(done, "no answer for g_a within 1 s", "xdputil")


def test_no_vart(copied: Path) -> None:
    done = run(
        copied, sys.executable, "run.py", "--dpu-python", f"{sys.executable} -S -E", "encode",
        "in.png", "x.lic",
    )  # fmt: skip
    refused(done, "the DPU's process ended")


def test_no_vitis_ai(folder: Path, tmp_path: Path) -> None:
    """quantize.py and compile.sh say what is missing."""
    done = subprocess.run(
        [sys.executable, "quantize.py", "--quant_mode", "calib"], cwd=folder, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    refused(done, "pytorch_nndct is missing", "container of Vitis AI 3.0")
    done = subprocess.run(
        ["bash", "compile.sh"], cwd=folder, text=True, capture_output=True,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    refused(done, "vai_c_xir is not on the PATH")


def test_a_container_of_another_release(folder: Path, tmp_path: Path) -> None:
    """Its arch.json has another fingerprint; compile.sh looks before it compiles."""
    (tmp_path / "arch.json").write_text('{"fingerprint": "0x101000016010407"}')
    script = (folder / "compile.sh").read_text()
    assert targets.target("kv260").arch in script
    copy = folder / "compile-elsewhere.sh"
    copy.write_text(script.replace(targets.target("kv260").arch, str(tmp_path / "arch.json")))
    refused(run(folder, "bash", copy.name), "is not for the DPU", "another release", "3.0")


@pytest.mark.parametrize("name", ["network", "quantize", "dpu_worker"])
def test_scripts_for_old_pythons(name: str) -> None:
    """AMD's container has Python 3.7 or 3.8, the board's image 3.9."""
    path = SOURCE / "lichen" / "boards" / "vitis_ai" / "templates" / f"{name}.py"
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    names = {n for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    assert "lichen" not in {name.name.split(".")[0] for name in names}


def test_state_dicts_are_lowered(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no model file is lowered as `lichen lower` does it, with the same photographs."""
    from lichen.training import commands

    asked = []

    def lowered(path: Path, pictures: Path | None) -> Model:
        asked.append((path, pictures))
        return read_model(MODELS / "relu.safetensors")

    monkeypatch.setattr(commands, "lowered", lowered)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"a state dict")
    assert export(tmp_path / "out", photographs, str(weights), "--tile", "128x128") == 0
    made = json.loads((tmp_path / "out" / "export.json").read_text())
    assert asked == [(weights, photographs)] and set(made["networks"]) == {"g_a", "g_s"}


# Bad input of `lichen export`


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--board", "kv261"], "no board with a DPU image is called 'kv261'; there are kv260"),
        (["--photographs", "nowhere"], "expected a folder of photographs"),
        (["--tile", "64x64"], "too small"),
        (["--tile", "100x256"], "must be multiples of"),
        (["--crop", "70"], "--crop must be a multiple of 32"),
        (["--crop", "512"], "512 pixels a side"),
    ],
)
def test_bad_input(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str],
    words: str,
) -> None:  # fmt: skip
    assert export(tmp_path / "out", photographs, "student-fine", *change) != 0
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "words"),
    [("gdn-means", "In its place: ReLU"), ("student-x", "no installed model is called")],
)
def test_models_that_cannot_be_exported(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, words: str
) -> None:
    assert export(tmp_path / "out", photographs, model) == MODEL
    error = capsys.readouterr().err
    assert words in error and "internal" not in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_kodak_is_not_for_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph(64, 64, 0)).save(tmp_path / "kodim05.png")
    assert export(tmp_path / "out", tmp_path) != 0
    assert "test picture of Kodak" in capsys.readouterr().err


def test_a_folder_that_is_not_empty(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert export(tmp_path, photographs) != 0
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_target_has_an_arch_file() -> None:
    assert targets.target("zcu102").arch.endswith("/ZCU102/arch.json")
    with pytest.raises(LichenError, match="kv260, zcu102"):
        targets.target("zcu104")


def test_tensors_are_matched_by_shape_then_number() -> None:
    network = tiny("student-fine", "dpu").networks["g_s"]
    names = [feed.name for feed in network.feeds]
    shape = [1, 16, 16, network.feeds[0].channels]
    entries = [{"name": f"N__input_{k}_fix", "dims": shape, "fix_point": 3} for k in (1, 0)]
    assert [name for name, _ in matched(network, entries, names, TILE)] == names[::-1]
    entries[0]["dims"] = [1, 15, 16, shape[3]]
    with pytest.raises(DeviceError, match="compile again"):
        matched(network, entries, names, TILE)


def test_a_python_that_is_not_there(folder: Path) -> None:
    with pytest.raises(DeviceError, match="cannot start no-such-python"):
        WorkerDevice(folder / "dpu_worker.py", {}, {}, TILE, ("no-such-python",))


def test_the_model_in_the_folder_is_the_model(folder: Path) -> None:
    from lichen import model

    made = model.read(folder / "model.safetensors")
    assert made.digest == tiny("student-fine").model.digest
    assert set(parts_of(made, "dpu").networks) == {"g_a", "g_s", "g_s_2"}
