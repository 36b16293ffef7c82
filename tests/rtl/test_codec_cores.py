"""The two cores, pixels to bytes and back, equal the codec; and they survive damaged bytes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_codec import model as tiny_model

from lichen import codec, container
from lichen.executors import ReferenceExecutor
from lichen.model import Model
from lichen.rtl import fold, graph
from lichen.rtl.codec import Decoder, Encoder
from lichen.rtl.core import to_beats
from lichen.rtl.simulate import Result, Simulation

MODEL = tiny_model()
POSITION = 333
HEIGHT, WIDTH = 70, 61  # two units above each other, neither of them whole
STRIPE = 1
TARGET = fold.Target(192, 192, 60, clock_hz=int(4.8 * 192 * 192 * 60))
END_BYTES = 6  # of the chunk Z: type, length 0, CRC


def _picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def _stream(pixels: NDArray[np.uint8], model: Model = MODEL) -> tuple[bytes, NDArray[np.uint8]]:
    """Give the chunks that follow a stream's start, and the decoded pixels, of the CPU codec."""
    executor = ReferenceExecutor()
    analysis = codec.analyse(model, executor, pixels)
    coded = codec.encode_hyperprior(model, executor, analysis, POSITION, STRIPE)
    height, width = pixels.shape[:2]
    header = container.Header(
        width, height, 3, alpha=False, digest=False, order=1, weights=model.digest,
        position=POSITION, stripe=STRIPE,
    )  # fmt: skip
    data = container.write(container.Stream(header, coded.stripes))
    start = 6 + data[5] + 4  # magic, version, length, header, CRC
    decoded = codec.decode_hyperprior(model, executor, header, coded.stripes)
    return data[start:], decoded


def _settings(simulation: Simulation, height: int, width: int) -> None:
    rows, columns = -(-height // 64), -(-width // 64)
    simulation.set(
        height=height, width=width, unit_rows=rows, unit_columns=columns, bank=0, stripe=STRIPE,
        stripes=-(-rows // STRIPE),
    )  # fmt: skip
    simulation.reset()


def _bytes(*pictures: bytes) -> NDArray[np.uint32]:
    """Give the beats of the bytes of pictures, each with `last` on its last one."""
    beats = [np.frombuffer(data, np.uint8).astype(np.uint32) for data in pictures]
    for beat in beats:
        beat[-1] |= 1 << 8
    return np.concatenate(beats)


@pytest.fixture(scope="module")
def encoder() -> Simulation:
    core = Encoder(MODEL, fold.fold(graph.encoder(MODEL.programs), TARGET), bits_per_pixel=8)
    simulation = Simulation(core, "tiny_encoder_core")
    _settings(simulation, HEIGHT, WIDTH)
    simulation.run({"load": core.contents(MODEL, POSITION)}, {})
    return simulation


@pytest.fixture(scope="module")
def decoder() -> Simulation:
    core = Decoder(MODEL, fold.fold(graph.decoder(MODEL.programs), TARGET), bits_per_pixel=8)
    simulation = Simulation(core, "tiny_decoder_core")
    _settings(simulation, HEIGHT, WIDTH)
    simulation.run({"load": core.contents(MODEL, POSITION)}, {})
    return simulation


@pytest.mark.parametrize("chance", [1.0, 0.5])
def test_encoder(encoder: Simulation, chance: float) -> None:
    pictures = [_picture(1), _picture(2)]
    wanted = [_stream(pixels)[0][:-END_BYTES] for pixels in pictures]
    _settings(encoder, HEIGHT, WIDTH)
    result = encoder.run(
        {"pixels": np.concatenate([to_beats(p.transpose(2, 0, 1), 3)[:, 0] for p in pictures])},
        {"bytes": sum(map(len, wanted)), "overflows": 4},
        chances={"pixels": chance, "bytes": chance},
    )
    assert (result.outputs["overflows"] == 0).all()
    assert (result.outputs["bytes"] == _bytes(*wanted)).all()


def test_encoder_after_a_reset_and_with_another_size(encoder: Simulation) -> None:
    _settings(encoder, HEIGHT, WIDTH)
    beats = to_beats(_picture(3).transpose(2, 0, 1), 3)[:, 0]
    encoder.run({"pixels": beats[: len(beats) // 3]}, {})
    pixels = _picture(4, 33, 100)
    wanted = _stream(pixels)[0][:-END_BYTES]
    _settings(encoder, 33, 100)
    beats = to_beats(pixels.transpose(2, 0, 1), 3)[:, 0]
    result = encoder.run({"pixels": beats}, {"bytes": len(wanted), "overflows": 1})
    assert (result.outputs["bytes"] == _bytes(wanted)).all()


def _decode(decoder: Simulation, *pictures: bytes, chance: float = 1.0) -> Result:
    count = len(pictures)
    _settings(decoder, HEIGHT, WIDTH)
    return decoder.run(
        {"bytes": _bytes(*pictures)},
        {"pixels": count * HEIGHT * WIDTH, "framings": count,
         "z_statuses": 2 * count, "y_statuses": 2 * count},
        chances={"pixels": chance, "bytes": chance},
    )  # fmt: skip


@pytest.mark.parametrize("chance", [1.0, 0.5])
def test_decoder(decoder: Simulation, chance: float) -> None:
    streams = [_stream(_picture(seed)) for seed in (5, 6)]
    result = _decode(decoder, *(data for data, _ in streams), chance=chance)
    for name in ("framings", "z_statuses", "y_statuses"):
        assert (result.outputs[name] == 0).all()
    wanted = [to_beats(decoded.transpose(2, 0, 1), 3)[:, 0] for _, decoded in streams]
    assert (result.outputs["pixels"] == np.concatenate(wanted)).all()


def test_decoder_recovers_from_damage(decoder: Simulation) -> None:
    """The first of two pictures is damaged: it says so, and the second one is right."""
    (first, _), (second, decoded) = (_stream(_picture(seed)) for seed in (7, 8))
    for place in (3, len(first) // 2):
        damaged = bytearray(first)
        damaged[place] ^= 0x10
        result = _decode(decoder, bytes(damaged), second)
        assert result.outputs["framings"][0] != 0
        assert result.outputs["framings"][1] == 0
        wanted = to_beats(decoded.transpose(2, 0, 1), 3)[:, 0]
        assert (result.outputs["pixels"][HEIGHT * WIDTH :] == wanted).all()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_pictures_in_a_row_at_the_planned_rate(kind: str) -> None:
    """With so much z that the entropy coder could hold up what the networks wait for."""
    height, width = 256, 128
    model = tiny_model(hyper=96)
    target = fold.Target(width, height, 60, clock_hz=int(4.8 * width * height * 60))
    plan = fold.fold(getattr(graph, kind)(model.programs), target)
    core = (Encoder if kind == "encoder" else Decoder)(model, plan)
    simulation = Simulation(core, f"paced_{kind}_core")
    _settings(simulation, height, width)
    simulation.run({"load": core.contents(model, POSITION)}, {})
    picture = _picture(9, height, width)
    data, decoded = _stream(picture, model)
    stripes = height // 64

    def end_of(count: int) -> int:
        """Give the cycle in which the last of so many pictures ends; compare them."""
        _settings(simulation, height, width)
        if kind == "encoder":
            given = {"pixels": _beats(picture)}
            wanted, beside = {"bytes": _bytes(data[:-END_BYTES])}, {"overflows": stripes}
        else:
            given = {"bytes": _bytes(data)}
            wanted = {"pixels": _beats(decoded)}
            beside = {"framings": 1, "z_statuses": stripes, "y_statuses": stripes}
        result = simulation.run(
            {name: np.tile(beats, count) for name, beats in given.items()},
            {**{n: count * len(b) for n, b in wanted.items()},
             **{n: count * some for n, some in beside.items()}},
        )  # fmt: skip
        for name, beats in wanted.items():
            assert (result.outputs[name] == np.tile(beats, count)).all()
        return result.cycles

    assert abs((end_of(2) - end_of(1)) / plan.cycles - 1) < 0.02


def _beats(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return to_beats(pixels.transpose(2, 0, 1), 3)[:, 0]
