"""Files that hold code: every loader of weights refuses them and runs nothing."""

from __future__ import annotations

import ast
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lichen import model as models
from lichen.cli import main
from lichen.errors import LichenError, ModelError

SOURCES = Path(models.__file__).parent
MARK = "was-here"


class Malice:
    """What unpickling turns into a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder / MARK),)


@pytest.fixture
def malicious(tmp_path: Path) -> dict[str, Path]:
    """Give files that make a folder when they are unpickled: plain, in a zip as torch has it."""
    payload = pickle.dumps({"g_a.0.weight": Malice(tmp_path)}, protocol=2)
    plain, whole = tmp_path / "plain.pt", tmp_path / "zip.pt"
    plain.write_bytes(payload)
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("archive/data.pkl", payload)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    named = tmp_path / "named.safetensors"
    named.write_bytes(payload)
    return {"plain": plain, "zip": whole, "safetensors": named}


def test_the_malice_works(malicious: dict[str, Path], tmp_path: Path) -> None:
    """Without a guard it runs: so the tests below can fail."""
    torch = pytest.importorskip("torch")
    pickle.loads(malicious["plain"].read_bytes())
    assert (tmp_path / MARK).is_dir()
    (tmp_path / MARK).rmdir()
    torch.load(malicious["zip"], weights_only=False)
    assert (tmp_path / MARK).is_dir()


@pytest.mark.parametrize("kind", ["plain", "zip", "safetensors"])
def test_models_given_to_the_codec(malicious: dict[str, Path], tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError):
        models.read(malicious[kind])
    (tmp_path / "x.lic").write_bytes(b"")
    assert main(["decode", "--model", str(malicious[kind]), str(tmp_path / "x.lic")]) == 4
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", ["plain", "zip", "safetensors"])
def test_state_dicts_of_others(malicious: dict[str, Path], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torch")
    from lichen.models.checkpoint import read_state

    with pytest.raises(ModelError):
        read_state(malicious[kind])
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", ["plain", "zip", "safetensors"])
def test_files_of_a_run(malicious: dict[str, Path], tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    from lichen.training import run

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / run.CHECKPOINT).write_bytes(malicious[kind].read_bytes())
    with pytest.raises(LichenError):
        run.load_checkpoint(folder, torch.device("cpu"))
    with pytest.raises(LichenError):
        run.load_tensors(torch.nn.Linear(1, 1), malicious[kind])
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("command", ["lower", "prune", "quantize", "distill", "train", "study"])
@pytest.mark.parametrize("kind", ["plain", "zip", "safetensors"])
def test_the_command_line(
    malicious: dict[str, Path], tmp_path: Path, command: str, kind: str
) -> None:
    """Every command that takes weights says no, and writes nothing."""
    pytest.importorskip("torch")
    given, out, photographs = str(malicious[kind]), tmp_path / "out", tmp_path / "photographs"
    photographs.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (80, 80)).save(photographs / f"{name}.png")
    arguments = {
        "lower": [given, str(out)],
        "prune": [given, "-o", str(out), "--macs", "-50%", "--importance", "magnitude"],
        "quantize": [given, "-o", str(out), "--photographs", str(photographs)],
        "distill": [str(photographs), "-o", str(out), "--teacher", given, "--student", "balle2018"],
        "train": [str(photographs), str(out), "--weights", given, "--crop", "64"],
        "study": [given, "--board", "kv260", "-o", str(out)],
    }[command]
    assert main([command, *arguments]) in ((2,) if command == "study" else (1, 3, 4))
    assert not (tmp_path / MARK).exists()
    assert not out.is_file() and not list(tmp_path.glob("out/*.safetensors"))


def test_nothing_in_the_sources_unpickles() -> None:
    """Every torch.load says weights_only=True; pickle, marshal, eval and exec are not called."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "torch.load":
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("weights_only") == "True", f"{path}: {ast.unparse(node)}"
            if called in ("np.load", "numpy.load"):
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("allow_pickle", "False") == "False", path
            bad = (
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "marshal.loads",
                "eval",
                "exec",
                "joblib.load",
            )
            assert called not in bad, f"{path}: {called}"
