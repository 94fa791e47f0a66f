"""Inputs of the engine: checks that speak plainly, and the one dtype of computation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import without_inference_flag
from memkit.engine.core.memory_state import MemoryState, kept, require_rule
from memkit.masks import blank, check_masks
from memkit.registry import nearest
from memkit.rule import Gate, Gates, Rule, Tokens
from memkit.state import map_tensors


class Inputs(NamedTuple):
    """One call's sequence: tokens `[B, T, H, ...]`, mask and segment_ids `[B, T]` or None."""

    tokens: Tokens
    mask: Tensor | None
    segment_ids: Tensor | None


def gather(q: Tensor, k: Tensor, v: Tensor, gates: Gates, mask: Tensor | None, segment_ids: Tensor | None) -> Inputs:
    """The arguments of a call as one value, not checked yet."""
    return Inputs(Tokens(q, k, v, dict(gates) if isinstance(gates, Mapping) else gates), mask, segment_ids)


def check(rule: Rule, inputs: Inputs, state: MemoryState) -> None:
    """Raise `ValueError` unless tokens, gates, state and masks fit the rule and each other."""
    q, k, v, gates = inputs.tokens
    check_kinds(rule, q=q, k=k, v=v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or x.shape[:3] != k.shape[:3]:
            raise ValueError(
                "q and k are [B, T, H, K] and v is [B, T, H, V] with the same B, T and H; got "
                f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: {name} does not fit."
            )
    if q.shape[-1] * rule.pairs != k.shape[-1]:
        wanted = "q and k must be equally wide" if rule.pairs == 1 else f"k must be {rule.pairs} times as wide as q"
        raise ValueError(f"{wanted}; got {tuple(q.shape)} and {tuple(k.shape)}.")
    if v.shape[-1] % rule.pairs:
        raise ValueError(f"v holds {rule.pairs} values side by side, which {tuple(v.shape)} is not wide enough for.")
    _check_gates(rule, k, v, gates)
    batch, tokens, heads = k.shape[:3]
    check_masks(inputs.mask, inputs.segment_ids, batch, tokens)
    check_state(rule, state, batch, heads)


def read(rule: Rule, inputs: Inputs, state: MemoryState) -> tuple[Inputs, MemoryState]:
    """Inputs as the engine runs them: one dtype, all gates, masked tokens 0, the rule's `prepare`, its steps apart.

    Raises `ValueError` where the prepared widths do not fit the state.
    """
    q, k, v, gates = inputs.tokens
    dtype = computation_dtype(q, k, v, *gates.values(), *state.weights.values())
    tokens = Tokens(q, k, v, filled_in(rule, gates, k, v))
    tokens, state, mask, segment_ids = without_inference_flag((tokens, state, inputs.mask, inputs.segment_ids))
    tokens = rule.prepare(map_tensors(lambda x: blank(x, mask).to(dtype), tokens))
    check_widths(rule, state, tokens.k.shape[-1], tokens.v.shape[-1])
    mask, segment_ids = (x if x is None else x.repeat_interleave(rule.steps, 1) for x in (mask, segment_ids))
    return Inputs(tokens, mask, segment_ids), state


def at_queries(rule: Rule, y: Tensor) -> Tensor:
    """Answers `[B, T, ...]` from those of all steps: before a token's first step, or after its last."""
    if rule.steps == 1:
        return y
    return y[:, 0 if rule.read == "before" else rule.steps - 1 :: rule.steps]


def check_kinds(rule: Rule, **tokens: Tensor) -> None:
    """Raise `ValueError` unless the rule is one and the tokens are floating-point tensors."""
    require_rule(rule)
    for name, x in tokens.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a floating-point tensor; got {kind}.")


def check_state(rule: Rule, state: MemoryState, batch: int, heads: int) -> None:
    """Raise `ValueError` unless the state has these rows and heads and holds what the rule keeps."""
    if not isinstance(state, MemoryState):
        raise ValueError(f"state must be a MemoryState from memkit.init_state; got {type(state).__name__}.")
    for name, weight in state.weights.items():
        if weight.shape[:2] != (batch, heads):
            raise ValueError(
                f"the state's weight {name!r} is {tuple(weight.shape)}, but the tokens have B = {batch} rows and "
                f"H = {heads} heads. Use state.select(rows), or init_state with these sizes."
            )
    keeps, held = kept(rule), state.kept
    for what, count in keeps.items():
        if held[what] != count:
            raise ValueError(
                f"the state was not made for rule {rule.name!r} ({what}: {held[what]}, and the rule keeps {count}). "
                "Make it with memkit.init_state(rule, ...)."
            )
    if state.phase is not None and state.phase >= rule.period:
        raise ValueError(
            f"the state was not made for rule {rule.name!r}: it stands {state.phase} tokens after the start of a "
            f"mini-batch, and the rule's end after {rule.period}. Make it with memkit.init_state(rule, ...)."
        )


def check_widths(rule: Rule, state: MemoryState, key_dim: int, value_dim: int) -> None:
    """Raise `ValueError` unless prepared keys and values fit the state's weights and constants."""
    wanted = rule.memory.shapes(key_dim, value_dim)
    held = {name: tuple(weight.shape[2:]) for name, weight in state.weights.items()}
    constants = rule.memory.constants(key_dim, value_dim).keys()
    if state.constants.keys() != constants:
        raise ValueError(
            f"the memory of rule {rule.name!r} has the constants {sorted(constants)}, but the state holds "
            f"{sorted(state.constants)}. Make the state with memkit.init_state(rule, ...)."
        )
    if held != wanted:
        raise ValueError(
            f"keys of width {key_dim} and values of width {value_dim} need weights {wanted} under rule "
            f"{rule.name!r}, but the state holds {held}. Make the state with memkit.init_state(rule, ...)."
        )


def _check_gates(rule: Rule, k: Tensor, v: Tensor, gates: Gates) -> None:
    if not isinstance(gates, Mapping):
        raise ValueError(f"gates is a mapping from names to tensors; got {type(gates).__name__}.")
    for name in gates:
        if name not in rule.gates:
            raise ValueError(f"rule {rule.name!r} has no gate {name!r}. {nearest(name, rule.gates)}")
    for gate in rule.gates.values():
        if gate.name not in gates:
            if gate.default is None:
                raise ValueError(f"rule {rule.name!r} needs the gate {gate.name!r}; got {sorted(gates)}.")
            continue
        if not isinstance(gates[gate.name], Tensor):
            raise ValueError(f"gate {gate.name!r} must be a tensor; got {gates[gate.name]!r}. Use torch.full.")
        if gates[gate.name].is_complex():
            raise ValueError(f"gate {gate.name!r} must be real; got {gates[gate.name].dtype}.")
        wanted = gate_shape(rule, gate, k, v)
        if tuple(gates[gate.name].shape) != wanted:
            raise ValueError(
                f"gate {gate.name!r} of rule {rule.name!r} is per {gate.per}, so it must be {wanted}; "
                f"got {tuple(gates[gate.name].shape)}."
            )


def gate_shape(rule: Rule, gate: Gate, k: Tensor, v: Tensor) -> tuple[int, ...]:
    """Shape of a gate beside k `[B, T, H, pairs K]` and v `[B, T, H, pairs V]`."""
    key, value = k.shape[-1] // rule.pairs, v.shape[-1] // rule.pairs
    return (*k.shape[:3], *{"head": (), "key": (key,), "value": (value,), "pair": (rule.pairs,)}[gate.per])


def filled_in(rule: Rule, gates: Gates, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """All gates of the rule: the given ones, and defaults for those left out."""
    return {
        name: gates[name] if name in gates else _default(gate, k, gate_shape(rule, gate, k, v))
        for name, gate in rule.gates.items()
    }


def _default(gate: Gate, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not callable(gate.default):
        return like.new_full(shape, gate.default or 0.0)
    # One by one, because a list that is sent to a device waits for it.
    heads = torch.stack([like.new_full((), number) for number in gate.default(shape[2])])
    return heads.view(-1, *[1] * (len(shape) - 3)).expand(shape)


def computation_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or better where an input is: coefficients and state are never kept in half precision."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
