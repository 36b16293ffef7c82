"""The codec over cores: its streams and pixels are those of the processor, to the last bit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_board
from PIL import Image
from tiny_board import MODEL, picture

from lichen import cli, commands, container
from lichen.api import Codec
from lichen.boards import core_image, device, record
from lichen.boards.driver import Driver
from lichen.boards.recording import ReplayLink
from lichen.errors import DeviceError, ImageError, LichenError, ModelError, StreamError
from lichen.executors import ReferenceExecutor
from lichen.picture import Picture, from_array


def open_tiny(name, core, model=None, *, session=None):
    link = tiny_board.link(core)
    if session is not None:
        from lichen.boards.recording import RecordingLink

        link = RecordingLink(link, session)
    return Driver(link, tiny_board.image(core), model, board="kv260")


@pytest.fixture(scope="module")
def pair():
    """The codec of the processor and that of the cores."""
    codec = Codec(MODEL, executor=ReferenceExecutor())
    with device.DeviceCodec(lambda core, model: open_tiny("sim", core, model), MODEL) as cores:
        yield codec, cores


def pictures():
    rgb = picture(200, 70, 61)
    alpha = np.arange(70 * 61, dtype=np.uint8).reshape(70, 61)
    yield "rgb", Picture(rgb, None, b"", b"", b"")
    yield "alpha and metadata", Picture(rgb, alpha, b"icc", b"Exif", b"<xmp/>")
    yield "grey", from_array(rgb[..., 0].copy())


@pytest.mark.parametrize("name", ["rgb", "alpha and metadata", "grey"])
def test_equal(pair, name):
    codec, cores = pair
    given = dict(pictures())[name]
    for options in ({"quality": 30.5}, {"quality": 100, "digest": True}):
        wanted = codec.encode(given, stripe=1, **options)
        assert cores.encode(given, stripe=1, **options) == wanted
        found, right = cores.decode(wanted.data), codec.decode(wanted.data)
        assert np.array_equal(found.pixels, right.pixels)
        assert (found.icc, found.exif, found.xmp) == (right.icc, right.exif, right.xmp)
    target = len(codec.encode(given, stripe=1, quality=60).data)
    assert cores.encode(given, stripe=1, target_bytes=target) == codec.encode(
        given, stripe=1, target_bytes=target
    )


def test_refused(pair):
    codec, cores = pair
    with pytest.raises(ImageError, match="built for up to 192x192"):
        cores.encode(from_array(picture(1, 193, 8)), stripe=1)
    high = codec.encode(from_array(picture(1, 150, 8)), stripe=2).data
    with pytest.raises(StreamError, match=r"stripes have 128 lines, .* encode with --stripe 64"):
        cores.decode(high)
    damaged = bytearray(codec.encode(from_array(picture(1, 8, 8)), stripe=1).data)
    damaged[-9] ^= 1
    with pytest.raises(StreamError, match="CRC"):
        cores.decode(bytes(damaged))
    factorised = replace(MODEL, order="factorised")
    with pytest.raises(LichenError, match="model tiny has no core"):
        device.DeviceCodec(open_tiny, factorised).encode(from_array(picture(1, 8, 8)))


def test_command_line(pair, tmp_path, monkeypatch, capsys):
    """`--device` gives the very bytes and pixels; a session is written where it is asked for."""
    codec, _ = pair
    monkeypatch.setattr(device, "open_driver", open_tiny)
    monkeypatch.setattr(commands, "_model", lambda name: MODEL)
    source, stream, back = (tmp_path / name for name in ("a.png", "a.lic", "b.png"))
    pixels = picture(210, 50, 90)
    Image.fromarray(pixels).save(source)
    session = tmp_path / "session.jsonl"
    arguments = ["--device", "sim", "--session", str(session), "--json"]
    assert cli.main(["encode", str(source), str(stream), "-q", "20", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["executor"] == "sim"
    assert stream.read_bytes() == codec.encode(from_array(pixels), quality=20, stripe=1).data
    assert ReplayLink(session).name == "simulation of the encoder for kv260"
    assert cli.main(["decode", str(stream), str(back), "--device", "sim"]) == 0
    assert np.array_equal(np.asarray(Image.open(back)), codec.decode(stream.read_bytes()).pixels)
    wide = tmp_path / "wide.png"
    Image.fromarray(picture(1, 8, 193)).save(wide)
    assert cli.main(["encode", str(wide), "--device", "sim"]) == 1
    assert "built for up to 192x192" in capsys.readouterr().err
    assert not wide.with_suffix(".lic").exists()


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model) -> Path:
    """Install a package of a board, as pip would."""
    folder = tmp_path / "lichen_kv260"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    layout = tiny_board.top("encoder").layout
    core = record.CoreRecord(layout, 192, 192, 15.0, 15.0, tiny_board.CLOCK_HZ, 1, 2, ())
    made = record.Record(
        "1", "kv260", "lichen-kv260", "tiny", model.digest.hex(), {"encoder": core}
    )
    (folder / record.NAME).write_text(made.text())
    tiny_board.image("encoder").write(folder / made.image_name("encoder"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lichen_kv260", raising=False)
    return folder


def test_packages(tmp_path, monkeypatch):
    """The weights of a package are found; others are made, or it is said what is missing."""
    monkeypatch.setattr(device, "INSTALLED", str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match="no package for the AMD ZCU102: install"):
        device.board_image("zcu102", "encoder", MODEL)
    package(tmp_path, monkeypatch, MODEL)
    found = device.board_image("kv260", "encoder", MODEL)
    assert (found.words == tiny_board.image("encoder").words).all()
    with pytest.raises(DeviceError, match="lichen-kv260 has encoder, no decoder: build it"):
        device.board_image("kv260", "decoder", MODEL)
    other = replace(MODEL, digest=b"another!")
    # Another folding than that of the package: the layouts differ.
    with pytest.raises(ModelError, match="was built for the shape of model tiny"):
        device.board_image("kv260", "encoder", other)
    monkeypatch.setitem(sys.modules, "lichen.boards.simulated", None)
    with pytest.raises(ModelError, match=r"not for model tiny .* takes Amaranth: pip install"):
        device.board_image("kv260", "encoder", other)


def test_stripes_of_chunks():
    """What a core gives is parsed by the container's rules."""
    chunks, _ = tiny_board.stream(picture(3))
    stripes = container.read_stripes(chunks[: -tiny_board.END_BYTES])
    assert container.write_stripes(stripes) == chunks[: -tiny_board.END_BYTES]
    with pytest.raises(StreamError, match="expected a chunk 'S', found 'Z'"):
        container.read_stripes(chunks)
    assert core_image.SUFFIX == ".load.npz"
