"""Every component against the reference's operation: random and extreme values, back-pressure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from stages import Bench, depthwise_conv, random_conv, random_tensor, through

from lichen.program import ops
from lichen.program.arithmetic import DTYPE_RANGE
from lichen.program.check import accumulator_bound
from lichen.program.reference import run_op
from lichen.rtl import convolution, scale
from lichen.rtl import layer as layers
from lichen.rtl.add import Add
from lichen.rtl.border import Crop, Replicate
from lichen.rtl.clamp import Clamp
from lichen.rtl.convolution import Convolution, Face, layer_of
from lichen.rtl.core import to_beats
from lichen.rtl.delay import Delay
from lichen.rtl.fork import Fork
from lichen.rtl.lanes import Relane, beat
from lichen.rtl.layer import Folding
from lichen.rtl.leaf import LUT_RAM, Home, LoadBus, Memory
from lichen.rtl.load import blocks
from lichen.rtl.scale import Scale
from lichen.rtl.simulate import Simulation
from lichen.rtl.table_index import TableIndex

RNG = np.random.default_rng(6)
CHANCES = (1.0, 0.35)  # of a beat, on both sides
ADD = ops.Add("y", "a", "b", 3, 0, 5, True, "s8")
CLAMP = ops.Clamp("y", "x", -7, 100)
TABLE = ops.TableIndex("y", "x", np.array([-70000, -300, -300, 0, 1, 900, 32767, 40000], np.int32))
MULTIPLIERS = np.array([0, 1, 1000, 32767, 65535, 5], np.int32)
SCALE = ops.Scale("y", "x", MULTIPLIERS, 9, "s16")

# name: operation, type of the input, unshuffle, shuffle, folding, lanes, rows, columns (largest)
CONVOLUTIONS: dict[str, tuple[ops.Conv, Any, int, int, Folding, int, int, int, Face]] = {
    "same": (random_conv(RNG, 6, 8, 3, 1, "s8", (6, 9)), "u8", 1, 1,
             Folding(4, 2, 4, 8), 1, 9, 13, "plain"),
    "packed": (random_conv(RNG, 6, 8, 3, 1, "u8", (6, 9)), "s8", 1, 1,
               Folding(4, 2, 4, 8), 1, 9, 13, "packed"),
    "half": (random_conv(RNG, 4, 6, 3, 2, "s16", (0, 4)), "s8", 1, 1,
             Folding(3, 4, 2, 6, 2), 2, 8, 14, "plain"),
    "point": (random_conv(RNG, 4, 16, 1, 1, "s8", (4, 8)), "s16", 1, 1,
              Folding(2, 1, 3, 8), 1, 7, 11, "packed"),
    "blocks": (random_conv(RNG, 4, 48, 1, 1, "s16", (3, 6)), "s8", 4, 1,
               Folding(4, 2, 2, 12), 1, 16, 6, "plain"),
    "depthwise": (depthwise_conv(RNG, 16, 3, 1, "s8", (3, 6)), "u8", 1, 1,
                  Folding(1, 2, 2, 8), 1, 9, 11, "plain"),
    "deep": (depthwise_conv(RNG, 8, 5, 2, "u8", (4, 7)), "s8", 1, 1,
             Folding(1, 2, 2, 4, 2), 2, 10, 14, "packed"),
    "wide": (depthwise_conv(RNG, 4, 3, 1, "s16", (0, 3)), "s16", 1, 1,
             Folding(1, 1, 3, 4), 1, 5, 7, "packed"),
    "lines": (random_conv(RNG, 8, 4, 3, 1, "u8", (5, 8)), "u8", 1, 2,
              Folding(2, 2, 2, 4, 2), 2, 6, 9, "plain"),
    # Passes whose weights end within a word of three beats, and of nine.
    "thirds": (random_conv(RNG, 8, 6, 2, 1, "s8", (5, 8)), "s8", 1, 2,
               Folding(3, 1, 2, 6), 1, 6, 9, "plain"),
    "ninths": (random_conv(RNG, 8, 4, 2, 1, "s8", (5, 8)), "u8", 1, 2,
               Folding(1, 1, 2, 4), 1, 5, 7, "packed"),
    # Shared beats: of two words, of eight; passes that end before one.
    "halves": (random_conv(RNG, 12, 6, 2, 1, "s8", (5, 8)), "u8", 1, 2,
               Folding(3, 2, 2, 6), 1, 6, 9, "plain"),
    "eighths": (random_conv(RNG, 8, 16, 3, 1, "s16", (3, 6)), "s8", 1, 1,
                Folding(4, 2, 2, 8), 1, 6, 9, "packed"),
    "double": (random_conv(RNG, 16, 8, 3, 1, "s8", (6, 9)), "s16", 1, 2,
               Folding(4, 4, 3, 8), 1, 7, 9, "plain"),
    # Two places in the tile buffer would not be enough.
    "brief": (random_conv(RNG, 4, 8, 3, 1, "s8", (6, 9)), "u8", 1, 1,
              Folding(4, 2, 8, 8, 2), 2, 6, 16, "plain"),
}  # fmt: skip


def _layer(name: str) -> layers.Layer:
    op, x, unshuffle, shuffle = CONVOLUTIONS[name][:4]
    low, high = DTYPE_RANGE[x]
    half = (1 << int(op.shift.max())) // 2
    bound = int(accumulator_bound(op, max(-low, high)).max()) + half
    return layer_of(op, x, bound, unshuffle, shuffle)


class Memories(wiring.Component):
    """A memory of every kind and latency: address, data, write -> a word of each."""

    BITS, DEPTH = 5, 5000
    KINDS = (
        (Home(5000, 0), 1),
        (Home(4096, 904), 1),
        (Home(4096, 512), 1),
        (Home(4096, 512), 2),
        (Home(0, 4608), 2),
        (LUT_RAM, 2),
    )

    def __init__(self) -> None:
        super().__init__({"input": In(beat(22)), "output": Out(beat(32))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        payload, reading = self.input.payload, Signal(2)
        m.d.comb += [self.input.ready.eq(1), self.output.valid.eq(reading[1])]
        m.d.sync += reading.eq(Cat(self.input.valid & ~payload[21], reading))
        for number, (home, latency) in enumerate(self.KINDS):
            memory = Memory(self.BITS, self.DEPTH, home=home, latency=latency)
            m.submodules[f"memory_{number}"] = memory.instance()
            word = Signal(self.BITS)
            m.d.comb += [
                memory.write_enable.eq(self.input.valid & payload[21]),
                Cat(memory.write_address, memory.write_data).eq(payload),
                memory.read_address.eq(payload[:13]),
                memory.read_enable.eq(1),
            ]
            m.d.sync += word.eq(memory.read_data)
            word = memory.read_data if latency == 2 else word
            m.d.comb += self.output.payload.word_select(number, self.BITS).eq(word)
        return m


@pytest.fixture(scope="module")
def model() -> Simulation:
    bus, parts, memories = LoadBus(), {}, []
    for number, (name, case) in enumerate(CONVOLUTIONS.items()):
        op, _, unshuffle, shuffle, folding, lanes, rows, columns, face = case
        parts[name] = Convolution(
            _layer(name), folding, lanes=lanes, max_rows=rows, max_columns=columns, bus=bus,
            number=10 + 2 * number, face=face,
        )  # fmt: skip
        contents = convolution.contents(op, _layer(name), folding, unshuffle, shuffle)
        memories += list(enumerate(contents, 10 + 2 * number))
    parts["scale"] = Scale(SCALE, "s16", 6, 2, bus, 1, banks=2)
    memories.append((1, scale.contents(MULTIPLIERS[::-1], 2) + scale.contents(MULTIPLIERS, 2)))
    parts["add"] = Add(ADD, "s16", "u8", 1)
    parts["clamp"] = Clamp(CLAMP, "s16", 2)
    parts["table"] = TableIndex(TABLE, "s16", 1)
    parts["relane"] = Relane(8, 3, 4)
    parts["delay"] = Delay(8, 1, 3, 5)
    parts["deep_delay"] = Delay(8, 1, 1, 4099, Home(4096, 0))
    parts["memories"] = Memories()
    parts["fork"] = Fork(8, 2)
    parts["replicate"] = Replicate(3, 16, 16)
    parts["crop"] = Crop(3, 16, 16)
    simulation = Simulation(Bench(parts, bus), "components")
    simulation.set(scale_bank=1)
    simulation.run({"load": blocks(memories)}, {})
    return simulation


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(model: Simulation, name: str, chance: float) -> None:
    op, x_type, unshuffle, shuffle, _, lanes, rows, columns, _ = CONVOLUTIONS[name]
    layer = _layer(name)
    if chance < 1:  # and a smaller picture than the stage was built for
        model.reset()
        rows -= layer.stride[0]
        columns -= 2 * layer.stride[1]
    model.set(**{f"{name}_rows": rows, f"{name}_columns": columns})
    channels = layer.channels // unshuffle
    x = random_tensor(RNG, x_type, (channels, rows, columns * unshuffle))
    values = {"x": x}
    if unshuffle > 1:
        values["x"] = run_op(ops.PixelUnshuffle("x", "p", unshuffle), {"p": x}, {})
    y = run_op(op, values, {})
    if shuffle > 1:
        y = run_op(ops.PixelShuffle("z", "y", shuffle), {"y": y}, {})
    through(model, {f"{name}_input": x}, {f"{name}_output": y}, lanes, chance=chance, frames=2)
    model.reset()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_cycles(model: Simulation, name: str) -> None:
    """A frame takes what the formula says: measured between the ends of the 2nd and 12th frame."""
    layer, folding = _layer(name), CONVOLUTIONS[name][4]
    unshuffle, lanes, rows, columns = (CONVOLUTIONS[name][k] for k in (2, 5, 6, 7))
    model.reset()
    model.set(**{f"{name}_rows": rows, f"{name}_columns": columns})
    x = random_tensor(RNG, layer.x, (layer.channels // unshuffle, rows, columns * unshuffle))
    shape = rows // layer.stride[0] * (columns // layer.stride[1]) * layer.outputs
    ends = []
    for frames in (2, 12):
        model.reset()
        beats = np.concatenate([to_beats(x, lanes)] * frames)
        result = model.run({f"{name}_input": beats}, {f"{name}_output": frames * shape // lanes})
        ends.append(result.cycles)
    model.reset()
    formula = layers.frame_cycles(layer, folding, rows, columns)
    feeding = x.size // lanes  # a small picture may take longer to come in
    assert abs((ends[1] - ends[0]) / 10 - max(formula, feeding)) <= 0.02 * max(formula, feeding)


@pytest.mark.parametrize("chance", CHANCES)
def test_elements(model: Simulation, chance: float) -> None:
    a = random_tensor(RNG, "s16", (6, 9, 7))
    b = random_tensor(RNG, "u8", (6, 9, 7))
    through(model, {"add_a": a, "add_b": b}, {"add_output": run_op(ADD, {"a": a, "b": b}, {})}, 1,
            chance=chance)  # fmt: skip
    for name, op, lanes in (("scale", SCALE, 2), ("clamp", CLAMP, 2), ("table", TABLE, 1)):
        y = run_op(op, {"x": a}, {})
        through(model, {f"{name}_input": a}, {f"{name}_output": y}, lanes, chance=chance)


def test_table_at_every_threshold(model: Simulation) -> None:
    values = np.array([-32768, -301, -300, -299, -1, 0, 1, 2, 899, 900, 901, 32766, 32767])
    x = values.astype(np.int16).reshape(1, 1, -1)
    y = run_op(TABLE, {"x": x}, {})
    through(model, {"table_input": x}, {"table_output": y}, 1)


@pytest.mark.parametrize("chance", CHANCES)
def test_streams(model: Simulation, chance: float) -> None:
    x = random_tensor(RNG, "u8", (12, 5, 4))
    flat = x.transpose(1, 2, 0).reshape(-1)
    chances = dict.fromkeys(("delay_input", "delay_output"), chance)
    result = model.run({"delay_input": flat}, {"delay_output": flat.size}, chances=chances)
    assert (result.outputs["delay_output"] == flat).all()
    chances = {"fork_input": chance, "fork_output_0": 0.5, "fork_output_1": chance}
    wanted = dict.fromkeys(("fork_output_0", "fork_output_1"), flat.size)
    result = model.run({"fork_input": flat}, wanted, chances=chances)
    assert all((result.outputs[name] == flat).all() for name in wanted)
    three = np.zeros((flat.size // 3, 4), np.uint8)
    three[:, :3] = flat.reshape(-1, 3)
    result = model.run(
        {"relane_input": three.view("<u4")}, {"relane_output": flat.size // 4},
        chances={"relane_input": chance, "relane_output": chance},
    )  # fmt: skip
    assert (result.outputs["relane_output"].view(np.uint8) == flat).all()


def test_lanes_change_without_waiting(model: Simulation) -> None:
    """From 3 lanes to 4: three values a cycle, though neither number divides the other."""
    cycles = [
        model.run({"relane_input": np.arange(4 * n)}, {"relane_output": 3 * n}).cycles
        for n in (10, 110)
    ]
    assert cycles[1] - cycles[0] == 4 * 100


def test_a_delay_holds_its_depth(model: Simulation) -> None:
    """Depth 5 words of 3 values: at least these 15 go in while nothing comes out."""
    flat = np.arange(15)
    model.run({"delay_input": flat}, {})
    result = model.run({}, {"delay_output": 15})
    assert (result.outputs["delay_output"] == flat).all()


def test_a_memory_of_two_kinds(model: Simulation) -> None:
    """4096 words in UltraRAM and three in block RAM, filled, drained, and filled again."""
    flat = RNG.integers(0, 256, 4099)
    for _ in range(2):
        model.run({"deep_delay_input": flat}, {})
        result = model.run({}, {"deep_delay_output": flat.size})
        assert (result.outputs["deep_delay_output"] == flat).all()


def test_memories(model: Simulation) -> None:
    """Words on both sides of the seams of a memory in several kinds of RAM, in every latency."""
    addresses = np.arange(4080, Memories.DEPTH)
    data = RNG.integers(0, 32, addresses.size)
    model.run({"memories_input": addresses | data << 13 | 1 << 21}, {})
    order = RNG.permutation(addresses.size)
    result = model.run({"memories_input": addresses[order]}, {"memories_output": order.size})
    words = result.outputs["memories_output"]
    for number in range(len(Memories.KINDS)):
        assert (words >> (5 * number) & 31 == data[order]).all(), Memories.KINDS[number]


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (8, 3), (16, 16)])
def test_border(model: Simulation, size: tuple[int, int], chance: float) -> None:
    height, width = size
    whole = (-(-height // 8) * 8, -(-width // 8) * 8)
    x = random_tensor(RNG, "u8", (3, height, width))
    pads = ((0, 0), (0, whole[0] - height), (0, whole[1] - width))
    y = (np.pad(x, pads, mode="edge") ^ 0x80).view(np.int8)
    for name in ("replicate", "crop"):
        model.set(**{f"{name}_height": height, f"{name}_width": width,
                     f"{name}_whole_height": whole[0],
                     f"{name}_whole_width": whole[1]})  # fmt: skip
    model.reset()  # sizes change in reset only
    through(model, {"replicate_input": x}, {"replicate_output": y}, 3, chance=chance, frames=2)
    through(model, {"crop_input": y}, {"crop_output": x}, 3, chance=chance, frames=2)
