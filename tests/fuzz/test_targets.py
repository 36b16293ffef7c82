"""The fuzz targets find nothing on what they start from, and do find what is planted."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
import seeds
import targets

from lichen import container
from lichen.native import lib

FOLDER = Path(__file__).parent
FINDINGS = FOLDER / "findings"


@pytest.mark.parametrize("target", targets.TARGETS)
def test_seeds(target: str) -> None:
    given = seeds.seeds()[target]
    for data in given[:: max(1, len(given) // 6)]:
        targets.TARGETS[target](data)


@pytest.mark.parametrize("path", sorted(FINDINGS.iterdir()), ids=lambda path: path.name)
def test_findings_stay_fixed(path: Path) -> None:
    """What a fuzzer has found: TARGET-name, the input of the target."""
    targets.TARGETS[path.name.split("-")[0]](path.read_bytes())


def test_the_table_of_figures_is_the_kept_one() -> None:
    path = seeds.TESTS.parent / "scripts" / "fuzz"
    spec = spec_from_loader("fuzz", SourceFileLoader("fuzz", str(path)))
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = json.loads((seeds.TESTS.parent / "docs" / "results" / "fuzzing.json").read_text())
    page = script.PAGE.read_text("utf-8")
    told = "run scripts/fuzz 0 --keep docs/results/fuzzing.json"
    assert script.with_table(page, script.table(kept)) == page, told


def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (seeds.TESTS / "golden" / "full.lic").read_bytes()
    targets.container_target(whole)
    write = container.write
    monkeypatch.setattr(container, "write", lambda stream: write(replace(stream, xmp=b"")))
    with pytest.raises(AssertionError):
        targets.container_target(whole)
    data = b"\x06" + bytes(20)  # a forged stream
    targets.decode_target(data)
    monkeypatch.setattr(container, "write", lambda stream: write(stream)[:-1])
    with pytest.raises(AssertionError, match="refused"):
        targets.decode_target(data)


def test_plan_files_run_as_the_reference(tmp_path: Path) -> None:
    """The C reader of plan files, compiled without sanitizers, on a few Programs."""
    if shutil.which("cc") is None or lib() is None:
        pytest.skip("no C compiler")
    from plan_file import to_bytes

    from lichen.executors.native import Library
    from test_native import chain_inputs, random_chain

    rng = np.random.default_rng(5)
    program = random_chain(rng)
    inputs = chain_inputs(rng, program)
    code = tmp_path / "run.c"
    code.write_text(
        """#include "plan_file.h"
int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        plan_file *p = plan_read(names[i]);
        int64_t error;
        for (int64_t isa = 0; lichen_isa_name(isa) != NULL; isa++) {
            if (!lichen_isa_supported(isa) || lichen_isa_bytes(isa) != p->form) continue;
            uint8_t **found = plan_run(p, isa, lichen_pool_new(2), p->given, 0, &error);
            for (int64_t k = 0; k < p->output_count; k++)
                if (memcmp(found[k], p->expected[k],
                           (size_t)plan_array_bytes(&p->arrays[p->input_count + k])) != 0)
                    return 1;
        }
    }
    return 0;
}
"""
    )
    library = lib()
    assert library is not None and library._name
    native = Path(seeds.TESTS).parent / "src" / "lichen" / "native"
    subprocess.run(
        ["cc", "-O0", "-std=gnu11", f"-I{native}", f"-I{FOLDER}", str(code), library._name,
         f"-Wl,-rpath,{Path(library._name).parent}", "-Wl,--unresolved-symbols=ignore-all",
         "-o", str(tmp_path / "run")], check=True,
    )  # fmt: skip
    forms = {Library().isa_bytes(index) for index in Library().isas().values()}
    for form in forms:
        data = bytearray(to_bytes(program, inputs, {}, form))
        (tmp_path / f"{form}.plan").write_bytes(data)
        (tmp_path / f"{form}.wrong").write_bytes(data[:-8] + bytes(b ^ 255 for b in data[-8:]))
    right = [str(tmp_path / f"{form}.plan") for form in forms]
    wrong = [str(tmp_path / f"{form}.wrong") for form in forms]
    assert subprocess.run([str(tmp_path / "run"), *right]).returncode == 0
    assert subprocess.run([str(tmp_path / "run"), *wrong]).returncode == 1
