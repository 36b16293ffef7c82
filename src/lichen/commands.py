"""The commands of `lichen`. Each calls the library and reports what was done.

Output goes to a temporary name in the folder of the output and is renamed when complete. What only
one command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lichen import container, files
from lichen import model as models
from lichen.api import TARGET_TOLERANCE, Codec
from lichen.arguments import OK
from lichen.codec import DEFAULT_STRIPE
from lichen.errors import ContractError, LichenError, ModelError
from lichen.files import UsageError
from lichen.messages import complain
from lichen.picture import to_image

DEVICE_STRIPE = 1  # rows of 64 lines, where the cores encode


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
            code = complain(error, about)
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
