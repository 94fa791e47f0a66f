"""The definition: one token after the other, gradients by autograd. Slow, obviously right, the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted
from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, cut, gate_at
from memkit.engine.core.tape import Watch, limit_scale, slopes
from memkit.engine.core.window import Window, as_window, join
from memkit.rule import Rule, Tokens, identity
from memkit.state import merge_trees


def scan(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    mask: Tensor | None,
    offset: Tensor,
    watch: Watch | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, T, ...]`, gates `[N, T]`) from `rows`, whose valid tokens so far count `offset` `[N]`.

    `watch` receives (loss, surprise) `[N, 1]` of every token.
    """
    outputs = []
    for t, token in enumerate(cut(tokens, [1] * tokens.q.shape[1])):
        valid = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask[:, t]
        y, moved = _step(rule, token, rows, offset, watch)
        rows = _where(valid, moved, rows)
        outputs.append(torch.where(valid[:, None, None], y, torch.zeros_like(y)))
        offset = (offset + valid) % rule.period
    return (torch.cat(outputs, 1) if outputs else tokens.v), rows


def _step(rule: Rule, token: Tokens, rows: Rows, offset: Tensor, watch: Watch | None) -> tuple[Tensor, Rows]:
    """One token of every row: q, k, v `[N, 1, ...]`, gates `[N, 1]`."""
    here = gate_at(rule, token.gates, 0)
    begins = offset % rule.mini_batch == 0
    anchor = {
        name: merge_trees(
            begins, rows.anchor.get(name, weight), rule.effective(rule.point(weight, rows.slots[name], here))
        )
        for name, weight in rows.weights.items()
    }
    sources = _sources(rule, token, rows.window)
    grads = {name: torch.zeros_like(weight) for name, weight in anchor.items()}
    for i in range(sources.k.shape[1]):
        met = _gradient(rule, sources, slice(i, i + 1), anchor, rows)
        filled, weight = sources.filled[:, i, None, None], sources.gates["weight"][:, i, None, None]
        grads = {name: grads[name] + torch.where(filled, weight * grad, 0) for name, grad in met.grads.items()}
        if watch is not None and i == sources.k.shape[1] - 1:  # the token itself
            watch.append((met.loss, met.surprise))

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
    return y, moved


class _Met(NamedTuple):
    """One token's loss `[N, 1]`, gradients, and their norm `[N, 1]` before any `surprise_limit`."""

    loss: Tensor
    grads: Weights
    surprise: Tensor


def _gradient(rule: Rule, sources: Window, one: slice, anchor: Weights, rows: Rows) -> _Met:
    """The gradient of one source's loss at `anchor`."""
    gates = {name: gate[:, one] for name, gate in sources.gates.items()}
    graph = graph_wanted((sources, anchor, rows.constants))
    with torch.enable_grad():
        point = {name: x if graph and x.requires_grad else x.detach().requires_grad_() for name, x in anchor.items()}
        prediction = rule.memory.forward(lambda name, x: x @ point[name], sources.k[:, one], rows.constants)
        loss = rule.objective.loss(prediction, sources.v[:, one], gates)
        grads = slopes(rule, loss, point, graph=graph)
    squared = torch.stack([grad.square().sum((1, 2)) for grad in grads.values()]).sum(0)
    if rule.surprise_limit is not None:
        scale = limit_scale(squared, rule.surprise_limit)[:, None, None]
        grads = {name: grad * scale for name, grad in grads.items()}
    return _Met(loss.detach(), grads, squared.detach().sqrt()[:, None])


def _sources(rule: Rule, token: Tokens, window: Window | None) -> Window:
    """The tokens whose gradients this write uses, the newest last: the token itself, and the carried ones."""
    own = as_window(rule, token, None)
    return own if window is None else join(window, own)


def _in_use(rule: Rule, raw: Weights, anchor: Weights, offset: Tensor) -> Weights:
    """The weights that a query sees: the raw ones, or under `effective` those of the mini-batch in force."""
    if rule.effective is identity:
        return raw
    completes = (offset % rule.mini_batch == rule.mini_batch - 1) & (rule.read == "after")
    return {name: merge_trees(completes, anchor[name], rule.effective(raw[name])) for name in raw}


def _where(valid: Tensor, new: Rows, old: Rows) -> Rows:
    """A masked token never was: its rows keep everything."""
    names = ("weights", "slots", "anchor", "pending", "window")
    return replace(old, **{n: merge_trees(valid, getattr(old, n), getattr(new, n)) for n in names})
