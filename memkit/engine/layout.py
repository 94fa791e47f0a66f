"""Where tokens stand while the dual form runs: masks, rows at different offsets, and blocks.

The gradient point changes at multiples of the mini-batch, counted in a row's own valid tokens. Rows are
aligned first: valid token n of a row goes to slot offset + n of a grid, so that mini-batches coincide
across rows at static shapes. Where all rows agree anyway (no mask, one common phase) nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.rule import Rule


class Block(NamedTuple):
    """Slots start..stop, all within one mini-batch.

    begins, completes: the rows `[B]` whose mini-batch begins at `start`, or is complete at `stop`; a bool
    speaks for all rows.
    """

    start: int
    stop: int
    begins: Tensor | bool
    completes: Tensor | bool


class Layout(NamedTuple):
    """The blocks of a call, which slots `[B, L]` hold a token (None: all), and the moves there and back."""

    blocks: list[Block]
    valid: Tensor | None
    to_slots: Callable[[Tensor], Tensor]
    to_tokens: Callable[[Tensor], Tensor]


def lay_out(
    rule: Rule, mask: Tensor | None, offset: Tensor, phase: int | None, tokens: int, block_size: int
) -> Layout:
    """Place `tokens` tokens of rows at `offset` `[B]` (`phase`, where it is the same for all and known)."""
    period = rule.period
    if period == 1:
        boundaries = 1 if rule.sees_weights else max(tokens, 1)
        return _in_place(_cuts(0, tokens, boundaries, block_size, True, True), mask)
    if tokens == 1 and (mask is not None or phase is None):
        here = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask[:, 0]
        begins, completes = here & (offset == 0), here & (offset == period - 1)
        return _in_place([Block(0, 1, begins, completes)], mask)
    if mask is None and phase is not None:
        cuts = _cuts(phase, phase + tokens, period, block_size, True, True)
        shifted = [b._replace(start=b.start - phase, stop=b.stop - phase) for b in cuts]
        return _in_place(shifted, None)
    if mask is None:
        mask = torch.ones(offset.shape[0], tokens, dtype=torch.bool, device=offset.device)
    return _aligned(mask, offset, period, block_size)


def _in_place(blocks: list[Block], valid: Tensor | None) -> Layout:
    return Layout(blocks, valid, _same, _same)


def _same(x: Tensor) -> Tensor:
    return x


def _cuts(
    start: int, stop: int, period: int, size: int, begins: Tensor | bool, completes: Tensor | bool
) -> list[Block]:
    """Cut start..stop at multiples of the period, and further into blocks of at most `size`."""
    blocks = []
    while start < stop:
        boundary = (start // period + 1) * period
        end = min(start + size, boundary, stop)
        blocks.append(Block(start, end, begins if start % period == 0 else False, completes if end == boundary else False))
        start = end
    return blocks


def _aligned(mask: Tensor, offset: Tensor, period: int, block_size: int) -> Layout:
    batch, tokens = mask.shape
    length = tokens + period - 1
    slot = offset[:, None] + mask.long().cumsum(1) - 1
    source = torch.full((batch, length + 1), tokens, device=mask.device)  # `tokens` marks an empty slot
    place = torch.arange(tokens, device=mask.device).expand(batch, tokens)
    source = source.scatter(1, torch.where(mask, slot, length), place)[:, :length]
    valid = source < tokens
    # A boundary belongs to a row only if the row has a token there: a row that ends before it keeps its anchor.
    blocks = [
        Block(b.start, b.stop, b.begins and valid[:, b.start], b.completes and valid[:, b.stop - 1])
        for b in _cuts(0, length, period, block_size, True, True)
    ]
    home = slot.clamp(0, length - 1)

    def to_slots(x: Tensor) -> Tensor:
        hole = x.new_zeros(batch, 1, *x.shape[2:])
        return _pick(torch.cat([x, hole], 1), source)

    def to_tokens(y: Tensor) -> Tensor:
        return _pick(y, home)

    return Layout(blocks, valid, to_slots, to_tokens)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Take tokens `index` `[B, L]` of x `[B, T, ...]`."""
    index = index.view(*index.shape, *[1] * (x.dim() - 2)).expand(*index.shape, *x.shape[2:])
    return x.gather(1, index)
