"""Read this first: the whole of lichen in one screen.

A Program is a list of integer operations. An executor runs it, to the same bits everywhere. What
comes out is entropy-coded with integer tables, and travels in a stream whose every byte is checked.
"""

import numpy as np

from lichen import container, entropy
from lichen.executors import best
from lichen.program import Input, Output, Program, check, ops, run


def test_tiny() -> None:
    # A 2x2 box filter with stride 2, then the difference to the constant picture -1.
    box = ops.Conv(
        output="mean",
        input="x",
        weight=np.ones((1, 1, 2, 2), np.int8),
        bias=np.zeros(1, np.int32),
        shift=np.array([2], np.uint8),  # divide by 4, round half to even
        stride=2,
        padding=(0, 0, 0, 0),
        groups=1,
        dtype="s8",
    )
    difference = ops.Add("symbols", "mean", "minus_one", 0, 0, 0, subtract=True, dtype="s16")
    program = Program(
        "tiny",
        inputs=(Input("x", 1, "s8", exponent=0), Input("minus_one", 1, "s8", exponent=0)),
        vectors=(),
        ops=(box, difference),
        outputs=(Output("symbols", exponent=0),),
    )
    check(program)  # shapes, ranges, and that no sum can overflow 32 bits

    x = np.array([[[1, 2, 5, 5], [1, 2, 5, -5]]], np.int8)  # sums: 6 and 10
    inputs = {"x": x, "minus_one": np.full((1, 1, 2), -1, np.int8)}
    symbols = run(program, inputs)["symbols"]  # the reference: NumPy, the definition
    assert symbols.tolist() == [[[3, 3]]]  # 6/4 -> 2 and 10/4 -> 2, minus -1
    assert np.array_equal(best().run(program, inputs)["symbols"], symbols)  # the C kernels

    # One table: symbols 0..3 with these frequencies of 2**16, the last one for all other symbols.
    tables = entropy.Tables(
        precision=16,
        lengths=np.array([5], np.int32),
        offsets=np.array([0], np.int32),
        frequencies=np.array([1000, 2000, 3000, 59535, 1], np.uint16),
    )
    which = np.zeros(2, np.uint16)  # the table of each symbol
    y = entropy.encode(symbols.reshape(-1), which, tables, lanes=4)

    header = container.Header(
        width=4,
        height=2,
        channels=1,
        alpha=False,
        digest=False,
        order=container.FACTORISED,
        weights=b"no model",
        position=0,
        stripe=1,
    )
    data = container.write(container.Stream(header, stripes=((b"", y),)))
    stream = container.read(data)  # checks every byte
    assert stream.header == header
    decoded = entropy.decode(stream.stripes[0][1], which, tables, lanes=4)
    assert decoded.tolist() == [3, 3]
