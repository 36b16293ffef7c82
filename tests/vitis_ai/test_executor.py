"""The codec with its transforms on a device: near the integer codec, and its streams valid."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import photograph, quantized, tiny
from lichen.api import Codec
from lichen.boards.vitis_ai import calibrate, dpu, measure
from lichen.boards.vitis_ai import network as net
from lichen.boards.vitis_ai.executor import DpuExecutor, EmulatedDpu, places, tiled
from lichen.errors import DeviceError
from lichen.executors import best
from lichen.picture import from_array

CASES = [("student", "arm"), ("student-fine", "dpu"), ("relu", "arm")]


@pytest.mark.parametrize(("name", "linear"), CASES)
def test_streams_decode_everywhere_and_pictures_are_near(name: str, linear: str) -> None:
    parts = tiny(name, linear)
    device = DpuExecutor(parts, EmulatedDpu(quantized(parts)))
    pixels = photograph(70, 90, 5)
    on_dpu, exact = Codec(parts.model, executor=device), Codec(parts.model)
    data = on_dpu.encode(from_array(pixels), quality=60).data
    near, same = on_dpu.decode(data).rgb, exact.decode(data).rgb
    assert measure.psnr(near, same) > 30
    assert not np.array_equal(near, same)  # it is the DPU's arithmetic
    (row,) = measure.measure(parts.model, best(), device, [("p", pixels)], [60])
    assert row.equal_latents > 0.5  # of weights at random
    assert abs(row.bpp / row.bpp_integer - 1) < 0.1


@pytest.mark.parametrize("name", ["student-fine", "relu"])
def test_tiles_give_the_picture_in_one_piece(name: str) -> None:
    parts = tiny(name)
    networks = quantized(parts)
    whole = DpuExecutor(parts, EmulatedDpu(networks))
    reach = max(n.reach() for n in parts.networks.values())
    side = -(-(2 * reach + 32) // 64) * 64
    pixels = photograph(side + 80, 2 * side + 16, 1)
    pieces = DpuExecutor(parts, EmulatedDpu(networks, (side, side)))
    codecs = [Codec(parts.model, executor=e) for e in (whole, pieces)]
    streams = [codec.encode(from_array(pixels), quality=50).data for codec in codecs]
    assert streams[0] == streams[1]
    pictures = [codec.decode(streams[0]).rgb for codec in codecs]
    assert np.array_equal(*pictures)


def test_a_reach_that_is_too_short_shows() -> None:
    """The overlap is needed: a network that says it looks less far gives another picture."""
    parts = tiny("relu")
    networks = quantized(parts)
    (network,) = parts.by_name["g_a"].networks
    rng = np.random.default_rng(0)
    x = {"x": rng.integers(-128, 128, (3, 260, 132)).astype(np.int8)}
    device = EmulatedDpu(networks, (128, 128))
    wanted = dpu.run(networks["g_a"], x)
    assert np.array_equal(tiled(device, network, x)["y"], wanted["y"])

    class Short(net.Network):
        def reach(self) -> int:
            return 0

    short = Short(network.name, network.feeds, network.nodes, network.outputs)
    assert not np.array_equal(tiled(device, short, x)["y"], wanted["y"])


def test_small_pictures_are_continued() -> None:
    parts = tiny("student-fine")
    networks = quantized(parts)
    device = DpuExecutor(parts, EmulatedDpu(networks, (256, 256)))
    codec = Codec(parts.model, executor=device)
    data = codec.encode(from_array(photograph(40, 33, 2)), quality=50).data
    assert codec.decode(data).rgb.shape == (40, 33, 3)
    assert Codec(parts.model).decode(data).rgb.shape == (40, 33, 3)


@pytest.mark.parametrize("length", [64, 128, 129, 500, 1024])
def test_places_cover_a_picture_once(length: int) -> None:
    good = 0
    for start, a, b in places(length, 128, 24, 16):
        assert a == good and a < b
        assert start >= 0 and (start == 0 or a - start >= 24)
        assert b - start <= 128 and (b == length or start + 128 - b >= 24)
        good = b
    assert good == length


def test_a_tile_that_is_too_small() -> None:
    with pytest.raises(DeviceError, match="a tile of 64 lines is too small"):
        list(places(200, 64, 32, 16))


def test_qdq_onnx_is_the_dpu_but_for_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    qdq = pytest.importorskip("lichen.boards.vitis_ai.qdq")
    parts = tiny("student", "dpu")
    networks = quantized(parts)
    device = qdq.QdqDevice(networks)
    rng = np.random.default_rng(0)
    differ = 0

    def half_even(x: np.ndarray, shift: int) -> np.ndarray:
        return np.rint(x * 2.0**-shift).astype(np.int64)

    for name, q in networks.items():
        grids = q.network.reductions()
        given = {
            f.name: rng.integers(-128, 128, (f.channels, *(64 // int(grids[f.name]),) * 2))
            .astype(np.int8)
            for f in q.network.feeds
        }  # fmt: skip
        found = device.run(name, given)
        up = dpu.run(q, given)
        with monkeypatch.context() as patch:
            patch.setattr(dpu, "round_half_up", half_even)
            even = dpu.run(q, given)
        for output, y in found.items():
            assert np.array_equal(y, even[output]), output
            differ += int((y != up[output]).sum())
    assert differ  # with scales of powers of two, halves are frequent


def test_positions_are_those_of_the_documents() -> None:
    """cpu_diff_S: 0..1 in 8 bits at 2**-6 where nothing may saturate; -1..127/128 at 2**-7."""
    assert calibrate.finest(calibrate.reach(np.array([0.0, 1.0]))) == 6
    assert calibrate.finest(calibrate.reach(np.array([-1.0, 127 / 128]))) == 7
    assert calibrate.finest(0.0) == calibrate.MAX_FIX
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(0, 0.05, 100000), 1.5)  # an outlier may saturate
    assert calibrate.best_fix(x) > calibrate.finest(calibrate.reach(x))


def test_equalised_networks_compute_the_same() -> None:
    parts = tiny("student-fine")
    for network in parts.networks.values():
        equal = calibrate.equalize(network)
        pairs = zip(network.nodes, equal.nodes, strict=True)
        convs = [(a, b) for a, b in pairs if isinstance(a, net.Conv)]
        assert any(not np.array_equal(a.weight, b.weight) for a, b in convs)
        rng = np.random.default_rng(1)
        x = {f.name: rng.normal(0, 0.5, (f.channels, 8, 8)) for f in network.feeds}
        before, after = net.run(network, x), net.run(equal, x)
        for name, y in before.items():
            assert np.allclose(y, after[name], atol=1e-5 * np.abs(y).max())


def test_corrected_biases_help() -> None:
    """The mean of a layer's output is nearer to the float one than without the correction."""
    rng = np.random.default_rng(2)
    node = net.Conv("c", "x", rng.normal(0, 1, (8, 8, 3, 3)).astype(np.float32),
                    np.zeros(8, np.float32), 1, 1, 1, False)  # fmt: skip
    mean = rng.uniform(0.5, 1, 8)
    rounded = calibrate.to_fix(node.weight, 3)
    bias = calibrate.corrected(node, node.bias, rounded, 3, mean)
    wanted = node.weight.sum((2, 3)) @ mean
    found = (rounded * 2.0**-3).sum((2, 3)) @ mean
    assert np.allclose(found + bias, wanted)
