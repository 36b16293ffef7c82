"""The two faces of the array are equal in every cycle, and the packed pair is exact."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import beat
from lichen.rtl.leaf import MacArray
from lichen.rtl.simulate import Simulation

LANES, OUTPUTS, PIXELS, SHIFT, SUM_BITS = 4, 2, 4, 2, 24
X_BITS, W_BITS = PIXELS * LANES * 8, OUTPUTS * LANES * 8


class Twins(wiring.Component):
    """Both faces on the same beats; `output` gives the sums and whether all was equal so far.

    Also one chain of a single DSP, `pair` -> `product`: two pixels and a weight per beat.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "input": In(beat(X_BITS + W_BITS + 2)),
                "output": Out(beat(SHIFT * SUM_BITS + 1)),
                "pair": In(beat(24)),
                "product": Out(beat(38)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        faces = [
            MacArray(
                lanes=LANES, outputs=OUTPUTS, pixels=PIXELS, x_bits=8, x_signed=False,
                sum_bits=SUM_BITS, shift=SHIFT, face=face,
            )
            for face in ("plain", "packed")
        ]  # fmt: skip
        payload = self.input.payload
        going, left, equal = Signal(), Signal(range(PIXELS * OUTPUTS // SHIFT)), Signal(init=1)
        plain, packed = faces
        for name, face in zip(("plain", "packed"), faces):
            m.submodules[name] = face.instance()
            m.d.comb += [
                face.valid.eq(self.input.valid),
                Cat(face.x, face.w, face.first, face.last).eq(payload),
                face.next.eq(plain.done | going),
            ]
        active = plain.done | going
        m.d.comb += [
            self.input.ready.eq(1),
            self.output.valid.eq(active),
            self.output.payload.eq(Cat(plain.head, equal)),
        ]
        with m.If((plain.done != packed.done) | (active & (plain.head != packed.head))):
            m.d.sync += equal.eq(0)
        with m.If(active):
            m.d.sync += [left.eq(left + 1), going.eq(left != PIXELS * OUTPUTS // SHIFT - 1)]
        m.submodules.chain = Instance(
            "lichen_mac_chain", p_LANES=1, p_X_BITS=8, p_X_SIGNED=Const(1, 1), p_PAIR=Const(1, 1),
            p_OUT_BITS=19, i_clk=ClockSignal(), i_x=self.pair.payload[:16],
            i_w=self.pair.payload[16:], o_dots=self.product.payload,
        )  # fmt: skip
        there = Signal(3)
        m.d.sync += there.eq(Cat(self.pair.valid, there))
        m.d.comb += [self.pair.ready.eq(1), self.product.valid.eq(there[2])]
        return m


@pytest.fixture(scope="module")
def model() -> Simulation:
    return Simulation(Twins(), "twins")


@pytest.mark.parametrize("extreme", [False, True])
def test_faces(model: Simulation, extreme: bool) -> None:
    rng = np.random.default_rng(extreme)
    tiles, beats = 60, 20
    count = tiles * beats
    x = rng.choice([0, 255], (count, PIXELS, LANES)) if extreme else rng.integers(
        0, 256, (count, PIXELS, LANES)
    )  # fmt: skip
    w = rng.choice([-128, 127], (count, OUTPUTS, LANES)) if extreme else rng.integers(
        -128, 128, (count, OUTPUTS, LANES)
    )  # fmt: skip
    words = np.zeros((count, (X_BITS + W_BITS + 2 + 31) // 32 * 4), np.uint8)
    words[:, : X_BITS // 8] = x.reshape(count, -1)
    weights = w.astype(np.int8).view(np.uint8).reshape(count, -1)
    words[:, X_BITS // 8 : (X_BITS + W_BITS) // 8] = weights
    place = np.arange(count) % beats
    words[:, (X_BITS + W_BITS) // 8] = (place == 0) | (place == beats - 1) * 2
    sums = np.einsum("tbpi,tboi->tpo", *(
        v.reshape(tiles, beats, -1, LANES) for v in (x, w)
    ))  # fmt: skip
    for chance in (1.0, 0.6):
        model.reset()
        result = model.run(
            {"input": words.view("<u4")}, {"output": tiles * PIXELS * OUTPUTS // SHIFT},
            chances={"input": chance},
        )  # fmt: skip
        raw = result.outputs["output"].astype(np.uint64)
        raw = raw[:, 0] | raw[:, 1] << np.uint64(32)
        assert (raw >> np.uint64(48) & np.uint64(1)).all(), "the faces differ"
        found = np.stack([raw & np.uint64(0xFFFFFF), raw >> np.uint64(24) & np.uint64(0xFFFFFF)], 1)
        found = (found.astype(np.int64) ^ 0x800000) - 0x800000
        assert (found.reshape(sums.shape) == sums).all()


@pytest.mark.parametrize("swap", [False, True])
def test_every_pair_of_bytes(model: Simulation, swap: bool) -> None:
    """All products of a pixel and a weight, beside those of the other pixel at its extremes."""
    byte = np.arange(-128, 128)
    others = np.array([-128, -1, 0, 1, 127])
    a, w, b = (v.reshape(-1) for v in np.meshgrid(byte, byte, others, indexing="ij"))
    low, high = (b, a) if swap else (a, b)
    words = (low & 255) | (high & 255) << 8 | (w & 255) << 16
    result = model.run({"pair": words}, {"product": words.size})
    raw = result.outputs["product"].astype(np.int64)
    raw = raw[:, 0] | raw[:, 1] << 32
    for shift, pixel in ((0, low), (19, high)):
        product = (((raw >> shift) & 0x7FFFF) ^ 0x40000) - 0x40000
        assert (product == pixel * w).all()
