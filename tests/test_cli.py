"""The command `lichen`: every command, every bad input, and nothing half done left behind."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

import lichen
from lichen import container
from lichen import model as models
from lichen.api import Codec
from lichen.arguments import EXIT_CODES
from lichen.cli import main
from lichen.codec import pixel_digest

SAMPLE = Path(__file__).parent / "samples" / "kodim23.webp"
TINY = np.asarray(Image.open(SAMPLE).convert("RGB"))[100:148, 300:340]


@dataclass
class Done:
    """What a command has left: its exit code, what it printed, and the files that are new."""

    code: int
    out: str
    err: str
    made: set[str]

    def fails(self, code: int, *words: str) -> None:
        """Hold that it failed with one clear line and left no file."""
        assert self.code == code, self
        lines = [line for line in self.err.splitlines() if not line.startswith("lichen: note: ")]
        assert len(lines) == 1, self
        assert lines[0].startswith("lichen: error: "), self
        assert all(word in lines[0] for word in words), self
        assert not self.made, self


class Shell:
    """Runs commands in this process, in a folder of their own."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture

    def __call__(self, *arguments: object) -> Done:
        before = set(os.listdir(self.folder))
        code = main([str(argument) for argument in arguments])
        out, err = self.capture.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err, set(os.listdir(self.folder)) - before)

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


@pytest.fixture(scope="module")
def stream() -> bytes:
    return lichen.encode(TINY, digest=True)


@pytest.fixture
def png(shell: Shell) -> Path:
    Image.fromarray(TINY).save(shell.folder / "x.png")
    return shell.folder / "x.png"


def process(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """Start a command as a user does."""
    here = {"PYTHONPATH": str(Path(lichen.__file__).parents[1])}  # also where nothing is installed
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    pipes["env"] = os.environ | here
    command = [sys.executable, "-m", "lichen", *map(str, arguments)]
    return subprocess.Popen(command, **pipes)  # type: ignore[call-overload]


# The way that all goes well


def test_round_trip(shell: Shell, png: Path) -> None:
    encoded = shell("encode", png, "-q", "60", "--digest")
    assert (encoded.code, encoded.err, encoded.made) == (0, "", {"x.lic"})
    data = (shell.folder / "x.lic").read_bytes()
    assert data == lichen.encode(TINY, quality=60, digest=True)
    assert f"-> {len(data)} bytes" in encoded.out
    assert "quality 60" in encoded.out
    assert len(encoded.out.splitlines()) == 1
    decoded = shell("decode", "x.lic", "y.png")
    assert (decoded.code, decoded.err, decoded.made) == (0, "", {"y.png"})
    assert "digest right" in decoded.out
    pixels = np.asarray(Image.open("y.png"))
    assert np.array_equal(pixels, np.asarray(lichen.decode(data)))
    assert pixel_digest(pixels) == container.read(data).digest


def test_as_a_user(tmp_path: Path) -> None:
    """The real command line on a real photograph, in processes joined by pipes."""
    encode = process("encode", "-q", "40", SAMPLE, "-")
    assert encode.stdout
    decode = process("decode", "-", "-", stdin=encode.stdout)
    encode.stdout.close()
    picture, notes = decode.communicate()
    assert encode.wait() == decode.returncode == 0, notes
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.size) == ("PNG", (768, 512))
    photograph = Image.open(SAMPLE).convert("RGB")
    assert np.array_equal(
        np.asarray(image), np.asarray(lichen.decode(lichen.encode(photograph, quality=40)))
    )


def test_standard_input_to_file(shell: Shell, stream: bytes) -> None:
    pipe = process("decode", "-", "x.webp", stdin=subprocess.PIPE)
    out, err = pipe.communicate(stream)
    assert (pipe.returncode, err) == (0, b"")
    assert out.startswith(b"- -> x.webp: 40x48 RGB")
    assert np.array_equal(np.asarray(Image.open("x.webp")), np.asarray(lichen.decode(stream)))


def test_json(shell: Shell, png: Path) -> None:
    report = json.loads(shell("encode", png, "--json", "-j", 1).out)
    size = (shell.folder / "x.lic").stat().st_size
    assert report["bytes"] == size
    assert report["bits_per_pixel"] == pytest.approx(8 * size / TINY[..., 0].size)
    assert (report["width"], report["height"], report["quality"]) == (40, 48, 50)
    assert (report["digest"], report["threads"]) == (False, 1)
    report = json.loads(shell("decode", "x.lic", "y.png", "--json").out)
    assert (report["mode"], report["digest"], report["quality"]) == ("RGB", "absent", 50)


def test_report_gives_way_to_the_stream() -> None:
    pipe = process("encode", SAMPLE, "-", "--json")
    out, err = pipe.communicate()
    assert json.loads(err)["bytes"] == len(out)
    assert container.read(out)


def test_quiet_and_verbose(shell: Shell, png: Path) -> None:
    quiet = shell("encode", png, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert "executor" in shell("encode", png, "-v").out


def test_info(shell: Shell, stream: bytes) -> None:
    shell.write("x.lic", stream)
    text = shell("info", "x.lic")
    assert text.code == 0
    assert "40x48 RGB" in text.out
    report = json.loads(shell("info", "--json", "x.lic").out)
    assert sum(report["sizes"].values()) == report["bytes"] == len(stream)
    assert report["model"] == models.installed()[0].stem
    assert report["weights"] == models.default().digest.hex()
    assert report["digest"] == container.read(stream).digest.hex()
    both = shell("info", "--json", "x.lic", "x.lic").out
    assert [json.loads(line) for line in both.splitlines()] == [report, report]


def test_info_runs_no_network(shell: Shell, stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "decode", None)
    monkeypatch.setattr("lichen.model.from_bytes", None)
    shell.write("x.lic", stream)
    assert shell("info", "x.lic").code == 0


def test_verify(shell: Shell, stream: bytes) -> None:
    shell.write("with.lic", stream)
    shell.write("without.lic", lichen.encode(TINY))
    done = shell("verify", "with.lic", "without.lic")
    assert done.code == 0
    first, second = done.out.splitlines()
    assert "pixel digest right" in first
    assert "not stored" in second
    wrong = container.write(replace(container.read(stream), digest=bytes(16)))
    shell.write("wrong.lic", wrong)
    shell.write("cut.lic", stream[:-1])
    done = shell("verify", "wrong.lic", "with.lic", "nowhere.lic", "cut.lic", "--json")
    assert done.code == 1
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert [report["ok"] for report in reports] == [False, True, False, False]
    assert len(done.err.splitlines()) == 3
    assert shell("verify", "nowhere.lic", "with.lic").code == 3


def test_models(shell: Shell) -> None:
    reports = [json.loads(line) for line in shell("models", "--json").out.splitlines()]
    assert [r["name"] for r in reports] == [path.stem for path in models.installed()]
    assert [r["default"] for r in reports] == [True] + [False] * (len(reports) - 1)
    assert reports[0]["weights"] == models.default().digest.hex()
    assert reports[0]["decoder_kmac_per_pixel"] > 0
    assert "(default)" in shell("models").out
    assert "recipe" in shell("models", "-v").out


def test_model_by_name_and_by_file(shell: Shell, png: Path) -> None:
    path = models.installed()[0]
    for model in (path.stem, path):
        assert shell("encode", png, "x.lic", "--model", model).code == 0
        assert shell("decode", "x.lic", "y.png", "--model", model).code == 0
        assert shell("verify", "x.lic", "--model", model).code == 0


def test_stripes(shell: Shell) -> None:
    for lines, stripes in ((64, 8), (192, 3), (512, 1)):
        shell("encode", SAMPLE, "x.lic", "--stripe", lines)
        assert json.loads(shell("info", "--json", "x.lic").out)["stripes"] == stripes


def test_help_is_layered(shell: Shell) -> None:
    short, long = shell("-h"), shell("encode", "-h")
    assert short.code == long.code == 0
    assert "exit codes:" in short.out
    assert "--target-bpp" not in short.out
    assert long.out.index("--target-bpp") < long.out.index("advanced:") < long.out.index("--strip ")
    assert shell("-V").out.startswith("lichen ")


def test_exit_codes_are_documented(shell: Shell) -> None:
    lines = EXIT_CODES.strip().splitlines()[1:]
    document = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    for code, text in (line.split(maxsplit=1) for line in lines):
        assert f"| {code} | {text} |" in document
    assert EXIT_CODES in shell("-h").out


# Rate


def test_rate_rises_with_quality(shell: Shell) -> None:
    sizes = [
        json.loads(shell("encode", SAMPLE, "x.lic", "--json", "-q", quality).out)["bytes"]
        for quality in range(0, 101, 10)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("option", ["--target-bpp", "--target-size"])
def test_targets(shell: Shell, option: str) -> None:
    ends = [len(lichen.encode(Image.open(SAMPLE), quality=quality)) for quality in (0, 100)]
    pixels = 768 * 512
    for target in (ends[0] + 10, sum(ends) // 2, ends[1], 2 * ends[1]):
        amount = target if option == "--target-size" else 8 * target / pixels
        done = shell("encode", SAMPLE, "x.lic", option, amount)
        size = (shell.folder / "x.lic").stat().st_size
        assert done.code == 0
        assert size <= target
        if target <= ends[1]:
            assert size >= 0.98 * target, done
            assert not done.err
        else:
            assert "quality 100" in done.err
    too_small = ends[0] // 2 if option == "--target-size" else 4 * ends[0] / pixels
    (shell.folder / "x.lic").unlink()
    shell("encode", SAMPLE, "x.lic", option, too_small).fails(5, f"has {ends[0]} bytes")


def test_target_between_steps_is_explained(shell: Shell) -> None:
    Image.new("L", (1, 1)).save("dot.png")
    done = shell("encode", "dot.png", "--target-size", "100k")
    assert done.code == 0
    assert "below the target" in done.err


def test_units(shell: Shell, png: Path) -> None:
    for text, size in (("1k", 1000), ("1Ki", 1024), ("1024", 1024), ("0.9kB", 900)):
        assert shell("encode", png, "--target-size", text).code == 0
        assert (shell.folder / "x.lic").stat().st_size <= size


# Pictures of all kinds


@pytest.mark.parametrize("size", [(1, 1), (1, 77), (77, 1), (65, 63), (65535, 1), (1, 65535)])
def test_sizes(shell: Shell, size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.arange(width * height * 3, dtype=np.uint32).astype(np.uint8)
    Image.fromarray(ramp.reshape(height, width, 3)).save("x.png")
    assert shell("encode", "x.png", "--digest").code == 0
    assert shell("decode", "x.lic", "y.png").code == 0
    assert Image.open("y.png").size == size


@pytest.mark.parametrize(
    ("mode", "back"),
    [("L", "L"), ("LA", "LA"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "L"), ("RGB", "RGB")],
)
def test_modes(shell: Shell, mode: str, back: str) -> None:
    image = Image.fromarray(TINY).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(TINY[..., 0]))
    image.save("x.png")
    done = shell("encode", "x.png", "--digest")
    assert (done.code, done.err) == (0, "")
    assert shell("decode", "x.lic", "y.png").code == 0
    decoded = Image.open("y.png")
    assert decoded.mode == back
    if mode in ("LA", "RGBA"):
        assert np.array_equal(np.asarray(decoded.getchannel("A")), TINY[..., 0])


def test_metadata(shell: Shell) -> None:
    image = Image.fromarray(TINY)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = "<x:xmpmeta xmlns:x='adobe:ns:meta/'>grün</x:xmpmeta>".encode()
    image.save("x.webp", lossless=True, exif=exif, icc_profile=icc, xmp=xmp)
    assert shell("encode", "x.webp").code == 0
    for name in ("y.png", "y.jpg", "y.webp", "y.tif"):
        assert shell("decode", "x.lic", name).code == 0
        found = Image.open(name)
        assert found.info["icc_profile"] == icc
        assert found.getexif()[0x0112] == 6
        if name == "y.tif":  # Pillow turns it when it reads it
            continue
        if name == "y.jpg" and int(PIL.__version__.split(".")[0]) < 11:  # writes no XMP
            continue
        assert found.size == (40, 48)  # the orientation is not applied
        kept = found.info.get("xmp", found.info.get("XML:com.adobe.xmp"))
        assert (kept.encode() if isinstance(kept, str) else kept) == xmp
        assert shell("encode", name, "z.lic").code == 0
        first, second = (container.read(Path(p).read_bytes()) for p in ("x.lic", "z.lic"))
        assert (first.icc, first.exif, first.xmp) == (second.icc, second.exif, second.xmp)
    shell("decode", "x.lic", "y.png", "--strip")
    assert not {"icc_profile", "exif", "xmp"} & set(Image.open("y.png").info)
    shell("encode", "x.webp", "z.lic", "--strip")
    stripped = container.read(Path("z.lic").read_bytes())
    assert (stripped.icc, stripped.exif, stripped.xmp) == (b"", b"", b"")


def test_notices(shell: Shell) -> None:
    """CMYK and 16 bits are converted, and a note says so."""
    Image.fromarray(TINY).convert("CMYK").save("cmyk.jpg")
    Image.fromarray(TINY[..., 0].astype(np.uint16) * 257).save("deep.png")
    for name, word in (("cmyk.jpg", "CMYK"), ("deep.png", "8 bits")):
        done = shell("encode", name)
        assert done.code == 0
        assert done.err.startswith("lichen: note: ")
        assert word in done.err
        assert shell("encode", name, "--quiet").err == ""


def test_output_formats(shell: Shell, stream: bytes) -> None:
    shell.write("x.lic", stream)
    pixels = np.asarray(lichen.decode(stream))
    for name in ("y.png", "y.webp", "y.tif", "y.ppm", "y.bmp", "Y.PNG"):
        assert shell("decode", "x.lic", name).code == 0
        assert np.array_equal(np.asarray(Image.open(name).convert("RGB")), pixels), name
    shell("decode", "x.lic", "y.jpg")
    near = np.asarray(Image.open("y.jpg")).astype(int)
    assert np.abs(near - pixels).mean() < 3


# Bad input


def bad_pictures() -> dict[str, bytes]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(TINY).save(jpeg, "JPEG")
    Image.fromarray(TINY).save(png, "PNG")
    huge = b"\x89PNG\r\n\x1a\n"
    for kind, payload in (
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
    ):
        crc = zlib.crc32(kind + payload)
        huge += struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)
    return {
        "empty": b"",
        "text": b"this is a text, not a picture\n" * 9,
        "zeros": bytes(1000),
        "truncated jpeg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "truncated png": png.getvalue()[: len(png.getvalue()) // 2],
        "head of a jpeg": jpeg.getvalue()[:10],
        "bomb": huge,
        "stream": b"\x8aLIC\1",
    }


@pytest.mark.parametrize("kind", bad_pictures())
def test_bad_pictures(shell: Shell, kind: str) -> None:
    shell.write("x.png", bad_pictures()[kind])
    shell("encode", "x.png").fails(1, "x.png")


def test_picture_beyond_the_limit(shell: Shell, png: Path) -> None:
    shell("encode", png, "--max-pixels", TINY[..., 0].size - 1).fails(1, "--max-pixels")
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own limit is as it was
    assert shell("encode", png, "--max-pixels", TINY[..., 0].size).code == 0
    Image.new("1", (65536, 1)).save("wide.png")
    shell("encode", "wide.png").fails(1, "65535")


def bad_streams(stream: bytes) -> dict[str, tuple[int, bytes, str]]:
    """Streams that are wrong in one respect each, with the exit code and a word of the error."""
    parsed = container.read(stream)
    wide = replace(parsed.header, width=65535, height=65535)
    foreign = replace(parsed.header, weights=b"strange.")
    absurd = replace(parsed, header=wide, stripes=parsed.stripes * wide.stripes)
    return {
        "empty": (1, b"", "not a lichen stream"),
        "text": (1, b"some text\n" * 9, "not a lichen stream"),
        "magic": (1, b"\x8bLIC" + stream[4:], "not a lichen stream"),
        "newer": (1, stream[:4] + b"\2" + stream[5:], "newer lichen"),
        "weights": (4, container.write(replace(parsed, header=foreign)), b"strange.".hex()),
        "absurd": (1, container.write(absurd), "limit"),
        "truncated": (1, stream[: len(stream) // 2], "cut off"),
        "flipped": (1, stream[:99] + bytes([stream[99] ^ 1]) + stream[100:], "damaged"),
        "longer": (1, stream + b"\0", "follow"),
        "digest": (1, container.write(replace(parsed, digest=bytes(16))), "digest"),
    }


KINDS = ("empty", "text", "magic", "newer", "weights", "absurd", "truncated", "flipped")
KINDS += ("longer", "digest")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_streams(shell: Shell, stream: bytes, kind: str) -> None:
    code, data, word = bad_streams(stream)[kind]
    shell.write("x.lic", data)
    shell("decode", "x.lic").fails(code, word)
    shell("decode", "x.lic", "-").fails(code, word)
    shell("verify", "x.lic").fails(code, "x.lic", word)
    if kind not in ("weights", "digest", "absurd"):
        shell("info", "x.lic").fails(code, "x.lic", word)


def test_every_changed_byte_and_truncation(shell: Shell) -> None:
    """No damage of a tiny stream passes `lichen decode`: exit code 1, a line, and no file."""
    data = lichen.encode(TINY[:9, :9], quality=0)
    damaged = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    damaged += [data[:length] for length in range(len(data))]
    for wrong in damaged:
        shell.write("x.lic", wrong)
        shell("decode", "x.lic", "y.png").fails(1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("paint",), 2, "paint"),
        (("encode",), 2, "IN"),
        (("encode", "x.png", "-q", "101"), 2, "0..100"),
        (("encode", "x.png", "-q", "nan"), 2, "0..100"),
        (("encode", "x.png", "-q", "much"), 2, "0..100"),
        (("encode", "x.png", "-q", "5", "--target-size", "5"), 2, "not allowed"),
        (("encode", "x.png", "--target-size", "-5"), 2, "size"),
        (("encode", "x.png", "--target-size", "0"), 2, "20k"),
        (("encode", "x.png", "--target-size", "5q"), 2, "20k"),
        (("encode", "x.png", "--target-bpp", "0"), 2, "positive"),
        (("encode", "x.png", "--stripe", "100"), 2, "multiple of 64"),
        (("encode", "x.png", "-j", "0"), 2, "all"),
        (("encode", "x.png", "-j", "99999999999999999999999"), 2, "all"),
        (("encode", "x.png", "--max-pixels", "0"), 2, "limit"),
        (("encode", "nowhere.png"), 3, "nowhere.png"),
        (("encode", "."), 3, "directory"),
        (("encode", ""), 3, "directory"),
        (("encode", "x.png", "nowhere/x.lic"), 3, "folder"),
        (("encode", "x.png", "."), 3, "folder"),
        (("encode", "x.png", "x.png"), 2, "one picture"),
        (("encode", "old.lic", "old.lic"), 3, "input"),
        (("encode", "x.png", "old.lic", "--no-overwrite"), 3, "overwritten"),
        (("encode", "x.png", "new.lic", "--model", "nothing"), 4, "nothing"),
        (("encode", "x.png", "new.lic", "--model", "x.png"), 4, "model file"),
        (("decode", "old.lic", "x.nix"), 2, ".nix"),
        (("decode", "old.lic", "x.lic"), 2, ".lic"),
        (("decode", "old.lic", "x"), 2, "suffix"),
        (("decode", "old.lic", "x.pdf.part"), 2, ".part"),
        (("decode", "nowhere.lic"), 3, "nowhere.lic"),
        (("decode", "old.lic", "x.png", "--no-overwrite"), 3, "overwritten"),
        (("decode", "old.lic", "y.png", "--max-pixels", "9"), 1, "limit of 9"),
        (("info", "nowhere.lic"), 3, "nowhere.lic"),
        (("verify", "."), 3, "irectory"),
    ],
)
def test_bad_command_lines(
    shell: Shell, png: Path, stream: bytes, arguments: tuple[str, ...], code: int, words: str
) -> None:
    old, before = shell.write("old.lic", stream), png.read_bytes()
    shell(*arguments).fails(code, words)
    assert (old.read_bytes(), png.read_bytes()) == (stream, before)


def test_what_a_format_cannot_hold(shell: Shell) -> None:
    shell.write("x.lic", lichen.encode(np.dstack([TINY, TINY[..., 0]])))
    shell("decode", "x.lic", "y.jpg").fails(2, "JPEG", "RGBA", ".png")
    shell.write("x.lic", lichen.encode(np.zeros((1, 65535), np.uint8)))
    shell("decode", "x.lic", "y.webp").fails(2, "WEBP", "65535")


def test_the_original_is_not_overwritten_by_default(shell: Shell, png: Path) -> None:
    before = png.read_bytes()
    shell("encode", png)
    shell("decode", "x.lic").fails(3, "x.png", "overwritten")
    assert png.read_bytes() == before
    assert shell("decode", "x.lic", "x.png").code == 0
    assert png.read_bytes() != before


# What goes wrong on the way


@pytest.mark.parametrize(
    ("problem", "code", "word"),
    [
        (OSError(28, "No space left on device"), 3, "x.lic: No space"),
        (RuntimeError("unforeseen"), 6, "RuntimeError"),
        (MemoryError(), 6, "memory"),
    ],
)
def test_failure_at_the_last_step(
    shell: Shell,
    png: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    code: int,
    word: str,
) -> None:
    old = shell.write("x.lic", b"what was there")

    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(os, "replace", fail)
    shell("encode", png).fails(code, word)
    assert old.read_bytes() == b"what was there"


def test_interrupt(shell: Shell, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    done = shell("encode", png)
    assert (done.code, done.err, done.made) == (130, "lichen: interrupted\n", set())


def test_reader_that_goes_away(shell: Shell, stream: bytes) -> None:
    shell.write("x.lic", stream)
    read, write = os.pipe()
    pipe = process("decode", "x.lic", "-", stdout=write)
    os.close(read)
    os.close(write)
    _, err = pipe.communicate()
    assert (pipe.returncode, err) == (3, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(stream: bytes) -> None:
    for arguments in (("encode", SAMPLE, "-"), ("models",)):
        with open("/dev/full", "wb") as full:
            pipe = process(*arguments, stdout=full)
            _, err = pipe.communicate()
        assert pipe.returncode == 3
        assert err.startswith(b"lichen: error: ")
        assert b"No space" in err
        assert len(err.splitlines()) == 1


def test_output_keeps_a_link_and_takes_a_device(shell: Shell, png: Path) -> None:
    shell.write("real.lic", b"old")
    os.symlink("real.lic", "link.lic")
    assert shell("encode", png, "link.lic").code == 0
    assert os.path.islink("link.lic")
    assert container.read(Path("real.lic").read_bytes())
    assert shell("encode", png, "/dev/null").code == 0


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(shell: Shell, png: Path) -> None:
    os.mkdir("closed", 0o500)
    shell("encode", png, "closed/x.lic").fails(3, "closed/x.lic", "ermission")


def test_new_files_have_the_usual_permissions(shell: Shell, png: Path) -> None:
    shell("encode", png)
    shell.write("usual", b"")
    assert os.stat("x.lic").st_mode == os.stat("usual").st_mode
