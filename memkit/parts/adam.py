"""Adam: every entry of a weight has its own step size."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from memkit.parts.optimizer import lr_gate
from memkit.registry import register
from memkit.rule import Gates, Optimizer, Slots


def adam_step(
    grad: Tensor, weight: Tensor, slots: Slots, gates: Gates, *, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Slots]:
    """-lr m / sqrt(v + eps^2); m, v: running means of grad and grad^2, without their bias towards 0."""
    first, second, writes = slots
    first = beta1 * first + (1 - beta1) * grad
    second = beta2 * second + (1 - beta2) * grad.square()
    writes = writes + 1
    mean, square = first / (1 - beta1**writes), second / (1 - beta2**writes)
    return -gates["lr"] * mean * (square + eps**2).rsqrt(), (first, second, writes)


def adam_slots(weight: Tensor) -> Slots:
    """Two running means, and the number of writes."""
    none = torch.zeros_like(weight)
    return none, none, torch.atleast_2d(none)[..., :1, :1].clone()


@register("optimizer", "adam")
def adam(*, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-3, lr: float | None = None) -> Optimizer:
    """Adam (Kingma, Ba, arXiv 1412.6980); gate lr, with the option as default. Not linear.

    eps is under the root, so that a gradient of 0 has a derivative, lr / eps, for the outer loop's gradients. So it is
    as large as Muon's, not the 1e-8 of training: inner gradients are of order 1, and an entry far below eps moves its
    weight by less. With a write at every token it runs token by token; with `update_every`, in one step per write.
    Raises `ValueError` for a beta outside of [0, 1) or an eps not > 0.
    """
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0):
        raise ValueError(
            f"optimizer 'adam': beta1 and beta2 must be in [0, 1) and eps > 0; got {beta1}, {beta2} and {eps}."
        )
    step = partial(adam_step, beta1=beta1, beta2=beta2, eps=eps)
    return Optimizer(name="adam", step=step, init=adam_slots, gates=(lr_gate(lr),), linear=False)
