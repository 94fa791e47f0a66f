"""Banded attention by xformers' memory_efficient_attention: CUDA, bf16 and fp16.

Written from the package's documented conventions and tested with a stand-in of its signatures; it has not been
measured on a GPU here.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from memkit.mixers.backends.banded import (
    Backend,
    cache_known_to_host,
    head_dim_in_eights,
    in_half_precision,
    on_cuda,
)
from memkit.mixers.backends.merging import EVERYTHING, Kernel, Reach, run_banded
from memkit.mixers.backends.probes import require_cuda


def _ops() -> Any:
    return importlib.import_module("xformers.ops")


def _bias(reach: Reach) -> Any:
    """The mask object: `BottomRight` puts the last query at the last key, as a cache needs."""
    biases = importlib.import_module("xformers.ops.fmha.attn_bias")
    if reach == EVERYTHING:
        return None
    if reach[0] < 0:
        return biases.LowerTriangularFromBottomRightMask()
    return biases.LocalAttentionFromBottomRightMask(window_left=reach[0], window_right=reach[1])


def _attention(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    return _ops().memory_efficient_attention(q, k, v, attn_bias=_bias(reach))


def _forward(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    out, lse = _ops().memory_efficient_attention_forward_requires_grad(q, k, v, attn_bias=_bias(reach))
    return out, lse[:, :, : q.shape[1]]  # some kernels pad the queries; the backward pads them again itself


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, reach: Reach
) -> tuple[Tensor, Tensor, Tensor]:
    return _ops().memory_efficient_attention_backward(grad, out, lse, q, k, v, attn_bias=_bias(reach))


KERNEL = Kernel(_attention, _forward, _backward)


def _probe() -> None:
    _ops().memory_efficient_attention_backward  # noqa: B018  the op must be there, before a training step asks
    _bias((0, 0))
    require_cuda()
    tiny = torch.zeros(1, 1, 1, 16, dtype=torch.float16, device="cuda")
    _attention(tiny, tiny, tiny, (0, 0))  # raises NotImplementedError (a RuntimeError) where no kernel fits


BACKEND = Backend(
    "xformers",
    functools.partial(run_banded, KERNEL),
    _probe,
    needs=(on_cuda, in_half_precision, cache_known_to_host, head_dim_in_eights),
    remedy="a CUDA device and `pip install -e '.[xformers]'`",
)
