"""Convolution: window buffer, weights, array, requantiser and tile buffer, one stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lichen.program.ops import Conv
from lichen.rtl import layer as layers
from lichen.rtl.lanes import beat, connect
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.leaf import Home, LoadBus, MacArray, Memory, fill
from lichen.rtl.requantise import Requantise
from lichen.rtl.tile import TileBuffer
from lichen.rtl.window import Window

Face = Literal["plain", "packed"]


class Convolution(wiring.Component):
    """A convolution, with the pixel unshuffle before it and the pixel shuffle after it, if any.

    input: beats of `lanes` values; output: beats of `folding.beat`. rows, columns: of the input,
    as `Layer` counts them; constant while the stage runs. bus: fills the weights (memory
    `number`) and the parameters (`number + 1`), see `contents`.
    homes: of the memories "ring", "weights", "parameters" and "tile".

    Throughput: `layers.frame_cycles` per frame. Latency: from the last value of the columns that a
    group of positions looks at to the first value of the group,
    load_cycles + group_cycles + lanes + 16 cycles.
    """

    def __init__(
        self,
        layer: Layer,
        folding: Folding,
        *,
        lanes: int,
        max_columns: int,
        max_rows: int,
        bus: LoadBus,
        number: int,
        homes: Mapping[str, Home] | None = None,
        face: Face = "plain",
    ) -> None:
        self.layer, self.folding, self.bus, self.number = layer, folding, bus, number
        self.face: Face = face
        self.homes = homes or {}
        self.window = Window(
            layer, folding, lanes=lanes, max_columns=max_columns, max_rows=max_rows,
            home=self.homes.get("ring"),
        )  # fmt: skip
        self.max_columns = max_columns
        super().__init__(
            {
                "input": In(beat(BITS[layer.x] * lanes)),
                "output": Out(beat(BITS[layer.y] * folding.beat)),
                "rows": In(range(max_rows + 1)),
                "columns": In(range(max_columns + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer, folding = self.layer, self.folding
        m.submodules.window = window = self.window
        weights, current = self._weights(m)
        array = MacArray(
            lanes=folding.lanes,
            outputs=folding.outputs,
            pixels=folding.pixels,
            x_bits=BITS[layer.x],
            x_signed=layer.x != "u8",
            sum_bits=layer.sum_bits,
            shift=folding.beat,
            face=self.face,
            depthwise=layer.depthwise,
        )
        m.submodules.array = array.instance()
        m.submodules.requantise = requantise = Requantise(
            layer, folding, self.max_columns, self.bus, self.number + 1,
            self.homes.get("parameters"),
        )  # fmt: skip
        m.submodules.tiles = tiles = TileBuffer(
            layer, folding, self.max_columns, self.homes.get("tile")
        )
        connect(m, self.input, window.input)
        connect(m, tiles.output, self.output)
        m.d.comb += [
            window.rows.eq(self.rows),
            window.columns.eq(self.columns),
            requantise.columns.eq(self.columns),
            tiles.columns.eq(self.columns),
            window.room.eq(tiles.room),
            tiles.start.eq(window.start),
            weights.read_enable.eq(1),
            array.valid.eq(window.valid),
            array.first.eq(window.first),
            array.last.eq(window.last),
            array.x.eq(window.x),
            array.w.eq(current),
            requantise.done.eq(array.done),
            requantise.head.eq(array.head),
            array.next.eq(requantise.next),
            tiles.valid.eq(requantise.valid),
            tiles.value.eq(requantise.value),
        ]
        return m

    def _weights(self, m: Module) -> tuple[Memory, Value]:
        """Add the weight memory; give it and the weights of the beat, `PIPELINE` cycles late.

        A word holds several beats, or a beat and a part of another (`layers.Packing`); a register
        then takes the one that counts and stands for the memory's own output register. What is
        shared gathers in a shift register: within a group, beats follow one another every cycle.
        """
        layer, folding = self.layer, self.folding
        packing = layers.packing(folding)
        bits, share = 8 * packing.beat, 8 * packing.share
        memory = Memory(
            packing.bits,
            layers.weight_words(layer, folding),
            home=self.homes.get("weights"),
            latency=layers.PIPELINE if packing.beats == 1 else layers.PIPELINE - 1,
        )
        m.submodules.weights = memory.instance()
        fill(m, self.bus, self.number, memory, "weights")
        m.d.comb += memory.read_address.eq(self.window.address)
        if packing.beats == 1:
            return memory, memory.read_data
        part, current = Signal(range(packing.beats)), Signal(bits)
        beats = [memory.read_data[i * bits : (i + 1) * bits] for i in range(packing.whole)]
        chosen: Value = Array(beats)[part]
        if share:
            gathered = Signal(bits)
            m.d.sync += gathered.eq(Cat(gathered[share:], memory.read_data[bits:]))
            chosen = Mux(part == packing.sharing, gathered, beats[0])
        m.d.sync += [part.eq(self.window.part), current.eq(chosen)]
        return memory, current


def columns_of(
    op: Conv, unshuffle: int, shuffle: int
) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.uint8]]:
    """Give weights, biases and shifts in the order of a stage with these shuffles merged.

    Weights: (passes, outputs of a pass, kernel rows, kernel columns, channels of a column), where
    a column is `unshuffle` pixels with their channels innermost, and so are the outputs of a pass.
    """
    outputs, inputs, kernel_h, kernel_w = op.weight.shape
    r, s = unshuffle, shuffle
    # Channel c * r * r + dy * r + dx of the unshuffled picture: line dy, pixel dx.
    weight = op.weight.reshape(outputs, inputs // r**2, r, r, kernel_h, kernel_w)
    weight = weight.transpose(0, 4, 2, 5, 3, 1)  # outputs, kernel row, dy, kernel column, dx, c
    weight = weight.reshape(outputs, kernel_h * r, kernel_w, inputs // r)

    def order(values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Outputs c * s * s + dy * s + dx -> (dy, (dx, c))."""
        rest = values.shape[1:]
        split = values.reshape(outputs // s**2, s, s, *rest)
        return np.ascontiguousarray(
            split.transpose(1, 2, 0, *range(3, split.ndim)).reshape(s, outputs // s, *rest)
        )

    return order(weight), order(op.bias), order(op.shift)  # type: ignore[return-value]


def contents(
    op: Conv, layer: Layer, folding: Folding, unshuffle: int = 1, shuffle: int = 1
) -> list[bytes]:
    """Give the words of the two memories of a stage: its weights and its parameters.

    Each word is padded to a multiple of 4 bytes, as the load bus takes it.
    """
    weight, bias, shift = columns_of(op, unshuffle, shuffle)
    passes, outputs, kernel_h, kernel_w, channels = weight.shape
    f = folding
    inputs = 1 if layer.depthwise else channels
    words = weight.reshape(
        passes, outputs // f.outputs, f.outputs, kernel_h, kernel_w,
        inputs // f.lanes, f.lanes,
    )  # fmt: skip
    # In time: pass, tile, kernel row, channels, kernel column; in a word: output, lane.
    words = words.transpose(0, 1, 3, 5, 4, 2, 6).reshape(passes, -1, f.outputs * f.lanes)
    full = packed(words, layers.packing(f), layers.pass_words(layer, f))
    count = len(full)
    padded = np.zeros((count, -(-full.shape[1] // 4) * 4), np.int8)
    padded[:, : full.shape[1]] = full
    bits = layers.PARAMETER_BITS
    size = 4 * -(-(bits * f.beat) // 32)
    parameters = bytearray()
    pairs = list(zip(bias.reshape(-1).tolist(), shift.reshape(-1).tolist()))
    for first in range(0, len(pairs), f.beat):
        word = 0
        for lane, (one_bias, one_shift) in enumerate(pairs[first : first + f.beat]):
            bias_bits = one_bias & (1 << layers.BIAS_BITS) - 1
            word |= (bias_bits | one_shift << layers.BIAS_BITS) << (bits * lane)
        parameters += word.to_bytes(size, "little")
    return [padded.tobytes(), bytes(parameters)]


def packed(beats: NDArray[np.int8], packing: layers.Packing, pass_words: int) -> NDArray[np.int8]:
    """Pack beats of weights (passes, beats of a pass, bytes) to words (words, bytes)."""
    passes, count, size = beats.shape
    rounds = -(-count // packing.beats)
    full = np.zeros((passes, rounds * packing.beats, size), np.int8)
    full[:, :count] = beats
    if packing.sharing:
        full = full.reshape(passes, rounds, packing.beats, size)
        whole, shared = full[:, :, :-1], full[:, :, -1:]
        parts = shared.reshape(passes, rounds, packing.sharing, packing.share)
        full = np.concatenate([whole, parts], axis=3)
    return full.reshape(passes, -1, packing.bits // 8)[:, :pass_words].reshape(
        -1, packing.bits // 8
    )


def layer_of(op: Conv, x: str, bound: int, unshuffle: int = 1, shuffle: int = 1) -> Layer:
    """Describe a Conv as a stage computes it. Raises ValueError where there is no hardware for it.

    x: the type of its input. bound: of its sums, biases and rounding included.
    """
    outputs, inputs, kernel_h, kernel_w = op.weight.shape
    top, left, bottom, right = op.padding
    depthwise = op.groups > 1
    if depthwise and not (inputs == 1 and outputs == op.groups):
        raise ValueError(
            f"{op.output}: no hardware for {op.groups} groups of {inputs} channels and "
            f"{outputs // op.groups} outputs; use groups = 1, or as many groups as channels and "
            "outputs (depthwise)"
        )
    if depthwise and (unshuffle, shuffle) != (1, 1):
        raise ValueError(
            f"{op.output}: no hardware for shuffles beside a depthwise convolution; put a 1x1 "
            "convolution between them"
        )
    if top + bottom != kernel_h - op.stride or left + right != kernel_w - op.stride:
        raise ValueError(
            f"{op.output}: padding must be kernel - stride on each axis "
            f"({kernel_h - op.stride}), not {op.padding}"
        )
    return Layer(
        channels=outputs if depthwise else inputs // unshuffle,
        outputs=outputs,
        kernel=(kernel_h * unshuffle, kernel_w),
        stride=(op.stride * unshuffle, op.stride),
        padding=(top * unshuffle, left),
        passes=shuffle,
        x=x,  # type: ignore[arg-type]
        y=op.dtype,
        sum_bits=int(bound).bit_length() + 1,
        depthwise=depthwise,
    )
