"""A memory reset every so many tokens of a row, with all shards in parallel (TNT, arXiv 2511.07343, eq. 6).

A memory's contents after a reset do not depend on those before it, so the shards of a call are rows of one batch: the
first of each row goes on from the state, the others begin with the initial weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.alignment import align
from memkit.engine import MemoryState, fresh_state, memorize
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


def in_shards(
    rule: Rule,
    shard: int,
    tokens: Tokens,
    state: MemoryState,
    mask: Tensor | None,
    offset: Tensor,
    phase: int | None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, MemoryState]:
    """Run `memorize`, with each row's memory reset to `state.initial` after every `shard` valid tokens.

    tokens: q, k, v `[B, T, H, ...]` and gates, T >= 1. offset `[B]`: valid tokens since the last reset, modulo
    `shard`; phase: the same as an integer if all rows are known to agree, else None. products: as for `memorize`.
    Returns y `[B, T, H, V]` and the state, already reset in rows with a complete shard.
    """
    length, offset = tokens.k.shape[1], offset % shard
    phase = None if phase is None else phase % shard
    most = shard - 1 if phase is None else phase  # most tokens in the running shard so far
    shards = -(-(most + length) // shard)
    if shards == 1:
        y, state = memorize(rule, *tokens, state, mask=mask, products=products)
    else:
        y, state = _side_by_side(rule, shard, shards, tokens, state, mask, offset, phase, products)
    return y, _restarted(rule, shard, state, length, mask, offset, phase)


def _side_by_side(
    rule: Rule,
    shard: int,
    shards: int,
    tokens: Tokens,
    state: MemoryState,
    mask: Tensor | None,
    offset: Tensor,
    phase: int | None,
    products: torch.dtype | None,
) -> tuple[Tensor, MemoryState]:
    """Run the shards `[B, shards]` as rows `[B * shards]`, and keep the state of the last one with a token."""
    batch, length = tokens.k.shape[:2]
    row = torch.arange(batch * shards, device=offset.device)
    rows = state.map(lambda x: x.repeat_interleave(shards, 0)).reset(row % shards > 0, rule)
    if mask is None and phase == 0 and length == shards * shard:
        q, k, v, gates = map_tensors(lambda x: _fold(x, shard), tokens)
        y, rows = memorize(rule, q, k, v, gates, rows, products=products)
        last = row[shards - 1 :: shards]  # an index copies; a slice would keep every shard's memory alive
        return y.unflatten(0, (batch, shards)).flatten(1, 2), rows.select(last)
    valid = torch.ones(batch, length, dtype=torch.bool, device=offset.device) if mask is None else mask
    grid = align(valid, offset, shards * shard)
    q, k, v, gates = map_tensors(lambda x: _fold(grid.to_slots(x), shard), tokens)
    y, rows = memorize(rule, q, k, v, gates, rows, mask=_fold(grid.valid, shard), products=products)
    y = grid.to_tokens(y.unflatten(0, (batch, shards)).flatten(1, 2))
    last = (offset + valid.sum(1) - 1).clamp(min=0) // shard
    return y, rows.select(row[::shards] + last)


def _fold(x: Tensor, shard: int) -> Tensor:
    """`[B, shards * shard, ...]` -> `[B * shards, shard, ...]`."""
    return x.unflatten(1, (-1, shard)).flatten(0, 1)


def _restarted(
    rule: Rule, shard: int, state: MemoryState, length: int, mask: Tensor | None, offset: Tensor, phase: int | None
) -> MemoryState:
    """Reset the rows with a complete shard."""
    if mask is not None or phase is None:
        counted = length if mask is None else mask.sum(1)
        return state.reset((offset + counted) % shard == 0, rule)
    phase = (phase + length) % shard
    # Shards may have run under a mask; without one of the call's own, all rows agree all the same.
    return replace(state, phase=phase % rule.period) if phase else fresh_state(rule, state)
