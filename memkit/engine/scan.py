"""The definition: one token after the other, gradients by autograd. Slow, obviously right, the oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.memory_state import Rows, Weights, Window, gate_at, window_gates
from memkit.engine.tape import limit_scale
from memkit.rule import Gates, Rule, identity
from memkit.state import merge_trees

Watch = list[tuple[Tensor, Tensor]]


def scan(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    rows: Rows,
    mask: Tensor | None,
    offset: Tensor,
    watch: Watch | None = None,
) -> tuple[Tensor, Rows]:
    """Run q, k `[N, T, K]`, v `[N, T, V]`, gates `[N, T]` from `rows`, whose valid tokens so far count `offset` `[N]`.

    `watch` receives (loss, surprise) `[N, 1]` of every token.
    """
    outputs = []
    for t in range(q.shape[1]):
        valid = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask[:, t]
        now = slice(t, t + 1)
        gates_now = {name: gate[:, now] for name, gate in gates.items()}
        y, moved = _step(rule, q[:, now], k[:, now], v[:, now], gates_now, rows, offset, watch)
        rows = _where(valid, moved, rows)
        outputs.append(torch.where(valid[:, None, None], y, torch.zeros_like(y)))
        offset = (offset + valid) % rule.period
    return (torch.cat(outputs, 1) if outputs else v[:, :0]), rows


def _step(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, gates: Gates, rows: Rows, offset: Tensor, watch: Watch | None
) -> tuple[Tensor, Rows]:
    """One token of every row: q, k, v `[N, 1, ...]`, gates `[N, 1]`."""
    here = gate_at(gates, 0)
    begins = offset % rule.mini_batch == 0
    anchor = {
        name: _pick(begins, rule.effective(rule.point(weight, rows.slots[name], here)), rows.anchor.get(name, weight))
        for name, weight in rows.weights.items()
    }
    sources = _sources(rule, k, v, gates, rows.window)
    grads = {name: torch.zeros_like(weight) for name, weight in anchor.items()}
    for i in range(sources.k.shape[1]):
        source = slice(i, i + 1)
        source_gates = {name: gate[:, source] for name, gate in sources.gates.items()}
        loss, grad, surprise = gradient(rule, sources.k[:, source], sources.v[:, source], source_gates, anchor, rows)
        factor = torch.where(sources.filled[:, i], sources.gates["weight"][:, i], 0)[:, None, None]
        grads = {name: grads[name] + torch.where(factor == 0, 0, factor * grad[name]) for name in grads}
    if watch is not None:
        watch.append((loss, surprise[:, None]))

    writes = offset % rule.update_every == rule.update_every - 1
    pending = {name: rows.pending.get(name, 0) + grad for name, grad in grads.items()}
    weights, slots = {}, {}
    for name, weight in rows.weights.items():
        new_weight, new_slots = rule.update(pending[name], weight, rows.slots[name], here)
        weights[name] = _pick(writes, new_weight, weight)
        slots[name] = tuple(_pick(writes, a, b) for a, b in zip(new_slots, rows.slots[name], strict=True))
    read = _in_use(rule, weights if rule.read == "after" else rows.weights, anchor, offset)
    y = rule.memory.forward(lambda name, x: x @ read[name], q, rows.constants)
    window = rows.window and Window(**{n: _drop_oldest(getattr(sources, n)) for n in ("k", "v", "gates", "filled")})
    moved = replace(
        rows,
        weights=weights,
        slots=slots,
        anchor={name: anchor[name] for name in rows.anchor},
        pending={name: _pick(writes, torch.zeros_like(x), x) for name, x in pending.items() if name in rows.pending},
        window=window,
    )
    return y, moved


def gradient(
    rule: Rule, k: Tensor, v: Tensor, gates: Gates, anchor: Weights, rows: Rows
) -> tuple[Tensor, Weights, Tensor]:
    """One token's loss `[N, 1]`, gradient at `anchor` and its norm `[N]` (before any `surprise_limit`)."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        at = {name: x if graph and x.requires_grad else x.detach().requires_grad_() for name, x in anchor.items()}
        loss = rule.objective.loss(rule.memory.forward(lambda n, x: x @ at[n], k, rows.constants), v, gates)
        found = torch.autograd.grad(loss.sum(), list(at.values()), create_graph=graph)
    squared = torch.stack([grad.square().sum((1, 2)) for grad in found]).sum(0)
    if rule.surprise_limit is not None:
        found = tuple(grad * limit_scale(squared, rule.surprise_limit)[:, None, None] for grad in found)
    return loss.detach(), dict(zip(at, found, strict=True)), squared.detach().sqrt()


def _sources(rule: Rule, k: Tensor, v: Tensor, gates: Gates, window: Window | None) -> Window:
    """The tokens whose gradients this write uses, the newest last: the token itself, and the carried ones."""
    one = torch.ones_like(k[:, :, 0])
    own = {name: gates.get(name, one) for name in window_gates(rule)}
    filled = one.bool()
    if window is None:
        return Window(k=k, v=v, gates=own, filled=filled)
    return Window(
        k=torch.cat([window.k, k], 1),
        v=torch.cat([window.v, v], 1),
        gates={name: torch.cat([window.gates[name], own[name]], 1) for name in own},
        filled=torch.cat([window.filled, filled], 1),
    )


def _in_use(rule: Rule, raw: Weights, anchor: Weights, offset: Tensor) -> Weights:
    """The weights that a query sees: the raw ones, or under `effective` those of the mini-batch in force."""
    if rule.effective is identity:
        return raw
    completes = (offset % rule.mini_batch == rule.mini_batch - 1) & (rule.read == "after")
    return {name: _pick(completes, rule.effective(raw[name]), anchor[name]) for name in raw}


def _pick(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def _where(valid: Tensor, new: Rows, old: Rows) -> Rows:
    """A masked token never was: its rows keep everything."""
    names = ("weights", "slots", "anchor", "pending", "window")
    return replace(old, **{n: merge_trees(valid, getattr(old, n), getattr(new, n)) for n in names})


def _drop_oldest(x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return {name: value[:, 1:] for name, value in x.items()} if isinstance(x, dict) else x[:, 1:]
