"""The command `lichen`: encode, decode, info, verify, models, eval. Each command calls the library.

`lichen.arguments` holds the options and the exit codes. Errors are one line on stderr. Output goes
to a temporary name in the folder of the output and is renamed when complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lichen import container, files
from lichen import model as models
from lichen.api import TARGET_TOLERANCE, Codec, TargetError
from lichen.arguments import (
    BAD_DATA,
    FILE,
    INTERNAL,
    INTERRUPTED,
    MODEL,
    OK,
    TARGET,
    TERMINATED,
    USAGE,
    parser,
)
from lichen.codec import DEFAULT_STRIPE
from lichen.errors import (
    ContractError,
    DeviceError,
    ImageError,
    LichenError,
    ModelError,
    StreamError,
)
from lichen.files import UsageError
from lichen.picture import to_image

DEVICE_STRIPE = 1  # rows of 64 lines, where the cores encode
HINTS: dict[type, str] = {
    FileNotFoundError: "; check the name and the folder",
    FileExistsError: "; name another output",
    IsADirectoryError: "; name a file",
    PermissionError: "; check who may read and write it",
}


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
        with _ended_by_sigterm(), _notes(shown=not arguments.quiet):
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
        if arguments.verbose and _exit_code(error) == INTERNAL:
            import traceback

            traceback.print_exc()
        _settle_stdout()
        return _complain(error)


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


def _exit_code(error: Exception) -> int:
    match error:
        case StreamError() | ImageError():
            return BAD_DATA
        case ModelError():
            return MODEL
        case TargetError():
            return TARGET
        case OSError():
            return FILE
        case ContractError() | DeviceError():
            return INTERNAL
        case UsageError() | LichenError():
            return USAGE
        case _:
            return INTERNAL


def _complain(error: Exception, about: str = "") -> int:
    """Print one line on stderr; returns the exit code."""
    code = _exit_code(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename or "standard input or output"
        text = f"{name}: {error.strerror}{HINTS.get(type(error), '')}"
    elif isinstance(error, MemoryError):
        text = "not enough memory for this picture; code it in parts"
    elif code == INTERNAL and not isinstance(error, DeviceError):
        text = f"internal: {type(error).__name__}: {text}; please report it (-v shows where)"
    text = _one_line(f"{about}{text}")
    with suppress(OSError):  # nobody listens: the exit code says it too
        print(f"lichen: error: {text}", file=sys.stderr, flush=True)
    return code


def _one_line(text: str) -> str:
    """Give a message as one line. It may quote a stranger's file: no controls for the terminal."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


@contextmanager
def _notes(shown: bool) -> Iterator[None]:
    """Print the library's warnings as single lines on stderr."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if shown:
            print(f"lichen: note: {_one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        # Amaranth's, of cores that are made to see what they take.
        warnings.filterwarnings("ignore", ".* created but never used")
        warnings.showwarning = show
        yield


# Commands


def _encode(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    source = arguments.input
    target = files.output_name(arguments.output, source, files.SUFFIX)
    files.check_stream_name(target)
    files.check_output(target, source, arguments.overwrite)
    data = files.read(source, max_pixels=arguments.max_pixels)
    picture = files.read_picture(data, _title(source), arguments.max_pixels)
    if arguments.strip:
        picture = replace(picture, icc=b"", exif=b"", xmp=b"")
    target_bytes = arguments.target_size
    if arguments.target_bpp is not None:
        target_bytes = int(arguments.target_bpp * picture.width * picture.height / 8)
    with _codec(arguments) as codec:
        encoded = codec.encode(
            picture,
            quality=arguments.quality,
            target_bytes=target_bytes,
            digest=arguments.digest,
            stripe=_stripe_rows(arguments),
        )
    with files.output_file(target, arguments.overwrite) as file:
        file.write(encoded.data)
    if target_bytes is not None and len(encoded.data) < (1 - TARGET_TOLERANCE) * target_bytes:
        reason = (
            "quality 100, the best there is, takes no more"
            if encoded.quality == 100
            else "the next step of quality (1/8) takes more than the target"
        )
        warnings.warn(
            f"{len(encoded.data)} bytes, more than {TARGET_TOLERANCE:.0%} below the target of "
            f"{target_bytes}: {reason}",
            stacklevel=1,
        )
    report = {
        "input": source,
        "output": target,
        "width": picture.width,
        "height": picture.height,
        "input_bytes": len(data),
        "bytes": len(encoded.data),
        "bits_per_pixel": encoded.bits_per_pixel,
        "quality": encoded.quality,
        "digest": arguments.digest,
        "model": codec.model.name,
        "weights": codec.model.digest.hex(),
        "executor": arguments.device or codec.executor.name,
        "threads": arguments.threads,
        "seconds": time.perf_counter() - started,
    }
    line = (
        f"{_title(source)} -> {_title(target)}: {picture.width}x{picture.height}, "
        f"{len(data)} -> {len(encoded.data)} bytes, {encoded.bits_per_pixel:.4f} bpp, "
        f"quality {encoded.quality:g}, {report['seconds']:.2f} s"
    )
    _report(arguments, report, line, target)
    return OK


def _decode(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    source = arguments.input
    target = files.output_name(arguments.output, source, ".png")
    file_format = "PNG" if target == "-" else files.format_of(target)
    # x.png is often the original of x.lic: it is only overwritten where it was named.
    overwrite = arguments.overwrite and bool(arguments.output)
    files.check_output(target, source, overwrite)
    data = files.read(source, container.MAGIC, arguments.max_pixels)
    with _codec(arguments) as codec:
        picture = codec.decode(data, max_pixels=arguments.max_pixels)
    if arguments.strip:
        picture = replace(picture, icc=b"", exif=b"", xmp=b"")
    image = to_image(picture)
    with files.output_file(target, overwrite) as file:
        files.save(image, file, file_format)
    header = container.read_header(data)
    report = {
        "input": source,
        "output": target,
        "width": picture.width,
        "height": picture.height,
        "mode": image.mode,
        "input_bytes": len(data),
        "bits_per_pixel": 8 * len(data) / (picture.width * picture.height),
        "quality": header.position / 8,
        "digest": "right" if header.digest else "absent",
        "executor": arguments.device or codec.executor.name,
        "threads": arguments.threads,
        "seconds": time.perf_counter() - started,
    }
    line = (
        f"{_title(source)} -> {_title(target)}: {picture.width}x{picture.height} {image.mode}, "
        f"{len(data)} bytes, {report['seconds']:.2f} s"
        + (", pixel digest right" if header.digest else "")
    )
    _report(arguments, report, line, target)
    return OK


def _info(arguments: argparse.Namespace) -> int:
    names = _installed_names()
    return _for_each(arguments, lambda source: _info_one(arguments, source, names))


def _info_one(arguments: argparse.Namespace, source: str, names: dict[str, str]) -> None:
    data = files.read(source, container.MAGIC)
    stream = container.read(data, max_pixels=container.MAX_SIDE**2)
    header = stream.header
    weights = header.weights.hex()
    sizes = {
        "z": sum(len(z) for z, _ in stream.stripes),
        "y": sum(len(y) for _, y in stream.stripes),
        "alpha": len(stream.alpha),
        "icc": len(stream.icc),
        "exif": len(stream.exif),
        "xmp": len(stream.xmp),
        "digest": len(stream.digest),
    }
    sizes["frame"] = len(data) - sum(sizes.values())
    report = {
        "input": source,
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / (header.width * header.height),
        "width": header.width,
        "height": header.height,
        "mode": _mode(header),
        "quality": header.position / 8,
        "order": models.ORDERS[header.order],
        "arithmetic": "float" if header.float_arithmetic else "integer",
        "model": names.get(weights),
        "weights": weights,
        "stripes": header.stripes,
        "stripe_lines": header.stripe * container.ROW_LINES,
        "sizes": sizes,
        "digest": stream.digest.hex() or None,
        "checksums": "right",
    }
    if arguments.json:
        print(json.dumps(report))
        return
    machine = "  arithmetic float, decodes only on a like machine\n" * header.float_arithmetic
    print(
        f"{_title(source)}: {header.width}x{header.height} {report['mode']}, {len(data)} bytes, "
        f"{report['bits_per_pixel']:.4f} bpp, quality {report['quality']:g}\n"
        f"  model      {report['model'] or 'not installed'} ({weights}), {report['order']}\n"
        f"{machine}"
        f"  stripes    {header.stripes} of {report['stripe_lines']} lines\n"
        f"  bytes      {', '.join(f'{k} {v}' for k, v in sizes.items() if v)}\n"
        f"  digest     {report['digest'] or 'none'}\n"
        f"  checksums  right"
    )


def _verify(arguments: argparse.Namespace) -> int:
    codec = Codec(_model(arguments.model), threads=arguments.threads)
    return _for_each(arguments, lambda source: _verify_one(arguments, source, codec))


def _verify_one(arguments: argparse.Namespace, source: str, codec: Codec) -> None:
    data = files.read(source, container.MAGIC, arguments.max_pixels)
    codec.decode(data, max_pixels=arguments.max_pixels)  # raises if anything is wrong
    header = container.read_header(data)
    if arguments.json:
        digest = "right" if header.digest else "absent"
        print(json.dumps({"input": source, "ok": True, "digest": digest}))
    elif not arguments.quiet:
        digest = "right" if header.digest else "not stored (lichen encode --digest stores one)"
        print(f"{_title(source)}: ok, decodes, checksums right, pixel digest {digest}")


def _models(arguments: argparse.Namespace) -> int:
    for number, path in enumerate(models.installed()):
        model = models.read(path)
        encoder, decoder = models.kmac_per_pixel(model)
        report = {
            "name": path.stem,
            "default": number == 0,
            "weights": model.digest.hex(),
            "order": model.order,
            "bytes": path.stat().st_size,
            "encoder_kmac_per_pixel": encoder,
            "decoder_kmac_per_pixel": decoder,
            "metadata": dict(model.metadata),
        }
        if arguments.json:
            print(json.dumps(report))
            continue
        print(
            f"{path.stem:16} {model.digest.hex()}  {model.order}, "
            f"{path.stat().st_size / 1e6:.1f} MB, kMAC per pixel: {encoder:.1f} to encode, "
            f"{decoder:.1f} to decode{'  (default)' if number == 0 else ''}"
        )
        if arguments.verbose:
            for key, value in model.metadata.items():
                print(f"  {key:16} {value}")
    if not models.installed():
        raise ModelError("no model came with this installation of lichen; reinstall it")
    return OK


def _eval(arguments: argparse.Namespace) -> int:
    from lichen.evaluation import command  # heavy, and only for this command

    return command.run(arguments)


def _conformance(arguments: argparse.Namespace) -> int:
    from lichen import conformance

    return conformance.command(arguments)


def _simulate(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        from lichen.boards import trial
    return trial.command(arguments, _model(arguments.model))


def _synth(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        from lichen.rtl import command
    return command.synth(arguments, _model(arguments.model))


def _export(arguments: argparse.Namespace) -> int:
    from lichen.boards.vitis_ai import command

    command.check(arguments)
    return command.vitis_ai(arguments, _any_model(arguments.model, arguments.photographs))


def _build(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        from lichen.boards import build
    return build.build(arguments, _model(arguments.model))


def _package(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        from lichen.boards import build
    return build.package(arguments)


def _selftest(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        from lichen.boards import selftest
    return selftest.command(arguments, _model(arguments.model))


def _study(arguments: argparse.Namespace) -> int:
    with _extra("rtl"):
        import lichen.rtl.fold
    with _extra("eval"):
        import lichen.evaluation.bd_rate  # noqa: F401
    with _extra("train"):
        from lichen.study import command
    return command.run(arguments)


def _train(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.training.commands import train_command
    number = train_command(arguments)
    return 128 + number if number else OK  # 130 or 143, as shells have it


def _distill(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.frugal.distill import distill_command
    number = distill_command(arguments)
    return 128 + number if number else OK


def _prune(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.frugal.prune import prune_command
    if arguments.board:
        with _extra("rtl"):
            import lichen.rtl.fold  # noqa: F401
    number = prune_command(arguments)
    return 128 + number if number else OK


def _fit(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        import lichen.training.train  # noqa: F401
    with _extra("rtl"):
        from lichen.frugal.fit import fit_command
    return fit_command(arguments)


def _chain(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.frugal.chain import chain_command
    number = chain_command(arguments)
    return 128 + number if number else OK


def _quantize(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.frugal.quantize_command import quantize_command
    return quantize_command(arguments)


def _lower(arguments: argparse.Namespace) -> int:
    with _extra("train"):
        from lichen.training.commands import lower_command
    return lower_command(arguments)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say which extra is missing where an import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this needs the package {error.name}: pip install 'lichen[{name}]'"
        ) from error


def _for_each(arguments: argparse.Namespace, one: Callable[[str], None]) -> int:
    """Do every input even where one fails; returns the exit code of the first failure."""
    first = OK
    for source in arguments.input:
        try:
            one(source)
        except (LichenError, UsageError, OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            about = "" if isinstance(error, OSError) else f"{_title(source)}: "
            code = _complain(error, about)
            if arguments.json:
                print(json.dumps({"input": source, "ok": False, "error": str(error)}))
            first = first or code
    return first


# Models and reports


@contextmanager
def _codec(arguments: argparse.Namespace) -> Iterator[Codec]:
    """Give the codec of the processor, or that of --device."""
    model = _model(arguments.model)
    if arguments.device is None:
        yield Codec(model, threads=arguments.threads)
        return
    from lichen.boards import device

    def opener(core: device.CoreName, model: models.Model) -> device.Driver:
        try:
            with _extra("rtl"):
                return device.open_driver(arguments.device, core, model, session=arguments.session)
        except ContractError as error:  # no hardware for this model: the user's choice
            raise UsageError(str(error)) from error

    with device.DeviceCodec(opener, model, threads=arguments.threads) as codec:
        yield codec


def _stripe_rows(arguments: argparse.Namespace) -> int:
    """Give the rows of 64 lines of a stripe: a core holds few."""
    if arguments.stripe is not None:
        return int(arguments.stripe) // container.ROW_LINES
    return DEFAULT_STRIPE if arguments.device is None else DEVICE_STRIPE


def _model(name: str | None) -> models.Model | None:
    """Read the model that --model names: a file, or one that is installed."""
    if name is None:
        return None
    return models.read(Path(name)) if Path(name).is_file() else models.named(name)


def _any_model(name: str, photographs: Path | None) -> models.Model:
    """Read a model by name or file, or lower a run, a recipe's folder or a state dict."""
    path = Path(name)
    if not path.exists():
        return models.named(name)
    try:
        return models.read(path)
    except ModelError:
        if not path.is_dir() and models.is_model_file(path):
            raise
    with _extra("train"):
        from lichen.training.commands import lowered
    return lowered(path, photographs)


def _installed_names() -> dict[str, str]:
    """Map the digest of each installed model, as hex, to its name."""
    return {models.digest_of(path.read_bytes()).hex(): path.stem for path in models.installed()}


def _title(path: str) -> str:
    return "-" if path == "-" else Path(path).name


def _mode(header: container.Header) -> str:
    return ("L" if header.channels == 1 else "RGB") + "A" * header.alpha


def _report(arguments: argparse.Namespace, report: dict[str, Any], line: str, target: str) -> None:
    """Print what was done: on stderr where the picture itself went to stdout."""
    file = sys.stderr if target == "-" else sys.stdout
    if arguments.json:
        print(json.dumps(report), file=file)
    elif not arguments.quiet:
        print(line, file=file)
        if arguments.verbose:
            for key, value in report.items():
                print(f"  {key:16} {value}", file=file)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "encode": _encode,
    "decode": _decode,
    "info": _info,
    "verify": _verify,
    "models": _models,
    "train": _train,
    "distill": _distill,
    "prune": _prune,
    "fit": _fit,
    "chain": _chain,
    "quantize": _quantize,
    "lower": _lower,
    "eval": _eval,
    "conformance": _conformance,
    "simulate": _simulate,
    "synth": _synth,
    "export": _export,
    "build": _build,
    "package": _package,
    "selftest": _selftest,
    "study": _study,
}
