"""The write form: one dense gradient a write, for rules that write once every `update_every` tokens.

All tokens of a write see the same weights, so the gradient is a single product A^T diag(weight) R and the
optimizer may be anything, Muon or Adam, once a write.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, cut, gate_at
from memkit.engine.core.tape import Watch, record
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import merge_trees


def write(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    blocks: list[Block],
    valid: Tensor | None,
    watch: Watch | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, L, ...]`, gates `[N, L]`) write by write from `rows`.

    Blocks and `valid` `[N, L]` come from the layout, for rows; no block is longer than a write. `watch` receives
    (loss, surprise) `[N, L]` of every block.
    """
    outputs = [tokens.v[:, :0]]
    lengths = [block.stop - block.start for block in blocks]
    for block, here in zip(blocks, cut(tokens, lengths), strict=True):
        there = None if valid is None else valid[:, block.start : block.stop]
        used = _in_use(rule, rows.weights)
        rows = _add(rule, here, there, used, rows, watch)
        y = rule.memory.forward(lambda name, x, at=used: x @ at[name], here.q, rows.constants)
        if block.completes is not False:
            rows = _complete(rule, block, here, rows)
            if rule.read == "after":
                y = torch.cat([y[:, :-1], _last(rule, block, here.q, y, rows)], 1)
        outputs.append(y)
    return torch.cat(outputs, 1), rows


def _in_use(rule: Rule, weights: Weights) -> Weights:
    return {name: rule.effective(weight) for name, weight in weights.items()}


def _add(rule: Rule, here: Tokens, valid: Tensor | None, used: Weights, rows: Rows, watch: Watch | None) -> Rows:
    """Add the block's gradients to the unfinished write."""
    tape = record(rule, here.k, here.v, here.gates, used, rows.constants, surprise=watch is not None)
    if watch is not None and tape.squared_surprise is not None:
        watch.append((tape.loss.detach(), tape.squared_surprise.detach().sqrt()))
    share = here.gates["weight"] if valid is None else torch.where(valid, here.gates["weight"], 0)
    pending = {
        name: torch.baddbmm(total, (tape.inputs[name] * share[..., None]).mT, tape.errors[name])
        for name, total in rows.pending.items()
    }
    return replace(rows, pending=pending)


def _complete(rule: Rule, block: Block, here: Tokens, rows: Rows) -> Rows:
    """Write, in the rows whose last token of a write is the block's last."""
    gates = gate_at(rule, here.gates, -1)
    weights, slots = {}, {}
    for name, weight in rows.weights.items():
        weights[name], slots[name] = rule.update(rows.pending[name], weight, rows.slots[name], gates)
    pending = {name: torch.zeros_like(total) for name, total in rows.pending.items()}
    done = replace(rows, weights=weights, slots=slots, pending=pending)
    if not isinstance(block.completes, Tensor):
        return done
    names = ("weights", "slots", "pending")
    return replace(rows, **{n: merge_trees(block.completes, getattr(rows, n), getattr(done, n)) for n in names})


def _last(rule: Rule, block: Block, q: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """What the query of the block's last token reads: the write that it completes."""
    following = _in_use(rule, rows.weights)
    last = rule.memory.forward(lambda name, x: x @ following[name], q[:, -1:], rows.constants)
    return torch.where(block.completes[:, None, None], last, y[:, -1:]) if isinstance(block.completes, Tensor) else last
