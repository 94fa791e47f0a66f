"""The step form: one token after the other, as the definition has it, without its questions.

The layout says once, most often for all rows, whether a mini-batch begins or a token is masked, which `scan` finds out
per row and token; the gradient a^T r comes from the tape. So one pass over each matrix makes all that the next token
needs. It is how a memory decodes: a single token leaves nothing to do in parallel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.block import weights_in_use
from memkit.engine.core.rows import Rows, Weights, cut, gate_at
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import Tape, record
from memkit.engine.form import Call, Form, Place, Result
from memkit.layout import Block, Layout, lay_out
from memkit.rule import Gates, Rule, identity
from memkit.state import merge_trees


def step(call: Call) -> Result:
    """Run the call in blocks of one token each."""
    rule, rows, valid = call.rule, call.rows, call.valid
    outputs, anchor, seen = [call.tokens.v[:, :0]], rows.anchor, []
    for block, here in zip(call.blocks, cut(call.tokens, call.lengths), strict=True):
        gates = gate_at(rule, here.gates, 0)
        anchor = _anchor(rule, block, rows, anchor, gates)
        tape = record(rule, here.k, here.v, here.gates, anchor, rows.constants, surprise=call.observe)
        seen.append(tape.observed(1) if call.observe else None)
        before, rows = rows, _written(rule, tape, gates, rows, None if valid is None else valid[:, block.start])
        read = weights_in_use(rule, block, (rows if rule.read == "after" else before).weights, anchor)
        outputs.append(rule.memory.forward(lambda name, x, read=read: x @ read[name], here.q, rows.constants))
    y = torch.cat(outputs, 1) if len(outputs) > 2 else outputs[-1]
    return Result(y, replace(rows, anchor=anchor if rows.anchor else {}), Observed.join(seen))


def _anchor(rule: Rule, block: Block, rows: Rows, anchor: Weights, gates: Gates) -> Weights:
    """Weights that the token's gradient sees: new ones in rows whose mini-batch begins with it."""
    if block.begins is False:
        return anchor
    fresh = {name: rule.effective(rule.point(x, rows.slots[name], gates)) for name, x in rows.weights.items()}
    if rows.anchor:  # copies, as compiled code returns no views of its inputs without more questions
        fresh = {name: x.clone() if x is rows.weights[name] else x for name, x in fresh.items()}
    return merge_trees(block.begins, anchor, fresh) if isinstance(block.begins, Tensor) else fresh


def _written(rule: Rule, tape: Tape, gates: Gates, rows: Rows, valid: Tensor | None) -> Rows:
    """Rows after the token's write; where `valid` `[N]` is False they stay as they were."""
    weights, slots = {}, {}
    for name, weight in rows.weights.items():
        grad = tape.inputs[name].mT * tape.errors[name]
        weights[name], slots[name] = rule.update(grad, weight, rows.slots[name], gates)
    if valid is not None:
        weights, slots = merge_trees(valid, (rows.weights, rows.slots), (weights, slots))
    return replace(rows, weights=weights, slots=slots)


def one_gradient_per_write(rule: Rule) -> list[str]:
    """Reasons against forms that write at every token with its gradient alone."""
    found = [f"it writes once every {rule.update_every} tokens"] if rule.update_every > 1 else []
    return found + ([f"each write uses {rule.window} gradients"] if rule.window > 1 else [])


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    period = rule.period if rule.sees_weights else 1
    return lay_out(period, *place, 1, completes=rule.effective is not identity)


STEP = Form("step", one_gradient_per_write, _layout, step)
