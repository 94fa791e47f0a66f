"""The write form: one dense gradient per write, for rules that write once every `update_every` tokens.

All tokens of a write see the same weights, so the gradient is a single product A^T diag(weight) R, and the optimizer
may be anything, Muon or Adam.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.rows import Rows, Weights, cut, gate_at
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import Tape, record
from memkit.engine.form import Call, Form, Place, Result
from memkit.layout import Block, Layout, lay_out
from memkit.rule import Rule, Tokens, at_weights
from memkit.state import merge_trees


def write(call: Call) -> Result:
    """Run the call in blocks that are no longer than a write."""
    rule, rows, outputs, seen = call.rule, call.rows, [call.tokens.v[:, :0]], []
    for block, here in zip(call.blocks, cut(call.tokens, call.lengths), strict=True):
        valid = None if call.valid is None else call.valid[:, block.start : block.stop]
        used = _effective(rule, rows.weights)
        tape = record(rule, here.k, here.v, here.gates, used, rows.constants, surprise=call.observe)
        seen.append(tape.observed(here.k.shape[1]) if call.observe else None)
        rows = replace(rows, pending=_pending(rows.pending, here, valid, tape))
        y = rule.memory.forward(lambda name, x, at=used: x @ at[name], here.q, rows.constants)
        if block.completes is not False:
            rows = _complete(rule, block, here, rows)
            if rule.read == "after":
                y = torch.cat([y[:, :-1], _last(rule, block, here.q, y, rows)], 1)
        outputs.append(y)
    return Result(torch.cat(outputs, 1), rows, Observed.join(seen))


def _effective(rule: Rule, weights: Weights) -> Weights:
    return {name: rule.effective(weight) for name, weight in weights.items()}


def _pending(pending: Weights, here: Tokens, valid: Tensor | None, tape: Tape) -> Weights:
    """Unfinished write after the block: the sum of gradients so far, and the block's, each times its `weight`."""
    share = here.gates["weight"] if valid is None else torch.where(valid, here.gates["weight"], 0)
    return {
        name: torch.baddbmm(total, (tape.inputs[name] * share[..., None]).mT, tape.errors[name])
        for name, total in pending.items()
    }


def _complete(rule: Rule, block: Block, here: Tokens, rows: Rows) -> Rows:
    """Write, in rows where the block's last token completes a write."""
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
    """Answer `[N, 1, V]` to the query of the block's last token, after the write completed by it."""
    following = _effective(rule, rows.weights)
    last = rule.memory.forward(lambda name, x: x @ following[name], q[:, -1:], rows.constants)
    return torch.where(block.completes[:, None, None], last, y[:, -1:]) if isinstance(block.completes, Tensor) else last


def not_a_write(rule: Rule) -> list[str]:
    """Reasons against one gradient per `update_every` tokens."""
    found = [] if rule.update_every > 1 else ["it writes at every token"]
    return found + ([] if rule.point is at_weights else ["its gradient point changes from token to token"])


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    return lay_out(rule.period, *place, rule.period)  # as many at once as a write has: all see the same weights


def _why(rule: Rule) -> str:
    return f"write: one dense gradient every {rule.update_every} tokens; its tokens run at once."


WRITE = Form("write", not_a_write, _layout, write, _why)
