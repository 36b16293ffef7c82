"""Every case, on every executor that is here, equals the reference to the last bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import Case, cases, compare

from lichen.errors import ContractError, DeviceError
from lichen.executors import Executor, ReferenceExecutor, best
from lichen.executors.onnx import OnnxExecutor
from lichen.executors.torch import TorchExecutor
from lichen.program import Input, Output, Program, ops

CASES = cases()
BY_NAME = {case.name: case for case in CASES}


def _executors() -> tuple[dict[str, Callable[[], Executor]], dict[str, str]]:
    """The executors that are here, and why the others are not."""
    here: dict[str, Callable[[], Executor]] = {"torch-cpu": lambda: TorchExecutor(threads=1)}
    missing = {}
    if torch.cuda.is_available():
        here["torch-cuda"] = lambda: TorchExecutor("cuda")
    else:
        missing["torch-cuda"] = "torch sees no GPU"
    try:
        OnnxExecutor()
    except DeviceError as error:
        missing["onnx"] = str(error)
    else:
        here["onnx"] = OnnxExecutor
    try:
        from lichen.executors.native import NativeExecutor, available_isas

        for isa in available_isas():
            for threads in (1, 2):
                here[f"native-{isa}-{threads}"] = lambda isa=isa, threads=threads: NativeExecutor(
                    threads=threads, isa=isa
                )
    except (ImportError, DeviceError) as error:
        missing["native"] = str(error)
    return here, missing


HERE, MISSING = _executors()


@pytest.fixture(scope="module", params=HERE)
def executor(request: pytest.FixtureRequest) -> Executor:
    return HERE[request.param]()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_reference(executor: Executor, case: Case) -> None:
    compare(executor, case)


@pytest.mark.parametrize("name", MISSING)
def test_of_an_executor_that_is_not_here(name: str) -> None:
    pytest.skip(f"{name}: {MISSING[name]}")


def test_cases_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(CASES)


def test_refuses_what_the_contract_refuses(executor: Executor) -> None:
    case = BY_NAME["program-analysis-small"]
    x, gain = case.inputs["x"], case.vectors["gain"]
    for inputs, vectors in (
        ({}, case.vectors),
        (case.inputs, {}),
        ({"x": x.astype(np.int16)}, case.vectors),
        ({"x": x[:2]}, case.vectors),
        ({"x": x[:, :7]}, case.vectors),
        ({"x": x[None]}, case.vectors),
        (case.inputs, {"gain": gain[:-1]}),
        (case.inputs, {"gain": gain.astype(np.int64)}),
        (case.inputs, {"gain": np.where(gain == gain[0], 32768, gain).astype(np.int32)}),
        (case.inputs, {"gain": -gain}),
    ):
        with pytest.raises(ContractError):
            executor.run(case.program, inputs, vectors)
    broken = replace(case.program, ops=case.program.ops[::-1])
    with pytest.raises(ContractError):
        executor.run(broken, case.inputs, case.vectors)


def test_one_program_at_several_sizes(executor: Executor) -> None:
    """Whatever an executor keeps with a Program must not depend on the size."""
    case = BY_NAME["program-analysis"]
    for height, width in ((4, 64), (32, 12), (8, 8), (32, 12)):
        x = case.inputs["x"][:, :height, :width]
        compare(executor, replace(case, inputs={"x": x}))


def test_the_harness_finds_and_describes_a_difference() -> None:
    class Wrong(ReferenceExecutor):
        def run(self, program, inputs, vectors=None):  # type: ignore[no-untyped-def]
            found = super().run(program, inputs, vectors)
            for name in found.keys() & {"u1", "g", "pixels"}:
                found[name] = found[name].copy()
                found[name][1, 2, 3] ^= 1
            return found

    compare(ReferenceExecutor(), BY_NAME["program-synthesis"])
    message = r"operation 6, TransposedConv 'u1' at \(1, 2, 3\): expected -?\d+, found -?\d+ \(1 of"
    with pytest.raises(AssertionError, match=message):
        compare(Wrong(), BY_NAME["program-synthesis"])


def test_torch_is_exact_whatever_the_precision_set_outside(monkeypatch) -> None:
    """Few CPUs take the permission of "medium" to use bfloat16, so that it is looked at too."""
    from lichen.executors import torch as module

    seen = set()
    run_step = module._run_step

    def spy(*arguments):  # type: ignore[no-untyped-def]
        matmul = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
        seen.add(matmul.fp32_precision if matmul else torch.get_float32_matmul_precision())
        return run_step(*arguments)

    monkeypatch.setattr(module, "_run_step", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            for name in ("program-analysis", "conv-s16-float32", "conv-float32-limit-518-taps"):
                compare(TorchExecutor(), BY_NAME[name])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen in ({"ieee"}, {"highest"})


def test_onnx_with_threads() -> None:
    if "onnx" in MISSING:
        pytest.skip(MISSING["onnx"])
    for case in CASES:
        if case.name.startswith(("program-", "conv-48")):
            compare(OnnxExecutor(threads=2), case)


def test_torch_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a convolution are computed in pieces where the unfolded windows are many."""
    monkeypatch.setattr("lichen.executors.torch.COLUMNS_MAX", 5000)
    for case in CASES:
        if case.name.startswith(("conv-", "transposed-", "program-")):
            compare(TorchExecutor(threads=1), case)


def test_an_absent_device_is_said() -> None:
    with pytest.raises(DeviceError, match="cpu or cuda, not meta"):
        TorchExecutor("meta")
    if "torch-cuda" in MISSING:
        with pytest.raises(DeviceError, match="needs a GPU"):
            TorchExecutor("cuda")


def test_an_absent_onnxruntime_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="needs onnxruntime: pip install"):
        OnnxExecutor()


def test_best_is_native_or_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    if "native" not in MISSING:
        assert best(threads=1).name.startswith("native")

    def missing() -> None:
        raise DeviceError("the native module is missing")

    monkeypatch.setattr("lichen.executors.native.Library", missing)
    with pytest.warns(RuntimeWarning, match="slowly"):
        assert best().name == "reference"


def test_programs_are_not_kept_alive_by_executors(executor: Executor) -> None:
    import gc
    import weakref

    program = Program(
        "short-lived", (Input("x", 4, "u8", 0),), (), (ops.PixelShuffle("y", "x", 2),),
        (Output("y", 0),),
    )  # fmt: skip
    executor.run(program, {"x": np.zeros((4, 2, 2), np.uint8)})
    reference = weakref.ref(program)
    del program
    gc.collect()
    assert reference() is None
