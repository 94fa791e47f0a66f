"""Rows: a state and its tokens with batch and heads as one axis `N`, as all forms see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from memkit.engine.core.window import Window
from memkit.rule import Gates, Rule, Tokens

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A state `[N, ...]` by fields of `MemoryState`, each empty or None where the rule needs none.

    anchor: weights that the running mini-batch's gradients see. pending: an unfinished sum of gradients.
    """

    weights: Weights
    slots: dict[str, tuple[Tensor, ...]]
    constants: dict[str, Tensor]
    anchor: Weights
    pending: Weights
    window: Window | None


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
