"""SOAP: Adam where nothing is rotated, faster than Adam where axes are not the problem's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the [train] extra")

from lichen.training.soap import SOAP  # noqa: E402


def _descend(optimizer, weight, loss, steps):
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(weight)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values


def _skewed(seed=0, size=24):
    """Give a loss (W - T) A (W - T)^T whose curvatures span 10^4, along no axis of W."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    curvature = basis * torch.logspace(-4, 0, size) @ basis.T
    target = torch.randn(8, size, generator=generator)
    return lambda w: ((w - target) @ curvature * (w - target)).sum()


def test_tensors_that_are_not_rotated_get_adam():
    torch.manual_seed(0)
    start, loss = torch.randn(8, 24), _skewed()
    own, other = (torch.nn.Parameter(start.clone()) for _ in range(2))
    soap = SOAP([{"params": [own], "rotate": False}], lr=1e-2, betas=(0.9, 0.99))
    adam = torch.optim.Adam([other], lr=1e-2, betas=(0.9, 0.99))
    assert _descend(soap, own, loss, 50) == pytest.approx(_descend(adam, other, loss, 50), rel=1e-5)
    torch.testing.assert_close(own, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_worth_it(dtype):
    loss = _skewed()
    own, other = (torch.nn.Parameter(torch.zeros(8, 24)) for _ in range(2))
    soap = SOAP([own], lr=0.05, every=5, dtype=dtype)
    adam = torch.optim.Adam([other], lr=0.05, betas=(0.95, 0.95))
    assert _descend(soap, own, loss, 200)[-1] < 0.5 * _descend(adam, other, loss, 200)[-1]


def test_channels_without_a_gradient_do_no_harm():
    """Their moments are equal eigenvalues, which float32 may fail to part."""
    weight = torch.nn.Parameter(torch.randn(96, 864, generator=torch.Generator().manual_seed(0)))
    soap = SOAP([weight], lr=1e-2)
    for step in range(3):
        weight.grad = torch.zeros(96, 864)
        weight.grad[0, :5] = 1e-7 * torch.arange(1, 6) * (step + 1)
        weight.grad[1, 3:9] = 1e-12
        soap.step()
        assert torch.isfinite(weight).all()


def test_bases_stay_orthonormal_and_near_the_eigenvectors():
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(12, 12))[0] * torch.logspace(0, -1.5, 12)
    weight = torch.nn.Parameter(torch.zeros(6, 4, 3, 1))
    soap = SOAP([weight], lr=1e-3, every=5, shampoo_beta=0.99)
    for _ in range(400):
        weight.grad = (torch.randn(6, 12) @ mixing.T).view(6, 4, 3, 1)
        soap.step()
    state = soap.state[weight]
    assert state["basis0"].shape == (6, 6) and state["basis1"].shape == (12, 12)
    basis, moment = state["basis1"], state["moment1"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(12), atol=1e-4, rtol=0)
    turned = basis.T @ moment @ basis
    off = (turned - turned.diag().diag()).norm() / turned.norm()
    assert off < 0.1 < (moment - moment.diag().diag()).norm() / moment.norm()


def test_sides_that_are_too_long_are_not_rotated():
    weight = torch.nn.Parameter(torch.randn(4, 40))
    soap = SOAP([weight], max_side=32)
    weight.grad = torch.randn(4, 40)
    soap.step()
    assert {"basis0"} == {key for key in soap.state[weight] if key.startswith("basis")}
