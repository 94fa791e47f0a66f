"""Optimizers (memory algorithm): from a token's gradient to a step, on one weight.

`torch.addcmul(x, a, b)` is x + a b in one pass over the matrix; a product and a sum take two.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from memkit.registry import register
from memkit.rule import Gate, Gates, Optimizer, Slots

LR = Gate("lr", 0.0, math.inf)
MOMENTUM = Gate("momentum", 0.0, 1.0)


def lr_gate(default: float | None) -> Gate:
    """The gate `lr` with a `default`; None makes it required."""
    return replace(LR, default=default)


def gradient_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """-lr grad   (Titans eq. 8)."""
    return -gates["lr"] * grad, ()


def momentum_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """S_t = momentum S_{t-1} - lr grad   (Titans eq. 10, 14)."""
    step = torch.addcmul(gates["momentum"] * slots[0], gates["lr"], grad, value=-1)
    return step, (step,)


def gathered_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """S_t = momentum S_{t-1} + grad   (ATLAS eq. 33; LaCT's M <- beta M + g)."""
    gathered = torch.addcmul(grad, gates["momentum"], slots[0])
    return gathered, (gathered,)


def heavy_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """-lr S_t, S_t = momentum S_{t-1} + grad."""
    gathered, slots = gathered_step(grad, weight, slots, gates)
    return -gates["lr"] * gathered, slots


def zero_slot(weight: Tensor) -> Slots:
    """One slot of zeros: no past surprise."""
    return (torch.zeros_like(weight),)


@register("optimizer", "gradient_descent")
def gradient_descent(
    *, lr: float | None = None, lr_max: float = math.inf, per: Literal["head", "pair"] = "head"
) -> Optimizer:
    """Plain gradient descent; gate lr.

    lr: the default of the gate; None makes it required. lr_max: the end of its range. per: one number per head, or one
    for each of a token's several pairs.
    """
    return Optimizer(
        name="gradient_descent", step=gradient_step, gates=(replace(LR, high=lr_max, per=per, default=lr),)
    )


@register("optimizer", "momentum")
def momentum(*, lr: float | None = None) -> Optimizer:
    """Gradient descent with momentum, Titans' past surprise; gates lr (see "gradient_descent"), momentum."""
    return Optimizer(name="momentum", step=momentum_step, init=zero_slot, gates=(lr_gate(lr), MOMENTUM))


@register("optimizer", "heavy_ball")
def heavy_ball(*, lr: float | None = None) -> Optimizer:
    """Momentum of gradients, scaled by lr at each step; gates lr, momentum.

    In "momentum", each gradient keeps the lr of its own token; so the two differ if lr changes.
    """
    return Optimizer(name="heavy_ball", step=heavy_step, init=zero_slot, gates=(lr_gate(lr), MOMENTUM))
