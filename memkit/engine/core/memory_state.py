"""The state of a memory, and its conversion to the rows of the engine and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memkit.checks import not_negative, positive
from memkit.engine.core.rows import Rows, Weights, per_row
from memkit.engine.core.window import Window, empty_window
from memkit.rule import Rule, Tokens
from memkit.state import State, map_tensors


@dataclass(frozen=True, kw_only=True)
class MemoryState(State):
    """A memory after some tokens: a value, of a size that does not depend on how many.

    initial, weights: name -> `[B, H, in, out]`: the weights after a reset, and the raw weights now.
    slots: name -> tuple of `[B, H, in, out]` (momentum, ...).
    constants: name -> `[B, H, ...]`, learned in the outer loop only.
    anchor: name -> weights at which the running mini-batch takes its gradients; empty if every token begins one.
    pending: name -> the unfinished sum of a write with update_every > 1, else empty.
    window: the tokens carried by an Omega rule, else None.
    offset `[B]`: valid tokens since the last multiple of the rule's period; phase: the same as an integer while
        all rows agree without looking, else None.
    segment `[B]`: the document each row is in, -1 before the first.
    """

    initial: Weights
    weights: Weights
    slots: dict[str, tuple[Tensor, ...]]
    constants: dict[str, Tensor]
    anchor: Weights
    pending: Weights
    window: Window | None
    offset: Tensor
    phase: int | None
    segment: Tensor

    @property
    def kept(self) -> dict[str, int]:
        """Amounts of everything but weights in the state; see `kept`."""
        return {
            "slots per weight": len(next(iter(self.slots.values()))),
            "anchors": int(bool(self.anchor)),
            "unfinished writes": int(bool(self.pending)),
            "carried tokens": 0 if self.window is None else self.window.filled.shape[1],
        }

    def reset(self, rows: Tensor, rule: Rule) -> MemoryState:
        """Start the rows marked True `[B]` afresh: initial weights, empty slots, window and offset."""
        return MemoryState.merge(self, rows, fresh_state(rule, self))


def init_state(
    rule: Rule,
    *,
    batch: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> MemoryState:
    """The state before the first token, with weights drawn from N(0, 1 / in), the same for all rows.

    Raises `ValueError` for anything but a rule, and for sizes below 1 or refused by the rule's memory.
    """
    require_rule(rule)
    not_negative("batch", batch)
    for name, value in (("heads", heads), ("key_dim", key_dim), ("value_dim", value_dim)):
        positive(name, value)
    if not dtype.is_floating_point or dtype.itemsize < 4:
        raise ValueError(f"a memory's state is kept in float32 or better; got {dtype}.")
    key_dim = prepared_key_dim(rule, key_dim, value_dim)
    weights = {
        name: (torch.randn(heads, *shape, generator=generator) / shape[0] ** 0.5).to(device, dtype)
        for name, shape in rule.memory.shapes(key_dim, value_dim).items()
    }
    constants = {
        name: value.to(device, dtype).expand(heads, *value.shape)
        for name, value in rule.memory.constants(key_dim, value_dim).items()
    }
    return state_from(rule, weights, constants, batch, key_dim, value_dim)


def require_rule(rule: Rule) -> None:
    """Raise `ValueError` unless the rule is one, and not its name."""
    if not isinstance(rule, Rule):
        raise ValueError(f"rule must be a Rule; got {rule!r}. Make one with memkit.build('rule', name).")


def kept(rule: Rule) -> dict[str, int]:
    """Amounts of everything but weights that a rule keeps from token to token."""
    return {
        "slots per weight": rule.slots,
        "anchors": int(rule.mini_batch > 1 and rule.sees_weights),
        "unfinished writes": int(rule.update_every > 1),
        "carried tokens": rule.window - 1,
    }


def prepared_key_dim(rule: Rule, key_dim: int, value_dim: int) -> int:
    """The key width after the rule's feature map, found by mapping no tokens at all."""
    widths = {"head": (), "key": (key_dim,), "value": (value_dim,), "pair": (rule.pairs,)}
    gates = {name: torch.zeros(1, 0, 1, *widths[gate.per]) for name, gate in rule.gates.items()}
    query, key, value = (torch.zeros(1, 0, 1, n) for n in (key_dim, rule.pairs * key_dim, rule.pairs * value_dim))
    return rule.prepare(Tokens(query, key, value, gates)).k.shape[-1]


def state_from(
    rule: Rule, weights: Weights, constants: Mapping[str, Tensor], batch: int, key_dim: int, value_dim: int
) -> MemoryState:
    """The state before the first token, from weights `[H, in, out]` and constants `[H, ...]` (gradients flow)."""

    def rows(x: Tensor) -> Tensor:
        return x.expand(batch, *x.shape)

    initial = {name: rows(weight) for name, weight in weights.items()}
    some = next(iter(initial.values()))
    keeps = kept(rule)
    counts = torch.zeros(batch, dtype=torch.long, device=some.device)
    return MemoryState(
        initial=initial,
        weights=initial,
        slots={name: rule.init_slots(weight) for name, weight in initial.items()},
        constants={name: rows(value) for name, value in constants.items()},
        anchor=initial if keeps["anchors"] else {},
        pending=map_tensors(torch.zeros_like, initial) if keeps["unfinished writes"] else {},
        window=empty_window(rule, some, key_dim, value_dim),
        offset=counts,
        phase=0,
        segment=counts - 1,
    )


def fresh_state(rule: Rule, state: MemoryState) -> MemoryState:
    """The state that `state` began with: its initial weights, everything else empty."""
    window = state.window
    return replace(
        state,
        weights=state.initial,
        slots={name: rule.init_slots(weight) for name, weight in state.initial.items()},
        anchor=state.initial if state.anchor else {},
        pending=map_tensors(torch.zeros_like, state.pending),
        window=None if window is None else replace(window, filled=torch.zeros_like(window.filled)),
        offset=torch.zeros_like(state.offset),
        phase=0,
    )


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
