"""Arguments: the options of the command `lichen`, their help, and the exit codes.

Help is layered: `lichen -h` lists the commands, `lichen encode -h` the options of one, the less
common ones in a second group.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import suppress
from typing import Any, NoReturn

from lichen import container
from lichen._version import VERSION
from lichen.api import MAX_PIXELS
from lichen.codec import DEFAULT_STRIPE

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
    ):
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        advanced = command.add_argument_group("advanced")
        add(command, advanced)
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
