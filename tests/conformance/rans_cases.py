"""Cases of the entropy coder: every precision and lane count, every length of an escape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lichen.entropy import Tables, rans


def rans_cases() -> Iterator[dict[str, Any]]:
    """Give the cases as the manifest has them."""
    for precision in range(12, 17):
        total = 1 << precision
        rows = [
            [total - 1, 1], [1, total - 1], [total // 2] * 2, [1] * 40 + [total - 40],
            [total - 40] + [1] * 40, [total // 8, total // 4, total // 8, total // 2],
        ]  # fmt: skip
        offsets = [0, -1, 32767, -32768, 32728, -2]
        for lanes in (1, 2, 3, 4, 5, 8) if precision in (12, 16) else (4,):
            yield _case(f"lanes-{lanes}-precision-{precision}", precision, lanes, rows, offsets)
        # Tables of symbols within -8192..8192, which the accelerator's decoder takes.
        near = [0, -1, 8100, -8190, 8100, -2]
        for lanes in (4,) if precision > 13 else (precision - 11,):
            name = f"near-lanes-{lanes}-precision-{precision}"
            yield _case(name, precision, lanes, rows, near)
    uniform = [[256] * 256]
    for count in (1, 2, 3, 4, 5, 7, 8, 9):
        symbols = (np.arange(count) * 37 % 255 - 128).tolist()
        yield _coded(f"{count}-symbols", 16, 4, uniform, [-128], symbols, [0] * count)
    distances = [0, 1, 2, 3, 4, 31, 32, 255, 256, 2047, 2048, 16383, 16384, 32767]
    above = [1 + d for d in distances if 1 + d <= 32767]
    below = [-1 - d for d in distances]
    for precision in (12, 16):
        rows = [[(1 << precision) - 1, 1]]
        symbols = [*above, *below, 0, 0, *above]
        yield _coded(f"escapes-precision-{precision}", precision, 4, rows, [0], symbols,
                     [0] * len(symbols))  # fmt: skip
    ends = [32767, -32768, 32767, -32768, 0]
    for offset in (-32768, 32767):
        yield _coded(f"escapes-from-{offset}", 16, 2, [[1, 65535]], [offset], ends, [0] * 5)


def _case(
    name: str, precision: int, lanes: int, rows: list[list[int]], offsets: list[int]
) -> dict[str, Any]:
    """Code 120 symbols: of every table its ends, its rarest and commonest, and escapes."""
    rng = np.random.default_rng(precision * 16 + lanes)
    indices = rng.integers(0, len(rows), 120)
    symbols = []
    for table in indices:
        length = len(rows[table])
        entry = int(rng.choice([0, length - 2, rng.integers(length), -1, length, length + 50]))
        symbols.append(max(-32768, min(32767, offsets[table] + entry)))
    return _coded(name, precision, lanes, rows, offsets, symbols, indices.tolist())


def _coded(
    name: str, precision: int, lanes: int, rows: list[list[int]], offsets: list[int],
    symbols: list[int], indices: list[int],
) -> dict[str, Any]:  # fmt: skip
    tables = Tables(
        precision, np.array([len(row) for row in rows], np.int32), np.array(offsets),
        np.concatenate([np.array(row, np.uint16) for row in rows]),
    )  # fmt: skip
    data = rans.encode(
        np.array(symbols, np.int16), np.array(indices, np.uint16), tables, lanes=lanes
    )
    return {
        "kind": "rans", "name": name, "precision": precision, "lanes": lanes, "offsets": offsets,
        "tables": rows, "symbols": symbols, "indices": indices, "bytes": data.hex(),
    }  # fmt: skip
