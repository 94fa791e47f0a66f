"""One piece of one document a row, run in the chosen form: tokens go to the slots that the form wants, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.rows import Rows
from memkit.engine.core.tape import Watch
from memkit.engine.forms.dual import dual
from memkit.engine.forms.expand import expand
from memkit.engine.forms.fused.node import sweep, sweeps
from memkit.engine.forms.iterate.fixed_point import Rounds
from memkit.engine.forms.iterate.form import iterate
from memkit.engine.forms.scan import scan
from memkit.engine.forms.solve import solve
from memkit.engine.forms.step import step
from memkit.engine.forms.triton.form import triton_dual
from memkit.engine.forms.write import write
from memkit.layout import Layout, lay_out, without_periods
from memkit.rule import Rule, Tokens, identity
from memkit.state import map_tensors

ITERATE_BLOCK = 32
"""Gradient points that rounds settle together: more of them need more rounds, fewer touch the weights more often."""


class How(NamedTuple):
    """The form, how many tokens it takes at once at most, when `iterate` stops, and what `dual` multiplies in."""

    form: str
    block_size: int
    rounds: Rounds = Rounds()
    products: torch.dtype | None = None


def run(
    rule: Rule,
    how: How,
    tokens: Tokens,
    rows: Rows,
    mask: Tensor | None,
    offset: Tensor,
    phase: int | None,
    watch: Watch | None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, T, ...]`, gates `[N, T, ...]`) from `rows`.

    mask `[N, T]`; offset `[N]` and phase as in a state. `watch` receives (loss, surprise) `[N, .]` in order.
    """
    size = how.block_size
    if how.form == "scan":
        return scan(rule, tokens, rows, mask, offset, watch)
    if how.form == "solve":
        return solve(rule, tokens, rows, mask, size, watch)
    layout = _layout(rule, how.form, mask, offset, phase, tokens.k.shape[1], size)
    placed = map_tensors(layout.to_slots, tokens)
    seen: Watch | None = None if watch is None else []
    if how.form == "dual":
        if watch is None and sweeps(rule):
            y, rows = sweep(rule, placed, rows, layout.blocks, layout.valid, how.products)
        else:
            y, rows = dual(rule, placed, rows, layout.blocks, layout.valid, seen, how.products)
    elif how.form == "triton":
        y, rows = triton_dual(rule, placed, rows, layout.blocks, layout.valid, seen)
    elif how.form == "step":
        y, rows = step(rule, placed, rows, layout.blocks, layout.valid, seen)
    elif how.form == "expand":
        y, rows = expand(rule, placed, rows, layout.blocks, layout.valid, seen)
    elif how.form == "write":
        y, rows = write(rule, placed, rows, layout.blocks, layout.valid, seen)
    else:
        y, rows = iterate(rule, placed, rows, layout.blocks, layout.valid, how.rounds, seen)
    if watch is not None and seen:
        loss, surprise = (layout.to_tokens(torch.cat(x, 1)) for x in zip(*seen, strict=True))
        watch.append((loss, surprise))
    return layout.to_tokens(y), rows


def _layout(
    rule: Rule, form: str, mask: Tensor | None, offset: Tensor, phase: int | None, tokens: int, size: int
) -> Layout:
    if form == "write":  # a write's tokens all see the same weights: as many at once as there are
        return lay_out(rule.period, mask, offset, phase, tokens, rule.period)
    if form == "step":
        period = rule.period if rule.sees_weights else 1
        return lay_out(period, mask, offset, phase, tokens, 1, completes=rule.effective is not identity)
    if not rule.sees_weights:
        return without_periods(mask, tokens, size)
    if form == "triton":  # its blocks are of one size: whole mini-batches
        return lay_out(rule.period, mask, offset, phase, tokens, rule.mini_batch)
    if form == "iterate":
        size = min(size, ITERATE_BLOCK * rule.mini_batch)
        return lay_out(rule.period, mask, offset, phase, tokens, size, across=True)
    return lay_out(rule.period, mask, offset, phase, tokens, size)
