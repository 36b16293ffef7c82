"""Program: a flat list of integer operations, with its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.program.ops import DType, Op


@dataclass(frozen=True)
class Input:
    """A tensor given to a Program. Its real value is q * 2**-exponent."""

    name: str
    channels: int
    dtype: DType
    exponent: int


@dataclass(frozen=True)
class Vector:
    """Multipliers given to a Program at run time, int32 (channels,), each 0..32767: rate gains."""

    name: str
    channels: int


@dataclass(frozen=True)
class Output:
    """A tensor that a Program gives back. Its real value is q * 2**-exponent."""

    name: str
    exponent: int


@dataclass(frozen=True)
class Program:
    """Operations in the order in which they run; each tensor is written once, before it is read.

    No control flow and no dynamic shape but the height and width of the inputs.
    """

    name: str
    inputs: tuple[Input, ...]
    vectors: tuple[Vector, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]
