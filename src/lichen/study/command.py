"""The command `lichen study`: models and boards -> a page, the same as JSON, a summary."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from pathlib import Path

from lichen import files
from lichen.files import UsageError
from lichen.study import page, terminal
from lichen.study.result import Study, Video
from lichen.study.study import study


def run(arguments: argparse.Namespace) -> int:
    """Study what the options name; returns 0, or raises what went wrong.

    The page and its JSON appear when both are complete.
    """
    outputs = _outputs(arguments)
    width, height, frames_per_second = arguments.video
    result = study(arguments.models, arguments.boards, Video(width, height, frames_per_second))
    _write(result, outputs, arguments)
    shown = sys.stderr if arguments.output == "-" else sys.stdout
    if arguments.json:
        print(json.dumps(result.to_json(), allow_nan=False), file=shown)
    elif not arguments.quiet:
        print(terminal.summary(result), file=shown)
        if arguments.output != "-":
            print(f"\n{' and '.join(outputs)} written in {result.seconds:.1f} s", file=shown)
    return 0


def _outputs(arguments: argparse.Namespace) -> list[str]:
    """Name the page and its JSON, and refuse early what could not be written."""
    target = arguments.output
    if target == "-":
        files.check_output(target, "-", overwrite=True)
        return [target]
    stem, suffix = os.path.splitext(target)
    if suffix.lower() == ".json":
        raise UsageError(f"the output is a page, and its JSON gets the name {target!r}: give .html")
    outputs = [target, f"{stem}.json"]
    for name in outputs:
        files.check_output(name, "-", arguments.overwrite)
        if not os.access(Path(name).parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder of the output is not writable", name)
    return outputs


def _write(result: Study, outputs: list[str], arguments: argparse.Namespace) -> None:
    """Write all outputs under other names first, then give them theirs."""
    texts = [page.render(result, arguments.invocation)]
    if len(outputs) > 1:
        texts.append(json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    target, *others = outputs
    with files.output_file(target, arguments.overwrite) as file:
        file.write(texts[0].encode())
        for name, text in zip(others, texts[1:]):
            with files.output_file(name, arguments.overwrite) as other:
                other.write(text.encode() + b"\n")
