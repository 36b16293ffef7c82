"""The tiny codec's cores behind AXI, in simulation: built once, small, with delays in DRAM."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tiny_codec import model as tiny_model

from lichen import codec, container
from lichen.boards.core_image import CoreImage, of_core
from lichen.boards.simulation_link import SimulationLink
from lichen.executors import ReferenceExecutor
from lichen.model import Model
from lichen.rtl import fold, graph
from lichen.rtl.codec import Decoder, Encoder
from lichen.rtl.simulate_axi import AxiSimulation
from lichen.rtl.top import Top

MODEL = replace(tiny_model(), digest=b"the tiny")
SIDE = 192
CLOCK_HZ = int(4.8 * SIDE * SIDE * 60)
TARGET = fold.Target(SIDE, SIDE, 60, clock_hz=CLOCK_HZ)
IN_DRAM = 3  # the longest delays, as if they did not fit the chip
POSITION = 333
END_BYTES = 6  # of the chunk Z: type, length 0, CRC


def plan_of(kind: str, model: Model = MODEL) -> fold.Plan:
    """Fold a core."""
    return fold.fold(
        (graph.encoder if kind == "encoder" else graph.decoder)(model.programs), TARGET
    )


def core_of(kind: str, model: Model = MODEL) -> Encoder | Decoder:
    """Make a core with a model's weights; its shape is always the same."""
    plan = plan_of(kind, model)
    delays = [memory for memory in plan.memories if memory.role == "delay"]
    longest = sorted(delays, key=lambda memory: memory.bits)[-IN_DRAM:]
    placement = fold.Placement((), tuple(longest))
    make = Encoder if kind == "encoder" else Decoder
    return make(model, plan, bits_per_pixel=8, placement=placement)


@cache
def top(kind: str) -> Top:
    """Make the top of a core."""
    return Top(core_of(kind), "kv260", SIDE, SIDE, 1)


@cache
def simulation(kind: str) -> AxiSimulation:
    """Give the running model of a core; tests share it, as a board is shared."""
    return AxiSimulation(top(kind), f"tiny_{kind}_top")


def link(kind: str) -> SimulationLink:
    """Give a link to a core that has just been configured."""
    running = simulation(kind)
    running.power_up()
    running.chances(s_axis=1.0, m_axis=1.0)
    return SimulationLink(running, CLOCK_HZ)


@cache
def image(kind: str) -> CoreImage:
    """Give what the core is loaded with."""
    return of_core(top(kind).core, MODEL, top(kind).layout)


def picture(seed: int, height: int = 70, width: int = 61) -> NDArray[np.uint8]:
    """Make a picture of noise; by default of two units above each other, neither whole."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def stream(pixels: NDArray[np.uint8], position: int = POSITION) -> tuple[bytes, NDArray[np.uint8]]:
    """Give the chunks that follow a stream's start, and the decoded pixels, of the CPU codec."""
    executor = ReferenceExecutor()
    analysis = codec.analyse(MODEL, executor, pixels)
    coded = codec.encode_hyperprior(MODEL, executor, analysis, position, 1)
    height, width = pixels.shape[:2]
    header = container.Header(
        width, height, 3, alpha=False, digest=False, order=1, weights=MODEL.digest,
        position=position, stripe=1,
    )  # fmt: skip
    data = container.write(container.Stream(header, coded.stripes))
    decoded = codec.decode_hyperprior(MODEL, executor, header, coded.stripes)
    return data[container.start_bytes(data) :], decoded
