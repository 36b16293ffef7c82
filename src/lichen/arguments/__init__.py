"""Arguments: the options of the command `lichen`, their help, and the exit codes.

Help is layered: `lichen -h` lists the commands, `lichen encode -h` the options of one, the less
common ones in a second group.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from lichen._version import VERSION
from lichen.arguments.coding import (
    add_conformance,
    add_decode,
    add_encode,
    add_eval,
    add_info,
    add_models,
    add_verify,
)
from lichen.arguments.hardware import (
    add_build,
    add_export,
    add_package,
    add_selftest,
    add_simulate,
    add_study,
    add_synth,
)
from lichen.arguments.learning import (
    add_chain,
    add_distill,
    add_fit,
    add_lower,
    add_prune,
    add_quantize,
    add_train,
)

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, as all other errors do."""
        print(f"lichen: error: {message} (`{self.prog} -h` explains)", file=sys.stderr)
        raise SystemExit(USAGE)


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
        ("encode", add_encode, "picture -> stream"),
        ("decode", add_decode, "stream -> picture"),
        ("info", add_info, "show what streams hold, without decoding them"),
        ("verify", add_verify, "decode streams and check all that can be checked"),
        ("models", add_models, "list the installed models"),
        ("train", add_train, "photographs -> the weights of a model; goes on where it stopped"),
        ("distill", add_distill, "photographs and a teacher -> the weights of a smaller model"),
        ("prune", add_prune, "a checkpoint -> a smaller one, without its least needed channels"),
        ("fit", add_fit, "the widest network of a kind that codes a video on a board"),
        ("chain", add_chain, "a recipe of steps: teach, distil, prune, train, quantise; measured"),
        ("quantize", add_quantize, "a checkpoint -> a model file of 8-bit or mixed integers"),
        ("lower", add_lower, "trained weights -> a model file that encodes and decodes"),
        ("eval", add_eval, "measure codecs on a folder of pictures: tables, JSON, CSV, plots"),
        ("conformance", add_conformance, "check an executor, or another decoder, to the last bit"),
        ("simulate", add_simulate, "a picture through a core of the accelerator, compared"),
        ("synth", add_synth, "a core for a board through Yosys: resources, levels of logic"),
        ("build", add_build, "cores for a board: Verilog, packaged IP, Vivado project, packages"),
        ("package", add_package, "a built folder -> firmware for Linux and an overlay for PYNQ"),
        ("selftest", add_selftest, "a board's cores against the codec: bytes, pixels, speed"),
        ("export", add_export, "a model -> a folder for another flow: the DPU of Vitis AI"),
        ("study", add_study, "models and boards -> a page: what fits, how fast, what would help"),
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
