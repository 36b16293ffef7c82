"""The conformance vectors: what the generator makes, and right on every executor here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import generate_vectors
import pytest

from lichen import conformance
from lichen import model as models
from lichen.cli import main
from lichen.conformance import Vectors, executor_of, run, run_decoder
from lichen.errors import DeviceError, ModelError
from lichen.executors import best
from lichen.files import UsageError
from lichen.native import lib

FOLDER = Path(__file__).parent / "vectors"


def executors() -> list[tuple[str, int]]:
    names = [("reference", 1), ("torch", 1), ("onnx", 1)]
    if lib() is not None:
        from lichen.executors.native import available_isas

        names += [(f"native-{isa}", threads) for isa in available_isas() for threads in (1, 3)]
    return names


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors()


def test_the_set_is_what_its_generator_makes() -> None:
    files, manifest = generate_vectors.build(best())
    there = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file()}
    assert there == {*files, "manifest.json"}
    wrong = [name for name, data in files.items() if (FOLDER / name).read_bytes() != data]
    told = "run tests/conformance/generate_vectors.py if that is meant, and note it in CHANGELOG.md"
    assert not wrong, f"{wrong} differ: {told}"
    assert (FOLDER / "manifest.json").read_bytes() == manifest, f"the manifest differs: {told}"


def test_the_set_is_small_and_covers_what_it_must(vectors: Vectors) -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 1_000_000
    kinds = Counter(case["kind"] for case in vectors.cases)
    assert kinds["stream"] >= 60 and kinds["refuse"] >= 30 and kinds["program"] >= 60
    text = " ".join(path.read_text("latin-1") for path in (FOLDER / "programs").iterdir())
    for op in ("Conv", "TransposedConv", "PixelShuffle", "PixelUnshuffle", "Add", "Concat",
               "Slice", "Scale", "Clamp", "GDN", "TableIndex"):  # fmt: skip
        assert f'\\"type\\":\\"{op}\\"' in text, op
    names = [case["name"] for case in vectors.cases]
    for path in vectors.manifest["files"]:
        if path.startswith(("models/", "installed/")):
            assert any(case.get("model") == path for case in vectors.cases), path
        if path.startswith("installed/"):
            stem = Path(path).stem
            assert all(f"{stem}-quality-{q}" in names for q in range(0, 101, 10))


def test_docs_say_how_many_there_are(vectors: Vectors) -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    told = generate_vectors.counts((FOLDER / "manifest.json").read_bytes(), size)
    page = generate_vectors.PAGE.read_text("utf-8")
    assert generate_vectors.with_counts(page, told) == page, "run generate_vectors.py"
    assert f"| {len(vectors.cases)} |" in told


def test_every_installed_model_has_its_cases(vectors: Vectors) -> None:
    for path in models.installed():
        assert f"installed/{path.name}" in vectors.manifest["files"], "run generate_vectors.py"


@pytest.mark.parametrize(("name", "threads"), executors())
def test_every_executor_is_right(vectors: Vectors, name: str, threads: int) -> None:
    try:
        executor = executor_of(name, threads)
    except DeviceError as error:
        pytest.skip(str(error))
    wrong = [f"{r.name}: {r.problem}" for r in run(vectors, executor, threads) if r.problem]
    assert not wrong, f"{len(wrong)} cases are wrong, the first: {wrong[0]}"


def test_wrong_results_are_found(vectors: Vectors) -> None:
    class Wrong:
        name = "wrong"

        def run(self, program, inputs, vectors=None):  # type: ignore[no-untyped-def]
            outputs = best().run(program, inputs, vectors or {})
            name, array = next(iter(outputs.items()))
            changed = array.copy()
            changed.flat[-1] ^= 1
            return {**outputs, name: changed}

    for kind in ("stream size-64x64", "program add", "program conv-ties"):
        assert all(result.problem for result in run(vectors, Wrong(), 1, kind)), kind


def test_other_files_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "v")
    path = next((tmp_path / "v" / "streams").glob("size-64x64*"))
    path.write_bytes(path.read_bytes()[:-1])
    results = run(Vectors(tmp_path / "v"), best(), 1, "stream size-64x64")
    assert [r for r in results if "expected SHA-256" in r.problem]
    with pytest.raises(ModelError, match="no vectors"):
        Vectors(tmp_path)


DECODER = f"{sys.executable} -m lichen decode --quiet --model {{model}} {{stream}} {{png}}"
CASES = {"right": "stream size-1x1", "refused": "refuse alpha-cut"}


def test_lichen_itself_as_a_foreign_decoder(vectors: Vectors) -> None:
    for pattern in (*CASES.values(), "stream alpha-micro", "stream grey-micro"):
        results = list(run_decoder(vectors, DECODER, pattern))
        assert results and not [r for r in results if r.problem], results


@pytest.mark.parametrize(
    ("command", "valid", "refused"),
    [
        ("{python} -c 'pass' {stream} {png}", "cannot be read", "exit code 0"),
        ("{python} -c 'raise SystemExit(1)' {stream} {png}", "exit code 1", ""),
        ("{python} -c 'import os; os.abort()' {stream} {png}", "died of signal", "died of signal"),
        (
            "{python} -c 'import sys, PIL.Image; PIL.Image.new(\"RGB\", (1, 1)).save(sys.argv[2])'"
            " {stream} {ppm}", "pixels differs", "exit code 0",
        ),
    ],
)  # fmt: skip
def test_bad_decoders_are_found(vectors: Vectors, command: str, valid: str, refused: str) -> None:
    command = command.replace("{python}", sys.executable)
    for pattern, expected in ((CASES["right"], valid), (CASES["refused"], refused)):
        for result in run_decoder(vectors, command, pattern):
            assert expected in result.problem and bool(expected) == bool(result.problem)


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_slow_decoders_end_with_all_that_they_started(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(conformance, "DECODER_SECONDS", 0.5)
    command = f"sh -c 'sleep 60 & echo $! >{tmp_path}/pid; wait' {{stream}} {{png}}"
    (result,) = run_decoder(vectors, command, CASES["right"])
    assert result.problem == "took more than 0.5 s"
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_command_that_is_none(vectors: Vectors) -> None:
    for command in ("'open {stream} {png}", "/no/such/program {stream} {png}", "true {stream}"):
        with pytest.raises(UsageError):
            list(run_decoder(vectors, command, CASES["right"]))


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["conformance", "--executor", "reference", "--cases", "rans"]) == 0
    assert capsys.readouterr().out.startswith("reference: ")
    assert main(["conformance", "--json", "--cases", "stream size-1x"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and {line["result"] for line in lines} == {"right"}
    assert main(["conformance", "--vectors", str(tmp_path)]) == 4
    assert "tests/conformance/vectors" in capsys.readouterr().err
    assert main(["conformance", "--executor", "abacus"]) == 2
    assert main(["conformance", "--cases", "no such case"]) == 2
    assert conformance.in_checkout() == FOLDER


def test_the_table_of_results_is_the_kept_one() -> None:
    path = FOLDER.parents[2] / "scripts" / "conformance-table"
    spec = spec_from_loader("conformance_table", SourceFileLoader("conformance_table", str(path)))
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text("utf-8")
    assert script.with_table(page, script.table(script.read())) == page, f"run {path} --render"
    assert not [row for row in script.read() if any(row["wrong"].values())]
