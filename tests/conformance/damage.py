"""Damage the vectors: single bytes changed and streams cut, their CRCs as they are or repaired.

As they are, every change must be refused. Repaired, as a forger would, a change must be refused,
fail the pixel digest, or leave the pixels as they were; the streams without a digest may decode to
anything, but must not crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from forge import repair
from numpy.typing import NDArray

from lichen import container
from lichen.api import Codec, DigestError
from lichen.conformance import Vectors
from lichen.errors import LichenError, ModelError, StreamError
from lichen.executors import Executor

MAX_PIXELS = 1 << 20  # a changed size must not take minutes


def streams(vectors: Vectors, largest: int) -> Iterator[tuple[str, str, bytes]]:
    """Give name, model and bytes of the valid streams up to a size."""
    for case in vectors.cases:
        if case["kind"] == "stream":
            data = vectors.file(case["file"])
            if len(data) <= largest:
                yield case["name"], case["model"], data


def changes(data: bytes, masks: Iterable[int]) -> Iterator[bytes]:
    """Give every stream that differs in one byte, by one of the masks."""
    masks = list(masks)
    for position in range(len(data)):
        for mask in masks:
            changed = bytearray(data)
            changed[position] ^= mask
            yield bytes(changed)


def cuts(data: bytes) -> Iterator[bytes]:
    """Give every beginning of a stream but the whole."""
    for size in range(len(data)):
        yield data[:size]


def must_refuse(codec: Codec, name: str, damaged: Iterable[bytes]) -> Counter[str]:
    """Decode damaged streams; AssertionError for one that decodes. Counts the errors."""
    found: Counter[str] = Counter()
    for data in damaged:
        try:
            codec.decode(data, max_pixels=MAX_PIXELS)
        except (StreamError, ModelError) as error:
            found[type(error).__name__] += 1
            continue
        raise AssertionError(f"{name}: damage went unseen: {data.hex()}")
    return found


def must_not_be_silent(codec: Codec, name: str, data: bytes, masks: Iterable[int]) -> Counter[str]:
    """Change bytes and repair the CRCs; AssertionError for other pixels under a right digest."""
    pixels = codec.decode(data).pixels
    digest = container.read_header(data).digest
    found: Counter[str] = Counter()
    for changed in changes(data, masks):
        forged = repair(changed, codec.model.digest)
        try:
            other = codec.decode(forged, max_pixels=MAX_PIXELS).pixels
        except DigestError:
            found["digest failed"] += 1
        except LichenError:
            found["refused"] += 1
        else:
            found[_compare(pixels, other)] += 1
            silent = digest and container.read_header(forged).digest
            if silent and not np.array_equal(pixels, other):
                raise AssertionError(f"{name}: other pixels, no error: {forged.hex()}")
    return found


def _compare(pixels: NDArray[np.uint8], other: NDArray[np.uint8]) -> str:
    return "same pixels" if np.array_equal(pixels, other) else "other pixels, no digest"


def codec_of(vectors: Vectors, model: str, executor: Executor) -> Codec:
    return Codec(vectors.model(model), executor=executor)
