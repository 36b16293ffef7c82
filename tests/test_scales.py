"""Scales of a student's channels, and the rounding that it is trained with."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the [train] extra")

from lichen.models.layers import RANGES, Conv2d, ResidualBlock, fake_quantize, on_grid  # noqa: E402
from lichen.models.student import Student  # noqa: E402
from lichen.training import quantize, scales  # noqa: E402

SMALL = {"width": 8, "encoder_blocks": [1, 1, 1], "decoder_blocks": [2, 1, 1], "fine_width": 8,
         "coarse_width": 8, "latents": 16, "hyper_width": 8, "hyper_reduction": 32}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


def uneven_student() -> Student:
    """A student whose branches speak up, each channel at a level of its own."""
    torch.manual_seed(0)
    model = Student(**SMALL).eval()
    with torch.no_grad():
        for layer in (model.analysis_branch[-1], model.synthesis_branch[-2]):
            layer.weight.normal_(std=0.2)
        for stream in scales.streams_of(model):
            size = stream.readers[0].weight.shape[1]
            level = torch.logspace(-1.5, 0.5, size)[torch.randperm(size)]
            for writer, shuffle in stream.writers:
                if isinstance(writer, Conv2d):
                    scales._scale_outputs(writer, level, shuffle)
                else:
                    writer.multiplier.mul_(level)
            for reader in stream.readers:
                reader.weight.div_(level[None, :, None, None])
    return model


def photographs() -> torch.Tensor:
    torch.manual_seed(1)
    coarse = torch.rand(4, 3, 8, 8) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


def test_streams_hold_every_signed_tensor_of_the_branches():
    model = Student(**SMALL)
    streams = scales.streams_of(model)
    written = [writer for stream in streams for writer, _ in stream.writers]
    read = [reader for stream in streams for reader in stream.readers]
    branches = [*model.analysis_branch, *model.synthesis_branch]
    blocks = [layer for layer in branches if isinstance(layer, ResidualBlock)]
    convolutions = [layer for layer in branches if isinstance(layer, Conv2d)]
    narrow = [layer for layer in convolutions if layer.dtype == "s8"]
    assert set(written) == {model.synthesis_input, *narrow, *(b.conv2 for b in blocks)}
    first = convolutions[0]  # reads pixels, which have a scale already
    assert set(read) == {*convolutions, *(b.conv1 for b in blocks)} - {first}
    assert len(set(written)) == len(written) and len(set(read)) == len(read)


@torch.no_grad()
def test_channels_fill_their_range():
    model, x = uneven_student(), photographs()
    spread = []
    for _ in range(2):
        (clip,) = scales.clips(model, scales.streams_of(model)[-1:], [x])
        spread.append(float(clip.max() / clip.min()))
        scales.equalise(model, [x])
    assert spread[0] > 10 and spread[1] < 1.2


@torch.no_grad()
def test_scales_change_nothing_in_float():
    model, x = uneven_student(), photographs()
    model.gain.add_(torch.linspace(0, 4, model.latent_channels))  # h_a then scales its input
    v = model.analyse(x) * model.gains(torch.ones(len(x)))[0]
    inside = 0.3 * v  # of what h_a still reads unclipped

    def everything() -> list[torch.Tensor]:
        return [model.analyse(x), model.hyper_analyse(inside), model.synthesise(v)]

    before, multiplier = everything(), model.hyper_input.multiplier.clone()
    scales.equalise(model, [x])
    assert not torch.equal(model.hyper_input.multiplier, multiplier)
    for a, b in zip(before, everything()):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()


@torch.no_grad()
def test_scaled_integers_are_nearer_to_float():
    x, position = photographs(), torch.linspace(0, 1, 4)
    wanted = uneven_student()(x, position, noise=False).x_hat
    errors = {}
    for rescale in (False, True):
        model = uneven_student()
        quantize.fit(model, [x], rescale=rescale)
        model.set_quantized(True)
        errors[rescale] = float((model(x, position, noise=False).x_hat - wanted).square().mean())
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.parametrize("dtype", ["u8", "s8", "s16"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_torch(dtype, kind):
    torch.manual_seed(2)
    spread = 1.5 * RANGES[dtype][1] / 8
    x = (torch.randn(4096) * spread).to(kind).requires_grad_()
    slope = torch.randn(4096).to(kind)
    ours = fake_quantize(x, 3, dtype)
    ours.backward(slope)
    found, x.grad = x.grad, None
    theirs = torch.fake_quantize_per_tensor_affine(x, 2.0**-3, 0, *RANGES[dtype])
    theirs.backward(slope)
    assert torch.equal(ours, theirs)
    integers = x.detach().float() * 8
    ends = torch.tensor(RANGES[dtype]).float()[:, None] + torch.tensor([[-0.5], [0.5]])
    between = (integers[None] != ends).all(0)  # at a range's very end the gradient is a choice
    assert torch.equal(found[between], x.grad[between])
    assert 0 < int((found == 0).sum()) < 4096


def test_weights_are_rounded_on_the_grid_of_their_channel():
    torch.manual_seed(3)
    weight, bias = torch.randn(3, 2, 3, 3), torch.randn(3)
    exponents = torch.tensor([4, 6, 5])
    found, found_bias = on_grid(weight, bias, exponents, 2, 0, 127)
    scale = torch.exp2(exponents.float())
    wanted = torch.fake_quantize_per_channel_affine(
        weight, 1 / scale, torch.zeros(3, dtype=torch.int32), 0, -127, 127
    )
    assert torch.equal(found, wanted)
    assert torch.equal(found_bias, torch.round(bias * scale * 4) / scale / 4)
