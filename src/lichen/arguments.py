"""Arguments: the options of the command `lichen`, their help, and the exit codes.

Help is layered: `lichen -h` lists the commands, `lichen encode -h` the options of one, the less
common ones in a second group.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lichen import container
from lichen._version import VERSION
from lichen.api import MAX_PIXELS
from lichen.codec import DEFAULT_STRIPE
from lichen.training.recipe import Recipe, kind_of

OK, BAD_DATA, USAGE, FILE, MODEL, TARGET, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
EXIT_CODES = """\
exit codes:
  0    all went well
  1    the stream or the picture is bad, or is not one
  2    the command line is wrong
  3    a file is not there, not readable or not writable, or would be overwritten
  4    the model is missing, damaged, or not the one that made the stream
  5    the target size cannot be met
  6    internal error, or no memory
  130  interrupted with Ctrl-C
  143  ended by SIGTERM (train: after a checkpoint)
"""
THREADS_MAX = 256
UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, as all other errors do."""
        print(f"lichen: error: {message} (`{self.prog} -h` explains)", file=sys.stderr)
        raise SystemExit(USAGE)


def _quality(text: str) -> float:
    return _number(text, 0, 100, "the quality must be 0..100")


def _bits_per_pixel(text: str) -> float:
    return _number(text, 1e-6, 1e6, "the bits per pixel must be a positive number")


def _lambda(text: str) -> float:
    return _number(text, 1e-6, 1e3, "lambda must be a positive number, like 0.013")


def _threads(text: str) -> int:
    if text == "all":
        counted = getattr(os, "sched_getaffinity", None)
        return min(THREADS_MAX, len(counted(0)) if counted else os.cpu_count() or 1)
    return _integer(text, 1, THREADS_MAX, f"threads must be 1..{THREADS_MAX} or 'all'")


def _pixels(text: str) -> int:
    limit = container.MAX_SIDE**2
    return _integer(text, 1, limit, f"the limit must be 1..{limit} pixels")


def _stripe(text: str) -> int:
    rows, top = container.ROW_LINES, container.ROW_LINES * container.MAX_STRIPE
    lines = _integer(text, rows, top, f"a stripe must have {rows}..{top} lines")
    if lines % rows:
        raise argparse.ArgumentTypeError(f"a stripe must be a multiple of {rows} lines, not {text}")
    return lines


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(k|m|ki|mi)?b?", text.lower())
    size = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"a size must be bytes, like 20000, 20k (1000 each) or 20Ki (1024 each), not {text!r}"
        )
    return size


def _number(text: str, low: float, high: float, rule: str) -> float:
    with suppress(ValueError):
        if low <= float(text) <= high:
            return float(text)
    raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")


def _integer(text: str, low: int, high: int, rule: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")


def parser() -> argparse.ArgumentParser:
    """Give the parser of the whole command line; its result's `command` names the command."""
    whole = _Parser(
        prog="lichen",
        description="A learned image codec that runs in integers: a stream decodes to the same\n"
        "picture on every machine. `lichen COMMAND -h` explains a command.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("-V", "--version", action="version", version=f"lichen {VERSION}")
    commands = whole.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, add, summary in (
        ("encode", _add_encode, "picture -> stream"),
        ("decode", _add_decode, "stream -> picture"),
        ("info", _add_info, "show what streams hold, without decoding them"),
        ("verify", _add_verify, "decode streams and check all that can be checked"),
        ("models", _add_models, "list the installed models"),
        ("train", _add_train, "photographs -> the weights of a model; goes on where it stopped"),
        ("lower", _add_lower, "trained weights -> a model file that encodes and decodes"),
        ("eval", _add_eval, "measure codecs on a folder of pictures: tables, JSON, CSV, plots"),
        ("conformance", _add_conformance, "check an executor, or another decoder, to the last bit"),
        ("simulate", _add_simulate, "a picture through a core of the accelerator, compared"),
        ("synth", _add_synth, "fold a core for a board: multipliers, memories, resources"),
    ):
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        advanced = command.add_argument_group("advanced")
        add(command, advanced)
        if name != "eval":  # its --json names a file
            command.add_argument(
                "--json", action="store_true", help="report as one JSON object per line"
            )
        advanced.add_argument("-v", "--verbose", action="store_true", help="report more")
        advanced.add_argument("--quiet", action="store_true", help="report only errors")
    return whole


def _add_encode(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "EXIF, ICC and XMP are kept. The EXIF orientation stays metadata: it is not applied to "
        "the pixels. 16-bit and CMYK pictures are converted, with a note."
    )
    parser.add_argument("input", metavar="IN", help="a picture; - for stdin")
    parser.add_argument(
        "output", metavar="OUT", nargs="?",
        help="the stream; - for stdout (default: IN with .lic; overwritten if it is there)",
    )  # fmt: skip
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "-q", "--quality", metavar="Q", type=_quality,
        help="0..100 in steps of 1/8; photographs take 0.1 to 1.2 bits per pixel (default 50)",
    )  # fmt: skip
    rate.add_argument(
        "--target-bpp", metavar="BPP", type=_bits_per_pixel,
        help="the best quality of at most so many bits per pixel, counting the whole file",
    )  # fmt: skip
    rate.add_argument(
        "--target-size", metavar="BYTES", type=_bytes,
        help="the best quality of at most so many bytes; 20k is 20000, 20Ki is 20480",
    )  # fmt: skip
    _add_codec_options(parser, advanced)
    advanced.add_argument(
        "--digest", action=argparse.BooleanOptionalAction, default=False,
        help="store a digest of the decoded pixels, for decoders to check; takes a decoding "
        "(default: no)",
    )  # fmt: skip
    advanced.add_argument(
        "--stripe", metavar="LINES", type=_stripe, default=DEFAULT_STRIPE * container.ROW_LINES,
        help="picture lines that are entropy-coded together, a multiple of 64: threads work on "
        "different stripes, each costs some 30 bytes (default %(default)s)",
    )  # fmt: skip
    _add_output_options(advanced)


def _add_decode(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The pixels are those of every other decoder. JPEG and AVIF outputs are coded anew, at "
        "quality 95; WebP outputs are lossless."
    )
    parser.add_argument("input", metavar="IN", help="a stream; - for stdin")
    parser.add_argument(
        "output", metavar="OUT", nargs="?",
        help="the picture, in the format of its suffix; - for PNG on stdout (default: IN with "
        ".png, if that is not there yet)",
    )  # fmt: skip
    _add_codec_options(parser, advanced)
    _add_output_options(advanced)


def _add_info(parser: _Parser, advanced: Any) -> None:
    parser.add_argument("input", metavar="IN", nargs="+", help="a stream; - for stdin")


def _add_verify(parser: _Parser, advanced: Any) -> None:
    parser.epilog = "The exit code is 0 only if every stream is right in every respect."
    parser.add_argument("input", metavar="IN", nargs="+", help="a stream; - for stdin")
    _add_codec_options(parser, advanced)


def _add_models(parser: _Parser, advanced: Any) -> None:
    parser.epilog = "The default model encodes; streams name the model that decodes them."


def _add_eval(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Rates are those of whole files, distortions those of what the files decode to. Needs "
        "the [eval] extra. docs/evaluation.md says what each number means, and the traps."
    )
    parser.add_argument("folder", metavar="FOLDER", help="the pictures")
    parser.add_argument(
        "--codec", metavar="CODEC", action="append",
        help="lichen[:NAME|FILE], jpeg[:420|:444], webp, avif[:444|:420] or jxl; repeat to "
        "compare. LABEL=CODEC names it, CODEC@10,20.5,30 sets its qualities (default: lichen, "
        "jpeg, webp, avif)",
    )  # fmt: skip
    parser.add_argument(
        "--qualities", metavar="Q,Q,...", help="of every codec that names none (0..100)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all values; CompressAI's keys")
    parser.add_argument("--csv", metavar="FILE", help="write a row for each file that was made")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw FILE.png and .svg, and with -ms-ssim those for MS-SSIM"
    )
    parser.add_argument(
        "--published", metavar="FILE", action="append", default=[],
        help="curves of others to draw and compare with: JSON of CompressAI or of this command, "
        "or {NAME: {bpp, psnr}}; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--curve", metavar="NAME", action="append", default=[],
        help="which published curve; may be repeated (default: VTM, BPG, a hyperprior, JPEG 2000)",
    )  # fmt: skip
    parser.add_argument(
        "--anchor", metavar="NAME", action="append", default=[],
        help="BD-rates of every curve against this one; may be repeated (default: the first codec "
        "against every other curve)",
    )  # fmt: skip
    parser.add_argument(
        "-j", dest="threads", metavar="N", type=_threads, default=1,
        help="threads of each codec: 1 (default), 2, ... or all",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", metavar="N", type=_threads, default=1,
        help="processes that work at the same time (default 1: several falsify the times)",
    )  # fmt: skip
    advanced.add_argument(
        "--no-ms-ssim", dest="ms_ssim", action="store_false", help="leave it out; it is slow"
    )
    advanced.add_argument(
        "--compressai", metavar="FOLDER", help="also write one JSON for each codec there"
    )
    advanced.add_argument(
        "--highest-bpp", dest="bpp", metavar="BPP", type=_bits_per_pixel,
        help="the right end of the plots (default: where the first codec ends)",
    )  # fmt: skip


def _add_train(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "A recipe is --recipe FILE, or that of the run that goes on, or all defaults; options "
        "change its fields. Several GPUs: torchrun --nproc-per-node 2 -m lichen train ... "
        "docs/training.md explains all of it. Needs the [train] extra."
    )
    parser.add_argument("photographs", metavar="PHOTOS", type=Path, help="folder of pictures")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument("--recipe", metavar="FILE", type=Path, help="TOML, as in recipes/")
    parser.add_argument(
        "--model", metavar="NAME", help="student (default), balle2018, ...; a wrong name shows all"
    )
    parser.add_argument(
        "--arguments", metavar="NAME=VALUE,...", action="append",
        help="arguments of the model, like n=64,m=128; may be repeated",
    )  # fmt: skip
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--lambda", metavar="L", dest="rates", type=_lambda,
        help="train one rate: L * MSE (pixels 0..255) + bits per pixel",
    )  # fmt: skip
    rate.add_argument(
        "--rates", choices=["all"], help="train all rates in one set of weights (default)"
    )
    parser.add_argument(
        "--weights", metavar="FILE", type=Path,
        help="start from these weights: of another run, or a state dict of CompressAI and the like",
    )  # fmt: skip
    parser.add_argument(
        "--transforms", metavar="FILE", type=Path,
        help="start g_a, g_s and the rate gains from these weights of another model",
    )  # fmt: skip
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; can go on later"
    )
    fields = parser.add_argument_group("fields of the recipe")
    for field in dataclasses.fields(Recipe):
        if field.name in ("model", "arguments", "rates"):
            continue
        kind, text = kind_of(field), f"{field.metadata['help']} (default {field.default})"
        more: dict[str, Any] = {"metavar": kind.__name__.upper(), "type": kind}
        if kind is bool:
            more = {"action": argparse.BooleanOptionalAction}
        elif "choices" in field.metadata:
            more = {"choices": field.metadata["choices"]}
        fields.add_argument("--" + field.name.replace("_", "-"), default=None, help=text, **more)
    advanced.add_argument(
        "--threads", metavar="N", type=_threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )
    advanced.add_argument("--compile", action="store_true", help="have torch compile the model")


def _add_lower(parser: _Parser, advanced: Any) -> None:
    parser.epilog = "Then: lichen encode --model MODEL.safetensors photo.png"
    parser.add_argument(
        "run", metavar="RUN", type=Path,
        help="folder of a run; or a state dict of CompressAI, of STF and WACNN, or of X-LIC",
    )  # fmt: skip
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="the model file to write (.safetensors)"
    )
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path,
        help="choose the integers' ranges by these pictures, where the run did not end in integers",
    )  # fmt: skip
    parser.add_argument("--name", help="of the model (default: that of the file)")
    advanced.add_argument(
        "--float-weights", metavar="FILE", type=Path,
        help="also write the weights as 16-bit floats, to train on from with --weights",
    )  # fmt: skip


def _add_conformance(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The exit code is 0 only if every case is right. The vectors come with lichen's sources, "
        "not with its wheels: docs/conformance.md."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--executor", metavar="NAME", default="native",
        help="native (default), native-ISA (avx2, plain, ...), reference, torch or onnx",
    )  # fmt: skip
    which.add_argument(
        "--decoder", metavar="COMMAND",
        help="a program that decodes: its command line with {model}, {stream} and {png} or {ppm}",
    )  # fmt: skip
    parser.add_argument(
        "--cases", metavar="TEXT", default="",
        help="only those whose kind (stream, refuse, program, rans) and name contain this",
    )  # fmt: skip
    parser.add_argument(
        "-j", dest="threads", metavar="N", type=_threads, default=1,
        help="threads: 1 (default), 2, ... or all",
    )  # fmt: skip
    advanced.add_argument(
        "--vectors", metavar="FOLDER", help="default: tests/conformance/vectors of a checkout"
    )


def _add_codec_options(parser: _Parser, advanced: Any) -> None:
    parser.add_argument(
        "-j", dest="threads", metavar="N", type=_threads, default="all",
        help="threads: 1, 2, ... or all (default)",
    )  # fmt: skip
    advanced.add_argument(
        "--model", metavar="FILE|NAME",
        help="use this model: a file, or a name that `lichen models` lists",
    )  # fmt: skip
    advanced.add_argument(
        "--max-pixels", metavar="N", type=_pixels, default=MAX_PIXELS,
        help="refuse larger pictures (default %(default)s, which is 16384 x 16384)",
    )  # fmt: skip


def _add_output_options(advanced: Any) -> None:
    advanced.add_argument("--strip", action="store_true", help="drop EXIF, ICC and XMP")
    advanced.add_argument(
        "--no-overwrite", dest="overwrite", action="store_false",
        help="end with an error where the output exists",
    )  # fmt: skip


def _add_simulate(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The core's model is built once, which takes minutes, and kept. The exit code is 0 only "
        "if bytes (encoder) or pixels (decoder) are those of the codec. Needs the [rtl] extra."
    )
    parser.add_argument("input", metavar="IN", help="a picture")
    _add_core_options(parser)
    parser.add_argument(
        "-q", "--quality", metavar="Q", type=_quality, default=50.0,
        help="0..100 in steps of 1/8 (default 50)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", action="store_true", help="only its upper left 128x96 pixels: seconds"
    )
    parser.add_argument(
        "--pictures", metavar="N", type=_pictures, default=2,
        help="in a row, to measure cycles per picture (default 2)",
    )  # fmt: skip
    advanced.add_argument("--max-pixels", metavar="N", type=_pixels, default=MAX_PIXELS,
                          help="refuse larger pictures")  # fmt: skip


def _add_synth(parser: _Parser, advanced: Any) -> None:
    parser.epilog = "Nothing here places or routes: the clock is assumed. Needs the [rtl] extra."
    _add_core_options(parser)
    parser.add_argument(
        "--yosys", action="store_true", help="also synthesise each distinct stage: many minutes"
    )
    parser.add_argument(
        "--stage", metavar="NAME", action="append", default=[],
        help="with --yosys, only this stage; may be repeated",
    )  # fmt: skip


def _add_core_options(parser: _Parser) -> None:
    parser.add_argument("--core", choices=("encoder", "decoder"), default="encoder")
    parser.add_argument("--board", choices=("kv260", "zcu102"), default="zcu102")
    parser.add_argument(
        "--size", metavar="WxH", type=_size, default=(1920, 1080),
        help="the largest picture that the core is built for (default 1920x1080)",
    )  # fmt: skip
    parser.add_argument(
        "--fps", metavar="N", type=_frame_rate,
        help="frames per second of that size at 300 MHz (default: kv260 30, zcu102 60)",
    )  # fmt: skip
    parser.add_argument("-m", "--model", metavar="MODEL", help="a model file or an installed model")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if not found or not all(1 <= int(n) <= container.MAX_SIDE for n in found.groups()):
        raise argparse.ArgumentTypeError(f"a size must be like 1920x1080, not {text!r}")
    return int(found[1]), int(found[2])


def _frame_rate(text: str) -> float:
    return _number(text, 0.1, 1000, "frames per second must be a positive number")


def _pictures(text: str) -> int:
    return _integer(text, 1, 100, "pictures must be 1..100")
