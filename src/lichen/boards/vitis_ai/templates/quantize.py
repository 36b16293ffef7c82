"""Quantise the networks for the DPU with vai_q_pytorch (pytorch_nndct), in AMD's container.

    python quantize.py --quant_mode calib [--fast_finetune]    # -> quantize_result/NAME/
    python quantize.py --quant_mode test [--fast_finetune]     # what the integers cost
    python quantize.py --quant_mode test [--fast_finetune] --deploy    # -> NAME/*_int.xmodel

Calibration tensors are in calibration/, made from photographs by `lichen export`; the last ones of
each network are held back to test with. Runs from Python 3.7 on.
"""

import argparse
import json
import os
import sys

import network
import numpy
import torch

TESTED = "3.0"  # of Vitis AI


def main():
    args = arguments()
    with open(os.path.join(network.HERE, "export.json")) as file:
        export = json.load(file)
    torch_quantizer = quantizer_class()
    torch.manual_seed(0)
    known = network.names()
    for name in args.network or known:
        if name not in known:
            sys.exit("quantize.py: error: no network is called {!r}; there are {}".format(
                name, ", ".join(known)))  # fmt: skip
        quantize(torch_quantizer, name, args, export)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quant_mode", choices=["calib", "test"], required=True)
    parser.add_argument(
        "--fast_finetune",
        action="store_true",
        help="AdaQuant: tune each layer's integers to the float layer's output",
    )
    parser.add_argument("--deploy", action="store_true", help="export the xmodels (mode test)")
    parser.add_argument("--network", action="append", help="only this one (may be repeated)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; xmodels need cpu")
    args = parser.parse_args()
    if args.deploy and (args.quant_mode != "test" or args.device != "cpu"):
        parser.error("--deploy needs --quant_mode test and --device cpu")
    return args


def quantizer_class():
    """Import the quantizer, or say where to find it."""
    try:
        import pytorch_nndct
        from pytorch_nndct.apis import torch_quantizer
    except ImportError as error:
        sys.exit(
            f"quantize.py: error: pytorch_nndct is missing ({error}): run this in the container of "
            f"Vitis AI {TESTED}, in the environment vitis-ai-pytorch; README.md has the command"
        )
    version = str(getattr(pytorch_nndct, "__version__", "unknown"))
    if not version.startswith(TESTED):
        note = f"pytorch_nndct {version} found; this was written for {TESTED}"
        print(f"quantize.py: note: {note}", file=sys.stderr)
    return torch_quantizer


def quantize(torch_quantizer, name, args, export):
    """One network through one mode."""
    description = network.describe(name)
    model = network.load(name)
    output = os.path.join("quantize_result", name)
    pictures = tensors(description)
    held = max(1, len(pictures[0]) // 8)
    calibration = [x[:-held] for x in pictures]
    test = [x[-held:] for x in pictures]
    if args.quant_mode == "test" and not os.path.exists(os.path.join(output, "quant_info.json")):
        found = f"{output} has no quant_info.json"
        sys.exit(f"quantize.py: error: {found}: run --quant_mode calib first")
    device = torch.device(args.device)
    if args.deploy:  # an xmodel has the size that it is traced with
        example = [torch.zeros(s) for s in network.tile_inputs(description, export["tile"])]
    else:
        example = [real(x[:1]) for x in calibration]
    quantizer = torch_quantizer(
        args.quant_mode, model, tuple(example), output_dir=output, device=device
    )
    quantized = quantizer.quant_model
    if args.fast_finetune and args.quant_mode == "calib":
        quantizer.fast_finetune(loss, (quantized, model, calibration, device))
    elif args.fast_finetune:
        quantizer.load_ft_param()
    if args.quant_mode == "calib":
        forward(quantized, calibration, device)
        quantizer.export_quant_config()
    elif args.deploy:
        with torch.no_grad():
            quantized(*example)
        quantizer.export_xmodel(output_dir=output, deploy_check=False)
        print(f"{name}: {output}")
    else:
        report(name, quantized, model, test, device)


def tensors(description):
    """Load the calibration tensors of a network: int8 and a scale for each input."""
    folder = os.path.join(network.HERE, "calibration")
    found = []
    for entry in description["inputs"]:
        path = os.path.join(folder, "{}.{}.npy".format(description["name"], entry["name"]))
        found.append(Pictures(numpy.load(path, mmap_mode="r"), entry["exponent"]))
    return found


class Pictures:
    """Integers (N, C, H, W) that stand for q * 2**-exponent."""

    def __init__(self, values, exponent):
        self.values, self.exponent = values, exponent

    def __len__(self):
        return len(self.values)

    def __getitem__(self, which):
        return Pictures(self.values[which], self.exponent)


def real(pictures):
    """Give the real numbers as a float tensor."""
    return torch.from_numpy(pictures.values.astype("float32") * 2.0**-pictures.exponent)


def forward(model, pictures, device):
    """Run a model on every picture."""
    model.eval()
    model.to(device)
    with torch.no_grad():
        for k in range(len(pictures[0])):
            model(*(real(x[k : k + 1]).to(device) for x in pictures))


def as_tuple(results):
    return results if isinstance(results, (tuple, list)) else (results,)


def squares(quantized, model, pictures, device):
    """Give the sums of squares of the error and of the float results."""
    error = power = 0.0
    quantized.eval()
    model.to(device)
    with torch.no_grad():
        for k in range(len(pictures[0])):
            given = [real(x[k : k + 1]).to(device) for x in pictures]
            pairs = zip(as_tuple(quantized(*given)), as_tuple(model(*given)))
            for found, wanted in pairs:
                error += float(((found - wanted) ** 2).sum())
                power += float((wanted**2).sum())
    return error, power


def loss(quantized, model, pictures, device):
    """Give the relative squared error: what fast finetuning keeps only if it falls."""
    error, power = squares(quantized, model, pictures, device)
    return error / max(power, 1e-30)


def report(name, quantized, model, pictures, device):
    """Print how far the quantised network is from the float one, on pictures held back."""
    error = max(loss(quantized, model, pictures, device), 1e-30)
    decibel = -10 * numpy.log10(error)
    count = len(pictures[0])
    print(f"{name}: signal to quantisation noise {decibel:.2f} dB on {count} pictures")


if __name__ == "__main__":
    main()
