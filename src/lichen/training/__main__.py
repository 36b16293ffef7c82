"""Train the student and lower it: `python -m lichen.training train|lower --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from lichen.errors import LichenError
from lichen.lower import lower_student
from lichen.model import from_bytes
from lichen.models.student import Student
from lichen.training.data import Photographs, list_images
from lichen.training.train import Recipe, Trainer, load_tensors, save_tensors, train
from lichen.training.warmstart import block_covariance, start_as_klt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lichen.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    t = commands.add_parser("train", help="train a student; goes on where the run folder stopped")
    t.add_argument("photographs", type=Path, help="folder of training pictures")
    t.add_argument("run", type=Path, help="folder of the run")
    for field in dataclasses.fields(Recipe):
        if field.name in ("encoder_blocks", "decoder_blocks", "bfloat16"):
            continue
        option = "--" + field.name.replace("_", "-")
        t.add_argument(option, type=type(field.default), default=field.default)
    t.add_argument("--weights", type=Path, help="start from these weights, not from the KLT")
    t.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    t.add_argument("--minutes", type=float, default=float("inf"), help="stop (resumable) after")
    t.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    low = commands.add_parser("lower", help="turn a trained run into a model file")
    low.add_argument("run", type=Path)
    low.add_argument("model", type=Path, help="model file to write (.safetensors)")
    low.add_argument("--name", default="student-s")
    low.add_argument("--photographs", type=Path, help="calibrate on these (float-trained runs)")
    low.add_argument("--float-weights", type=Path, help="also write fp16 weights to go on from")
    arguments = parser.parse_args(argv)
    try:
        return _train(arguments) if arguments.command == "train" else _lower(arguments)
    except LichenError as error:
        print(f"lichen: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the run can be resumed", file=sys.stderr)
        return 130


def _train(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    known = {f.name for f in dataclasses.fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in vars(arguments).items() if k in known})
    trainer = Trainer(recipe, arguments.run, device)
    resumed = trainer.resume()
    data = Photographs(list_images(arguments.photographs), recipe.crop, device, seed=recipe.seed)
    if not resumed:
        if arguments.weights:
            load_tensors(trainer.model, arguments.weights)
        else:
            start_as_klt(trainer.model, block_covariance(data).to(device))
        trainer.reset_average()
    print(f"{len(data.pictures)} pictures, {'resumed at' if resumed else 'from'} step "
          f"{trainer.step}", file=sys.stderr)  # fmt: skip
    done = train(trainer, data, time_limit_s=60 * arguments.minutes)
    print("complete" if done else "stopped at the time limit; run again to go on", file=sys.stderr)
    return 0


def _lower(arguments: argparse.Namespace) -> int:
    config = json.loads((arguments.run / "config.json").read_text())
    model = Student(
        config["width"], tuple(config["encoder_blocks"]), tuple(config["decoder_blocks"])
    )
    load_tensors(model, arguments.run / "weights.safetensors")
    if arguments.photographs:
        data = Photographs(list_images(arguments.photographs), 256, torch.device("cpu"))
        with torch.no_grad():
            model.calibrate_begin()
            for _ in range(8):
                model(data.batch(8), torch.linspace(0, 1, 8), noise=False)
            model.calibrate_end()
    elif not config["quantized_steps"]:
        raise LichenError("this run was trained in float: give --photographs to calibrate on")
    lowered = lower_student(model, arguments.name, {"recipe": json.dumps(config)})
    data_bytes = lowered.to_bytes()
    arguments.model.write_bytes(data_bytes)
    if arguments.float_weights:
        save_tensors(model.state_dict(), arguments.float_weights, half=True)
    print(
        f"{arguments.model}: {len(data_bytes)} bytes, weights {from_bytes(data_bytes).digest.hex()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
