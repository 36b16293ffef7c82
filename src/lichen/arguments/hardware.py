"""The options of the commands for boards: simulate, build, test, export, study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lichen.api import MAX_PIXELS
from lichen.arguments import values
from lichen.arguments.coding import add_codec_options


def add_simulate(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = (
        "The core's model is built once, which takes minutes, and kept. The exit code is 0 only "
        "if bytes (encoder) or pixels (decoder) are those of the codec. Needs the [rtl] extra."
    )
    parser.add_argument("input", metavar="IN", help="a picture")
    add_core_options(parser)
    _add_quality(parser)
    parser.add_argument(
        "--crop", action="store_true", help="only its upper left 128x96 pixels: seconds"
    )
    parser.add_argument(
        "--pictures", metavar="N", type=values.pictures, default=2,
        help="in a row, to measure cycles per picture (default 2)",
    )  # fmt: skip
    advanced.add_argument("--max-pixels", metavar="N", type=values.pixel_limit, default=MAX_PIXELS,
                          help="refuse larger pictures")  # fmt: skip


def add_synth(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = "Nothing here places or routes: the clock is assumed. Needs the [rtl] extra."
    add_core_options(parser)
    parser.add_argument(
        "--plan", action="store_true", help="only the plan, with what is predicted: no synthesis"
    )
    parser.add_argument(
        "--stage", metavar="NAME", action="append", default=[],
        help="synthesise only this convolution; may be repeated (default: the whole core, minutes; "
        "what was synthesised once is kept)",
    )  # fmt: skip


def add_export(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--tile", metavar="WxH", type=values.picture_size, default=(512, 512),
        help="compile for this size; larger pictures run in tiles (default 512x512)",
    )  # fmt: skip
    parser.add_argument(
        "--linear", choices=("arm", "dpu"), default="arm",
        help="where the student's decoder computes its linear path in 16 bits: on the Arm cores, "
        "exact (default), or in two halves of 8 bits on the DPU, faster",
    )  # fmt: skip
    advanced.add_argument(
        "--crops", metavar="N", type=values.crops, default=64,
        help="squares of PHOTOS to calibrate with (default 64; AMD advises 100 to 1000)",
    )  # fmt: skip
    advanced.add_argument(
        "--crop", metavar="N", type=values.crops, default=256,
        help="their side in pixels (default 256)"
    )  # fmt: skip


def add_build(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--size", metavar="WxH", type=values.picture_size,
        help="the largest picture (default 1920x1080; kv260 with both cores: 1280x720)",
    )  # fmt: skip
    parser.add_argument(
        "--fps", metavar="N", type=values.frame_rate,
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


def add_package(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = (
        "Runs bootgen and dtc on what Vivado left in DIR/out. `lichen build` does it by itself "
        "where it has run Vivado."
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of `lichen build`")


def add_selftest(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
    _add_quality(parser)
    parser.add_argument(
        "--pictures", metavar="N", type=values.pictures,
        help="in a row, to measure pictures per second (default 100; sim: 1)",
    )  # fmt: skip
    add_codec_options(parser, advanced)


def add_study(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--video", metavar="WxH@FPS", type=values.video, default=(1920, 1080, 30.0),
        help="what is to be coded (default 1920x1080@30)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="PAGE", default="study.html", help="(default study.html)"
    )
    advanced.add_argument(
        "--no-overwrite", dest="overwrite", action="store_false",
        help="end with an error where the page or its JSON exists",
    )  # fmt: skip


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-q", "--quality", metavar="Q", type=values.quality, default=50.0,
        help="0..100 in steps of 1/8 (default 50)",
    )  # fmt: skip


def add_core_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--core", choices=("encoder", "decoder"), default="encoder")
    parser.add_argument("--board", choices=("kv260", "zcu102"), default="zcu102")
    parser.add_argument(
        "--size", metavar="WxH", type=values.picture_size, default=(1920, 1080),
        help="the largest picture that the core is built for (default 1920x1080)",
    )  # fmt: skip
    parser.add_argument(
        "--fps", metavar="N", type=values.frame_rate,
        help="frames per second of that size at 300 MHz (default: kv260 30, zcu102 60)",
    )  # fmt: skip
    parser.add_argument("-m", "--model", metavar="MODEL", help="a model file or an installed model")
