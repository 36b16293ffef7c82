"""The driver over simulated cores: the codec's bytes and pixels, and every way to go wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_board
from numpy.typing import NDArray
from tiny_board import END_BYTES, MODEL, POSITION, picture, stream
from tiny_codec import model as tiny_model

from lichen.boards import core_image
from lichen.boards.driver import Driver
from lichen.boards.recording import RecordingLink, ReplayLink
from lichen.boards.simulation_link import SimulationLink
from lichen.errors import DeviceError, ImageError, StreamError
from lichen.program import ops
from lichen.rtl.registers import MAGIC, register
from lichen.rtl.top import layout


def drive(kind: str, **options: object) -> Driver:
    return Driver(tiny_board.link(kind), tiny_board.image(kind), MODEL, board="kv260", **options)  # type: ignore[arg-type]


@pytest.fixture(params=["encoder", "decoder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(driver: Driver, seed: int, height: int = 70, width: int = 61, position: int = POSITION):
    pixels = picture(seed, height, width)
    chunks, decoded = stream(pixels, position)
    if driver.image.core == "encoder":
        assert driver.encode(pixels, position) == chunks[:-END_BYTES]
    else:
        assert (driver.decode(chunks, width, height, position) == decoded).all()


def test_sizes_and_qualities(kind: str) -> None:
    """Pictures of any size, each like the codec's; a setting that stays is not set again."""
    with drive(kind) as driver:
        assert driver.loads == 1
        check(driver, 1)
        check(driver, 2)
        assert driver.read("pictures") == 2  # no reset between them
        for seed, (height, width) in enumerate([(1, 1), (192, 5), (33, 192), (64, 64)], 3):
            check(driver, seed, height, width)
        for position in (0, 800, 401):
            check(driver, 9, 40, 30, position)
        assert driver.loads == 1 and driver.read("bad_pictures") == 0
        counted = driver.counters()
        assert 0 < counted.latency_cycles < counted.picture_cycles
    # Whoever comes next finds the weights in the core.
    again = Driver(driver.link, driver.image, MODEL)
    assert again.loads == 0
    check(again, 10)


def test_pictures_in_a_row(kind: str) -> None:
    """Each is sent while the one before is in the core; a damaged one ends it, not the core."""
    with drive(kind) as driver:
        pixels = [picture(seed) for seed in range(100, 105)]
        pairs = [stream(p) for p in pixels]
        if kind == "encoder":
            found = list(driver.encode_all(iter(pixels), POSITION))
            assert found == [chunks[:-END_BYTES] for chunks, _ in pairs]
            assert list(driver.encode_all([], POSITION)) == []
            with pytest.raises(ImageError, match=r"must have one size, not \(61, 70\) and"):
                list(driver.encode_all([pixels[0], picture(1, 9, 9)], POSITION))
        else:
            streams = [chunks for chunks, _ in pairs]
            found = list(driver.decode_all(streams, 61, 70, POSITION))
            assert all((a == b).all() for a, (_, b) in zip(found, pairs, strict=True))
            broken = damage(streams[1], "bit", np.random.default_rng(1))
            row = driver.decode_all([streams[0], broken, streams[2]], 61, 70, POSITION)
            assert (next(row) == pairs[0][1]).all()
            with pytest.raises(StreamError, match="damaged"):
                next(row)
        check(driver, 110)


def test_a_row_is_faster(kind: str) -> None:
    """A picture begins before the one before has ended, so that they come faster."""
    with drive(kind) as driver:
        pixels = picture(120, 192, 192)
        chunks, _ = stream(pixels)
        if kind == "encoder":
            list(driver.encode_all([pixels] * 3, POSITION))
        else:
            list(driver.decode_all([chunks] * 3, 192, 192, POSITION))
        assert driver.read("pictures") == 3
        assert driver.read("period_cycles") < 0.9 * driver.read("picture_cycles")


def test_slow_dma(kind: str) -> None:
    """Whatever either side waits for, the result is the same, and the waits are counted."""
    with drive(kind) as driver:
        tiny_board.simulation(kind).chances(s_axis=0.4, m_axis=0.3)
        check(driver, 20)
        counted = driver.counters()
        assert counted.input_starved > 0 and counted.output_waits > 0


def test_other_weights(kind: str) -> None:
    """A core with other weights gets the right ones."""
    other = replace(tiny_model(6), digest=b"another!")
    link = tiny_board.link(kind)
    top = tiny_board.top(kind)
    first = Driver(
        link, core_image.of_core(tiny_board.core_of(kind, other), other, top.layout), other
    )
    assert first.loads == 1
    second = Driver(link, tiny_board.image(kind), MODEL)
    assert second.loads == 1
    check(second, 30)
    with pytest.raises(DeviceError, match=r"the words are of weights .*, the model is tiny"):
        Driver(link, tiny_board.image(kind), other)


CONSTANTS = {
    "shift": ("h_a", "v", {"shift": 11}),
    "sum": ("g_a", "y", {"shift_a": 1}),
    "clamp": ("h_s", "index", {"high": 6}),
    "thresholds": ("quantize", "open", {"thresholds": np.array([2, 5, 7], np.int32)}),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_a_core_of_other_constants_has_another_layout(what: str) -> None:
    """Only weights and gains are loaded: all else of a Program is built in."""
    program, output, fields = CONSTANTS[what]

    def changed(op: ops.Op) -> ops.Op:
        return replace(op, **fields) if op.output == output else op

    before = MODEL.programs[program]
    after = replace(before, ops=tuple(changed(op) for op in before.ops))
    other = replace(MODEL, programs={**MODEL.programs, program: after})
    assert layout(tiny_board.core_of("encoder", MODEL)) == tiny_board.top("encoder").layout
    assert layout(tiny_board.core_of("encoder", other)) != tiny_board.top("encoder").layout


def test_reset_in_the_middle_of_a_picture(kind: str) -> None:
    """A picture that is given up leaves nothing behind, in the core, the DMA or DRAM."""
    with drive(kind) as driver:
        check(driver, 40)
        pixels = picture(41)
        chunks, _ = stream(pixels)
        data = pixels.reshape(-1) if kind == "encoder" else np.frombuffer(chunks, np.uint8)
        for cycles in (50, 3000, 9000, 20000):
            driver._configure(61, 70, 1, POSITION)
            driver.link.receive(1 << 16)
            driver.link.send(data)
            assert not driver.link.wait(cycles / tiny_board.CLOCK_HZ)
            driver.recover()
            check(driver, 42)


def test_timeout(kind: str) -> None:
    """It says what state the registers are in, and the next picture is right."""
    with drive(kind) as driver:
        check(driver, 50)
        driver.timeout_s = 500 / tiny_board.CLOCK_HZ
        with pytest.raises(DeviceError) as caught:
            check(driver, 51)
        text = str(caught.value)
        assert "a picture of 61x70 took longer than" in text
        assert "begun 2, ended 1" in text and "pictures 0x1" in text and "DMA: " in text
        driver.timeout_s = driver.link.timeout_s
        check(driver, 52)


def test_damaged_streams() -> None:
    """An error status becomes an error; the next picture is right, without a reset."""
    with drive("decoder") as driver:
        check(driver, 60)
        chunks, _ = stream(picture(61))
        rng = np.random.default_rng(62)
        count = 0
        for change in ("bit", "cut", "long", "swap", *["bit"] * 8):
            with pytest.raises(StreamError, match="the stream is damaged, says the simulation"):
                driver.decode(damage(chunks, change, rng), 61, 70, POSITION)
            count += 1
            check(driver, 63 + count)
            assert driver.read("bad_pictures") == count
        assert driver.read("pictures") == 1 + 2 * count
        with pytest.raises(StreamError, match="no chunks"):
            driver.decode(b"", 61, 70, POSITION)


def damage(chunks: bytes, change: str, rng: np.random.Generator) -> bytes:
    data = bytearray(chunks)
    if change == "bit":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif change == "cut":
        del data[len(data) // 2 :]
    elif change == "long":  # a stripe more than the picture has
        data[:0] = chunks[:-END_BYTES]
    elif change == "swap":
        data[20], data[21] = data[21], data[20] ^ 0xFF
    return bytes(data)


def test_refused(kind: str) -> None:
    """What the core was not built for is refused before anything moves."""
    with drive(kind) as driver:
        error = ImageError if kind == "encoder" else StreamError
        for height, width in ((193, 10), (10, 193), (0, 10)):
            pixels = np.zeros((height, width, 3), np.uint8)
            with pytest.raises(error, match=r"the \w+ core was built for up to 192x192"):
                if kind == "encoder":
                    driver.encode(pixels, POSITION)
                else:
                    driver.decode(b"x", width, height, POSITION)
        with pytest.raises(error, match=r"stripes have 128 lines, .* --stripe 64"):
            if kind == "encoder":
                driver.encode(picture(1), POSITION, stripe=2)
            else:
                driver.decode(b"x", 10, 10, POSITION, stripe=2)
        if kind == "encoder":
            with pytest.raises(ImageError, match=r"uint8 \(H, W, 3\), not uint8 \(4, 4\)"):
                driver.encode(np.zeros((4, 4), np.uint8), POSITION)
        assert driver.read("pictures") == 0


class Lying:
    """A link whose core gives other values for some registers."""

    def __init__(self, link: SimulationLink, **values: int) -> None:
        self.link, self.values = link, {register(n).address: v for n, v in values.items()}

    def __getattr__(self, name: str) -> object:
        return getattr(self.link, name)

    def read(self, address: int) -> int:
        return self.values.get(address, self.link.read(address))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"magic": 0}, r"no lichen core answers: expected 0x4c494348 .*, found 0x0{8}. Is"),
        ({"version": 1}, r"registers of version 1, this lichen drives version"),
        ({"core": 2}, r"expected the encoder core, found decoder"),
        ({"core": 3}, r"expected the encoder core, found number 3"),
        ({"board": 2}, r"the core was built for zcu102, not for kv260: give --device zcu102"),
        ({"layout": 5}, r"the core has layout 0x00000005, the weights of tiny are laid out for 0x"),
        ({"loaded": 7}, r"words were sent, the core took 0\. State: .* registers: control 0x2"),
    ],
)  # fmt: skip
def test_wrong_cores(values: dict[str, int], message: str) -> None:
    assert values.get("magic") != MAGIC
    link = Lying(tiny_board.link("encoder"), **values)
    with pytest.raises(DeviceError, match=message):
        Driver(link, tiny_board.image("encoder"), MODEL, board="kv260")  # type: ignore[arg-type]


def test_images(tmp_path, kind: str) -> None:
    """What is written is read again; damage is said."""
    image = tiny_board.image(kind)
    path = tmp_path / f"x{core_image.SUFFIX}"
    image.write(path)
    found = core_image.read(path)
    assert (found.words == image.words).all()
    assert replace(found, words=image.words) == image
    data = path.read_bytes()
    for damaged in (b"", data[:-30], b"PK\x05\x06" + bytes(18)):
        path.write_bytes(damaged)
        with pytest.raises(DeviceError, match=r"x\.load\.npz is damaged .*lichen build"):
            core_image.read(path)


def test_recorded(tmp_path, kind: str) -> None:
    """A session is written down, and replayed without the core; what differs is said."""
    path = tmp_path / "session.jsonl"
    pixels = picture(70)
    chunks, _ = stream(pixels)

    def session(link: object) -> NDArray[np.uint8] | bytes:
        with Driver(link, tiny_board.image(kind), MODEL) as driver:  # type: ignore[arg-type]
            if kind == "encoder":
                return driver.encode(pixels, POSITION)
            return driver.decode(chunks, 61, 70, POSITION)

    recording = RecordingLink(tiny_board.link(kind), path)
    first = session(recording)  # which closes the link
    assert recording._file.closed
    replay = ReplayLink(path)
    assert np.array_equal(session(replay), first)
    assert replay.finished
    driver = Driver(ReplayLink(path), tiny_board.image(kind), MODEL)
    with pytest.raises(DeviceError, match=r"the recorded session has .*, the driver now does"):
        check(driver, 71)
    lines = path.read_text().splitlines()
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:30]) + "\n")
    with pytest.raises(DeviceError, match=r"short.jsonl ends, the driver now does"):
        session(ReplayLink(tmp_path / "short.jsonl"))
    path.write_text(lines[0] + "\n{")
    with pytest.raises(DeviceError, match=r"session.jsonl, line 2, is damaged"):
        ReplayLink(path)
    path.write_text("{}\n")
    with pytest.raises(DeviceError, match="is no recorded session"):
        ReplayLink(path)
