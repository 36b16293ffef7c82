"""The contract: integer Programs, their checker and their reference executor. NumPy only.

Normative text: docs/contract.md; its executable form: `reference`; the operations: `ops`.
"""

from lichen.program.check import check
from lichen.program.ops import DType, Op
from lichen.program.program import Input, Output, Program, Vector
from lichen.program.reference import run

__all__ = ["DType", "Input", "Op", "Output", "Program", "Vector", "check", "run"]
