"""Laws of rules about their parts: the shapes needed by the engine, and finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memkit.engine import gate_shape
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors
from memkit.testing.laws.gates import at_one_weight, set_gates
from memkit.testing.laws.runs import inputs_of, run_with
from memkit.testing.results_and_gradients import differentiate
from memkit.testing.strategies import RuleProblem, fitting_sizes
from memkit.testing.tolerance import Mismatch, named

FEW = 40
"""Tokens, at most, in which a rule must stay finite; it need not be stable forever."""
SMALL_STEP = 0.01


@torch.no_grad()
def shapes(rule: Rule, problem: RuleProblem) -> None:
    """loss: [...]; M(x): [..., V]; step, keep, point, effective: the weight's shape; prepare: `steps` per token.

    The memory uses each weight exactly once. A shape that only broadcasts is wrong: it mixes rows, heads or entries.
    """
    _hold_to_shapes(rule, problem)
    oblong = [sizes for sizes in fitting_sizes(rule) if sizes[0] != sizes[1]]
    if problem.key_dim == problem.value_dim and oblong:  # a square matrix hides a transposition
        _hold_to_shapes(rule, replace(problem, key_dim=oblong[0][0], value_dim=oblong[0][1]))


class _Declared(dict[str, Tensor]):
    """Gates that object to a request for another one."""

    def __missing__(self, name: str) -> Tensor:
        raise Mismatch(f"a part reads the gate {name!r}, which it does not declare. Here there are {list(self)}.")


def _hold_to_shapes(rule: Rule, problem: RuleProblem) -> None:
    tokens = problem.tokens_for(rule)
    prepared = rule.prepare(tokens)
    _prepared(rule, tokens, prepared)
    q, k, v, gates = prepared
    weights = {n: w[:, 0] for n, w in problem.fresh_state(rule).weights.items()}
    uses = dict.fromkeys(weights, 0)

    def linear(name: str, x: Tensor) -> Tensor:
        uses[name] += 1
        return x @ rule.effective(weights[name])

    constants = {n: c[:, :1] for n, c in problem.fresh_state(rule).constants.items()}
    x, target = k[:, :, 0], v[:, :, 0]
    prediction = rule.memory.forward(linear, x, constants)
    _is("M(k) of the memory", prediction, target.shape, "values")
    odd = [name for name, count in uses.items() if count != 1]
    if odd:
        raise Mismatch(f"the memory uses its weight {odd[0]!r} {uses[odd[0]]} times, and must use each exactly once.")
    loss = rule.objective.loss(prediction, target, _Declared({n: g[:, :, 0] for n, g in gates.items()}))
    _is(f"the loss of objective {rule.objective.name!r}", loss, target.shape[:-1], "one number per token")
    here = _Declared(at_one_weight(rule, gates))
    for weight in weights.values():
        _update(rule, weight, here)


def _update(rule: Rule, weight: Tensor, gates: dict[str, Tensor]) -> None:
    """Check the shapes of one weight's update."""
    slots = rule.init_slots(weight)
    first = slots[: rule.optimizer_slots]
    result = rule.optimizer.step(torch.ones_like(weight), weight, first, gates)
    if not isinstance(result, tuple) or len(result) != 2:
        gives = f"{len(result)} things" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise Mismatch(f"the step of optimizer {rule.optimizer.name!r} gives {gives}, and must give (step, slots).")
    step, moved = result
    _is(f"the step of optimizer {rule.optimizer.name!r}", step, weight.shape, "the weight")
    if not isinstance(moved, tuple) or len(moved) != len(first):
        kept = f"{len(moved)} slots" if isinstance(moved, tuple) else f"a {type(moved).__name__} for its slots"
        raise Mismatch(f"optimizer {rule.optimizer.name!r} gives {kept}, and must give a tuple of {len(first)}.")
    for number, (slot, before) in enumerate(zip(moved, first, strict=True)):
        _is(f"slot {number} of optimizer {rule.optimizer.name!r}", slot, before.shape, "the slot before")
    kept = rule.retention.keep(weight, step, slots[rule.optimizer_slots :], gates)
    _is(f"what retention {rule.retention.name!r} keeps", kept, weight.shape, "the weight")
    _is("the gradient point", rule.point(weight, slots, gates), weight.shape, "the weight")
    _is("the effective weight", rule.effective(weight), weight.shape, "the weight")


def _prepared(rule: Rule, tokens: Tokens, prepared: Any) -> None:
    if not isinstance(prepared, tuple) or len(prepared) != len(tokens):
        raise Mismatch(f"'prepare' gives a {type(prepared).__name__}, and must give (q, k, v, gates).")
    q, k, v, gates = prepared
    many = (tokens.k.shape[0], rule.steps * tokens.k.shape[1], tokens.k.shape[2])
    width = k.shape[-1] if isinstance(k, Tensor) and k.dim() else 0
    for name, x, last in (("q", q, width), ("k", k, width), ("v", v, tokens.v.shape[-1] // rule.pairs)):
        _is(f"{name} after 'prepare'", x, (*many, last), "[B, steps T, H, width]")
    for gate in (*rule.objective.gates, *rule.weight_gates):
        if gate.name not in gates:
            raise Mismatch(f"'prepare' loses the gate {gate.name!r}.")
        if gate.per == "pair":  # each pair has become a step, and its gate that step's
            gate = replace(gate, per="head")
        _is(f"gate {gate.name!r} after 'prepare'", gates[gate.name], gate_shape(rule, gate, k, v), f"per {gate.per}")


def _is(what: str, x: Any, shape: tuple[int, ...], like: str) -> None:
    """Raise `Mismatch` unless x is a tensor of a shape."""
    if not isinstance(x, Tensor):
        raise Mismatch(f"{what} is a {type(x).__name__}, and must be a tensor {tuple(shape)}: {like}.")
    if tuple(x.shape) != tuple(shape):
        raise Mismatch(f"{what} is {tuple(x.shape)}, and must be {tuple(shape)}: {like}.")


def finite(rule: Rule, problem: RuleProblem) -> None:
    """y, state and all gradients are finite after one write, from random weights, weights of 0 and values of 0.

    Memories begin at 0; a norm or a power has no derivative there.
    """
    state, tokens = problem.fresh_state(rule), set_gates(problem.tokens_for(rule, _enough(rule)), lr=SMALL_STEP)
    nothing = map_tensors(lambda x: torch.zeros_like(x) if x.is_floating_point() else x, state.initial)
    everywhere = torch.ones(problem.batch, dtype=torch.bool)
    empty = replace(state, initial=nothing).reset(everywhere, rule)
    for start, here in (
        ("random weights", inputs_of(tokens, state)),
        ("weights of 0", inputs_of(tokens, empty)),
        ("weights and values of 0", inputs_of(tokens._replace(v=torch.zeros_like(tokens.v)), empty)),
    ):
        for name, x in _numbers(rule, problem, here):
            odd = ~x.isfinite()
            if bool(odd.any()):
                value = float(x.detach()[odd][0])
                raise Mismatch(f"{name} has {int(odd.sum())} of {x.numel()} elements that are {value}, from {start}.")


def _enough(rule: Rule) -> int:
    """Tokens after which a rule has written, and read its write."""
    return min(rule.update_every + 1, FEW)


def _numbers(rule: Rule, problem: RuleProblem, here: dict[str, Tree]) -> Iterator[tuple[str, Tensor]]:
    found = differentiate(run_with(rule, problem, form=problem.form), here)
    for name, tree in found.results.items():
        yield from ((path, x) for path, x in named(name, tree) if x.is_floating_point())
    yield from ((f"the gradient of {name}", x) for name, x in found.gradients.items())
