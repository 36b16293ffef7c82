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

OK, BAD_DATA, USAGE, FILE, MODEL, TARGET, INTERNAL = 0, 1, 2, 3, 4, 5, 6
INTERRUPTED, TERMINATED = 130, 143
EXIT_CODES = """\
exit codes:
  0    all went well
  1    the stream or the picture is bad, or is not one
  2    the command line is wrong
  3    a file is not there, not readable or not writable, or would be overwritten
  4    the model is missing, damaged, or not the one that made the stream
  5    the target size cannot be met
  6    internal error, no memory, no threads, or a device or a tool is missing or fails
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
        ("distill", _add_distill, "photographs and a teacher -> the weights of a smaller model"),
        ("prune", _add_prune, "a checkpoint -> a smaller one, without its least needed channels"),
        ("fit", _add_fit, "the widest network of a kind that codes a video on a board"),
        ("chain", _add_chain, "a recipe of steps: teach, distil, prune, train, quantise; measured"),
        ("quantize", _add_quantize, "a checkpoint -> a model file of 8-bit or mixed integers"),
        ("lower", _add_lower, "trained weights -> a model file that encodes and decodes"),
        ("eval", _add_eval, "measure codecs on a folder of pictures: tables, JSON, CSV, plots"),
        ("conformance", _add_conformance, "check an executor, or another decoder, to the last bit"),
        ("simulate", _add_simulate, "a picture through a core of the accelerator, compared"),
        ("synth", _add_synth, "a core for a board through Yosys: resources, levels of logic"),
        ("build", _add_build, "cores for a board: Verilog, packaged IP, Vivado project, packages"),
        ("package", _add_package, "a built folder -> firmware for Linux and an overlay for PYNQ"),
        ("selftest", _add_selftest, "a board's cores against the codec: bytes, pixels, speed"),
        ("export", _add_export, "a model -> a folder for another flow: the DPU of Vitis AI"),
        ("study", _add_study, "models and boards -> a page: what fits, how fast, what would help"),
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
    _add_device_options(parser, advanced)
    advanced.add_argument(
        "--digest", action=argparse.BooleanOptionalAction, default=False,
        help="store a digest of the decoded pixels, for decoders to check; takes a decoding "
        "(default: no)",
    )  # fmt: skip
    advanced.add_argument(
        "--stripe", metavar="LINES", type=_stripe,
        help="picture lines that are entropy-coded together, a multiple of 64: threads work on "
        "different stripes, each costs some 30 bytes (default "
        f"{DEFAULT_STRIPE * container.ROW_LINES}; with --device 64, what a core holds)",
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
    _add_device_options(parser, advanced)
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
    parser.add_argument(
        "--model", metavar="NAME", help="student (default), balle2018, ...; a wrong name shows all"
    )
    _add_run_options(parser, advanced)


def _add_run_options(parser: _Parser, advanced: Any) -> None:
    """What every command that trains has: the recipe's fields, the start, the machine."""
    parser.add_argument("--recipe", metavar="FILE", type=Path, help="TOML, as in recipes/")
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


def _add_distill(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The student begins as in `lichen train`, and its folder is that of a run: it goes on, "
        "lowers and evaluates like any other. docs/distillation.md explains the three terms. Needs "
        "the [train] extra."
    )
    parser.add_argument("photographs", metavar="PHOTOS", type=Path, help="folder of pictures")
    parser.add_argument(
        "-o", "--output", dest="run", metavar="RUN", type=Path, required=True,
        help="folder of the student's run",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", metavar="CKPT", type=Path,
        help="a run, a folder of recipes/, or a state dict of CompressAI, STF or X-LIC",
    )  # fmt: skip
    parser.add_argument(
        "--student", dest="model", metavar="NAME",
        help="balle2018, student, ...: a wrong name shows all (default: that of --weights)",
    )  # fmt: skip
    parser.add_argument(
        "--width", metavar="N", type=_width,
        help="of the student: the papers' N, STF's C; its other arguments are the teacher's, where "
        "both are of one kind",
    )  # fmt: skip
    parser.add_argument(
        "--board", choices=("kv260", "zcu102"), help="find the width that fits; with --video"
    )
    parser.add_argument("--video", metavar="WxH@FPS", type=_video, help="like 1280x720@60")
    terms = parser.add_argument_group("terms of the loss")
    for name, text in (
        ("pixel", "error against the teacher's picture, as a part of the distortion (default 0.3)"),
        ("latent", "squared error of y, in the teacher's quantisation steps (default 0.05)"),
        ("hyper", "squared error of z, in quantisation steps (default 0.02)"),
    ):
        terms.add_argument(
            f"--{name}-weight", metavar="W", type=_weight, help=f"{text}; 0 leaves it out"
        )
    _add_run_options(parser, advanced)


def _add_chain(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The same command goes on where it stopped: finished steps are not done again while their "
        "part of the recipe and what they start from are the same. docs/frugal.md shows recipes. "
        "Needs the [train] and [eval] extras."
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="TOML, as in recipes/frugal-*")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, required=True,
        help="folder of the steps, of report.json, report.md and the chart",
    )  # fmt: skip
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path, help="to train and to calibrate by"
    )
    parser.add_argument(
        "--test", "--kodak", metavar="PICTURES", type=Path,
        help="measure each step on these (default: on every tenth photograph, which is then not "
        "trained on)",
    )  # fmt: skip
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; can go on later"
    )
    advanced.add_argument(
        "--threads", metavar="N", type=_threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )


def _add_prune(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The result is the folder of a run: train it on, lower it, prune it once more. "
        "docs/pruning.md explains the scores. Needs the [train] extra, and with --board [rtl]."
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path,
        help="a run, a folder of recipes/, or a state dict of CompressAI or X-LIC",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="folder to write"
    )
    # argparse takes -50% for an option unless it looks like a number
    parser._negative_number_matcher = re.compile(r"^-[0-9]+(\.[0-9]*)?%?$")
    parser.add_argument(
        "--macs", metavar="-P%", type=_less, help="leave out so much of all MACs, like -50%%"
    )
    parser.add_argument(
        "--board", metavar="NAME", help="kv260 or zcu102: what codes --video on it may stay"
    )
    parser.add_argument("--video", metavar="WxH@FPS", type=_video, help="like 1280x720@60")
    parser.add_argument(
        "--importance", choices=("magnitude", "taylor", "mask-decay"), default="taylor",
        help="what decides: the weights; how the loss changes (default); or masks that decay "
        "while the network is fine-tuned",
    )  # fmt: skip
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path, help="folder of pictures, for the last two"
    )
    parser.add_argument(
        "--steps", metavar="N", type=_steps, default=0, help="of mask-decay's fine-tuning"
    )
    parser.add_argument(
        "--learning-rate", metavar="RATE", type=_rate, default=2e-4, help="of it (default 2e-4)"
    )
    parser.add_argument(
        "--multiple", metavar="N", type=_width, default=8,
        help="leave groups of channels at multiples of this (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", metavar="GROUP", action="append", default=[],
        help="leave this group whole, like latent or 'h_*'; may be repeated; -v lists them",
    )  # fmt: skip
    parser.add_argument(
        "--samples", metavar="N", type=_steps, default=64, help="crops for taylor (default 64)"
    )
    advanced.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    advanced.add_argument(
        "--threads", metavar="N", type=_threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; can go on later"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )


def _add_fit(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Nothing here places or routes: the clock, 300 MHz, is assumed. Each core, encoder and "
        "decoder, has a board of its own. Needs the [train] and [rtl] extras."
    )
    parser.add_argument("--board", metavar="NAME", required=True, help="kv260 or zcu102")
    parser.add_argument(
        "--video", metavar="WxH@FPS", type=_video, required=True, help="like 1280x720@60"
    )
    parser.add_argument(
        "--model", metavar="NAME", default="student",
        help="student (default), balle2018, balle2016 or minnen2020",
    )  # fmt: skip
    parser.add_argument(
        "--arguments", metavar="NAME=VALUE,...", action="append",
        help="other arguments of the model, like means=true; may be repeated",
    )  # fmt: skip


def _add_quantize(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Each step of post-training quantisation stays only where it lowers the rate-distortion "
        "loss of the photographs. docs/quantization.md explains all of it. Needs the [train] extra."
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path,
        help="a run or its weights, a folder of recipes/, or a state dict of CompressAI or X-LIC",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=Path, required=True,
        help="the model file to write (.safetensors)",
    )  # fmt: skip
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path,
        help="folder of pictures to calibrate by, and to train on with --qat-steps",
    )  # fmt: skip
    parser.add_argument(
        "--bits", choices=("4", "5", "6", "7", "8", "mixed"), default="8",
        help="of all weights, or of each layer what a --budget allows (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", metavar="BUDGET",
        help="of mixed bits: a share of the 8-bit weights like 70%%, or bytes",
    )  # fmt: skip
    parser.add_argument(
        "--activations", choices=("8", "mixed"), default="8",
        help="mixed: 16 bits between layers where that gains (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--method", metavar="NAME,...", default="all",
        help="of ranges, equalise, bias, adaround; or all (default), or none: ranges by the "
        "largest values",
    )  # fmt: skip
    parser.add_argument(
        "--qat-steps", metavar="N", type=_whole, default=0,
        help="train on in integers for so many steps (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--report", metavar="FILE", type=Path,
        help="write steps, losses, bits and sensitivities as JSON",
    )  # fmt: skip
    parser.add_argument("--name", help="of the model (default: that of the file)")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of all crops")
    advanced.add_argument(
        "--crops", metavar="N", type=_count, default=32,
        help="crops that calibrate (default 32; the loss is that of the first 16)",
    )  # fmt: skip
    advanced.add_argument(
        "--crop", metavar="N", type=_crop, default=256, help="their side in pixels (default 256)"
    )
    advanced.add_argument(
        "--learning-rate", metavar="R", type=_learning_rate, default=2e-4,
        help="of the steps in integers (default 2e-4)",
    )  # fmt: skip
    advanced.add_argument(
        "--batch", metavar="N", type=_count, default=8, help="crops of such a step (default 8)"
    )
    advanced.add_argument(
        "--threads", metavar="N", type=_threads, help="CPU threads (default: torch's choice)"
    )


def _whole(text: str) -> int:
    return _integer(text, 0, 10**9, "a number must be 0 or more")


def _count(text: str) -> int:
    return _integer(text, 1, 4096, "a number of crops must be 1..4096")


def _crop(text: str) -> int:
    side = _integer(text, 64, 4096, "a crop must have 64..4096 pixels a side")
    if side % 64:
        raise argparse.ArgumentTypeError(f"a crop must be a multiple of 64 pixels, not {text}")
    return side


def _learning_rate(text: str) -> float:
    return _number(text, 1e-9, 1, "a learning rate must be above 0 and at most 1")


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


def _add_device_options(parser: _Parser, advanced: Any) -> None:
    parser.add_argument(
        "--device", choices=("kv260", "zcu102", "sim"),
        help="the accelerator does it: on the board that this runs on, or simulated (slow); the "
        "result is the same to the last bit. docs/boards.md",
    )  # fmt: skip
    advanced.add_argument(
        "--session", metavar="FILE", type=Path,
        help="with --device: write down all that passes between driver and core",
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
        "--plan", action="store_true", help="only the plan, with what is predicted: no synthesis"
    )
    parser.add_argument(
        "--stage", metavar="NAME", action="append", default=[],
        help="synthesise only this convolution; may be repeated (default: the whole core, minutes; "
        "what was synthesised once is kept)",
    )  # fmt: skip


def _add_export(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "What to do with the folder is in its README.md, and what the DPU takes in "
        "docs/vitis-ai.md. Prints what its 8 bits cost, beside the integer codec."
    )
    parser.add_argument("flow", choices=("vitis-ai",), help="the DPUs of AMD's Vitis AI 3.0")
    parser.add_argument(
        "model", metavar="MODEL",
        help="a name that `lichen models` lists, a model file, the folder of a run or recipe, or a "
        "state dict that `lichen lower` reads",
    )  # fmt: skip
    parser.add_argument("--board", metavar="NAME", required=True, help="kv260 or zcu102")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path,
        help="calibrate the DPU by these pictures (needed; not those that you will measure on)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", metavar="FOLDER|FILE", type=Path,
        help="measure on these (default: squares of PHOTOS that the calibration has not seen)",
    )  # fmt: skip
    parser.add_argument(
        "--tile", metavar="WxH", type=_size, default=(512, 512),
        help="compile for this size; larger pictures run in tiles (default 512x512)",
    )  # fmt: skip
    parser.add_argument(
        "--linear", choices=("arm", "dpu"), default="arm",
        help="where the student's decoder computes its linear path in 16 bits: on the Arm cores, "
        "exact (default), or in two halves of 8 bits on the DPU, faster",
    )  # fmt: skip
    advanced.add_argument(
        "--crops", metavar="N", type=_count, default=64,
        help="squares of PHOTOS to calibrate with (default 64; AMD advises 100 to 1000)",
    )  # fmt: skip
    advanced.add_argument(
        "--crop", metavar="N", type=_count, default=256, help="their side in pixels (default 256)"
    )


def _add_build(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Runs Vivado where it is on the PATH, which takes hours, and says what to run where it is "
        "not. What comes next, up to the first picture: docs/boards.md. Needs the [rtl] extra."
    )
    parser.add_argument("--board", choices=("kv260", "zcu102"), required=True)
    parser.add_argument(
        "--core", choices=("encoder", "decoder", "both"),
        help="default: both",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--size", metavar="WxH", type=_size,
        help="the largest picture (default 1920x1080; kv260 with both cores: 1280x720)",
    )  # fmt: skip
    parser.add_argument(
        "--fps", metavar="N", type=_frame_rate,
        help="pictures of that size per second at 300 MHz (default 30; zcu102 with one core: 60)",
    )  # fmt: skip
    parser.add_argument(
        "-m", "--model", metavar="MODEL",
        help="a model file or an installed model: its shape is built, weights are loaded at run "
        "time",
    )  # fmt: skip
    advanced.add_argument(
        "--step", choices=("all", "core", "design"), default="all",
        help="of Vivado: all, each core alone out of context, or the block design (default all)",
    )  # fmt: skip
    advanced.add_argument("--no-vivado", action="store_true", help="only write the folder")


def _add_package(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Runs bootgen and dtc on what Vivado left in DIR/out. `lichen build` does it by itself "
        "where it has run Vivado."
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of `lichen build`")


def _add_selftest(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "Encodes and decodes a picture by a board's cores, and compares each byte and pixel with "
        "the codec on the processor; the exit code is 0 only where all are equal. `sim` simulates "
        "the cores: minutes to build, and needs the [rtl] extra."
    )
    parser.add_argument(
        "input", metavar="IN", nargs="?", help="a picture (default: one that is made)"
    )
    parser.add_argument(
        "--device", choices=("kv260", "zcu102", "sim"), required=True,
        help="the board that this runs on, or the simulation",
    )  # fmt: skip
    parser.add_argument(
        "--core", choices=("encoder", "decoder", "both"), default="both",
        help="default: those that the bitfile has",
    )  # fmt: skip
    parser.add_argument(
        "-q", "--quality", metavar="Q", type=_quality, default=50.0,
        help="0..100 in steps of 1/8 (default 50)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", metavar="N", type=_pictures,
        help="in a row, to measure pictures per second (default 100; sim: 1)",
    )  # fmt: skip
    _add_codec_options(parser, advanced)


def _add_study(parser: _Parser, advanced: Any) -> None:
    parser.epilog = (
        "The page needs no network; PAGE.json, beside it, has every figure. Everything is "
        "predicted, and the page shows how wrong the predictors have been: docs/study.md. A "
        "checkpoint of an unknown architecture is counted as far as it can be. Needs the [train] "
        "extra; [eval] and [rtl] for rates and foldings."
    )
    parser.add_argument(
        "models", metavar="MODEL|CKPT", nargs="*",
        help="a model's name, a run's folder, a recipe (.toml), a model file or a state dict "
        "(default: all models); a wrong name shows all",
    )  # fmt: skip
    parser.add_argument(
        "--board", metavar="NAME|FILE", action="append", default=[], dest="boards",
        help="kv260, zcu102, or a TOML file like theirs; may be repeated (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--video", metavar="WxH@FPS", type=_video, default=(1920, 1080, 30.0),
        help="what is to be coded (default 1920x1080@30)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="PAGE", default="study.html", help="(default study.html)"
    )
    advanced.add_argument(
        "--no-overwrite", dest="overwrite", action="store_false",
        help="end with an error where the page or its JSON exists",
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


def _video(text: str) -> tuple[int, int, float]:
    size, at, rate = text.partition("@")
    if not at:
        raise argparse.ArgumentTypeError(f"a video must be like 1280x720@60, not {text!r}")
    return (*_size(size), _frame_rate(rate))


def _width(text: str) -> int:
    return _integer(text, 1, 4096, "a width must be a positive number of channels")


def _less(text: str) -> float:
    """A change of -P %, as a share: -0.5."""
    if text.startswith("-") and text.endswith("%"):
        return -_number(text[1:-1], 0.1, 99.9, "MACs fall by 0.1 to 99.9 %, like -50%%") / 100
    raise argparse.ArgumentTypeError(f"write what MACs fall by like -50%, not {text!r}")


def _steps(text: str) -> int:
    return _integer(text, 1, 10**9, "it must be a positive whole number")


def _rate(text: str) -> float:
    return _number(text, 1e-9, 1, "a learning rate must be a positive number up to 1")


def _weight(text: str) -> float:
    return _number(text, 0, 1e6, "a weight must be 0 or more")


def _frame_rate(text: str) -> float:
    return _number(text, 0.1, 1000, "frames per second must be a positive number")


def _pictures(text: str) -> int:
    return _integer(text, 1, 100, "pictures must be 1..100")
