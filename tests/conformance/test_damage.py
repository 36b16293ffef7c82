"""Damaged vectors: a part of what scripts/conformance-damage does in full."""

from __future__ import annotations

from collections import Counter

import pytest
from damage import changes, codec_of, cuts, must_not_be_silent, must_refuse, streams

from lichen.conformance import Vectors
from lichen.executors import best

MASKS = (1, 0x80, 0xFF)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors()


def test_single_bytes_and_cuts_are_refused(vectors: Vectors) -> None:
    executor, found = best(), Counter[str]()
    for number, (name, model, data) in enumerate(streams(vectors, 400)):
        codec = codec_of(vectors, model, executor)
        found += must_refuse(codec, name, cuts(data))
        found += must_refuse(codec, name, changes(data, [MASKS[number % len(MASKS)]]))
    assert found["StreamError"] > 5000


def test_repaired_damage_is_not_silent(vectors: Vectors) -> None:
    executor, found = best(), Counter[str]()
    for name, model, data in streams(vectors, 200):
        if name in ("everything-micro", "alpha-grey-micro", "symbols-both-micro"):
            found += must_not_be_silent(codec_of(vectors, model, executor), name, data, [0x81])
    assert min(found["refused"], found["digest failed"], found["same pixels"]) > 10, found


def test_silence_is_found(vectors: Vectors) -> None:
    class Deaf:  # decodes anything
        model = vectors.model("models/micro.safetensors")

        def decode(self, data, max_pixels=0):  # type: ignore[no-untyped-def]
            return self

    with pytest.raises(AssertionError, match="went unseen"):
        must_refuse(Deaf(), "deaf", [b"x"])  # type: ignore[arg-type]
