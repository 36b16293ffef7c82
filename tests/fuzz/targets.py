"""What the fuzzer calls for the parts in Python; run_target.py puts them under Atheris.

    container   container.read and read_stripes of anything, also with its CRCs made right
    decode      whole decoding: repaired streams, and forged ones with any z and symbols
    roundtrip   pictures of any size, mode and metadata: what is encoded decodes to its digest
    model       model files, damaged or of parts that belong to others: refused with ModelError, or
                usable without a crash
    programs    random Programs: the C kernels equal the reference

An exception outside LichenError is a finding, and so is a wrong result. The tests replay a
few inputs without Atheris.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from forge import forge, header_of, micro_model, repair

from lichen import container
from lichen import model as models
from lichen.api import Codec
from lichen.errors import LichenError, ModelError, StreamError
from lichen.executors import ReferenceExecutor, best
from lichen.model import Model
from lichen.picture import Picture

MODELS = Path(__file__).parent.parent / "conformance" / "vectors" / "models"
PIXELS_MAX = 1 << 15
ODD: list[Any] = [
    0, -1, 1, 2**31, 2**63, 2**70, 1.5, 1e999, 255, 65536, True, None, [], {}, [1, 2],
    "", "x", "y", "z", "mean", "s8", "u8", "s16", "Conv", "GDN",
    {"array": "gain"}, {"type": "Program"},
]  # fmt: skip


@cache
def model_files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(MODELS.glob("*.safetensors"))]


@cache
def base_files() -> tuple[bytes, ...]:
    """Give what the target `model` starts from; to make the first one takes long."""
    return (micro_model().to_bytes(), *model_files())


@cache
def sound_models() -> list[Model]:
    return [models.from_bytes(data) for data in base_files()]


@cache
def codecs() -> list[Codec]:
    """Give a codec for each small model."""
    return [Codec(model, executor=best(threads=1)) for model in sound_models()]


class Bytes:
    """Take numbers off the front of the input; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, limit: int) -> int:
        return (self.byte() | self.byte() << 8) % limit

    def rest(self) -> bytes:
        return self.data[self.at :]


def fill(data: bytes, shape: tuple[int, ...], low: int, high: int) -> np.ndarray[Any, Any]:
    """Fill an array from bytes, again and again: bytes 0..127 are small values, others wide."""
    raw = np.resize(np.frombuffer(data or b"\0", np.uint8), int(np.prod(shape))).astype(np.int64)
    wide = np.roll(raw, 1) * 256 + raw
    values = np.where(raw < 128, raw - 64, low + wide % (high - low + 1))
    return values.clip(low, high).reshape(shape)


def container_target(data: bytes) -> None:
    head = container.MAGIC + bytes(6)  # of a header without fields: its length and CRC
    for given in (data, repair(head + data, b"")[len(head) :]):
        with suppress(StreamError):  # what a core of the accelerator gives
            assert container.write_stripes(container.read_stripes(given)) == given
    for given in (data, repair(data, b"weights.")):
        try:
            container.read_header(given)
            stream = container.read(given)
        except StreamError:
            continue
        chunks = container.write_stripes(stream.stripes)
        assert container.read_stripes(chunks) == stream.stripes
        assert container.read_header(given[: container.start_bytes(given)]) == stream.header
        again = container.write(stream)
        assert container.read(again) == stream
        assert len(again) <= len(given), "skipped chunks alone make a stream longer"


def decode_target(data: bytes) -> None:
    take = Bytes(data)
    what = take.byte()
    tool = codecs()[take.byte() % len(codecs())]
    if what % 2:
        given = repair(take.rest(), tool.model.digest)
        expected = None
    else:
        given, expected = forged(tool, take, what)
    try:
        picture = tool.decode(given, max_pixels=PIXELS_MAX)
    except StreamError:
        assert expected is None, "a valid stream was refused"
        return
    if picture.width * picture.height <= 1 << 12:  # the reference is slow
        slow = Codec(tool.model, executor=ReferenceExecutor())
        assert np.array_equal(slow.decode(given, max_pixels=PIXELS_MAX).pixels, picture.pixels)


def forged(tool: Codec, take: Bytes, what: int) -> tuple[bytes, Any]:
    """Make a valid stream of any z and symbols."""
    model, executor = tool.model, tool.executor
    header = header_of(
        model, 1 + take.below(200), 1 + take.below(160), channels=(1, 3)[what >> 1 & 1],
        digest=bool(what >> 2 & 1), position=take.below(801), stripe=1 + take.below(4),
    )  # fmt: skip
    z = fill(take.rest(), (509,), -128, 127)
    symbols = fill(take.rest()[7:], (1021,), -32768, 32767)
    return forge(model, executor, header, z, symbols), symbols


def roundtrip_target(data: bytes) -> None:
    take = Bytes(data)
    what = take.byte()
    tool = codecs()[take.byte() % len(codecs())]
    height, width = 1 + take.below(140), 1 + take.below(140)
    quality, stripe = take.below(801) / 8, 1 + take.below(3)
    pixels = fill(take.rest(), (height, width, (1, 3)[what & 1]), 0, 255).astype(np.uint8)
    alpha = fill(take.rest()[3:], (height, width), 0, 255).astype(np.uint8) if what & 2 else None
    texts = [take.rest()[k : k + 9] if what >> (2 + k) & 1 else b"" for k in range(3)]
    picture = Picture(pixels, alpha, *texts)
    encoded = tool.encode(picture, quality=quality, digest=True, stripe=stripe)
    found = tool.decode(encoded.data)  # compares the digest
    assert (found.icc, found.exif, found.xmp) == (picture.icc, picture.exif, picture.xmp)
    assert (alpha is None) == (found.alpha is None)
    assert alpha is None or np.array_equal(found.alpha, alpha)
    assert found.pixels.shape == pixels.shape
    if what & 128:
        again = Codec(tool.model, executor=ReferenceExecutor()).encode(
            picture, quality=quality, digest=True, stripe=stripe
        )
        assert again.data == encoded.data


def model_target(data: bytes) -> None:
    take = Bytes(data)
    base = base_files()
    what = take.byte()
    match 3 if what >= 192 else what % 3:
        case 0:
            given = take.rest()
        case 3:
            given = mixed(take)
        case 1:
            given = edited(base[take.byte() % len(base)], take)
        case _:
            given = restated(base[take.byte() % len(base)], take)
    try:
        model = models.from_bytes(given)
    except ModelError:
        return
    use_model(model)


def edited(base: bytes, take: Bytes) -> bytes:
    """Replace single bytes of a model file, most of them in its header."""
    out = bytearray(base)
    header = 8 + int.from_bytes(base[:8], "little")
    while take.at < len(take.data):
        where = take.below(header if take.byte() % 4 else len(out))
        out[where] = take.byte()
    return bytes(out)


def restated(base: bytes, take: Bytes) -> bytes:
    """Replace values of the description: numbers, names, types, whole parts."""
    size = int.from_bytes(base[:8], "little")
    whole = json.loads(base[8 : 8 + size])
    document = json.loads(whole["__metadata__"]["lichen"])
    for _ in range(1 + take.byte() % 3):
        place: Any = document if take.byte() % 8 else whole
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[take.byte() % len(keys)]
            if not isinstance(place[key], dict | list) or not place[key] or take.byte() > 240:
                odd = copy.deepcopy(ODD[take.byte() % len(ODD)])
                place[key] = odd if take.byte() % 2 else take.byte()
                break
            place = place[key]
    if isinstance(whole.get("__metadata__"), dict):
        whole["__metadata__"]["lichen"] = json.dumps(document)
    text = json.dumps(whole).encode()
    return len(text).to_bytes(8, "little") + text + base[8 + size :]


def mixed(take: Bytes) -> bytes:
    """Put parts of one sound model into another: each is valid, the whole may not be."""
    found = sound_models()
    one, other = (found[take.byte() % len(found)] for _ in range(2))
    programs = dict(one.programs)
    for _ in range(1 + take.byte() % 3):
        name = sorted(programs)[take.byte() % len(programs)]
        names = sorted(other.programs)
        same = take.byte() % 4 and name in other.programs
        programs[name] = other.programs[name if same else names[take.byte() % len(names)]]
    what = take.byte()
    return replace(
        one,
        programs=programs,
        order=(one if what & 1 else other).order,
        tables=(one if what & 2 else other).tables,
        z_tables=(one if what & 4 else other).z_tables,
        gain=(one if what & 8 else other).gain,
        inverse_gain=(one if what & 16 else other).inverse_gain,
        reduction=(one if what & 32 else other).reduction,
    ).to_bytes()


def use_model(model: Model) -> None:
    """Code a picture with a model that was accepted: it may fail, with a LichenError alone."""
    try:
        if max(models.kmac_per_pixel(model)) > 500 or largest_tensor(model) > 1 << 24:
            return
        tool = Codec(model, executor=best())
        header = header_of(model, 70, 65)
        z, symbols = np.array([0, 3, -128, 127]), np.array([0, 1, -9, 300, -32768, 32767])
        tool.decode(forge(model, tool.executor, header, z, symbols))
        pixels = np.resize(np.arange(256, dtype=np.uint8), (65, 70, 3))
        tool.decode(tool.encode(Picture(pixels), quality=77, digest=True).data)
    except LichenError:
        pass


def largest_tensor(model: Model) -> int:
    """Count the elements of the largest tensor of a picture of 128 x 128."""
    from lichen.program.check import infer_shapes

    sizes = [0]
    for program in model.programs.values():
        given = {x.name: (x.channels, 128, 128) for x in program.inputs}
        sizes += [int(np.prod(shape)) for shape in infer_shapes(program, given).values()]
    return max(sizes)


def programs_target(data: bytes) -> None:
    from lichen.executors import native
    from lichen.program import reference
    from test_native import chain_inputs, random_chain

    rng = np.random.default_rng(list(data[2:]))
    program = random_chain(rng)
    inputs = chain_inputs(rng, program)
    if len(data) > 2 and data[0] % 2:  # another size, where the Program takes it
        cut = {name: x[:, : 4 * (1 + data[1] % 3), : 4 * (1 + data[1] % 4)]
               for name, x in inputs.items()}  # fmt: skip
        inputs = cut
    try:
        expected = reference.run(program, inputs, {})
    except LichenError:
        return
    for executor in kernels(native):
        found = executor.run(program, inputs, {})
        for name, array in expected.items():
            assert np.array_equal(found[name], array), f"{executor.isa}: {name}"


@cache
def kernels(native: Any) -> list[Any]:
    return [native.NativeExecutor(threads, isa) for isa in native.available_isas()
            for threads in (1, 2)]  # fmt: skip


TARGETS: dict[str, Callable[[bytes], None]] = {
    "container": container_target,
    "decode": decode_target,
    "roundtrip": roundtrip_target,
    "model": model_target,
    "programs": programs_target,
}
