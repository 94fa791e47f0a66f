"""Banded attention by flash-attn (versions 2.7 and 2.8): CUDA, bf16 and fp16.

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
from memkit.mixers.backends.merging import Kernel, Reach, run_banded
from memkit.mixers.backends.probes import require_cuda


def _interface() -> Any:
    return importlib.import_module("flash_attn.flash_attn_interface")


def _attention(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    return _interface().flash_attn_func(q, k, v, causal=reach[1] == 0, window_size=reach)


def _forward(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    out, lse, _, _ = _interface()._flash_attn_forward(q, k, v, return_softmax=False, **_settings(q, reach))
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, reach: Reach
) -> tuple[Tensor, Tensor, Tensor]:
    # The kernel fills these and wants them packed, whatever strides q, k and v have.
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _interface()._flash_attn_backward(
        grad, q, k, v, out, lse, dq, dk, dv, deterministic=_deterministic(), **_settings(q, reach)
    )
    return dq, dk, dv


def _settings(q: Tensor, reach: Reach) -> dict[str, Any]:
    """Return the common arguments of the package's private forward and backward; none has a default."""
    return {
        "dropout_p": 0.0,
        "softmax_scale": q.shape[-1] ** -0.5,
        "causal": reach[1] == 0,
        "window_size_left": reach[0],
        "window_size_right": reach[1],
        "softcap": 0.0,
        "alibi_slopes": None,
    }


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


KERNEL = Kernel(_attention, _forward, _backward)


def _probe() -> None:
    _interface()._flash_attn_backward  # noqa: B018  the op must be there, before a training step asks for it
    require_cuda()
    tiny = torch.zeros(1, 1, 1, 16, dtype=torch.float16, device="cuda")
    _attention(tiny, tiny, tiny, (-1, 0))  # a build for another GPU fails here


BACKEND = Backend(
    "flash_attn",
    functools.partial(run_banded, KERNEL),
    _probe,
    needs=(on_cuda, in_half_precision, cache_known_to_host, head_dim_in_eights),
    remedy="a CUDA device and `pip install -e '.[flash]'`",
)
