"""The options of the commands that make weights: train, make frugal, quantise, lower."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from lichen.arguments import values
from lichen.training.recipe import Recipe, kind_of


def add_train(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
    add_run_options(parser, advanced)


def add_run_options(parser: argparse.ArgumentParser, advanced: Any) -> None:
    """What every command that trains has: the recipe's fields, the start, the machine."""
    parser.add_argument("--recipe", metavar="FILE", type=Path, help="TOML, as in recipes/")
    parser.add_argument(
        "--arguments", metavar="NAME=VALUE,...", action="append",
        help="arguments of the model, like n=64,m=128; may be repeated",
    )  # fmt: skip
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--lambda", metavar="L", dest="rates", type=values.lagrangian,
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
        "--threads", metavar="N", type=values.threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )
    advanced.add_argument("--compile", action="store_true", help="have torch compile the model")


def add_distill(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--width", metavar="N", type=values.channels,
        help="of the student: the papers' N, STF's C; its other arguments are the teacher's, where "
        "both are of one kind",
    )  # fmt: skip
    parser.add_argument(
        "--board", choices=("kv260", "zcu102"), help="find the width that fits; with --video"
    )
    parser.add_argument("--video", metavar="WxH@FPS", type=values.video, help="like 1280x720@60")
    terms = parser.add_argument_group("terms of the loss")
    for name, text in (
        ("pixel", "error against the teacher's picture, as a part of the distortion (default 0.3)"),
        ("latent", "squared error of y, in the teacher's quantisation steps (default 0.05)"),
        ("hyper", "squared error of z, in quantisation steps (default 0.02)"),
    ):
        terms.add_argument(
            f"--{name}-weight", metavar="W", type=values.weight, help=f"{text}; 0 leaves it out"
        )
    add_run_options(parser, advanced)


def add_chain(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--threads", metavar="N", type=values.threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )


def add_prune(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--macs", metavar="-P%", type=values.reduction,
        help="leave out so much of all MACs, like -50%%"
    )  # fmt: skip
    parser.add_argument(
        "--board", metavar="NAME", help="kv260 or zcu102: what codes --video on it may stay"
    )
    parser.add_argument("--video", metavar="WxH@FPS", type=values.video, help="like 1280x720@60")
    parser.add_argument(
        "--importance", choices=("magnitude", "taylor", "mask-decay"), default="taylor",
        help="what decides: the weights; how the loss changes (default); or masks that decay "
        "while the network is fine-tuned",
    )  # fmt: skip
    parser.add_argument(
        "--photographs", metavar="PHOTOS", type=Path, help="folder of pictures, for the last two"
    )
    parser.add_argument(
        "--steps", metavar="N", type=values.positive, default=0, help="of mask-decay's fine-tuning"
    )
    parser.add_argument(
        "--learning-rate", metavar="RATE", type=values.learning_rate, default=2e-4,
        help="of it (default 2e-4)"
    )  # fmt: skip
    parser.add_argument(
        "--multiple", metavar="N", type=values.channels, default=8,
        help="leave groups of channels at multiples of this (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", metavar="GROUP", action="append", default=[],
        help="leave this group whole, like latent or 'h_*'; may be repeated; -v lists them",
    )  # fmt: skip
    parser.add_argument(
        "--samples", metavar="N", type=values.positive, default=64,
        help="crops for taylor (default 64)"
    )  # fmt: skip
    advanced.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    advanced.add_argument(
        "--threads", metavar="N", type=values.threads, help="CPU threads (default: torch's choice)"
    )
    advanced.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; can go on later"
    )
    advanced.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=60.0, help="(default 60)"
    )


def add_fit(parser: argparse.ArgumentParser, advanced: Any) -> None:
    parser.epilog = (
        "Nothing here places or routes: the clock, 300 MHz, is assumed. Each core, encoder and "
        "decoder, has a board of its own. Needs the [train] and [rtl] extras."
    )
    parser.add_argument("--board", metavar="NAME", required=True, help="kv260 or zcu102")
    parser.add_argument(
        "--video", metavar="WxH@FPS", type=values.video, required=True, help="like 1280x720@60"
    )
    parser.add_argument(
        "--model", metavar="NAME", default="student",
        help="student (default), balle2018, balle2016 or minnen2020",
    )  # fmt: skip
    parser.add_argument(
        "--arguments", metavar="NAME=VALUE,...", action="append",
        help="other arguments of the model, like means=true; may be repeated",
    )  # fmt: skip


def add_quantize(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
        "--qat-steps", metavar="N", type=values.whole, default=0,
        help="train on in integers for so many steps (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--report", metavar="FILE", type=Path,
        help="write steps, losses, bits and sensitivities as JSON",
    )  # fmt: skip
    parser.add_argument("--name", help="of the model (default: that of the file)")
    parser.add_argument("--seed", metavar="N", type=values.whole, default=0, help="of all crops")
    advanced.add_argument(
        "--crops", metavar="N", type=values.crops, default=32,
        help="crops that calibrate (default 32; the loss is that of the first 16)",
    )  # fmt: skip
    advanced.add_argument(
        "--crop", metavar="N", type=values.crop, default=256,
        help="their side in pixels (default 256)"
    )  # fmt: skip
    advanced.add_argument(
        "--learning-rate", metavar="R", type=values.learning_rate, default=2e-4,
        help="of the steps in integers (default 2e-4)",
    )  # fmt: skip
    advanced.add_argument(
        "--batch", metavar="N", type=values.crops, default=8,
        help="crops of such a step (default 8)"
    )  # fmt: skip
    advanced.add_argument(
        "--threads", metavar="N", type=values.threads, help="CPU threads (default: torch's choice)"
    )


def add_lower(parser: argparse.ArgumentParser, advanced: Any) -> None:
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
