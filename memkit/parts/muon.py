"""Muon: orthogonalized momentum, so that all directions of a matrix move equally."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from memkit.parts.optimizer import MOMENTUM, gathered_step, lr_gate, zero_slot
from memkit.registry import register
from memkit.rule import Gates, Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of X <- a X + b (X X^T) X + c (X X^T)^2 X: five steps bring singular values in (0, 1] near 1."""


def newton_schulz(matrix: Tensor, steps: int, eps: float = 1e-3) -> Tensor:
    """Push the singular values of matrices `[..., in, out]` towards 1, keeping their singular vectors.

    A matrix with a norm not well above `eps` ends up shorter. Muon's own eps is 1e-7, but here the gradients of the
    outer loop pass through, multiplied by up to 3.4445^steps / eps.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x * (x.square().sum((-2, -1), keepdim=True) + eps**2).rsqrt()
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def orthogonal_step(step: Tensor, gates: Gates, *, steps: int, eps: float) -> Tensor:
    """-lr NewtonSchulz(S)   (ATLAS eq. 32; LaCT eq. 9)."""
    return -gates["lr"] * newton_schulz(step, steps, eps)


@register("optimizer", "muon")
def muon(*, steps: int = 5, eps: float = 1e-3, lr: float | None = None) -> Optimizer:
    """Orthogonalized momentum S_t = momentum S_{t-1} + grad, step -lr NewtonSchulz(S_t); gates lr, momentum.

    steps: iterations of Newton-Schulz, ATLAS' k. eps: the scale of negligible S, see `newton_schulz`. lr: the default
    of the gate `lr`. Raises `ValueError` for negative steps, or an eps not > 0.
    """
    if steps < 0 or not eps > 0:
        raise ValueError(f"optimizer 'muon': steps must be >= 0 and eps > 0; got {steps} and {eps}.")
    return Optimizer(
        name="muon",
        step=gathered_step,
        init=zero_slot,
        gates=(lr_gate(lr), MOMENTUM),
        direction=partial(orthogonal_step, steps=steps, eps=eps),
    )
