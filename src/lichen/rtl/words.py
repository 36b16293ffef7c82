"""Words: what goes through a core's load stream. Plain Python: boards make them, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT_BITS = 24
NOBODY = 255  # the number of no memory
SETTLING = 6  # words, more than the cycles from the stream to a memory


def blocks(memories: Iterable[tuple[int, bytes]]) -> NDArray[np.uint32]:
    """Give the words of the stream that fills memories, from (number, content) pairs.

    The last block goes to no memory: when its words are taken, all others are written.
    """
    parts = []
    for number, content in memories:
        words = np.frombuffer(content, "<u4")
        parts += [np.array([number << COUNT_BITS | len(words)], np.uint32), words]
    parts.append(np.array([NOBODY << COUNT_BITS | SETTLING] + [0] * SETTLING, np.uint32))
    return np.concatenate(parts)


def multipliers(values: NDArray[Any], lanes: int) -> bytes:
    """Give the words of a Scale's memory, padded to multiples of 4 bytes, for the load bus."""
    words = np.asarray(values, "<u2").reshape(-1, lanes)
    padded = np.zeros((len(words), -(-lanes // 2) * 2), "<u2")
    padded[:, :lanes] = words
    return padded.tobytes()
