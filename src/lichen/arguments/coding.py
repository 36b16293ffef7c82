"""The options of the commands that code pictures, compare codecs and check decoders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lichen import container
from lichen.api import MAX_PIXELS
from lichen.arguments import values
from lichen.codec import DEFAULT_STRIPE


def add_encode(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "-q", "--quality", metavar="Q", type=values.quality,
        help="0..100 in steps of 1/8; photographs take 0.1 to 1.2 bits per pixel (default 50)",
    )  # fmt: skip
    rate.add_argument(
        "--target-bpp", metavar="BPP", type=values.bits_per_pixel,
        help="the best quality of at most so many bits per pixel, counting the whole file",
    )  # fmt: skip
    rate.add_argument(
        "--target-size", metavar="BYTES", type=values.byte_count,
        help="the best quality of at most so many bytes; 20k is 20000, 20Ki is 20480",
    )  # fmt: skip
    add_codec_options(parser, advanced)
    add_device_options(parser, advanced)
    advanced.add_argument(
        "--digest", action=argparse.BooleanOptionalAction, default=False,
        help="store a digest of the decoded pixels, for decoders to check; takes a decoding "
        "(default: no)",
    )  # fmt: skip
    advanced.add_argument(
        "--stripe", metavar="LINES", type=values.stripe_lines,
        help="picture lines that are entropy-coded together, a multiple of 64: threads work on "
        "different stripes, each costs some 30 bytes (default "
        f"{DEFAULT_STRIPE * container.ROW_LINES}; with --device 64, what a core holds)",
    )  # fmt: skip
    add_output_options(advanced)


def add_decode(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
    add_codec_options(parser, advanced)
    add_device_options(parser, advanced)
    add_output_options(advanced)


def add_info(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.add_argument("input", metavar="IN", nargs="+", help="a stream; - for stdin")


def add_verify(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = "The exit code is 0 only if every stream is right in every respect."
    parser.add_argument("input", metavar="IN", nargs="+", help="a stream; - for stdin")
    add_codec_options(parser, advanced)


def add_models(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = "The default model encodes; streams name the model that decodes them."


def add_eval(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "-j", dest="threads", metavar="N", type=values.threads, default=1,
        help="threads of each codec: 1 (default), 2, ... or all",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", metavar="N", type=values.threads, default=1,
        help="processes that work at the same time (default 1: several falsify the times)",
    )  # fmt: skip
    advanced.add_argument(
        "--no-ms-ssim", dest="ms_ssim", action="store_false", help="leave it out; it is slow"
    )
    advanced.add_argument(
        "--compressai", metavar="FOLDER", help="also write one JSON for each codec there"
    )
    advanced.add_argument(
        "--highest-bpp", dest="bpp", metavar="BPP", type=values.bits_per_pixel,
        help="the right end of the plots (default: where the first codec ends)",
    )  # fmt: skip


def add_conformance(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = (
        "The exit code is 0 only if every case is right. The vectors come with lichen's sources, "
        "not with its wheels: docs/conformance.md."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--executor", metavar="NAME", default="native",
        help="native (default), native-ISA (avx2, plain, ...), reference, torch, onnx, or rtl: the "
        "accelerator's hardware in simulation",
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
        "-j", dest="threads", metavar="N", type=values.threads, default=1,
        help="threads: 1 (default), 2, ... or all",
    )  # fmt: skip
    advanced.add_argument(
        "--vectors", metavar="FOLDER", help="default: tests/conformance/vectors of a checkout"
    )


def add_codec_options(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.add_argument(
        "-j", dest="threads", metavar="N", type=values.threads, default="all",
        help="threads: 1, 2, ... or all (default)",
    )  # fmt: skip
    advanced.add_argument(
        "--model", metavar="FILE|NAME",
        help="use this model: a file, or a name that `lichen models` lists",
    )  # fmt: skip
    advanced.add_argument(
        "--max-pixels", metavar="N", type=values.pixel_limit, default=MAX_PIXELS,
        help="refuse larger pictures (default %(default)s, which is 16384 x 16384)",
    )  # fmt: skip


def add_device_options(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.add_argument(
        "--device", choices=("kv260", "zcu102", "sim"),
        help="the accelerator does it: on the board that this runs on, or simulated (slow); the "
        "result is the same to the last bit. docs/boards.md",
    )  # fmt: skip
    advanced.add_argument(
        "--session", metavar="FILE", type=Path,
        help="with --device: write down all that passes between driver and core",
    )  # fmt: skip


def add_output_options(advanced: Any) -> None:
    advanced.add_argument("--strip", action="store_true", help="drop EXIF, ICC and XMP")
    advanced.add_argument(
        "--no-overwrite", dest="overwrite", action="store_false",
        help="end with an error where the output exists",
    )  # fmt: skip
