"""The C kernels equal the reference to the last bit, on every instruction set and thread count.

Shapes are small and odd, values extreme; chains are random, so that layouts meet in every way.
"""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from lichen.errors import ContractError, DeviceError
from lichen.native import lib
from lichen.program import Input, Output, Program, Vector, ops, reference
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE
from lichen.program.check import tensors

pytestmark = pytest.mark.skipif(lib() is None, reason="the native module is not built")

if lib() is not None:
    from lichen.executors.native import NativeExecutor, available_isas
    from lichen.native.plan import Plan

    EXECUTORS = [NativeExecutor(threads, isa) for isa in available_isas() for threads in (1, 2, 3)]
else:
    EXECUTORS = []


def values(rng, dtype, shape):
    """Uniform, all lowest, all highest, or either end at random."""
    low, high = DTYPE_RANGE[dtype]
    kind = rng.integers(5)
    if kind == 0:
        array = np.where(rng.integers(0, 2, shape), low, high)
    elif kind == 1:
        array = np.full(shape, rng.choice([low, high]))
    else:
        array = rng.integers(low, high + 1, shape)
    return array.astype(NUMPY_DTYPE[dtype])


def shifts(rng, count):
    return rng.integers(0, 13, count).astype(np.uint8)


def weights(rng, shape):
    kind = rng.integers(4)
    if kind == 0:
        return rng.choice([-128, 127], shape).astype(np.int8)
    return rng.integers(-128, 128, shape).astype(np.int8)


def random_conv(rng, source, channels, dtype, *, output="y", groups=1):
    outputs = int(rng.choice([1, 3, 8, 15, 16, 17, 32, 33, 48])) * groups
    if groups == channels:
        outputs = groups
    kernel_h, kernel_w = (int(k) for k in rng.integers(1, 5, 2))
    padding = tuple(int(rng.integers(0, k)) for k in (kernel_h, kernel_w) * 2)
    shape = (outputs, channels // groups, kernel_h, kernel_w)
    bias = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    bits = 8 if dtype == "s16" else 16  # keep some results inside the range
    shift = np.clip(shifts(rng, outputs) + bits - 8, 0, 31).astype(np.uint8)
    return ops.Conv(output, source, weights(rng, shape), bias, shift,
                    int(rng.integers(1, 4)), padding, groups, dtype)  # fmt: skip


def compare(program, inputs, vectors=None, executors=None, runs=1):
    """Run a Program on the reference and on every executor; point to the first difference."""
    expected = reference.run(program, inputs, vectors or {})
    for executor in EXECUTORS if executors is None else executors:
        for _ in range(runs):
            found = executor.run(program, inputs, vectors or {})
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                if not np.array_equal(found[name], array):
                    where = tuple(int(i) for i in np.argwhere(found[name] != array)[0])
                    pytest.fail(
                        f"{executor.isa}, {executor.threads} threads, {name}{where}: "
                        f"expected {array[where]}, found {found[name][where]}"
                    )


def single(op, dtype, channels, vectors=()):
    inputs = (Input("x", channels, dtype, 0),)
    return Program("single", inputs, vectors, (op,), (Output("y", 0),))


DTYPES = ("u8", "s8", "s16")


@pytest.mark.parametrize("seed", range(24))
def test_conv(seed):
    rng = np.random.default_rng(seed)
    dtype, channels = DTYPES[seed % 3], int(rng.choice([1, 3, 4, 7, 16, 33]))
    out = str(rng.choice(DTYPES))
    program = single(random_conv(rng, "x", channels, out), dtype, channels)
    shape = (channels, int(rng.integers(4, 12)), int(rng.integers(4, 50)))
    compare(program, {"x": values(rng, dtype, shape)})


@pytest.mark.parametrize("seed", range(12))
def test_groups(seed):
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([2, 3, 5]))
    channels = groups * int(rng.choice([1, 1, 2, 3, 4, 8, 15]))
    dtype = DTYPES[seed % 3]
    conv = random_conv(rng, "x", channels, str(rng.choice(DTYPES)), groups=groups)
    shape = (channels, int(rng.integers(4, 9)), int(rng.integers(4, 20)))
    compare(single(conv, dtype, channels), {"x": values(rng, dtype, shape)})


@pytest.mark.parametrize("channels", [2, 31, 32, 70])
def test_depthwise(channels):
    rng = np.random.default_rng(channels)
    for dtype in DTYPES:
        conv = random_conv(rng, "x", channels, "u8", groups=channels)
        shape = (channels, 7, 9)
        compare(single(conv, dtype, channels), {"x": values(rng, dtype, shape)})


@pytest.mark.parametrize("seed", range(8))
def test_transposed_conv(seed):
    rng = np.random.default_rng(seed)
    kernel, stride, padding, extra = [
        (5, 2, 2, 1), (4, 2, 1, 0), (3, 1, 1, 0), (9, 4, 3, 1),
        (2, 2, 0, 0), (3, 2, 1, 1), (5, 3, 1, 0), (1, 1, 0, 0),
    ][seed]  # fmt: skip
    dtype, channels, outputs = DTYPES[seed % 3], int(rng.choice([3, 8, 17])), 1 + 5 * (seed % 3)
    op = ops.TransposedConv(
        "y", "x", weights(rng, (channels, outputs, kernel, kernel)),
        rng.integers(-999, 999, outputs).astype(np.int32), shifts(rng, outputs),
        stride, padding, extra, str(rng.choice(DTYPES)),
    )  # fmt: skip
    shape = (channels, int(rng.integers(1, 8)), int(rng.integers(1, 20)))
    compare(single(op, dtype, channels), {"x": values(rng, dtype, shape)})


@pytest.mark.parametrize("channels", [1, 3, 24, 40])
def test_element_wise(channels):
    rng = np.random.default_rng(channels)
    for dtype in DTYPES:
        low, high = DTYPE_RANGE[dtype]
        for out in DTYPES:
            shift = int(rng.integers(0, 20))
            table = np.sort(rng.integers(low - 5, high + 5, 9)).astype(np.int32)
            gain = rng.integers(0, 65536 if shift < 16 else 16384, channels).astype(np.int32)
            todo = [
                ops.Scale("a", "x", gain, min(shift, 15), out),
                ops.Scale("b", "x", "gain", shift, out),
                ops.Add("c", "x", "a", int(rng.integers(15)), 2, shift, bool(shift % 2), out),
                ops.Clamp("d", "x", low // 3, high // 2),
                ops.TableIndex("e", "x", table),
            ]
            names = "abcde"
            program = Program(
                "elements", (Input("x", channels, dtype, 0),), (Vector("gain", channels),),
                tuple(todo), tuple(Output(n, 0) for n in names),
            )  # fmt: skip
            vector = rng.integers(0, 32768, channels).astype(np.int32)
            x = values(rng, dtype, (channels, 5, 37))
            compare(program, {"x": x}, {"gain": vector})


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("inverse", [False, True])
def test_gdn(power, inverse):
    rng = np.random.default_rng(power)
    for seed, channels in enumerate((1, 7, 16, 40)):
        dtype = ("s8", "s16")[seed % 2]
        square_shift = int(rng.integers(0, 12)) if dtype == "s16" else 0
        beta = (1 << rng.integers(0, 22, channels)).astype(np.int32)
        gamma = rng.integers(0, 256, (channels, channels)).astype(np.uint8)
        gamma[rng.random(gamma.shape) < 0.5] = 0
        shift = {(2, False): -5, (2, True): 12, (1, False): -6, (1, True): 16}[power, inverse]
        op = ops.GDN("y", "x", beta, gamma, power, inverse, square_shift, shift, "s16")
        program = single(op, dtype, channels)
        compare(program, {"x": values(rng, dtype, (channels, 4, 41))})


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_factor_of_every_mantissa(power, inverse):
    mantissas = np.arange(256 * (3 - power), 1025)
    channels = len(mantissas)
    gamma = np.zeros((channels, channels), np.uint8)
    beta = (mantissas << 8).astype(np.int32)  # x is so large that one unit of a factor shows
    shift = {(2, False): -8, (2, True): 9, (1, False): -17, (1, True): 18}[power, inverse]
    op = ops.GDN("y", "x", beta, gamma, power, inverse, 31, shift, "s16")
    x = np.tile(np.array([32767, -32768, 12345, 1], np.int16), (channels, 1, 1))
    compare(single(op, "s16", channels), {"x": x})


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_pixel_shuffles(factor, channels):
    rng = np.random.default_rng(factor)
    for dtype in DTYPES:
        whole = channels * factor**2
        x = values(rng, dtype, (whole, 3, 5))
        compare(single(ops.PixelShuffle("y", "x", factor), dtype, whole), {"x": x})
        x = values(rng, dtype, (channels, 3 * factor, 5 * factor))
        compare(single(ops.PixelUnshuffle("y", "x", factor), dtype, channels), {"x": x})
        shuffled = Program(
            "chain", (Input("x", whole, dtype, 0),), (),
            (ops.PixelShuffle("a", "x", factor), ops.Add("b", "a", "a", 0, 0, 1, False, dtype),
             ops.PixelUnshuffle("y", "b", factor)), (Output("y", 0), Output("a", 0)),
        )  # fmt: skip
        compare(shuffled, {"x": values(rng, dtype, (whole, 3, 5))})


def random_chain(rng):
    """A Program of up to a dozen random operations that the checker accepts."""
    inputs = tuple(
        Input(name, int(rng.choice([1, 3, 4, 8, 20])), str(rng.choice(DTYPES)), 0)
        for name in "pq"[: int(rng.integers(1, 3))]
    )
    program = Program("chain", inputs, (), (), (Output("p", 0),))
    for index in range(int(rng.integers(3, 13))):
        known = tensors(program)
        name = f"t{index}"
        source = str(rng.choice(list(known)))
        x = known[source]
        same = [n for n, t in known.items() if t.dtype == x.dtype]
        dtype = str(rng.choice(DTYPES))
        match rng.integers(10):
            case 0 | 1:
                op = random_conv(rng, source, x.channels, dtype, output=name)
                if rng.integers(4):
                    kernel = op.weight.shape[2:]
                    before = [k // 2 for k in kernel]
                    after = [k - 1 - b for k, b in zip(kernel, before)]
                    op = replace(op, stride=1, padding=(*before, *after))
            case 2:
                weight, bias = weights(rng, (x.channels, 3, 4, 4)), np.zeros(3, np.int32)
                op = ops.TransposedConv(name, source, weight, bias, shifts(rng, 3), 2, 1, 0, dtype)
            case 3:
                op = ops.PixelShuffle(name, source, 2)
            case 4:
                op = ops.PixelUnshuffle(name, source, 2)
            case 5:
                like = [n for n, t in known.items() if t.channels == x.channels]
                op = ops.Add(name, source, str(rng.choice(like)), 3, 2, 4, bool(index % 2), dtype)
            case 6:
                parts = tuple(str(n) for n in rng.choice(same, int(rng.integers(1, 4))))
                op = ops.Concat(name, parts)
            case 7:
                start = int(rng.integers(x.channels))
                op = ops.Slice(name, source, start, int(rng.integers(start, x.channels)) + 1)
            case 8:
                gain = rng.integers(0, 999, x.channels).astype(np.int32)
                op = ops.Scale(name, source, gain, 9, dtype)
            case _:
                op = ops.Clamp(name, source, 0, 100)
        longer = replace(program, ops=(*program.ops, op))
        try:
            tensors(longer)
            reference.run(longer, chain_inputs(rng, longer))
        except ContractError:  # sizes do not meet, or a sum could overflow
            continue
        program = longer
    names = list(tensors(program))
    outputs = {names[-1], *(str(n) for n in rng.choice(names, 2))}
    return replace(program, outputs=tuple(Output(name, 0) for name in sorted(outputs)))


def chain_inputs(rng, program):
    return {i.name: values(rng, i.dtype, (i.channels, 12, 16)) for i in program.inputs}


@pytest.mark.parametrize("seed", range(60))
def test_chains(seed, monkeypatch):
    if seed % 2:  # many bands, although the picture is small
        monkeypatch.setattr("lichen.native.plan.BAND_BYTES", 1 << 8)
    rng = np.random.default_rng(seed)
    program = random_chain(rng)
    inputs = chain_inputs(rng, program)
    compare(program, inputs, runs=2)  # the second time in used buffers


def test_memory_follows_rows_not_pictures():
    rng = np.random.default_rng(0)
    convs = tuple(
        replace(random_conv(rng, source, 64, "u8", output=output), stride=stride,
                weight=weights(rng, (64, 64, 5, 5)), padding=(2, 2, 2, 2),
                bias=np.zeros(64, np.int32), shift=np.full(64, 9, np.uint8))
        for source, output, stride in (("x", "a", 1), ("a", "b", 2), ("b", "y", 2))
    )  # fmt: skip
    inputs = (Input("x", 64, "u8", 0),)
    program = Program("deep", inputs, (), convs, (Output("y", 0),))
    executor = EXECUTORS[-1]
    packed = executor._prepare(program).packed
    shapes = {"x": (64, 4096, 512), "a": (64, 4096, 512), "b": (64, 2048, 256),
              "y": (64, 1024, 128)}  # fmt: skip
    assert Plan(packed, shapes).arena_bytes < 4 << 20  # whole tensors: 300 MiB


def test_strides_of_inputs_do_not_matter():
    program = single(ops.PixelUnshuffle("y", "x", 2), "u8", 3)
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    flipped = np.moveaxis(picture, 2, 0)[:, ::-1, 4:20]
    compare(program, {"x": flipped})
    compare(program, {"x": flipped.copy()[:, ::2, 2:14]})


def test_channel_last_arrays_pass_through():
    rng = np.random.default_rng(5)
    for dtype in DTYPES:
        add = ops.Add("y", "x", "x", 0, 0, 1, False, dtype)
        program = single(add, dtype, 24)
        x = values(rng, dtype, (5, 7, 24)).transpose(2, 0, 1)
        compare(program, {"x": x})
        y = EXECUTORS[0].run(program, {"x": np.ascontiguousarray(x)})["y"]
        assert y.transpose(1, 2, 0).flags.c_contiguous
        compare(single(ops.PixelUnshuffle("y", "x", 1), dtype, 24), {"x": x})
        compare(single(ops.PixelShuffle("y", "x", 2), dtype, 24), {"x": x})
        conv = random_conv(rng, "x", 24, dtype)
        compare(single(conv, dtype, 24), {"x": x[:, :, ::-1]})
        compare(single(conv, dtype, 24), {"x": x[:, ::-1]})


def test_concurrent_runs_of_one_executor():
    rng = np.random.default_rng(3)
    program = single(random_conv(rng, "x", 16, "u8"), "u8", 16)
    inputs = [{"x": values(rng, "u8", (16, 9, 40))} for _ in range(8)]
    for executor in EXECUTORS:
        failures = []

        def work(given, executor=executor, failures=failures):
            try:
                compare(program, given, executors=[executor])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(given,)) for given in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_profile_names_every_operation():
    rng = np.random.default_rng(4)
    program = single(random_conv(rng, "x", 3, "u8"), "u8", 3)
    profile = EXECUTORS[0].profile(program, {"x": values(rng, "u8", (3, 9, 9))})
    assert {(kind, name) for kind, name, _ in profile} >= {("copy", "x"), ("conv", "y")}
    assert all(seconds >= 0 for _, _, seconds in profile)


def test_nothing_is_kept_of_a_dead_program():
    executor = EXECUTORS[0]
    gc.collect()
    before = len(executor._programs)
    program = single(ops.Clamp("y", "x", 1, 2), "u8", 3)
    compare(program, {"x": np.zeros((3, 2, 2), np.uint8)}, executors=[executor])
    assert len(executor._programs) == before + 1
    del program
    gc.collect()
    assert len(executor._programs) == before


def test_refusals():
    executor = EXECUTORS[0]
    program = single(ops.Clamp("y", "x", 1, 2), "u8", 3)
    with pytest.raises(ContractError):
        executor.run(program, {"x": np.zeros((4, 2, 2), np.uint8)})
    with pytest.raises(ContractError):
        executor.run(program, {"x": np.zeros((3, 2, 2), np.int8)})
    with pytest.raises(DeviceError):
        NativeExecutor(isa="abacus")
    with pytest.raises(DeviceError):
        NativeExecutor(threads=0)
