"""Lay a model out on the DPU: its subgraphs, what crosses the DRAM, how long it takes.

A subgraph is a set of joined DPU layers of one part with no operation of the CPU between them:
layers are numbered by how many such operations lie before them, and joined where one reads
another of the same number. Parts are compiled apart (entropy coding stands between them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lichen.study import dpu, dpu_rules
from lichen.study.boards import Board
from lichen.study.dpu import Constants, Step
from lichen.study.layers import HOST, Layer
from lichen.study.result import (
    Direction,
    DpuResult,
    LayerVerdict,
    PlaceCount,
    Variant,
    Video,
)

TRANSPARENT = {"concat", "pixel_shuffle"}  # on the DPU, by addresses alone
ARRAY = {"conv": "conv", "deconv": "deconv", "linear": "conv", "depthwise": "depthwise",
         "pool": "pool", "scale": "depthwise"}  # fmt: skip


@dataclass(frozen=True)
class Subgraph:
    """A call of the DPU. steps: in order, each with the number of its layer."""

    part: str
    steps: tuple[tuple[int, Step], ...]


@dataclass(frozen=True)
class Frame:
    """Rows and columns of a picture, padded to a multiple of the model's reduction."""

    rows: int
    columns: int

    @classmethod
    def of(cls, video: Video, reduction: int | None) -> Frame:
        """Pad the pictures of a video."""
        r = reduction or 1
        return cls(-(-video.height // r) * r, -(-video.width // r) * r)

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def subgraphs(
    layers: Sequence[Layer], places: Sequence[LayerVerdict], frame: Frame
) -> list[Subgraph]:
    """Partition the layers that run on the DPU."""
    plan = _Plan(layers, [p.place for p in places])
    groups: dict[int, list[int]] = {}
    for number in plan.on_dpu:
        groups.setdefault(plan.find(number), []).append(number)
    found = []
    for numbers in groups.values():
        steps = tuple((n, plan.step(n, frame)) for n in numbers if plan.works(n))
        if steps:
            found.append(Subgraph(layers[numbers[0]].part, steps))
    return found


class _Plan:
    """Levels, joins and resident tensors of a list of layers."""

    def __init__(self, layers: Sequence[Layer], places: Sequence[str]) -> None:
        self.layers, self.places = layers, places
        self.on_dpu = [
            n for n, layer in enumerate(layers) if places[n] == "dpu" and layer.part != HOST
        ]
        self.level: list[int] = []
        self.parent = list(range(len(layers)))
        self.readers: list[list[int]] = [[] for _ in layers]
        self.members = set(self.on_dpu)
        for number, layer in enumerate(layers):
            before = [s for s in layer.sources if s >= 0]
            cut = [self.level[s] + (not self._runs(s)) for s in before]
            self.level.append(max(cut, default=0))
            for source in before:
                self.readers[source].append(number)
                if not self._runs(number) or not self._runs(source):
                    continue
                same_part = layers[source].part == layer.part
                if same_part and self.level[source] == self.level[number]:
                    self.parent[self.find(number)] = self.find(source)

    def _runs(self, number: int) -> bool:
        """Whether a layer stays on the DPU, or vanishes there."""
        return self.places[number] in ("dpu", "free") and self.layers[number].part != HOST

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            number = self.parent[number]
        return number

    def works(self, number: int) -> bool:
        return self.layers[number].kind not in TRANSPARENT

    def makers(self, number: int) -> list[int]:
        """Layers whose saved results a layer reads, through what vanishes; -1: from outside."""
        found: list[int] = []
        for source in self.layers[number].sources:
            found += self.makers(source) if source >= 0 and self.vanishes(source) else [source]
        return found

    def vanishes(self, number: int) -> bool:
        """Whether a layer is no step: fused into another, or an order of addresses."""
        return self._runs(number) and (self.places[number] == "free" or not self.works(number))

    def users(self, number: int) -> list[int]:
        """Layers that read a result, through what vanishes."""
        found: list[int] = []
        for reader in self.readers[number]:
            found += self.users(reader) if self.vanishes(reader) else [reader]
        return found

    def inside(self, number: int, maker: int) -> bool:
        """Whether two layers are of one subgraph."""
        return maker >= 0 and maker in self.members and self.find(maker) == self.find(number)

    def stays(self, number: int, size: int) -> bool:
        """Whether a result is never saved: small, and read in its own subgraph only."""
        users = self.users(number)
        own = bool(users) and all(self.inside(user, number) for user in users)
        return own and dpu.resident(size)

    def step(self, number: int, frame: Frame) -> Step:
        """Describe a layer of the DPU for one frame."""
        layer = self.layers[number]
        rows = max(1, round(frame.rows * layer.rows_out))
        columns = max(1, round(frame.columns * layer.rows_out))
        size = rows * columns * layer.outputs
        loads = 0
        fused = self.fused_into(number)
        for maker in self.makers(number):
            if maker == fused:
                continue
            values = self.size(maker, frame) if maker >= 0 else self.outside(number, frame)
            kept = self.inside(number, maker) and self.stays(maker, values)
            loads += 0 if kept else values
        saved = not self.stays(number, size) and not self.swallowed(number)
        kind = ARRAY.get(layer.kind, "add")
        first = kind == "conv" and layer.inputs <= 4 and -1 in self.makers(number)
        return Step(
            layer.name, kind, rows, columns, layer.inputs, layer.outputs,  # type: ignore[arg-type]
            layer.kernel, layer.stride, loads, size if saved else 0, first,
        )  # fmt: skip

    def size(self, number: int, frame: Frame) -> int:
        return round(self.layers[number].output_values * frame.pixels)

    def outside(self, number: int, frame: Frame) -> int:
        layer = self.layers[number]
        return round(layer.input_values[0] * frame.pixels) if layer.input_values else 0

    def fused_into(self, number: int) -> int:
        """The layer whose result an addition or a pool takes before it is saved; else -2."""
        if self.layers[number].kind not in ("add", "pool", "mul", "hardsigmoid", "hardswish"):
            return -2
        makers = [m for m in self.makers(number) if self.inside(number, m)]
        last = max(makers, default=-2)
        return last if last >= 0 and self.users(last) == [number] else -2

    def swallowed(self, number: int) -> bool:
        """Whether the only reader takes the result before it is saved."""
        users = self.users(number)
        return len(users) == 1 and self.fused_into(users[0]) == number


@dataclass
class Directed:
    """The layers of one direction on a board. parts: those that run; symbols: per pixel."""

    layers: list[Layer]
    board: Board
    video: Video
    variant: Variant
    direction: Direction
    parts: Sequence[str]
    reduction: int | None
    symbols: float
    constants: Constants

    def result(self) -> DpuResult:
        """Sum it up."""
        frame = Frame.of(self.video, self.reduction)
        layers = self.layers if self.variant == "as published" else dpu_rules.rewritten(self.layers)
        verdicts = dpu_rules.verdicts(layers)
        graphs = [g for g in subgraphs(layers, verdicts, frame) if g.part in self.parts]
        steps = [step for graph in graphs for _, step in graph.steps]
        hz, cores = self.board.dpu_clock_hz, self.board.dpu_cores
        spent = [dpu.cycles(step, self.constants) for step in steps]
        to_ms = 1e3 / hz
        compute = to_ms * sum(c.compute for c in spent)
        weights = to_ms * sum(c.weights for c in spent)
        memory = to_ms * sum(c.exposed - c.weights for c in spent)
        calls = len(graphs)
        overhead = to_ms * sum(c.overhead for c in spent) + calls * self.constants.call_ms
        total = compute + weights + memory + overhead
        busy = dpu.milliseconds(steps, self.constants, hz, calls, cores)
        own = [n for n, layer in enumerate(layers) if layer.part in self.parts]
        cpu = [layers[n] for n in own if verdicts[n].place in ("cpu", "rewrite")]
        all_macs = sum(layers[n].macs for n in own)
        dpu_macs = sum(layers[n].macs for n in own if verdicts[n].place in ("dpu", "free"))
        moved = sum(sum(layer.input_values) + layer.output_values for layer in cpu) * frame.pixels
        entropy = self.board.entropy_nanoseconds_per_symbol
        frames = 1e3 * cores / busy if steps else 0.0
        macs = sum(step.macs for step in steps)
        return DpuResult(
            board=self.board.name,
            direction=self.direction,
            variant=self.variant,
            cores=cores,
            clock_mhz=self.board.dpu_clock_mhz,
            runs_on_dpu_share=dpu_macs / all_macs if all_macs else 0.0,
            places=self._places(layers, verdicts),
            subgraphs=len(graphs),
            calls_per_frame=calls,
            dpu_ms=total,
            compute_ms=compute,
            memory_ms=memory,
            weights_ms=weights,
            overhead_ms=overhead,
            efficiency=macs / (dpu.PEAK_MACS * hz * total / 1e3) if steps else 0.0,
            frames_per_second=frames,
            cpu_ms_at_least=1e3 * moved / (self.board.dram_gbyte_per_s * 1e9),
            entropy_ms=None if entropy is None else 1e-6 * entropy * self.symbols * frame.pixels,
            meets_video=frames >= self.video.frames_per_second and not cpu,
            limits=self._limits(layers, verdicts, frames, frame, entropy),
        )

    def _places(
        self, layers: Sequence[Layer], verdicts: Sequence[LayerVerdict]
    ) -> tuple[PlaceCount, ...]:
        found = []
        for part in self.parts:
            own = [v.place for x, v in zip(layers, verdicts, strict=True) if x.part == part]
            counts = {place: own.count(place) for place in ("dpu", "cpu", "rewrite", "free")}
            found.append(PlaceCount(part, *(counts[p] for p in ("dpu", "cpu", "rewrite", "free"))))
        return tuple(found)

    def _limits(
        self,
        layers: Sequence[Layer],
        verdicts: Sequence[LayerVerdict],
        frames: float,
        frame: Frame,
        entropy: float | None,
    ) -> tuple[str, ...]:
        """What stands in the way, worst first."""
        found = []
        left: dict[tuple[str, str], int] = {}
        for layer, v in zip(layers, verdicts, strict=True):
            if layer.part in self.parts and v.place in ("cpu", "rewrite"):
                key = (layer.kind, v.reason)
                left[key] = left.get(key, 0) + 1
        for (kind, reason), count in sorted(left.items(), key=lambda item: -item[1]):
            found.append(f"{count} x {kind}: {reason}.")
        wanted = self.video.frames_per_second
        if frames < wanted:
            found.append(
                f"{frames:.3g} frames/s on the DPU, {wanted:g} are wanted: "
                f"{wanted / max(frames, 1e-9):.3g} times too slow."
            )
        if entropy is not None:
            seconds = 1e-9 * entropy * self.symbols * frame.pixels
            if seconds * wanted > 1:
                found.append(
                    f"Entropy coding takes {1e3 * seconds:.3g} ms of one CPU core for a frame, "
                    f"{seconds * wanted:.3g} cores for {wanted:g} frames/s."
                )
        return tuple(found)


def cycles_by_layer(layers: Sequence[Layer], frame: Frame, constants: Constants) -> dict[int, int]:
    """Give the cycles of one core of every layer that runs on the DPU once rewritten."""
    changed = dpu_rules.rewritten(layers)
    graphs = subgraphs(changed, dpu_rules.verdicts(changed), frame)
    return {
        number: round(dpu.cycles(step, constants).total)
        for graph in graphs
        for number, step in graph.steps
    }
