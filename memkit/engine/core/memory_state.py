"""The state of a memory, and its view as flat rows inside the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memkit.checks import not_negative, positive
from memkit.engine.core.window import Window, empty_window
from memkit.rule import Rule, Tokens
from memkit.state import State, map_tensors

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MemoryState(State):
    """What a memory knows after some tokens: a value of size independent of how many.

    initial, weights: name -> `[B, H, in, out]`: what a reset returns to, and the raw weights now.
    slots: name -> tuple of `[B, H, in, out]` (momentum, ...).
    constants: name -> `[B, H, ...]`, learned in the outer loop only.
    anchor: name -> the weights that gradients of the running mini-batch see; empty where every token begins one.
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
        """How much the state holds of what rules keep besides weights; see `kept`."""
        return {
            "slots a weight": len(next(iter(self.slots.values()))),
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

    Raises `ValueError` for what is no rule, and for sizes below 1 or that the rule's memory refuses.
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
    """What a rule keeps from token to token besides weights, and how much of it."""
    return {
        "slots a weight": rule.slots,
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
