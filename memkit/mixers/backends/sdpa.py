"""Banded attention by torch's scaled_dot_product_attention: right on every device and dtype."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.mixers.backends.banded import Backend, Banded

# A block of n queries reads n + window - 1 keys. Blocks as wide as the window waste at most half of the
# scores; with a small window, narrower blocks than this would copy the band's keys too often.
_NARROWEST_BLOCK = 32


def run(call: Banded) -> Tensor:
    """Answer `[B, H, T, K]` in O(T * window) time and memory (O(T^2) without a window).

    Only the first `window - 1` queries see the cache, whose empty slots differ from row to row: they are in
    the first block. All later blocks share one small mask and one call.
    """
    tokens = call.q.shape[2]
    width = tokens if call.window is None else min(tokens, max(call.window, _NARROWEST_BLOCK))
    first = _first_block(call, width)
    return first if width == tokens else torch.cat([first, _later_blocks(call, width)], 2)


def _first_block(call: Banded, width: int) -> Tensor:
    slots = call.cached + width
    call = replace(call, q=call.q[:, :, :width], k=call.k[:, :, :slots], v=call.v[:, :, :slots]).dense()
    keys, values = call.with_prefix()
    prefix, cached = call.prefix_k.shape[2], call.cached
    if isinstance(call.first, int) and (call.window is None or call.window >= cached + width):
        if width == 1:  # everything there is, is visible
            return F.scaled_dot_product_attention(call.q, keys, values)
        if prefix + cached == 0:  # without a mask tensor more kernels apply
            return F.scaled_dot_product_attention(call.q, keys, values, is_causal=True)
    mask = _band(width, cached, call.window, call.q.device)
    if not isinstance(call.first, int):
        slot = torch.arange(mask.shape[1], device=mask.device)
        mask = mask & (slot >= call.first[:, None, None, None])
    mask = F.pad(mask, (prefix, 0), value=True)
    return F.scaled_dot_product_attention(call.q, keys, values, attn_mask=mask)


def _later_blocks(call: Banded, start: int) -> Tensor:
    rows, _, tokens, _ = call.q.shape
    rest = tokens - start
    blocks = -(-rest // start)
    width = -(-rest // blocks)  # even blocks need the least padding
    padding, span = blocks * width - rest, call.cached + width
    q = F.pad(call.q[:, :, start:], (0, 0, 0, padding)).unflatten(2, (blocks, width)).transpose(1, 2)

    def of_each_block(own: Tensor, prefix: Tensor) -> Tensor:
        # unfold gives a view [B, H, N, K, span]: neighboring blocks overlap by the window
        own = F.pad(own[:, :, start:], (0, 0, 0, padding)).unfold(2, span, width).permute(0, 2, 1, 4, 3)
        return torch.cat([prefix[:, None].expand(-1, blocks, -1, -1, -1), own], 3).flatten(0, 1)

    mask = F.pad(_band(width, call.cached, call.window, q.device), (call.prefix_k.shape[2], 0), value=True)
    keys, values = of_each_block(call.k, call.prefix_k), of_each_block(call.v, call.prefix_v)
    y = F.scaled_dot_product_attention(q.flatten(0, 1), keys, values, attn_mask=mask)
    return y.unflatten(0, (rows, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :rest]


def _band(queries: int, cached: int, window: int | None, device: torch.device) -> Tensor:
    """Visible slots `[queries, cached + queries]` of a causal band, empty slots aside."""
    slot = torch.arange(cached + queries, device=device)
    behind = slot[cached:, None] - slot
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def _always_there() -> None:
    pass


BACKEND = Backend("torch", run, _always_there, needs=())
