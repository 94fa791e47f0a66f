"""A window and an always-visible prefix with kernels that know only bands: two calls, merged.

Attention to two sets of keys is the mean of both answers, weighted by their sums of exponentials:

    lse = log(exp(lse_1) + exp(lse_2)),   out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

A flash kernel's backward rebuilds probabilities as exp(score - lse) and subtracts rowsum(grad * out). Given
the merged `out` and `lse` it returns its share of the exact gradients, so both kernels are handed those and
nothing is differentiated through the merge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import once_differentiable
from memkit.mixers.backends.banded import Banded

# How far a query at the bottom right sees to the left and to the right; -1 is no bound. flash-attn's words.
Reach = tuple[int, int]
EVERYTHING: Reach = (-1, -1)


class Kernel(NamedTuple):
    """A flash-like kernel as three functions over q `[B, T, H, K]`, k, v `[B, S, H, K]` and a `Reach`.

    Query t stands at key S - T + t. attention(q, k, v, reach) -> out `[B, T, H, K]`, with its own backward;
    forward(q, k, v, reach) -> (out, lse `[B, H, T]`) without one;
    backward(grad, q, k, v, out, lse, reach) -> gradients of (q, k, v).
    """

    attention: Callable[[Tensor, Tensor, Tensor, Reach], Tensor]
    forward: Callable[[Tensor, Tensor, Tensor, Reach], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Reach], tuple[Tensor, Tensor, Tensor]]


def run_banded(kernel: Kernel, call: Banded) -> Tensor:
    """Answer a call whose rows share their number of empty slots: `[B, H, T, K]`."""
    call = call.dense()
    q = call.q.transpose(1, 2)
    reach = (-1 if call.window is None else call.window - 1, 0)
    if call.window is None or call.prefix_k.shape[2] == 0:
        k, v = call.with_prefix()  # without a left bound, keys in front are visible to all as they are
        y = kernel.attention(q, k.transpose(1, 2), v.transpose(1, 2), reach)
    else:
        prefix_k, prefix_v, k, v = (x.transpose(1, 2) for x in (call.prefix_k, call.prefix_v, call.k, call.v))
        y = attend_prefix_and_band(kernel, q, prefix_k, prefix_v, k, v, reach)
    return y.transpose(1, 2)


def attend_prefix_and_band(
    kernel: Kernel, q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor, reach: Reach
) -> Tensor:
    """Attend from q `[B, T, H, K]` to a prefix `[B, P, H, K]`, P >= 1, that all see, and to a band of k, v.

    Returns `[B, T, H, K]`, with first derivatives only.
    """
    return _PrefixAndBand.apply(kernel, reach, q, prefix_k, prefix_v, k, v)  # type: ignore[return-value]


class _PrefixAndBand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        reach: Reach,
        q: Tensor,
        prefix_k: Tensor,
        prefix_v: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        prefix_out, prefix_lse = kernel.forward(q, prefix_k, prefix_v, EVERYTHING)
        band_out, band_lse = kernel.forward(q, k, v, reach)
        lse = torch.logaddexp(prefix_lse, band_lse)
        out = _weighted(prefix_out, prefix_lse, lse) + _weighted(band_out, band_lse, lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, prefix_k, prefix_v, k, v, out, lse)
        ctx.kernel, ctx.reach = kernel, reach
        return out

    @staticmethod
    @once_differentiable("attention by this kernel", "backend='torch'")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, prefix_k, prefix_v, k, v, out, lse = saved
        grad = grad.contiguous()  # the gradient of a sum is one number with strides of 0
        to_prefix = ctx.kernel.backward(grad, q, prefix_k, prefix_v, out, lse, EVERYTHING)
        to_band = ctx.kernel.backward(grad, q, k, v, out, lse, ctx.reach)
        return None, None, to_prefix[0] + to_band[0], *to_prefix[1:], *to_band[1:]


def _weighted(out: Tensor, own: Tensor, merged: Tensor) -> Tensor:
    return out * (own - merged).exp().transpose(1, 2)[..., None]  # fp32 weights carry bf16 answers along
