"""Conformance: run the vectors on an executor, or on any program that decodes streams.

A folder of vectors has a `manifest.json` that names every file by its SHA-256; docs/conformance.md
defines it. Four kinds of cases, all exact:

    stream   a valid stream: pixels, alpha, metadata, and every tensor between the Programs
    refuse   a stream that must be refused
    program  one Program, its inputs and outputs
    rans     symbols and bytes of the entropy coder

A checkout of lichen has its folder in tests/conformance/vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lichen import model as models
from lichen.api import Codec
from lichen.entropy import Tables, native, rans
from lichen.errors import DeviceError, LichenError, ModelError, UnsupportedError
from lichen.executors import Executor, ReferenceExecutor
from lichen.files import UsageError
from lichen.model import Model
from lichen.picture import Picture, from_image
from lichen.program import Program
from lichen.program import file as program_file

FORMAT = 1
KINDS = ("stream", "refuse", "program", "rans")
EXECUTORS = ("native", "reference", "torch", "onnx", "rtl")
DECODER_SECONDS = 120
Case = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What came of one case; `problem` is empty where all was right."""

    name: str
    kind: str
    problem: str = ""
    skipped: str = ""


class Vectors:
    """A folder of vectors. Raises ModelError where a file is missing or is not the pinned one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or in_checkout()
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"no vectors in {self.folder} ({error}): give the folder of lichen's sources that "
                "is called tests/conformance/vectors, with --vectors"
            ) from error
        if self.manifest.get("format") != FORMAT:
            raise ModelError(
                f"the vectors have format {self.manifest.get('format')}, this build reads "
                f"{FORMAT}: take those of the same release"
            )
        self.cases: list[Case] = self.manifest["cases"]

    def file(self, name: str) -> bytes:
        """Read a file of the folder, or an installed model, and check that it is the pinned one."""
        data = self.path(name).read_bytes()
        pinned = self.manifest["files"].get(name)
        found = hashlib.sha256(data).hexdigest()
        if found != pinned:
            raise ModelError(f"{self.path(name)}: expected SHA-256 {pinned}, found {found}")
        return data

    def path(self, name: str) -> Path:
        """Give the path of a file; "installed/NAME" is a model that came with lichen."""
        if not name.startswith("installed/"):
            return self.folder / name
        installed = {path.name: path for path in models.installed()}
        if name.removeprefix("installed/") not in installed:
            raise ModelError(f"the vectors want the model {name}: take those of this release")
        return installed[name.removeprefix("installed/")]

    @cache  # noqa: B019  one folder per run
    def model(self, name: str) -> Model:
        return models.from_bytes(self.file(name))

    def select(self, pattern: str) -> list[Case]:
        """List the cases whose name or kind contains the pattern; all for an empty one."""
        return [case for case in self.cases if pattern in f"{case['kind']} {case['name']}"]


def in_checkout() -> Path:
    """Give the folder of vectors in the sources around this file."""
    return Path(__file__).resolve().parents[2] / "tests" / "conformance" / "vectors"


def executor_of(name: str, threads: int) -> Executor:
    """Make an executor: native, native-ISA, reference, torch, onnx or rtl. Raises DeviceError."""
    kind, _, isa = name.partition("-")
    try:
        match kind:
            case "native":
                from lichen.executors.native import NativeExecutor

                return NativeExecutor(threads, isa or None)
            case "reference" if not isa:
                return ReferenceExecutor()
            case "torch" if isa in ("", "cpu", "cuda"):
                from lichen.executors.torch import TorchExecutor

                return TorchExecutor(isa or "cpu")
            case "onnx" if not isa:
                from lichen.executors.onnx import OnnxExecutor

                return OnnxExecutor()
            case "rtl" if not isa:
                from lichen.rtl.executor import RtlExecutor

                return RtlExecutor()
    except ImportError as error:
        raise DeviceError(f"executor {name} needs a package that is not here: {error}") from error
    raise DeviceError(f"no executor {name!r}; there are {', '.join(EXECUTORS)} and native-ISA")


@dataclass
class Recorder:
    """An executor that notes the digest of every tensor that enters or leaves a Program.

    Names are "PROGRAM/TENSOR"; from the second run of a Program on "PROGRAM#2/TENSOR".
    """

    inner: Executor
    points: dict[str, str] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.inner.name

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        outputs = self.inner.run(program, inputs, vectors or {})
        count = self.runs[program.name] = self.runs.get(program.name, 0) + 1
        prefix = program.name if count == 1 else f"{program.name}#{count}"
        for name, array in (*inputs.items(), *outputs.items()):
            self.points[f"{prefix}/{name}"] = digest_of_array(array)
        return outputs


def digest_of_array(array: NDArray[Any]) -> str:
    """Give the first 16 bytes of the SHA-256 of an array: little-endian, C order."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.data).hexdigest()[:32]


def digests_of_picture(picture: Picture) -> dict[str, Any]:
    """Give what the manifest holds of a decoded picture."""
    found: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "channels": int(picture.pixels.shape[2]),
        "pixels": digest_of_array(picture.pixels),
    }
    if picture.alpha is not None:
        found["alpha"] = digest_of_array(picture.alpha)
    for name in ("icc", "exif", "xmp"):
        if data := getattr(picture, name):
            found[name] = hashlib.sha256(data).hexdigest()[:32]
    return found


# Cases on an executor


def run(
    vectors: Vectors, executor: Executor, threads: int = 1, pattern: str = ""
) -> Iterator[Result]:
    """Run the cases on an executor."""
    check: dict[str, Callable[[Vectors, Case, Executor, int], str]] = {
        "stream": _stream,
        "refuse": _refuse,
        "program": _program,
        "rans": _rans,
    }
    for case in vectors.select(pattern):
        if executor.name in case.get("slow", ()):
            yield Result(case["name"], case["kind"], skipped=f"too slow for {executor.name}")
            continue
        try:
            problem = check[case["kind"]](vectors, case, executor, threads)
        except UnsupportedError as error:
            yield Result(case["name"], case["kind"], skipped=str(error))
            continue
        except LichenError as error:
            problem = f"{type(error).__name__}: {error}"
        yield Result(case["name"], case["kind"], problem)


def _stream(vectors: Vectors, case: Case, executor: Executor, threads: int) -> str:
    model, data = vectors.model(case["model"]), vectors.file(case["file"])
    recorder = Recorder(executor)
    picture = Codec(model, threads=threads, executor=recorder).decode(data)
    problem = _compare(case["picture"], digests_of_picture(picture))
    problem = problem or _compare(case["points"], recorder.points)
    if problem or "source" not in case:
        return problem
    recorder = Recorder(executor)
    codec = Codec(model, threads=threads, executor=recorder)
    source = from_image(Image.open(vectors.path(case["source"])))
    options = case["encode"]
    encoded = codec.encode(source, **options).data
    points = case["points"] | case["encode_points"]  # tensors of both directions stand in `points`
    found = {k: points[k] for k in recorder.points if k in points}  # in the order of computation
    if encoded != data:
        problem = _compare(found, recorder.points) or "the tensors are right"
        return f"encodes to other bytes, {len(encoded)} of them, not {len(data)}: {problem}"
    return _compare(found | case["encode_points"], recorder.points)


def _refuse(vectors: Vectors, case: Case, executor: Executor, threads: int) -> str:
    model, data = vectors.model(case["model"]), vectors.file(case["file"])
    try:
        Codec(model, threads=threads, executor=executor).decode(data)
    except LichenError as error:
        found = type(error).__name__
        return "" if found == case["error"] else f"expected {case['error']}, found {found}: {error}"
    return "decoded, although it must be refused"


def _program(vectors: Vectors, case: Case, executor: Executor, threads: int) -> str:
    program, inputs, given = read_program(vectors, case)
    found = executor.run(program, inputs, given)
    return _compare(case["outputs"], {name: digest_of_array(x) for name, x in found.items()})


def read_program(
    vectors: Vectors, case: Case
) -> tuple[Program, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Give the Program of a case, its inputs and its vectors."""
    arrays, metadata = program_file.from_bytes(vectors.file(case["file"]))
    name = case["name"]
    program = program_file.unpack_program(json.loads(metadata[name]), arrays)
    inputs = {x.name: arrays[f"{name}/{x.name}"] for x in program.inputs}
    return program, inputs, {v.name: arrays[f"{name}/{v.name}"] for v in program.vectors}


def _rans(vectors: Vectors, case: Case, executor: Executor, threads: int) -> str:
    tables = Tables(
        case["precision"],
        np.array([len(row) for row in case["tables"]], np.int32),
        np.array(case["offsets"]),
        np.concatenate([np.array(row, np.uint16) for row in case["tables"]]),
    )
    symbols, indices = np.array(case["symbols"], np.int16), np.array(case["indices"], np.uint16)
    data, lanes = bytes.fromhex(case["bytes"]), case["lanes"]
    lacks, done = [], []
    for name, encode, decode in _coders(executor, tables, lanes):
        for verb, right in (
            (f"{name} encodes", partial(_encodes, encode, symbols, indices, data)),
            (f"{name} decodes", partial(_decodes, decode, symbols, indices, data)),
        ):
            try:
                if not right():
                    return f"{verb} to something else"
                done.append(verb)
            except UnsupportedError as error:
                lacks.append(str(error))
    if lacks:
        raise UnsupportedError("; ".join([*lacks, *(f"{verb} right" for verb in done)]))
    return ""


Encode = Callable[[NDArray[np.int16], NDArray[np.uint16]], bytes]
Decode = Callable[[bytes, NDArray[np.uint16]], NDArray[np.int16]]


def _encodes(
    encode: Encode, symbols: NDArray[np.int16], indices: NDArray[np.uint16], data: bytes
) -> bool:
    return encode(symbols, indices) == data


def _decodes(
    decode: Decode, symbols: NDArray[np.int16], indices: NDArray[np.uint16], data: bytes
) -> bool:
    return np.array_equal(decode(data, indices), symbols)


def _coders(executor: Executor, tables: Tables, lanes: int) -> Iterator[tuple[str, Encode, Decode]]:
    """Give the entropy coders that belong to an executor."""
    if make := getattr(executor, "coder", None):
        cores = make(tables, lanes)
        yield "the RTL coder", cores.encode, cores.decode
        return
    fixed: dict[str, Any] = {"tables": tables, "lanes": lanes}
    yield "the definition", partial(rans.encode, **fixed), partial(rans.decode, **fixed)
    if native.available():
        yield "the native coder", partial(native.encode, **fixed), partial(native.decode, **fixed)


def _compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Describe the first difference; the order of `expected` is that of the computation."""
    for name, value in expected.items():
        if found.get(name) != value:
            return f"{name} differs: expected {value}, found {found.get(name)}"
    extra = sorted(found.keys() - expected.keys())
    return f"found {', '.join(extra)}, which should not be there" if extra else ""


# Cases on a decoder of somebody else


def run_decoder(vectors: Vectors, command: str, pattern: str = "") -> Iterator[Result]:
    """Run the streams, valid and not, on a program.

    command: with {model}, {stream} and {png} or {ppm} in it: the output, which the program
    writes. It must exit with 0 where it has decoded, and otherwise with another code, write
    nothing, and not die of a signal.
    """
    if "{stream}" not in command or not ("{png}" in command or "{ppm}" in command):
        raise UsageError(f"a decoder's command needs {{stream}} and {{png}} or {{ppm}}: {command}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the decoder's command is not one ({error}): {command}") from error
    for case in vectors.select(pattern):
        if case["kind"] in ("stream", "refuse"):
            yield Result(case["name"], case["kind"], _on_command(vectors, case, words))


def _on_command(vectors: Vectors, case: Case, words: list[str]) -> str:
    vectors.file(case["file"])  # is it the pinned one?
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / ("out.png" if any("{png}" in word for word in words) else "out.ppm")
        places = {
            "{model}": str(vectors.path(case["model"])),
            "{stream}": str(vectors.path(case["file"])),
            "{png}": str(output),
            "{ppm}": str(output),
        }
        for place, value in places.items():
            words = [word.replace(place, value) for word in words]
        try:
            code, said = _call(words, Path(folder) / "stderr")
        except subprocess.TimeoutExpired:
            return f"took more than {DECODER_SECONDS} s"
        except OSError as error:
            raise UsageError(f"cannot run {words[0]}: {error.strerror}") from error
        if code < 0:
            return f"died of signal {-code}: {said}"
        if case["kind"] == "refuse":
            if code == 0:
                return "exit code 0, although the stream must be refused"
            return "wrote a picture, although it must refuse" if output.exists() else ""
        if code != 0:
            return f"exit code {code}: {said}"
        return _output_problem(case["picture"], output)


def _call(words: list[str], said: Path) -> tuple[int, str]:
    """Run a program and all that it starts; returns its exit code and the end of its stderr."""
    with said.open("w+b") as stderr:
        null = subprocess.DEVNULL
        new = os.name == "posix"
        child = subprocess.Popen(
            words, stdin=null, stdout=null, stderr=stderr, start_new_session=new
        )
        try:
            code = child.wait(DECODER_SECONDS)
        except BaseException:  # too slow, or Ctrl-C
            if new:
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.wait()
            raise
        stderr.seek(max(0, stderr.tell() - 300))
        return code, stderr.read(300).decode(errors="replace").strip()


def _output_problem(expected: Mapping[str, Any], output: Path) -> str:
    """Compare the pixels and the alpha of a picture file; its metadata is not looked at."""
    try:
        with Image.open(output) as image:
            found = digests_of_picture(from_image(image))
    except (OSError, LichenError) as error:
        return f"its output cannot be read: {error}"
    compared = ("width", "height", "channels", "pixels", "alpha")
    return _compare(
        {name: expected[name] for name in compared if name in expected},
        {name: found[name] for name in compared if name in found},
    )


# The command


def command(arguments: argparse.Namespace) -> int:
    """Run `lichen conformance`; returns 0 where every case is right, otherwise 1."""
    vectors = Vectors(Path(arguments.vectors) if arguments.vectors else None)
    if not vectors.select(arguments.cases):
        raise UsageError(f"no case's kind and name contain {arguments.cases!r}; give less of it")
    if arguments.decoder:
        tool, results = "the decoder", run_decoder(vectors, arguments.decoder, arguments.cases)
    else:
        tool = arguments.executor
        try:
            executor = executor_of(arguments.executor, arguments.threads)
        except DeviceError as error:  # the name is the user's
            raise UsageError(str(error)) from error
        results = run(vectors, executor, arguments.threads, arguments.cases)
    counts = {"right": 0, "wrong": 0, "skipped": 0}
    for result in results:
        outcome = "wrong" if result.problem else "skipped" if result.skipped else "right"
        counts[outcome] += 1
        if arguments.json:
            print(json.dumps({"case": result.name, "kind": result.kind, "result": outcome,
                              "reason": result.problem or result.skipped}))  # fmt: skip
        elif outcome == "wrong" or arguments.verbose:
            reason = f": {result.problem or result.skipped}" if outcome != "right" else ""
            print(f"{outcome:8} {result.kind} {result.name}{reason}")
    if not arguments.json and not arguments.quiet:
        print(f"{tool}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    return int(counts["wrong"] > 0)
