"""Laws of rules about gradients: of a write, of the outer loss, and gradients of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from memkit.autograd import NotTwiceDifferentiable
from memkit.engine import MemoryState
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors
from memkit.testing.differences import (
    check_gradients,
    check_second_gradients,
    random_direction,
    second_gradients,
)
from memkit.testing.laws.gates import set_gates
from memkit.testing.laws.runs import inputs_of, run_with, tokens_of
from memkit.testing.strategies import RuleProblem, forms
from memkit.testing.tolerance import GRADIENTS, LARGEST, LARGEST_SECOND, Discarded, same, within

DESCENT = 1e-12
"""Largest d loss / d lr above 0 by rounding alone, per unit of its size."""
FEW = 5
"""Tokens of second gradients: enough to end a mini-batch of 4 or a write of 3."""


def descent(rule: Rule, problem: RuleProblem) -> None:
    """d loss / d lr <= 0 at lr = 0: a document's first write, without decay, reduces the loss of its token.

    Under update_every = n the write has n times the same token; with several pairs, lr is one number for all.
    """
    state = problem.fresh_state(rule)
    one = set_gates(problem.tokens_for(rule, 1), decay=0.0)
    tokens = map_tensors(lambda x: x.repeat_interleave(rule.update_every, 1), one)
    lr = torch.zeros_like(tokens.gates["lr"], requires_grad=True)
    tokens = tokens._replace(gates={**tokens.gates, "lr": lr})
    _, after = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    loss = token_loss(rule, tokens, after)
    gradient = torch.autograd.grad(loss.sum(), lr, allow_unused=True, materialize_grads=True)[0].sum(1)
    if rule.gates["lr"].per == "pair":  # the pairs share one loss, and a pair's own step may increase the others'
        gradient = gradient.sum(-1)
    size = float(gradient.abs().max())
    if not size <= LARGEST:
        raise Discarded(f"d loss / d lr reaches {size:.3g}.")
    uphill = gradient.clamp(min=0)
    within("max(0, d loss / d lr) at row, head ", uphill, torch.zeros_like(uphill), DESCENT * (1 + size))


def token_loss(rule: Rule, tokens: Tokens, state: MemoryState) -> Tensor:
    """The objective `[B, H, T]` of tokens at the state's weights, straight from the rule's parts."""
    _, k, v, gates = rule.prepare(tokens)
    used = {name: rule.effective(weight) for name, weight in state.weights.items()}
    constants = {name: c.unsqueeze(2) for name, c in state.constants.items()}
    prediction = rule.memory.forward(lambda name, x: x @ used[name], k.transpose(1, 2), constants)
    return rule.objective.loss(prediction, v.transpose(1, 2), {n: g.transpose(1, 2) for n, g in gates.items()})


def inner_gradient(rule: Rule, problem: RuleProblem) -> None:
    """d loss / d x = its central difference, for the loss of a write.

    x: weights, keys, values, gates and constants.
    """

    def run(inputs: dict[str, Tree]) -> dict[str, Tree]:
        return {"loss": token_loss(rule, tokens_of(inputs), inputs["state"])}

    check_gradients(run, inputs_of(problem.tokens_for(rule, 2), problem.fresh_state(rule)))


def outer_gradient(rule: Rule, problem: RuleProblem) -> None:
    """d (y, state) / d x = its central difference.

    x: q, k, v, gates and the whole initial state.
    """

    def run(inputs: dict[str, Tree]) -> dict[str, Tree]:
        y, state = problem.engine.memorize(rule, *tokens_of(inputs), inputs["state"], form=problem.form)
        return {"y": y, "state": state}

    check_gradients(run, inputs_of(problem.tokens_for(rule, 3), problem.state_for(rule)))


def second_gradient(rule: Rule, problem: RuleProblem) -> None:
    """H u by autograd, in every form = H u in scan = central difference of scan's first gradient along u.

    H: the Hessian, in q, k, v, gates and the whole initial state, of a loss quadratic in outputs and final state; u: a
    random direction. A form may refuse with memkit's NotTwiceDifferentiable; scan may not.
    """
    inputs = inputs_of(problem.tokens_for(rule, FEW), problem.state_for(rule))
    direction = random_direction(inputs)
    scan = run_with(rule, problem, form="scan")
    definition = second_gradients(scan, inputs, direction)
    check_second_gradients(scan, inputs, direction, definition)
    for form in [form for form in forms(rule) if form != "scan"]:
        try:
            found = second_gradients(run_with(rule, problem, form=form), inputs, direction)
        except NotTwiceDifferentiable:
            continue
        for name, expected in definition.items():
            of = f"the second gradient of {name} in the form {form!r}"
            same(of, found[name], expected, GRADIENTS, LARGEST_SECOND)
