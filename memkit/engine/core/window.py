"""The Omega window (ATLAS eq. 9): the last tokens, whose gradients each write uses again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memkit.alignment import pick
from memkit.engine.core.coefficients import Coefficients
from memkit.rule import Rule, Tokens
from memkit.state import State


@dataclass(frozen=True, kw_only=True)
class Window(State):
    """The last tokens of an Omega rule, oldest first, right-aligned: k, v, gates and which of them exist."""

    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]
    filled: Tensor


def window_gates(rule: Rule) -> list[str]:
    """Gates that a carried token keeps: those of its loss, and its weight in the sum."""
    return [*(gate.name for gate in rule.objective.gates), "weight"]


def as_window(rule: Rule, tokens: Tokens, valid: Tensor | None) -> Window:
    """Tokens `[N, T, ...]` as sources of gradients; valid `[N, T]`: those that exist, None for all."""
    one = torch.ones_like(tokens.k[..., 0])
    gates = {name: tokens.gates.get(name, one) for name in window_gates(rule)}
    return Window(k=tokens.k, v=tokens.v, gates=gates, filled=one.bool() if valid is None else valid)


def join(older: Window, newer: Window) -> Window:
    """Sources of gradients, the older ones first."""
    return Window(
        k=torch.cat([older.k, newer.k], 1),
        v=torch.cat([older.v, newer.v], 1),
        gates={name: torch.cat([gate, newer.gates[name]], 1) for name, gate in older.gates.items()},
        filled=torch.cat([older.filled, newer.filled], 1),
    )


def empty_window(rule: Rule, like: Tensor, key_dim: int, value_dim: int) -> Window | None:
    """The window before the first token, for weights like `[B, H, in, out]`; None for rules without one."""
    if rule.window == 1:
        return None
    batch, heads, carried = like.shape[0], like.shape[1], rule.window - 1
    return Window(
        k=like.new_zeros(batch, heads, carried, key_dim),
        v=like.new_zeros(batch, heads, carried, value_dim),
        gates={name: like.new_zeros(batch, heads, carried) for name in window_gates(rule)},
        filled=torch.zeros(batch, carried, dtype=torch.bool, device=like.device),
    )


def band(rule: Rule, sources: Window, writes: int) -> Tensor:
    """Share of source i in write s, `[N, writes, sources]`: its weight if it is one of the last `window` tokens."""
    rank = sources.filled.long().cumsum(1)
    age = rank[:, -writes:, None] - rank[:, None, :]
    used = (age >= 0) & (age < rule.window) & sources.filled[:, None, :]
    return torch.where(used, sources.gates["weight"][:, None, :], 0)


def spread(own: Coefficients, used: Tensor) -> Coefficients:
    """Coefficients of sources instead of writes; used `[N, writes, sources]`: share of each source in each write."""
    weight = own.weight._replace(write=own.weight.write @ used)
    return own._replace(weight=weight, last_write=used.mT @ own.last_write)


def latest(sources: Window, count: int) -> Window:
    """The last `count` filled tokens of each row, right-aligned."""
    order = torch.sort(sources.filled.byte(), dim=1, stable=True).indices[:, -count:]
    return sources.map(lambda x: pick(x, order))
