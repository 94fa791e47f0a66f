"""Laws of rules about what gates, gradients and claims mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.rule import Gates, Rule, Tokens, at_weights
from memkit.state import Tree, map_tensors
from memkit.testing.close import LARGEST, Discarded, Mismatch, same, same_trees, within
from memkit.testing.outcome import check_slope
from memkit.testing.rule_time import given, tokens_of
from memkit.testing.strategies import RuleProblem

DESCENT = 1e-12
"""How far above 0 rounding may lift a slope, per unit of its size."""


def set_gates(tokens: Tokens, **values: float) -> Tokens:
    """The same tokens with some gates constant; gates that the rule does not have are left out."""
    fixed = {name: torch.full_like(tokens.gates[name], x) for name, x in values.items() if name in tokens.gates}
    return tokens._replace(gates={**tokens.gates, **fixed})


@torch.no_grad()
def neutral_gates(rule: Rule, problem: RuleProblem) -> None:
    """lr = 0, decay = 0 and empty slots change no weight, and y = M(q), whatever the other gates are."""
    state, tokens = problem.fresh_state(rule), set_gates(problem.tokens_for(rule), lr=0.0, decay=0.0)
    y, after = problem.engine.memorize(rule, *tokens, state, form=problem.form, block_size=problem.block_size)
    same_trees("weights", after.weights, state.weights)
    same("y", y, problem.engine.retrieve(rule, state, tokens.q))


@torch.no_grad()
def clearing_gates(rule: Rule, problem: RuleProblem) -> None:
    """One write with decay = 1, lr = 0, momentum = 0 makes every weight 0.

    Past steps are there to be dropped, unless the optimizer has other gates too, which may bring them back.
    """
    state = problem.state_for(rule)
    if any(gate.name not in ("lr", "momentum") for gate in rule.optimizer.gates):
        state = replace(state, slots=problem.fresh_state(rule).slots)
    tokens = set_gates(problem.tokens_for(rule, rule.update_every), lr=0.0, decay=1.0, momentum=0.0)
    _, after = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    same_trees("weights", after.weights, {name: torch.zeros_like(x) for name, x in after.weights.items()})


def descent(rule: Rule, problem: RuleProblem) -> None:
    """d loss / d lr <= 0 at lr = 0: the first write of a document, without decay, makes its token's loss smaller.

    Under update_every = n the write is of n times the same token; of several pairs, lr is one for all of them.
    """
    state = problem.fresh_state(rule)
    one = set_gates(problem.tokens_for(rule, 1), decay=0.0)
    tokens = map_tensors(lambda x: x.repeat_interleave(rule.update_every, 1), one)
    lr = torch.zeros_like(tokens.gates["lr"], requires_grad=True)
    tokens = tokens._replace(gates={**tokens.gates, "lr": lr})
    _, after = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    loss = token_loss(rule, tokens, after)
    slope = torch.autograd.grad(loss.sum(), lr, allow_unused=True, materialize_grads=True)[0].sum(1)
    if rule.gates["lr"].per == "pair":  # their losses are one, and a pair's own step may make the others' larger
        slope = slope.sum(-1)
    size = float(slope.abs().max())
    if not size <= LARGEST:
        raise Discarded(f"d loss / d lr reaches {size:.3g}.")
    within("max(0, d loss / d lr) at row, head ", slope.clamp(min=0), torch.zeros_like(slope), DESCENT * (1 + size))


def token_loss(rule: Rule, tokens: Tokens, state: MemoryState) -> Tensor:
    """The objective `[B, H, T]` of tokens at the state's weights, straight from the rule's parts."""
    _, k, v, gates = rule.prepare(tokens)
    used = {name: rule.effective(weight) for name, weight in state.weights.items()}
    constants = {name: c.unsqueeze(2) for name, c in state.constants.items()}
    prediction = rule.memory.forward(lambda name, x: x @ used[name], k.transpose(1, 2), constants)
    return rule.objective.loss(prediction, v.transpose(1, 2), {n: g.transpose(1, 2) for n, g in gates.items()})


def inner_gradient(rule: Rule, problem: RuleProblem) -> None:
    """The gradient that a write takes is the slope of its loss: autograd = central difference.

    In weights, keys, values, gates and constants.
    """

    def run(leaves: dict[str, Tree]) -> dict[str, Tree]:
        return {"loss": token_loss(rule, tokens_of(leaves), leaves["state"])}

    check_slope(run, given(problem.tokens_for(rule, 2), problem.fresh_state(rule)))


def outer_gradient(rule: Rule, problem: RuleProblem) -> None:
    """The gradients of outputs and final state are their slopes: autograd = central difference.

    In q, k, v, gates and the whole initial state.
    """

    def run(leaves: dict[str, Tree]) -> dict[str, Tree]:
        y, state = problem.engine.memorize(rule, *tokens_of(leaves), leaves["state"], form=problem.form)
        return {"y": y, "state": state}

    check_slope(run, given(problem.tokens_for(rule, 3), problem.state_for(rule)))


def declares_something_linear(rule: Rule) -> bool:
    """Whether there is a claim for `linear_as_declared` to look at."""
    claims = (part.linear for part in (rule.memory, rule.objective, rule.optimizer, rule.retention))
    return rule.objective.quadratic or rule.point is not at_weights or any(claims)


def linear_as_declared(rule: Rule, problem: RuleProblem) -> None:
    """What is declared linear acts on every matrix entry with the coefficients that it shows for units.

    step(grad, weight, slots) = sum of step(unit) times each of them, and keep likewise, and the gradient point,
    which has no other choice; a linear memory is M(x) = x W; a linear objective has the same slope at every
    prediction, and a quadratic one the slope h * prediction + r, with one number h a token.
    """
    tokens = rule.prepare(problem.tokens_for(rule, 1))
    gates = at_one_weight(rule, tokens.gates)
    optimizer, retention = rule.optimizer, rule.retention
    weight, grad, *rest = _matrices(problem, 2 + len(rule.init_slots(torch.zeros(()))))
    slots, kept = rest[: rule.optimizer_slots], rest[rule.optimizer_slots :]
    if optimizer.linear:

        def step(g: Tensor, w: Tensor, *s: Tensor) -> Sequence[Tensor]:
            moved, after = optimizer.step(g, w, s, gates)
            return moved, *after

        _superposes(f"step of optimizer {optimizer.name!r}", step, [grad, weight, *slots])
    if retention.linear:

        def keep(w: Tensor, g: Tensor, *s: Tensor) -> Sequence[Tensor]:
            return (retention.keep(w, g, s, gates),)

        _superposes(f"keep of retention {retention.name!r}", keep, [weight, grad, *kept])
    if rule.point is not at_weights:
        _superposes("the gradient point", lambda w, *s: (rule.point(w, s, gates),), [weight, *rest])
    if rule.memory.linear:
        _is_a_matrix(rule, problem, tokens.k[:, 0], weight)
    if rule.objective.linear:
        slopes = [_loss_slope(rule, prediction, tokens) for prediction in (tokens.v, tokens.v.square() - 1)]
        same("the slope of a linear objective at another prediction", slopes[0], slopes[1])
    if rule.objective.quadratic:
        at_zero, at_one = (_loss_slope(rule, torch.full_like(tokens.v, x), tokens) for x in (0.0, 1.0))
        # Predictions of very different sizes, so that a bend anywhere is met.
        prediction = tokens.v.flip(-1) * 10 ** (3 * tokens.v.tanh())
        wanted = at_zero + (at_one - at_zero)[..., :1] * prediction
        same("the slope of a quadratic objective, h * prediction + r,", _loss_slope(rule, prediction, tokens), wanted)


def _is_a_matrix(rule: Rule, problem: RuleProblem, x: Tensor, weight: Tensor) -> None:
    names = list(rule.memory.shapes(problem.key_dim, problem.value_dim))
    if len(names) != 1:
        raise Mismatch(f"a linear memory is one matrix, but this one has the weights {names}.")
    read = rule.memory.forward(lambda name, x: x @ weight, x, {})
    same(f"a linear memory's M(x), its weight being {names[0]!r}", read, x @ weight)


def _superposes(name: str, function: Callable[..., Sequence[Tensor]], parts: list[Tensor]) -> None:
    ones, zeros = torch.ones(len(parts[0]), 1, 1).double(), torch.zeros(len(parts[0]), 1, 1).double()
    units = [function(*(ones if i == j else zeros for j in range(len(parts)))) for i in range(len(parts))]
    for place, result in enumerate(function(*parts)):
        wanted = sum((unit[place] * part for unit, part in zip(units, parts, strict=True)), torch.zeros_like(result))
        same(f"result {place} of {name}", result, wanted)


def _matrices(problem: RuleProblem, count: int) -> list[Tensor]:
    """Matrices `[B, K, V]` whose sizes differ by orders of magnitude, so that a limit anywhere is met."""
    g = problem.generator(8)
    shape = (problem.batch, problem.key_dim, problem.value_dim)
    sizes = 10 ** (4 * torch.rand(count, generator=g, dtype=torch.float64) - 1)
    return [size * torch.randn(shape, generator=g, dtype=torch.float64) for size in sizes]


def at_one_weight(rule: Rule, gates: Gates) -> dict[str, Tensor]:
    """The first token's gates of the first head, shaped to meet a weight `[B, K, V]`."""
    axes = {"head": (-1, -1), "pair": (-1, -1), "key": (-1,), "value": (-2,)}
    found = {}
    for gate in rule.weight_gates:
        found[gate.name] = gates[gate.name][:, 0, 0]
        for axis in axes[gate.per]:
            found[gate.name] = found[gate.name].unsqueeze(axis)
    return found


def _loss_slope(rule: Rule, prediction: Tensor, tokens: Tokens) -> Tensor:
    prediction = prediction.clone().requires_grad_()
    loss = rule.objective.loss(prediction, tokens.v, tokens.gates)
    return torch.autograd.grad(loss.sum(), prediction)[0]
