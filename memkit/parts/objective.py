"""Objectives (attentional bias): what a write makes smaller, per token."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from memkit.registry import register
from memkit.rule import Gates, Objective


def squared_error(prediction: Tensor, target: Tensor, gates: Gates, *, scale: float) -> Tensor:
    """`scale` times ||M(k) - v||^2, summed over V."""
    return scale * (prediction - target).square().sum(-1)


def negative_dot(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """-<M(k), v>."""
    return -(prediction * target).sum(-1)


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
