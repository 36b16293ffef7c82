"""Exponents of a Program's tensors: real = q * 2**-exponent.

A Program states those of its inputs and outputs. Between them only ratios matter: additions tie
tensors to one another, and a tensor that nothing ties takes the exponent that brings its range to
-1..1. A convolution's weights then have the exponents that its shifts imply.
"""

from __future__ import annotations

from lichen.errors import ContractError
from lichen.program import Input, Output, Program, ops

NATURAL = {"u8": 8, "s8": 7, "s16": 15}


class _Ties:
    """Sets of tensors whose exponents differ by known amounts."""

    def __init__(self) -> None:
        self.parent: dict[str, tuple[str, int]] = {}  # tensor: (parent, exponent minus its)

    def find(self, name: str) -> tuple[str, int]:
        """Give the root of a tensor's set, and by how much its exponent is above the root's."""
        above, total = name, 0
        while above in self.parent:
            above, offset = self.parent[above]
            total += offset
        return above, total

    def tie(self, a: str, b: str, difference: int) -> None:
        """State exponent(a) = exponent(b) + difference."""
        (root_a, offset_a), (root_b, offset_b) = self.find(a), self.find(b)
        if root_a != root_b:
            self.parent[root_a] = root_b, difference + offset_b - offset_a
        elif offset_a != offset_b + difference:
            raise ContractError(f"exponents of {a} and {b} contradict one another")


def exponents(program: Program) -> dict[str, int]:
    """Give the exponent of every tensor of a Program. Raises ContractError where none fit."""
    ties = _Ties()
    dtypes: dict[str, str] = {x.name: x.dtype for x in program.inputs}
    for op in program.ops:
        match op:
            case ops.Add():
                ties.tie(op.a, op.b, op.shift_b - op.shift_a)
                ties.tie(op.output, op.a, op.shift_a - op.shift)
                dtypes[op.output] = op.dtype
            case ops.Concat():
                for name in op.inputs:
                    ties.tie(name, op.output, 0)
                dtypes[op.output] = dtypes[op.inputs[0]]
            case ops.PixelShuffle() | ops.PixelUnshuffle() | ops.Clamp() | ops.Slice():
                ties.tie(op.output, op.input, 0)
                dtypes[op.output] = dtypes[op.input]
            case ops.TableIndex():
                dtypes[op.output] = "u8"
            case _:
                dtypes[op.output] = op.dtype
    known: dict[str, int] = {}
    tensors: list[Input | Output] = [*program.inputs, *program.outputs]
    for tensor in tensors:
        root, offset = ties.find(tensor.name)
        if known.setdefault(root, tensor.exponent - offset) != tensor.exponent - offset:
            raise ContractError(f"the exponent of {tensor.name} contradicts the additions before")
    for name, dtype in dtypes.items():
        root, offset = ties.find(name)
        known.setdefault(root, NATURAL[dtype] - offset)
    found = {}
    for name in dtypes:
        root, offset = ties.find(name)
        found[name] = known[root] + offset
    return found
