"""The command `lichen`: reads the command line, runs the command, gives its exit code.

`lichen.arguments` holds the options and the exit codes, `lichen.commands` what each command does,
`lichen.messages` how errors are told.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from lichen.arguments import FILE, INTERNAL, INTERRUPTED, TERMINATED, USAGE, parser
from lichen.commands import COMMANDS
from lichen.messages import complain, exit_code, notes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and raises nothing."""
    _prepare_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser().print_help(sys.stderr)
        return USAGE
    try:
        arguments = parser().parse_args(words)
    except SystemExit as end:  # -h, -V, or a usage error that argparse has reported
        return int(end.code or 0)
    arguments.invocation = shlex.join(["lichen", *words])
    try:
        with _ended_by_sigterm(), notes(shown=not arguments.quiet):
            code = COMMANDS[arguments.command](arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader has seen enough: no message
        _settle_stdout()
        return FILE
    except KeyboardInterrupt:
        print("lichen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        return TERMINATED
    except Exception as error:
        if arguments.verbose and exit_code(error) == INTERNAL:
            import traceback

            traceback.print_exc()
        _settle_stdout()
        return complain(error)


def _prepare_streams() -> None:
    """Make do with the standard streams that the caller gives.

    Where one is closed, no file may get its number, nor print() take stdout for stderr. Names of
    files that are not Unicode are printed somehow, rather than not.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for good
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class _Terminated(BaseException):
    """SIGTERM, as an exception: what is half written is removed on the way out."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command from within; commands that train take it over meanwhile."""

    def end(*_: object) -> None:
        raise _Terminated

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _settle_stdout() -> None:
    """Python flushes stdout once more at exit: where that fails, let it flush to nowhere."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
