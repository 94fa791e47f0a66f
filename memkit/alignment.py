"""Alignment: valid token n of a row goes to slot offset + n of a grid, at static shapes.

Events at fixed counts of a row's own tokens (mini-batches, segments, convolution taps) then fall on the same slots for
all rows, whatever the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """valid `[B, L]`: the slots with a token; the rest serves `to_slots` and `to_tokens`."""

    valid: Tensor
    _source: Tensor
    _slot: Tensor

    def to_slots(self, x: Tensor) -> Tensor:
        """Map x `[B, T, ...]` -> `[B, L, ...]`, 0 in empty slots."""
        return pick(torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1), self._source)

    def to_tokens(self, y: Tensor) -> Tensor:
        """Map y `[B, L, ...]` -> `[B, T, ...]`; values at masked tokens have no meaning."""
        return pick(y, self._slot)


def align(mask: Tensor, offset: Tensor, length: int) -> Alignment:
    """Place the valid tokens of mask `[B, T]` from slot `offset` `[B]` on, in a grid of `length` slots."""
    batch, tokens = mask.shape
    slot = offset[:, None] + mask.long().cumsum(1) - 1
    source = torch.full((batch, length + 1), tokens, device=mask.device)  # `tokens` marks an empty slot
    place = torch.arange(tokens, device=mask.device).expand(batch, tokens)
    source = source.scatter(1, torch.where(mask, slot, length), place)[:, :length]
    return Alignment(source < tokens, source, slot.clamp(0, max(length - 1, 0)))


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Take tokens `index` `[B, L]` of x `[B, T, ...]`."""
    index = index.view(*index.shape, *[1] * (x.dim() - 2)).expand(*index.shape, *x.shape[2:])
    return x.gather(1, index)
