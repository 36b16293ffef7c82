"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", algorithm 3. A weight
(O, I, kh, kw) is seen as the matrix (O, I * kh * kw). Sides of more than `max_side`, and tensors
that are no matrix (biases, gains' vectors), keep the plain basis: those get Adam. Bases are kept
and applied in bfloat16 where the processor multiplies fast in it: an update then has an error of
some tenths of a percent, and costs a third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SOAP(torch.optim.Optimizer):
    """SOAP without weight decay.

    Args:
        params: parameters or groups of them, float32.
        lr: the step, as Adam's.
        betas: decay of the averages of the gradient and of its square.
        rotate: (of a group) False for tensors that are no matrices in spirit: those get Adam.
        shampoo_beta: decay of the averages of G G^T and G^T G.
        eps: added to the root of the squares.
        dtype: of the bases and of products with them; bfloat16 or float32.
        max_side: larger sides of a matrix are not rotated.
        every: steps between two updates of the bases (one power iteration and a QR each).

    The first step sets the bases and changes no weight of a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        max_side: int = 1024,
        every: int = 20,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "shampoo_beta": shampoo_beta,
                "eps": eps,
                "max_side": max_side,
                "every": every,
                "rotate": True,
            },
        )
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        matrix = group["rotate"] and parameter.dim() > 1
        grad = parameter.grad.flatten(1) if matrix else parameter.grad
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(grad)  # in the rotated basis, as the square
            state["square"] = torch.zeros_like(grad)
            for side, size in enumerate(grad.shape if matrix else ()):
                if 1 < size <= group["max_side"]:
                    state[f"moment{side}"] = grad.new_zeros(size, size)
        state["step"] += 1
        if state["step"] == 1 and ("moment0" in state or "moment1" in state):
            self._add_moments(state, grad, 0.0)
            for side in (0, 1):
                if f"moment{side}" in state:
                    # many equal eigenvalues (channels without a gradient) defeat float32
                    moment = state[f"moment{side}"].double()
                    moment /= moment.diagonal().mean().clamp_min(1e-300)
                    basis = torch.linalg.eigh(moment)[1].flip(1)
                    state[f"basis{side}"] = basis.to(self.dtype)
            return
        rotated = self._rotate(grad, state)
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(rotated, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
        count = state["step"]
        size = group["lr"] * math.sqrt(1 - beta2**count) / (1 - beta1**count)
        direction = state["mean"] / (state["square"].sqrt() + group["eps"])
        if beta1 == beta2:  # by Cauchy and Schwarz at most 1, but where the basis has just turned
            direction.clamp_(-1.0, 1.0)
        parameter.sub_(size * self._rotate(direction, state, back=True).view(parameter.shape))
        self._add_moments(state, grad, group["shampoo_beta"])
        if count % group["every"] == 0:
            self._turn(state)

    def _add_moments(self, state: dict[str, Any], grad: Tensor, beta: float) -> None:
        low = grad.to(self.dtype)
        if "moment0" in state:
            state["moment0"].lerp_((low @ low.T).to(grad.dtype), 1 - beta)
        if "moment1" in state:
            state["moment1"].lerp_((low.T @ low).to(grad.dtype), 1 - beta)

    def _turn(self, state: dict[str, Any]) -> None:
        """Bring the bases nearer to the eigenvectors; averages follow them."""
        mean = self._rotate(state["mean"], state, back=True)
        for side in (0, 1):
            if f"moment{side}" not in state:
                continue
            moment = state[f"moment{side}"]
            basis = state[f"basis{side}"].to(moment.dtype)
            product = moment @ basis
            order = torch.argsort((basis * product).sum(0), descending=True)
            state["square"] = state["square"].index_select(side, order)
            state[f"basis{side}"] = torch.linalg.qr(product[:, order])[0].to(self.dtype)
        state["mean"] = self._rotate(mean, state)

    def _rotate(self, x: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
        """Give x in the bases, or from there back in the plain one."""
        if "basis0" not in state and "basis1" not in state:
            return x
        y = x.to(self.dtype)
        if "basis0" in state:
            basis = state["basis0"].to(self.dtype)
            y = (basis if back else basis.T) @ y
        if "basis1" in state:
            basis = state["basis1"].to(self.dtype)
            y = y @ (basis.T if back else basis)
        return y.to(x.dtype)
