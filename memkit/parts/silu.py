"""SiLU with a cheap second derivative: training takes it for every write of a deep memory.

torch composes the second derivative of SiLU of about fifteen passes over memory; six are enough:

    silu'(z) = s (1 + z (1 - s)),    silu''(z) = s (1 - s) (2 + z - 2 z s),    s = sigmoid(z)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(z: Tensor) -> Tensor:
    """`z * sigmoid(z)`, differentiable as often as wanted."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and z.requires_grad):
        return F.silu(z)  # compiled code is fused anyway, and torch.func knows torch's own
    return _Silu.apply(z)  # pyright: ignore[reportReturnType]


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return F.silu(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        return _Back.apply(grad, z)  # pyright: ignore[reportReturnType]


class _Back(torch.autograd.Function):
    """`grad * silu'(z)`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(grad, z)
        return torch.ops.aten.silu_backward(grad, z)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, z = ctx.saved_tensors
        s = torch.sigmoid(z)
        bend = (z + 2).addcmul_(z, s, value=-2)
        both = (grad * upstream).mul_(bend)  # if one is a batch under vmap, so is the product
        return _Back.apply(upstream, z), torch.ops.aten.sigmoid_backward(both, s)  # pyright: ignore[reportReturnType]
