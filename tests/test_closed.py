"""ReLUs that training closes: seen, and opened again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the [train] extra")

from lichen.models.layers import Conv2d, KeepAlive  # noqa: E402
from lichen.models.student import Student  # noqa: E402
from lichen.training.closed import closed_channels  # noqa: E402

TINY = {"width": 8, "encoder_blocks": [1, 0, 0], "decoder_blocks": [1, 0, 0], "fine_width": 8,
        "coarse_width": 8, "latents": 16, "hyper_width": 8, "hyper_reduction": 32}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


def test_open_channels_have_the_gradient_of_a_relu():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn_like(x)
    (KeepAlive.apply(x) * weight).sum().backward()
    expected = torch.where(x > 0, weight, 0.0)
    assert torch.equal(x.grad, expected)


def test_closed_channels_are_asked_for_more_only():
    x = -torch.rand(2, 2, 8, 8)
    x[0, 0, 0, 0] = 1.0  # 1 of 128: counts as closed, and is open itself
    x.requires_grad_()
    weight = torch.randn_like(x)
    (KeepAlive.apply(x) * weight).sum().backward()
    expected = torch.where((x > 0) | (weight < 0), weight, 0.0)
    assert torch.equal(x.grad, expected)


def test_one_closed_channel_leaves_the_others_their_gradient():
    x = torch.randn(2, 3, 8, 8)
    x[:, 1] = -1.0
    x.requires_grad_()
    weight = torch.randn_like(x)
    (KeepAlive.apply(x) * weight).sum().backward()
    expected = torch.where(x > 0, weight, 0.0)
    expected[:, 1] = weight[:, 1].clamp_max(0)
    assert torch.equal(x.grad, expected)


def test_relus_stay_open_in_integers():
    layer = Conv2d(1, 1, 1, dtype="u8", exponent=0)
    layer.quantized = True
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-100.0)
    layer(torch.ones(1, 1, 4, 4), 0).sum().mul(-1).backward()  # asks for more
    assert layer.bias.grad.item() == -16


def test_closed_channels_are_counted():
    torch.manual_seed(0)
    model, x = Student(**TINY), torch.rand(2, 3, 64, 64) * 2 - 1
    name = "synthesis_branch.4.conv1"
    assert closed_channels(model, x)[name] == (0, 8)
    with torch.no_grad():
        model.synthesis_branch[4].conv1.bias.fill_(-100.0)
    assert closed_channels(model, x)[name] == (8, 8)
    assert "analysis_branch.1" not in closed_channels(model, x)  # no ReLU


def test_training_opens_what_is_closed():
    """A target that a closed block could reach opens it: with a plain ReLU it never would."""
    torch.manual_seed(0)
    block = Student(**TINY).synthesis_branch[4]
    x = torch.randn(4, 8, 16, 16)
    target = x + torch.relu(x.roll(1, 1))
    with torch.no_grad():
        block.conv1.bias.fill_(-3.0)
        block.conv1.weight.mul_(0.1)
    assert not (block.conv1(x) > 0).any()
    optimizer = torch.optim.Adam(block.parameters(), lr=2e-2)
    losses = []
    for _ in range(200):
        loss = (block(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert (block.conv1(x) > 0).float().mean() > 0.02
    assert losses[-1] < 0.7 * losses[0]
