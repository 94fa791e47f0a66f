"""Banded attention by torch's FlexAttention: the band, the prefix and the empty slots in one mask function.

Opt-in, by `backend="flex"`: it is compiled at the first use and again for new lengths. On a CPU it has no
backward. Its forward is tested against `torch` on a CPU; on a GPU it has not been measured here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from memkit.mixers.backends.banded import Backend, Banded, on_cuda
from memkit.mixers.backends.probes import require_cuda


def run(call: Banded) -> Tensor:
    """Answer `[B, H, T, K]`: compiled on CUDA, in eager mode elsewhere."""
    call = call.dense()
    k, v = call.with_prefix()
    attention = _compiled() if call.q.is_cuda else flex_attention
    return attention(call.q, k, v, block_mask=_mask(call))


def _mask(call: Banded) -> BlockMask:
    tokens, prefix, cached, device = call.q.shape[2], call.prefix_k.shape[2], call.cached, call.q.device
    if isinstance(call.first, int):
        return _shared_mask(tokens, prefix, cached, call.window, device)
    first = call.first
    band = _band(prefix, cached, call.window)

    def visible(row: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        return band(row, head, query, slot) & ((slot < prefix) | (slot - prefix >= first[row]))

    rows = call.q.shape[0]
    return create_block_mask(visible, rows, None, tokens, prefix + cached + tokens, device=str(device))


@functools.lru_cache(maxsize=16)  # dear to build, and every layer of a model asks for the same
def _shared_mask(tokens: int, prefix: int, cached: int, window: int | None, device: torch.device) -> BlockMask:
    band = _band(prefix, cached, window)
    with torch.inference_mode(False):  # what is kept must serve training too
        return create_block_mask(band, None, None, tokens, prefix + cached + tokens, device=str(device))


def _band(prefix: int, cached: int, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def visible(row: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        behind = query + cached + prefix - slot
        band = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return band | (slot < prefix)

    return visible


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _head_dim_is_power_of_two(call: Banded) -> str | None:
    width = call.q.shape[-1]
    fits = width >= 16 and width & (width - 1) == 0
    return None if fits else f"head width {width} is not a power of two from 16 on"


def _not_double(call: Banded) -> str | None:
    return "the kernel takes no float64" if call.q.dtype == torch.float64 else None


BACKEND = Backend(
    "flex",
    run,
    probe=require_cuda,
    needs=(on_cuda, _not_double, _head_dim_is_power_of_two),
    remedy="a CUDA device (FlexAttention has no backward on a CPU)",
)
