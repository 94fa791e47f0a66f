"""The step form: one token after the other, as the definition has it, without its questions.

What `scan` finds out for every row and token, that a mini-batch begins or a token is masked, is here said by the
layout, most often once for all rows; and the gradient a^T r comes from the tape. One pass over each matrix then makes
what the next token needs. It is how a memory decodes: a single token leaves nothing to do in parallel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, cut, gate_at
from memkit.engine.core.tape import Tape, Watch, record
from memkit.layout import Block
from memkit.rule import Gates, Rule, Tokens, identity
from memkit.state import merge_trees


def step(
    rule: Rule, tokens: Tokens, rows: Rows, blocks: list[Block], valid: Tensor | None, watch: Watch | None = None
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v and gates `[N, L, ...]`) from `rows`.

    Blocks of one token each and `valid` `[N, L]` come from the layout, for rows. `watch` receives (loss, surprise)
    `[N, 1]` of every token.
    """
    outputs, anchor = [tokens.v[:, :0]], rows.anchor
    for block, here in zip(blocks, cut(tokens, [1] * len(blocks)), strict=True):
        gates = gate_at(rule, here.gates, 0)
        anchor = _anchor(rule, block, rows, anchor, gates)
        tape = record(rule, here.k, here.v, here.gates, anchor, rows.constants, surprise=watch is not None)
        if watch is not None and tape.squared_surprise is not None:
            watch.append((tape.loss.detach(), tape.squared_surprise.detach().sqrt()))
        before, rows = rows, _written(rule, tape, gates, rows, None if valid is None else valid[:, block.start])
        read = _in_use(rule, block, (rows if rule.read == "after" else before).weights, anchor)
        outputs.append(rule.memory.forward(lambda name, x, read=read: x @ read[name], here.q, rows.constants))
    y = torch.cat(outputs, 1) if len(outputs) > 2 else outputs[-1]
    return y, replace(rows, anchor=anchor if rows.anchor else {})


def _anchor(rule: Rule, block: Block, rows: Rows, anchor: Weights, gates: Gates) -> Weights:
    """The weights that the token's gradient sees: new ones in rows whose mini-batch begins with it."""
    if block.begins is False:
        return anchor
    fresh = {name: rule.effective(rule.point(x, rows.slots[name], gates)) for name, x in rows.weights.items()}
    if rows.anchor:  # kept for a mini-batch, and no view of what was given, of which compiled code asks more
        fresh = {name: x.clone() if x is rows.weights[name] else x for name, x in fresh.items()}
    return merge_trees(block.begins, anchor, fresh) if isinstance(block.begins, Tensor) else fresh


def _written(rule: Rule, tape: Tape, gates: Gates, rows: Rows, valid: Tensor | None) -> Rows:
    """The rows after the token's write, those as they were in which it is masked."""
    weights, slots = {}, {}
    for name, weight in rows.weights.items():
        grad = tape.inputs[name].mT * tape.errors[name]
        weights[name], slots[name] = rule.update(grad, weight, rows.slots[name], gates)
    if valid is not None:
        weights, slots = merge_trees(valid, (rows.weights, rows.slots), (weights, slots))
    return replace(rows, weights=weights, slots=slots)


def _in_use(rule: Rule, block: Block, weights: Weights, anchor: Weights) -> Weights:
    """The weights that the token's query sees: under `effective` those of the mini-batch in force."""
    if rule.effective is identity:
        return weights
    if rule.read == "before" or block.completes is False:
        return anchor
    following = {name: rule.effective(weight) for name, weight in weights.items()}
    return merge_trees(block.completes, anchor, following) if isinstance(block.completes, Tensor) else following
