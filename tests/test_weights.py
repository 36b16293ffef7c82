"""The shipped weights: golden streams, equal pixels on every executor, steady rates."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lichen
from lichen import model as models
from lichen.executors import ReferenceExecutor
from lichen.picture import from_image

SAMPLE = Path(__file__).parent / "samples" / "kodim23.webp"
GOLDEN = Path(__file__).parent / "golden"
CASES = {  # name: (crop of the sample, mode, quality)
    "rgb-q10": ((160, 96, 288, 160), "RGB", 10),
    "rgb-q90": ((160, 96, 231, 150), "RGB", 90),
    "grey-q50": ((300, 200, 365, 233), "L", 50),
    "rgba-q40": ((500, 250, 533, 315), "RGBA", 40),
}


def crop(name):
    box, mode, _ = CASES[name]
    image = Image.open(SAMPLE).convert("RGB").crop(box).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return from_image(image)


def executors():
    yield "reference", ReferenceExecutor
    from lichen.executors import native

    for isa in native.available_isas():
        yield f"native-{isa}", lambda isa=isa: native.NativeExecutor(threads=2, isa=isa)
    yield "torch", lambda: pytest.importorskip("torch") and _torch()
    yield "onnx", lambda: pytest.importorskip("onnxruntime") and _onnx()


def _torch():
    from lichen.executors.torch import TorchExecutor

    return TorchExecutor("cpu")


def _onnx():
    from lichen.executors.onnx import OnnxExecutor

    return OnnxExecutor()


EXECUTORS = dict(executors())


@pytest.fixture(scope="module", params=[path.stem for path in models.installed()])
def model(request):
    return models.named(request.param)


@pytest.mark.parametrize("name", CASES)
def test_encoding_gives_the_golden_bytes(name, golden, model):
    encoded = lichen.Codec(model).encode(crop(name), quality=CASES[name][2], digest=True)
    golden(f"{model.name}-{name}.lic", encoded.data)


def test_decoded_pixels_are_golden(golden, model):
    digests = {}
    for name in CASES:
        stream = (GOLDEN / f"{model.name}-{name}.lic").read_bytes()
        pixels = lichen.Codec(model).decode(stream).pixels
        digests[name] = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    golden(f"{model.name}.json", (json.dumps(digests, indent=1) + "\n").encode())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_makes_the_same_bytes_and_pixels(executor, model):
    codec = lichen.Codec(model, executor=EXECUTORS[executor]())
    for name in CASES:
        stream = (GOLDEN / f"{model.name}-{name}.lic").read_bytes()
        encoded = codec.encode(crop(name), quality=CASES[name][2], digest=True)
        assert encoded.data == stream, f"{executor} encodes {name} otherwise"
        codec.decode(stream)  # raises where the digest of the pixels differs


def test_rates_cover_the_range_of_the_readme(model):
    codec = lichen.Codec(model)
    picture = from_image(Image.open(SAMPLE).convert("RGB"))
    sizes = [len(codec.encode(picture, quality=q).data) for q in range(0, 101, 5)]
    assert sizes == sorted(sizes) and sizes[-1] > 6 * sizes[0]


def test_weights_are_small_and_within_the_budget():
    assert sum(path.stat().st_size for path in models.installed()) < 6_000_000
    assert max(models.kmac_per_pixel(models.default())) <= 9.0


def test_the_golden_files_are_those_of_the_installed_models(request):
    stems = [path.stem for path in models.installed()]
    wanted = {f"{stem}-{name}.lic" for stem in stems for name in CASES}
    wanted |= {f"{stem}.json" for stem in stems}
    surplus = [path for path in GOLDEN.glob("student*") if path.name not in wanted]
    if request.config.getoption("--regenerate-golden"):
        for path in surplus:
            path.unlink()
    else:
        assert not surplus


def test_the_file_is_what_its_parts_give(model):
    (data,) = (path.read_bytes() for path in models.installed() if path.stem == model.name)
    assert model.to_bytes() == data
    changed = bytearray(data)
    changed[-1] ^= 1
    assert models.from_bytes(bytes(changed)).digest != model.digest


def test_quality_shows(model):
    codec = lichen.Codec(model)
    image = Image.open(SAMPLE).convert("RGB").crop((0, 0, 256, 256))
    picture = from_image(image)
    errors = []
    for quality in (0, 50, 100):
        pixels = codec.decode(codec.encode(picture, quality=quality).data).pixels
        errors.append(float(np.mean((pixels.astype(float) - picture.pixels) ** 2)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
