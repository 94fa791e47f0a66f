"""Rows: a state and its tokens with batch and heads as one axis `N`, as all forms see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memkit.engine.core.memory_state import MemoryState, Weights
from memkit.engine.core.window import Window
from memkit.rule import Gates, Rule, Tokens
from memkit.state import map_tensors


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A state `[N, ...]`; its fields are those of `MemoryState`."""

    weights: Weights
    slots: dict[str, tuple[Tensor, ...]]
    constants: dict[str, Tensor]
    anchor: Weights
    pending: Weights
    window: Window | None


def to_rows(state: MemoryState, dtype: torch.dtype) -> Rows:
    """Flatten `[B, H, ...]` to `[N, ...]` in the dtype of computation."""
    heads = next(iter(state.weights.values())).shape[1]

    def flat(x: Tensor) -> Tensor:
        return x.flatten(0, 1).to(dtype)

    window = state.window
    if window is not None:
        filled = per_row(window.filled, heads)
        window = Window(k=flat(window.k), v=flat(window.v), gates=map_tensors(flat, window.gates), filled=filled)
    return Rows(
        weights=map_tensors(flat, state.weights),
        slots=map_tensors(flat, state.slots),
        # [N, 1, ...], so that they meet tokens [N, T, ...]
        constants=map_tensors(lambda x: flat(x).unsqueeze(1), state.constants),
        anchor=map_tensors(flat, state.anchor),
        pending=map_tensors(flat, state.pending),
        window=window,
    )


def from_rows(rows: Rows, before: Rows, state: MemoryState, offset: Tensor, phase: int | None) -> MemoryState:
    """The state after a call, from the rows after it, and the rows and the state before it.

    Tensors that the call did not change stay the state's own, not views of them.
    """
    batch = state.offset.shape[0]
    heads = next(iter(state.weights.values())).shape[1]

    def unflat(x: Tensor) -> Tensor:
        return x.view(batch, heads, *x.shape[1:])

    window = rows.window
    if window is not None:
        filled = unflat(window.filled)[:, 0]
        window = Window(k=unflat(window.k), v=unflat(window.v), gates=map_tensors(unflat, window.gates), filled=filled)
    moved: dict[str, Any] = {
        name: map_tensors(unflat, getattr(rows, name))
        for name in ("weights", "slots", "anchor", "pending")
        if getattr(rows, name) is not getattr(before, name)
    }
    return replace(state, **moved, window=window, offset=offset, phase=phase)


def per_row(x: Tensor, heads: int) -> Tensor:
    """Repeat a per-sequence value `[B, ...]` for every head: `[N, ...]`."""
    return x.repeat_interleave(heads, 0)


def cut(tokens: Tokens, lengths: list[int]) -> list[Tokens]:
    """Parts of tokens `[N, T, ...]` of these lengths, in order.

    Split at once, because the backward pass of every single slice would write a whole `[N, T, ...]`.
    """
    if len(lengths) == 1:
        return [tokens]
    q, k, v = (x.split(lengths, 1) for x in tokens[:3])
    gates = {name: gate.split(lengths, 1) for name, gate in tokens.gates.items()}
    return [Tokens(q[i], k[i], v[i], {name: g[i] for name, g in gates.items()}) for i in range(len(lengths))]


def gate_at(rule: Rule, gates: Gates, index: int) -> dict[str, Tensor]:
    """Gates `[N, T]`, or `[N, T, C]` per channel, of the write at a token, shaped to meet a weight `[N, in, out]`."""
    axes = {"head": (-1, -1), "pair": (-1, -1), "key": (-1,), "value": (-2,)}
    found = {}
    for gate in rule.weight_gates:
        found[gate.name] = gates[gate.name][:, index]
        for axis in axes[gate.per]:
            found[gate.name] = found[gate.name].unsqueeze(axis)
    return found


def merge_heads(x: Tensor) -> Tensor:
    """`[B, T, H, ...]` -> `[N, T, ...]`."""
    return x.transpose(1, 2).flatten(0, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[N, T, ...]` -> `[B, T, H, ...]`."""
    return x.unflatten(0, (x.shape[0] // heads, heads)).transpose(1, 2)
