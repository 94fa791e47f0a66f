"""Laws of rules about gates and about declared linearity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memkit.rule import Gates, Rule, Tokens, at_weights
from memkit.testing.strategies import RuleProblem
from memkit.testing.tolerance import Mismatch, same, same_trees


def set_gates(tokens: Tokens, **values: float) -> Tokens:
    """Set some gates of the tokens to constants; skip gates unknown to the rule."""
    fixed = {name: torch.full_like(tokens.gates[name], x) for name, x in values.items() if name in tokens.gates}
    return tokens._replace(gates={**tokens.gates, **fixed})


@torch.no_grad()
def neutral_gates(rule: Rule, problem: RuleProblem) -> None:
    """lr = 0, decay = 0 and empty slots: no weight changes, and y = M(q), for any other gates."""
    state, tokens = problem.fresh_state(rule), set_gates(problem.tokens_for(rule), lr=0.0, decay=0.0)
    y, after = problem.engine.memorize(rule, *tokens, state, form=problem.form, block_size=problem.block_size)
    same_trees("weights", after.weights, state.weights)
    same("y", y, problem.engine.retrieve(rule, state, tokens.q))


@torch.no_grad()
def clearing_gates(rule: Rule, problem: RuleProblem) -> None:
    """decay = 1, lr = 0, momentum = 0: one write makes every weight 0.

    The write must drop past steps too. Slots begin empty if other gates of the optimizer may bring past steps back.
    """
    state = problem.state_for(rule)
    if any(gate.name not in ("lr", "momentum") for gate in rule.optimizer.gates):
        state = replace(state, slots=problem.fresh_state(rule).slots)
    tokens = set_gates(problem.tokens_for(rule, rule.update_every), lr=0.0, decay=1.0, momentum=0.0)
    _, after = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    same_trees("weights", after.weights, {name: torch.zeros_like(x) for name, x in after.weights.items()})


def declares_something_linear(rule: Rule) -> bool:
    """Tell whether the rule makes a claim for `linear_as_declared` to check."""
    claims = (part.linear for part in (rule.memory, rule.objective, rule.optimizer, rule.retention))
    return rule.objective.quadratic or rule.point is not at_weights or any(claims)


def linear_as_declared(rule: Rule, problem: RuleProblem) -> None:
    """step(grad, weight, slots) = step(1, 0, 0) grad + step(0, 1, 0) weight + ..., entry by entry, if declared linear.

    The same holds for keep and the gradient point. A linear memory is M(x) = x W. The gradient of a linear objective
    does not depend on the prediction; that of a quadratic one is h * prediction + r, with one number h per token.
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
        gradients = [_loss_gradient(rule, prediction, tokens) for prediction in (tokens.v, tokens.v.square() - 1)]
        same("the gradient of a linear objective at another prediction", gradients[0], gradients[1])
    if rule.objective.quadratic:
        at_zero, at_one = (_loss_gradient(rule, torch.full_like(tokens.v, x), tokens) for x in (0.0, 1.0))
        # Predictions of very different sizes meet a bend anywhere.
        prediction = tokens.v.flip(-1) * 10 ** (3 * tokens.v.tanh())
        wanted = at_zero + (at_one - at_zero)[..., :1] * prediction
        same(
            "the gradient of a quadratic objective, h * prediction + r,",
            _loss_gradient(rule, prediction, tokens),
            wanted,
        )


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
    """Matrices `[B, K, V]` with sizes orders of magnitude apart, to meet a limit anywhere."""
    g = problem.generator(8)
    shape = (problem.batch, problem.key_dim, problem.value_dim)
    sizes = 10 ** (4 * torch.rand(count, generator=g, dtype=torch.float64) - 1)
    return [size * torch.randn(shape, generator=g, dtype=torch.float64) for size in sizes]


def at_one_weight(rule: Rule, gates: Gates) -> dict[str, Tensor]:
    """The first token's gates of the first head, shaped to broadcast over a weight `[B, K, V]`."""
    axes = {"head": (-1, -1), "pair": (-1, -1), "key": (-1,), "value": (-2,)}
    found = {}
    for gate in rule.weight_gates:
        found[gate.name] = gates[gate.name][:, 0, 0]
        for axis in axes[gate.per]:
            found[gate.name] = found[gate.name].unsqueeze(axis)
    return found


def _loss_gradient(rule: Rule, prediction: Tensor, tokens: Tokens) -> Tensor:
    prediction = prediction.clone().requires_grad_()
    loss = rule.objective.loss(prediction, tokens.v, tokens.gates)
    return torch.autograd.grad(loss.sum(), prediction)[0]
