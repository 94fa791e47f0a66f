"""The layout of tokens for an event every `period` tokens of a row: mini-batches, segments.

Rows are aligned first, so that periods begin at the same slots for all. Nothing moves if they agree anyway (no mask,
one common phase), or for a single token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.alignment import align


class Block(NamedTuple):
    """Slots start..stop of the grid: within one period, or whole periods.

    slot: place of the first one in its period, an integer or `[N]`.
    begins, completes: the rows `[N]` with a period that begins at `start`, or is complete at `stop`; a bool for all
    rows.
    """

    start: int
    stop: int
    slot: int | Tensor
    begins: Tensor | bool
    completes: Tensor | bool


class Layout(NamedTuple):
    """The blocks of a call, the slots `[N, L]` with a token (None: all), and the moves there and back."""

    blocks: list[Block]
    valid: Tensor | None
    to_slots: Callable[[Tensor], Tensor]
    to_tokens: Callable[[Tensor], Tensor]


def lay_out(
    period: int,
    mask: Tensor | None,
    offset: Tensor,
    phase: int | None,
    tokens: int,
    block_size: int,
    *,
    across: bool = False,
    completes: bool = True,
) -> Layout:
    """Place `tokens` tokens of rows at `offset` `[N]` in their period (`phase`, if all are known to agree).

    Blocks end with a period, at the latest. With `across` they hold as many whole periods as fit into `block_size`,
    except a first one from inside of a period. completes: False if the caller does not need it.
    """
    if period == 1:
        return in_place(_cuts(0, tokens, 1, block_size if across else 1, across), mask)
    if mask is None and phase is not None:
        if tokens == 1:  # as below, with fewer branches: each is another program under torch.compile
            ends = completes and _decided(phase == period - 1)
            return in_place([Block(0, 1, phase, _decided(phase == 0), ends)], None)
        cuts = _cuts(phase, phase + tokens, period, block_size, across)
        return in_place([b._replace(start=b.start - phase, stop=b.stop - phase) for b in cuts], None)
    if tokens == 1:
        here = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask[:, 0]
        block = Block(0, 1, offset, here & (offset == 0), here & (offset == period - 1))
        return in_place([block], mask)
    if mask is None:
        mask = torch.ones(offset.shape[0], tokens, dtype=torch.bool, device=offset.device)
    return _aligned(mask, offset, period, block_size, across)


def without_periods(mask: Tensor | None, tokens: int, block_size: int) -> Layout:
    """Cut `tokens` tokens into blocks, without any event at counts of them."""
    return in_place(_cuts(0, tokens, max(tokens, 1), block_size), mask)


def in_place(blocks: list[Block], valid: Tensor | None) -> Layout:
    """Return the layout with every token in its own slot."""
    return Layout(blocks, valid, lambda x: x, lambda x: x)


def _cuts(start: int, stop: int, period: int, size: int, across: bool = False) -> list[Block]:
    """Cut start..stop at multiples of the period, and further into blocks of at most `size`; see `lay_out`."""
    blocks = []
    while start < stop:
        slot = start % period
        periods = max(size // period, 1) if across and slot == 0 else 1
        end = min(start - slot + periods * period, stop)
        end = end if across else min(end, start + size)
        blocks.append(Block(start, end, slot, _decided(slot == 0), _decided(end % period == 0)))
        start = end
    return blocks


def _decided(fact: bool) -> bool:
    """Return the fact as True or False: under torch.compile it may be a symbol, until a branch decides it."""
    return True if fact else False  # noqa: SIM210


def _aligned(mask: Tensor, offset: Tensor, period: int, block_size: int, across: bool) -> Layout:
    length = mask.shape[1] + period - 1
    grid = align(mask, offset, length)
    # Some rows begin inside of a period, so the first one is a block of its own.
    first = min(period, length)
    cuts = [*_cuts(0, first, period, block_size), *_cuts(first, length, period, block_size, across)]
    # A boundary belongs to a row only if the row has a token there: a row ending before it keeps its anchor.
    blocks = [
        b._replace(begins=b.begins and grid.valid[:, b.start], completes=b.completes and grid.valid[:, b.stop - 1])
        for b in cuts
    ]
    return Layout(blocks, grid.valid, grid.to_slots, grid.to_tokens)
