"""Core: the pipeline of a folded graph, one stage of hardware per operation.

`Network` is the tensors' part of a core: streams of tensors in, streams of tensors out. Stages are
named after the tensors that they write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lichen.program import ops
from lichen.rtl import convolution, scale
from lichen.rtl.add import Add
from lichen.rtl.clamp import Clamp
from lichen.rtl.convolution import Convolution, Face
from lichen.rtl.delay import Delay
from lichen.rtl.fold import GAIN_BANKS as GAIN_BANKS
from lichen.rtl.fold import Placement, Plan, delay_words
from lichen.rtl.fork import Fork
from lichen.rtl.graph import Stage, Tensor
from lichen.rtl.lanes import beat, connect
from lichen.rtl.layer import BITS
from lichen.rtl.leaf import LOAD_BITS, LoadBus
from lichen.rtl.load import Load, blocks
from lichen.rtl.scale import Scale
from lichen.rtl.skew import Buffer
from lichen.rtl.table_index import TableIndex


def identifier(name: str) -> str:
    """Give the name of a tensor as Verilog can write it."""
    return name.replace(".", "_")


class Network(wiring.Component):
    """The stages of a plan and the streams between them.

    Ports: a stream of `plan.lanes` values per beat for each input and output tensor of the graph,
    called by `identifier`; `load`, which fills the memories (`contents`); `unit_rows` and
    `unit_columns`, the size of the picture in units of the coarsest grid, constant between resets;
    `bank`, which gains are used. A delay that `placement` keeps outside is a pair of streams,
    "<stage>_<port>_to_memory" and "<stage>_<port>_from_memory", for the board to join by a FIFO in
    its DRAM of at least the buffer's depth.

    Throughput: a frame per `plan.cycles`. Latency: see docs/accelerator.md.
    """

    def __init__(
        self, plan: Plan, *, placement: Placement | None = None, face: Face = "plain"
    ) -> None:
        self.plan, self.face = plan, face
        self.bus = LoadBus()
        self.placement = placement or Placement(())
        outside = {memory.stage for memory in self.placement.external}
        self.loops = []
        self.external = [b for b in plan.buffers if b.stage in outside]
        ports: dict[str, Any] = {
            "load": In(beat(LOAD_BITS)),
            "unit_rows": In(range(plan.units[0] + 1)),
            "unit_columns": In(range(plan.units[1] + 1)),
            "bank": In(range(GAIN_BANKS)),
        }
        ports |= {identifier(t.name): In(self._beat(t)) for t in plan.graph.inputs}
        ports |= {identifier(t.name): Out(self._beat(t)) for t in plan.graph.outputs}
        for buffer in self.external:
            name = f"{identifier(buffer.stage)}_{buffer.port}"
            ports[f"{name}_to_memory"] = Out(self._beat(buffer.tensor))
            ports[f"{name}_from_memory"] = In(self._beat(buffer.tensor))
            self.loops.append((f"{name}_to_memory", f"{name}_from_memory"))
        super().__init__(ports)
        self._number()

    def _beat(self, tensor: Tensor) -> wiring.Signature:
        return beat(BITS[tensor.dtype] * self.plan.lanes)

    def _number(self) -> None:
        """Number the memories of the load bus, two for a convolution and one for a Scale."""
        self.numbers: dict[str, int] = {}
        number = 0
        for stage in self.plan.graph.stages:
            if isinstance(stage.op, ops.Conv | ops.Scale):
                self.numbers[stage.name] = number
                number += 2 if isinstance(stage.op, ops.Conv) else 1
        self.memories = number  # the first number that is free

    def contents(self, vectors: Mapping[str, NDArray[Any]], bank: int = 0) -> NDArray[np.uint32]:
        """Give the words of `load` that fill every memory; vectors: the gains by name.

        The gains go to all banks up to `bank`: a memory is filled from its beginning.
        """
        memories = []
        for stage in self.plan.graph.stages:
            number, op = self.numbers.get(stage.name), stage.op
            if isinstance(op, ops.Conv):
                folding = self.plan.folds[stage.name]
                layer = stage.layer
                assert layer is not None
                parts = convolution.contents(op, layer, folding, stage.unshuffle, stage.shuffle)
                memories += list(enumerate(parts, number))
            elif isinstance(op, ops.Scale):
                named = isinstance(op.multiplier, str)
                values = vectors[op.multiplier] if named else op.multiplier
                words = scale.contents(values, self.plan.lanes)
                memories.append((number, words * (bank + 1 if named else 1)))
        return blocks(memories)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        plan = self.plan
        m.submodules.load = load = Load(self.bus)
        connect(m, self.load, load.input)
        readers: dict[str, list[Any]] = {}
        writers: dict[str, Any] = {
            tensor.name: getattr(self, identifier(tensor.name)) for tensor in plan.graph.inputs
        }
        for tensor in plan.graph.outputs:
            readers.setdefault(tensor.name, []).append(getattr(self, identifier(tensor.name)))
        for stage in plan.graph.stages:
            unit = self._unit(m, stage)
            m.submodules[identifier(stage.name)] = unit
            pair = isinstance(stage.op, ops.Add)
            for port, tensor in enumerate(stage.inputs):
                end = getattr(unit, "ab"[port]) if pair else unit.input
                readers.setdefault(tensor.name, []).append(self._delayed(m, stage, port, end))
            writers[stage.output.name] = unit.output
        tensors = {t.name: t for s in plan.graph.stages for t in (*s.inputs, s.output)}
        for name, ends in readers.items():
            source = writers[name]
            if len(ends) > 1:
                fork = Fork(BITS[tensors[name].dtype] * plan.lanes, len(ends))
                m.submodules[f"fork_{identifier(name)}"] = fork
                connect(m, source, fork.input)
                for i, end in enumerate(ends):
                    connect(m, getattr(fork, f"output_{i}"), end)
            else:
                connect(m, source, ends[0])
        return m

    def _delayed(self, m: Module, stage: Stage, port: int, end: Any) -> Any:
        """Give the end to which an input's stream goes: the stage itself or the delay before it."""
        buffer = next(
            (b for b in self.plan.buffers if b.stage == stage.name and b.port == port), None
        )
        if buffer is None:
            return end
        name = f"{identifier(stage.name)}_{port}"
        if buffer in self.external:
            connect(m, getattr(self, f"{name}_from_memory"), end)
            return getattr(self, f"{name}_to_memory")
        delay = self._delay(buffer)
        m.submodules[f"delay_{name}"] = delay
        connect(m, delay.output, end)
        return delay.input

    def _delay(self, buffer: Buffer) -> Delay:
        bits, lanes = BITS[buffer.tensor.dtype], self.plan.lanes
        width, depth = delay_words(buffer, lanes)
        home = self.placement.of(buffer.stage).get("delay")
        return Delay(bits, lanes, width // bits, depth, home)

    def _unit(self, m: Module, stage: Stage) -> Any:
        """Make the component of a stage."""
        op, lanes, types = stage.op, self.plan.lanes, [t.dtype for t in stage.inputs]
        match op:
            case ops.Add():
                return Add(op, types[0], types[1], lanes)
            case ops.Clamp():
                return Clamp(op, types[0], lanes)
            case ops.TableIndex():
                return TableIndex(op, types[0], lanes)
            case ops.Scale():
                banks = GAIN_BANKS if isinstance(op.multiplier, str) else 1
                unit = Scale(
                    op, types[0], stage.output.channels, lanes, self.bus,
                    self.numbers[stage.name], banks, self.placement.of(stage.name).get("gains"),
                )  # fmt: skip
                if banks > 1:
                    m.d.comb += unit.bank.eq(self.bank)
                return unit
        return self._convolution(m, stage)

    def _convolution(self, m: Module, stage: Stage) -> Convolution:
        assert stage.layer is not None
        of, across = stage.inputs[0].scale, stage.inputs[0].scale // stage.unshuffle
        rows, columns = self.plan.units[0] * of, self.plan.units[1] * across
        unit = Convolution(
            stage.layer,
            self.plan.folds[stage.name],
            lanes=self.plan.lanes,
            max_columns=columns,
            max_rows=rows,
            bus=self.bus,
            number=self.numbers[stage.name],
            homes=self.placement.of(stage.name),
            face=self.face,
        )
        row_count = Signal(range(rows + 1), name=f"{identifier(stage.name)}_rows")
        column_count = Signal(range(columns + 1), name=f"{identifier(stage.name)}_columns")
        m.d.sync += [
            row_count.eq(self.unit_rows * of),
            column_count.eq(self.unit_columns * across),
        ]
        m.d.comb += [unit.rows.eq(row_count), unit.columns.eq(column_count)]
        return unit


def to_beats(tensor: NDArray[Any], lanes: int) -> NDArray[np.uint32]:
    """Give the beats of a tensor (C, H, W): raster order, channels innermost."""
    flat = np.ascontiguousarray(tensor.transpose(1, 2, 0)).reshape(-1, lanes)
    size = flat.dtype.itemsize
    words = -(-lanes * size // 4)
    padded = np.zeros((len(flat), words * 4), np.uint8)
    padded[:, : lanes * size] = flat.view(np.uint8).reshape(len(flat), -1)
    return padded.view("<u4")


def from_beats(
    beats: NDArray[np.uint32], shape: tuple[int, int, int], dtype: np.dtype[Any], lanes: int
) -> NDArray[Any]:
    """Give the tensor (C, H, W) that beats carry."""
    channels, height, width = shape
    size = np.dtype(dtype).itemsize
    raw = np.ascontiguousarray(beats.reshape(len(beats), -1).astype("<u4")).view(np.uint8)
    flat = np.ascontiguousarray(raw.reshape(len(beats), -1)[:, : lanes * size]).view(dtype)
    return flat.reshape(height, width, channels).transpose(2, 0, 1)
