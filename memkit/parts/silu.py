"""SiLU with a cheap second derivative, which every write of a deep memory takes when the outer loop learns.

torch composes the derivative of SiLU's derivative of some fifteen passes over memory; six do:

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
        return F.silu(z)  # what is compiled is fused anyway, and torch.func knows torch's own
    return _Silu.apply(z)  # pyright: ignore[reportReturnType]


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return F.silu(z)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        return _Back.apply(slope, z)  # pyright: ignore[reportReturnType]


class _Back(torch.autograd.Function):
    """`slope * silu'(z)`."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(slope, z)
        return torch.ops.aten.silu_backward(slope, z)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope, z = ctx.saved_tensors
        s = torch.sigmoid(z)
        bend = (z + 2).addcmul_(z, s, value=-2)
        both = (slope * upstream).mul_(bend)  # which of them is a batch under vmap, the product is too
        return _Back.apply(upstream, z), torch.ops.aten.sigmoid_backward(both, s)  # pyright: ignore[reportReturnType]
