"""`retrieve`: read a memory without writing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.autograd import plain_mode, without_inference_flag
from memkit.engine import inputs
from memkit.engine.core.memory_state import MemoryState, to_rows
from memkit.engine.core.rows import merge_heads, per_row, split_heads
from memkit.rule import Rule, Tokens, as_given, identity


def retrieve(rule: Rule, state: MemoryState, q: Tensor) -> Tensor:
    """Read q `[B, T, H, K]` from the memory as it is, writing nothing: y `[B, T, H, V]` (Titans eq. 15).

    Raises `ValueError` when q does not fit the state.
    """
    inputs.check_kinds(rule, q=q)
    if q.dim() != 4:
        raise ValueError(f"q must be [B, T, H, K]; got {tuple(q.shape)}.")
    inputs.check_state(rule, state, q.shape[0], q.shape[2])
    value_dim = list(state.weights.values())[-1].shape[-1]
    with plain_mode(q):
        dtype = inputs.computation_dtype(q, *state.weights.values())
        q_, state = without_inference_flag((q, state))
        q_ = _prepared(rule, q_.to(dtype), value_dim)
        inputs.check_widths(rule, state, q_.shape[-1], value_dim)
        rows = to_rows(replace(state, slots={}, pending={}, window=None), dtype)  # a read needs no more
        weights = rows.weights
        if rule.effective is not identity:
            begins = per_row(state.offset == 0, q.shape[2])[:, None, None]
            weights = {
                name: torch.where(begins, rule.effective(raw), rows.anchor.get(name, raw))
                for name, raw in weights.items()
            }
        y = rule.memory.forward(lambda name, x: x @ weights[name], merge_heads(q_), rows.constants)
        return split_heads(y, q.shape[2]).to(q.dtype)


def _prepared(rule: Rule, q: Tensor, value_dim: int) -> Tensor:
    """Queries `[B, T, H, K]` as `prepare` makes them, beside keys, values and gates of 0."""
    if rule.prepare is as_given:
        return q
    k, v = (q.new_zeros(*q.shape[:3], rule.pairs * width) for width in (q.shape[-1], value_dim))
    gates = {name: q.new_zeros(inputs.gate_shape(rule, gate, k, v)) for name, gate in rule.gates.items()}
    return inputs.at_queries(rule, rule.prepare(Tokens(q, k, v, gates)).q)
