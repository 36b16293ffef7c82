"""The command `lichen quantize`: a checkpoint and photographs -> a model file of integers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import torch

from lichen.errors import LichenError
from lichen.frugal import quantize
from lichen.frugal.network import load_network
from lichen.frugal.quantize import METHODS, Plan, Report, Snapshot
from lichen.frugal.ranges import Loss
from lichen.lower import lower
from lichen.model import from_bytes
from lichen.training.data import list_images
from lichen.training.run import whole_file


def quantize_command(arguments: argparse.Namespace) -> int:
    """Quantise a checkpoint and write the model file, and the report where asked for; gives 0."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = Plan(
        bits=None if arguments.bits == "mixed" else int(arguments.bits),
        budget=arguments.budget,
        methods=methods_of(arguments.method),
        wide=arguments.activations == "mixed",
        seed=arguments.seed,
    )
    if arguments.photographs is None:
        raise LichenError(
            "calibration photographs are missing: give --photographs FOLDER, pictures like those "
            "that the network was trained on"
        )
    made, model = load_network(arguments.checkpoint)
    photographs = list_images(arguments.photographs)

    def say(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    batches = quantize.calibration(photographs, arguments.crops, arguments.crop, arguments.seed)
    report = quantize.post_training(
        model,
        batches,
        plan,
        metric=made.metric,
        one_lambda=made.one_lambda,
        trained=made.quantized_steps > 0,
        say=say,
    )
    if arguments.qat_steps:
        before = Snapshot.of(model)
        quantize.fine_tune(
            model,
            made,
            photographs,
            arguments.qat_steps,
            learning_rate=arguments.learning_rate,
            batch=arguments.batch,
            crop=arguments.crop,
            seed=arguments.seed,
            say=say,
        )
        loss = Loss(batches[: quantize.LOSS_BATCHES], made.metric, made.one_lambda)(model)
        kept = loss < report.loss
        quantize.add_step(report, f"{arguments.qat_steps} quantised steps", loss, say, kept)
        if not kept:
            before.restore(model)
    name = arguments.name or arguments.output.stem
    lowered = quantize.fit_tables(lower(model, name, {}), photographs, batches, plan, report, say)
    facts = {
        "recipe": json.dumps(dataclasses.asdict(made)),
        "quantization": quantize.metadata(model, report, plan),
    }
    written = dataclasses.replace(lowered, metadata=facts).to_bytes()
    with whole_file(arguments.output) as temporary:
        temporary.write_bytes(written)
    told = {
        "model": str(arguments.output),
        "name": name,
        "bytes": len(written),
        "weights": from_bytes(written).digest.hex(),
        **as_json(report),
    }
    if arguments.report:
        with whole_file(arguments.report) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n")
    _show(arguments, report, told)
    return 0


def methods_of(text: str) -> tuple[str, ...]:
    """Read "ranges,bias", "all" or "none"; in the order in which they run."""
    if text in ("all", "none"):
        return METHODS if text == "all" else ()
    named = [word.strip() for word in text.split(",") if word.strip()]
    known = [word for word in METHODS if word in named]
    return (*known, *(word for word in named if word not in METHODS))


def as_json(report: Report) -> dict[str, Any]:
    """Give a report as JSON holds it."""
    return {
        "float_loss": report.float_loss,
        "integer_loss": report.loss,
        "weight_bytes": report.weight_bytes,
        "weight_bytes_at_8_bits": report.weight_bytes_8,
        "steps": report.steps,
        "layers": report.layers,
        "activations": report.activations,
        "activations_16": report.wide,
        "tables": report.tables,
    }


def table(report: Report) -> str:
    """Lay the sensitivity table out: a line for each layer, its increases in % of the loss."""
    widths = sorted({bits for row in report.sensitivity.values() for bits in row})
    lines = []
    if widths:
        heads = "".join(f"{f'{bits} bits':>9}" for bits in widths)
        lines.append(f"{'layer':28}{'weights':>9}{heads}  chosen")
        for row in report.layers:
            increases = "".join(
                f"{100 * value / report.float_loss:+8.2f}%" for value in row["increase"].values()
            )
            lines.append(f"{row['layer']:28}{row['weights']:9}{increases}{row['bits']:8}")
    for name, change in report.activations.items():
        chosen = 16 if name in report.wide else 8
        percent = 100 * change / report.float_loss
        lines.append(f"{name:28} in 16 bits: {percent:+.2f}%, has {chosen}")
    return "\n".join(lines)


def _show(arguments: argparse.Namespace, report: Report, told: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(told))
    elif not arguments.quiet:
        shown = table(report)
        if shown:
            print(shown)
        share = 100 * report.weight_bytes / report.weight_bytes_8
        rise = 100 * (report.loss / report.float_loss - 1)
        print(
            f"{arguments.output}: {told['bytes']} bytes, {told['name']}, weights "
            f"{told['weights']}; {report.weight_bytes} bytes of weights, {share:.1f} % of those at "
            f"8 bits; loss {rise:+.2f} % of that in float"
        )
