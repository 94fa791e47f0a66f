"""Objectives (attentional bias): the loss per token that a write reduces."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from memkit.registry import register
from memkit.rule import Gate, Gates, Objective

DELTA = Gate("delta", 0.0, math.inf)


def squared_error(prediction: Tensor, target: Tensor, gates: Gates, *, scale: float) -> Tensor:
    """`scale` times ||M(k) - v||^2, summed over V."""
    return scale * (prediction - target).square().sum(-1)


def negative_dot(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """-<M(k), v>."""
    return -(prediction * target).sum(-1)


def huber_of_norm(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """1/2 ||e||^2 if ||e|| <= delta, else delta (||e|| - delta / 2)."""
    return _huber((prediction - target).square().sum(-1), gates["delta"])


def huber_of_entries(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """`huber_of_norm` of each entry of e, summed over V."""
    return _huber((prediction - target).square(), gates["delta"].unsqueeze(-1)).sum(-1)


def _huber(square: Tensor, delta: Tensor) -> Tensor:
    inside = square <= delta.square()
    size = torch.where(inside, 1.0, square).sqrt()  # never differentiates a root at 0
    return torch.where(inside, square / 2, delta * (size - delta / 2))


def power_error(prediction: Tensor, target: Tensor, gates: Gates, *, p: float, smooth: float) -> Tensor:
    """||e||_p^p with |e| = sqrt(e^2 + smooth)."""
    error = prediction - target
    # Not abs(): its second derivative makes torch load its compiler, for seconds.
    size = (error.square() + smooth).sqrt() if smooth else error * error.detach().sign()
    return size.pow(p).sum(-1)


@register("objective", "l2")
def l2(*, scale: float = 1.0) -> Objective:
    """Squared error ||M(k) - v||^2 (Titans eq. 12: no half, so its gradient carries the factor 2).

    Delta-rule papers use scale=0.5, so that `lr` is their beta.
    """
    return Objective(name="l2", loss=partial(squared_error, scale=scale), quadratic=True)


@register("objective", "dot")
def dot() -> Objective:
    """Dot product -<M(k), v>, the Hebbian write of linear attention and Mamba-2 (MIRAS eq. 8)."""
    return Objective(name="dot", loss=negative_dot, linear=True, quadratic=True)


@register("objective", "huber")
def huber(*, of: Literal["norm", "entries"] = "norm") -> Objective:
    """Half the squared error up to an error of delta, linear beyond it: outliers pull no harder (gate delta).

    of: "norm" for ||M(k) - v|| (MIRAS eq. 15), "entries" for each entry (eq. 13).
    """
    return Objective(name="huber", loss=huber_of_norm if of == "norm" else huber_of_entries, gates=(DELTA,))


@register("objective", "lp")
def lp(*, p: float = 3.0, smooth: float = 0.0) -> Objective:
    """||M(k) - v||_p^p (MIRAS eq. 10-11); its gradient is p sign(e) |e|^(p-1).

    smooth: replace |e| by sqrt(e^2 + smooth); the paper has 1e-6. Below p = 2 the outer loop's gradients need it.
    Raises `ValueError` for p below 1 or a negative `smooth`.
    """
    if not p >= 1 or not smooth >= 0:
        raise ValueError(f"objective 'lp': p must be >= 1 and smooth >= 0; got p = {p} and smooth = {smooth}.")
    return Objective(name=f"l{p:g}", loss=partial(power_error, p=p, smooth=smooth))
