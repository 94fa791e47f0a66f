"""The scan form, the definition: one token after the other, gradients by autograd. Slow, plainly right, the oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.autograd import graph_wanted
from memkit.engine.core.rows import Rows, Weights, cut, gate_at
from memkit.engine.core.surprise import Observed, limit_scale
from memkit.engine.core.tape import gradients
from memkit.engine.core.window import Window, as_window, join
from memkit.engine.form import Call, Form, Result
from memkit.layout import in_place
from memkit.rule import Rule, Tokens, identity
from memkit.state import merge_trees


def scan(call: Call) -> Result:
    """Run the call token by token; a masked token leaves its rows as they are."""
    rule, rows, offset, outputs, seen = call.rule, call.rows, call.offset, [call.tokens.v[:, :0]], []
    for t, token in enumerate(cut(call.tokens, [1] * call.tokens.q.shape[1])):
        valid = torch.ones_like(offset, dtype=torch.bool) if call.valid is None else call.valid[:, t]
        y, moved, observed = _step(rule, token, rows, offset)
        rows = _where(valid, moved, rows)
        outputs.append(torch.where(valid[:, None, None], y, torch.zeros_like(y)))
        seen.append(observed)
        offset = (offset + valid) % rule.period
    return Result(torch.cat(outputs, 1), rows, Observed.join(seen) if call.observe else None)


def _step(rule: Rule, token: Tokens, rows: Rows, offset: Tensor) -> tuple[Tensor, Rows, Observed | None]:
    """One token of every row: q, k, v `[N, 1, ...]`, gates `[N, 1]`; offset `[N]`: valid tokens of the row so far."""
    here = gate_at(rule, token.gates, 0)
    begins = offset % rule.mini_batch == 0
    anchor = {}
    for name, weight in rows.weights.items():
        fresh = rule.effective(rule.point(weight, rows.slots[name], here))
        running = rows.anchor.get(name, fresh)  # none is kept where every token begins a mini-batch
        anchor[name] = merge_trees(begins, running, fresh)
    sources = as_window(rule, token, None) if rows.window is None else join(rows.window, as_window(rule, token, None))
    grads = {name: torch.zeros_like(weight) for name, weight in anchor.items()}
    observed = None
    for i in range(sources.k.shape[1]):  # the token itself is the last, and observed
        of_source, observed = _gradient(rule, sources, slice(i, i + 1), anchor, rows)
        filled, weight = sources.filled[:, i, None, None], sources.gates["weight"][:, i, None, None]
        grads = {name: grads[name] + torch.where(filled, weight * grad, 0) for name, grad in of_source.items()}

    writes = offset % rule.update_every == rule.update_every - 1
    pending = {name: rows.pending.get(name, 0) + grad for name, grad in grads.items()}
    weights, slots = {}, {}
    for name, weight in rows.weights.items():
        new_weight, new_slots = rule.update(pending[name], weight, rows.slots[name], here)
        weights[name] = merge_trees(writes, weight, new_weight)
        slots[name] = merge_trees(writes, rows.slots[name], new_slots)
    read = _in_use(rule, weights if rule.read == "after" else rows.weights, anchor, offset)
    y = rule.memory.forward(lambda name, x: x @ read[name], token.q, rows.constants)
    moved = replace(
        rows,
        weights=weights,
        slots=slots,
        anchor={name: anchor[name] for name in rows.anchor},
        pending={n: merge_trees(writes, x, torch.zeros_like(x)) for n, x in pending.items() if n in rows.pending},
        window=rows.window and sources.map(lambda x: x[:, 1:]),  # without the oldest
    )
    return y, moved, observed


def _gradient(rule: Rule, sources: Window, one: slice, anchor: Weights, rows: Rows) -> tuple[Weights, Observed]:
    """Gradient of one source's loss at `anchor`; its loss and surprise."""
    gates = {name: gate[:, one] for name, gate in sources.gates.items()}
    graph = graph_wanted((sources, anchor, rows.constants))
    with torch.enable_grad():
        point = {name: x if graph and x.requires_grad else x.detach().requires_grad_() for name, x in anchor.items()}
        prediction = rule.memory.forward(lambda name, x: x @ point[name], sources.k[:, one], rows.constants)
        loss = rule.objective.loss(prediction, sources.v[:, one], gates)
        grads = gradients(rule, loss, point, graph=graph)
    squared = torch.stack([grad.square().sum((1, 2)) for grad in grads.values()]).sum(0)
    if rule.surprise_limit is not None:
        scale = limit_scale(squared, rule.surprise_limit)[:, None, None]
        grads = {name: grad * scale for name, grad in grads.items()}
    return grads, Observed(loss.detach(), squared.detach().sqrt()[:, None])


def _in_use(rule: Rule, raw: Weights, anchor: Weights, offset: Tensor) -> Weights:
    """Weights that a query sees: the raw ones, or under `effective` those of the running mini-batch."""
    if rule.effective is identity:
        return raw
    completes = (offset % rule.mini_batch == rule.mini_batch - 1) & (rule.read == "after")
    return {name: merge_trees(completes, anchor[name], rule.effective(raw[name])) for name in raw}


def _where(valid: Tensor, new: Rows, old: Rows) -> Rows:
    """New rows where the token is valid, old ones where it is masked."""
    names = ("weights", "slots", "anchor", "pending", "window")
    return replace(old, **{n: merge_trees(valid, getattr(old, n), getattr(new, n)) for n in names})


SCAN = Form("scan", lambda rule: [], lambda rule, place, size: in_place([], place.mask), scan)
