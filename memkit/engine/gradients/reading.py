"""Reading a block, and going back through it."""

from __future__ import annotations

from torch import Tensor

from memkit.engine.core.coefficients import Effect
from memkit.engine.core.rows import Weights
from memkit.engine.gradients.adjoint import Asked, Read, Slopes, ask, ask_back, carry_back
from memkit.engine.gradients.pieces import Sums, passed
from memkit.rule import Rule


def read_back(
    rule: Rule,
    q: Tensor,
    constants: dict[str, Tensor],
    carry: Weights,
    answers: Weights,
    asked: dict[str, Asked],
    slope: Tensor,
    to: Slopes,
) -> Sums:
    """Go back through the read, from y to the queries; answers and asked: what their products found."""
    inputs, outputs, y = passed(rule, q, constants, lambda name, x: answers[name])
    sums = Sums([*outputs.values(), q, *constants.values()])
    sums.pull(y, slope)
    effect = to.coefficients.weight
    for name in reversed(outputs):
        arrived = sums.of(outputs[name])
        if arrived is not None:
            x = inputs[name]
            read = Read(effect, x.detach(), carry[name], to.inputs[name], to.errors[name], asked[name])
            sums.pull(x, ask_back(name, read, arrived, to.of_weight, to.of_inputs, to.of_errors))
            carry_back(name, read, arrived, to.of_carry)
    return sums


def answered(
    rule: Rule, q: Tensor, constants: dict[str, Tensor], effect: Effect, carry: Weights, a: Weights, r: Weights
) -> tuple[Tensor, Weights, dict[str, Asked]]:
    """What queries read, and of every linear its answer and what was asked."""
    answers: Weights = {}
    asked: dict[str, Asked] = {}

    def answer(name: str, x: Tensor) -> Tensor:
        answers[name], asked[name] = ask(effect, x, carry[name], a[name], r[name])
        return answers[name]

    return rule.memory.forward(answer, q, constants), answers, asked
