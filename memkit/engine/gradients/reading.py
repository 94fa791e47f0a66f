"""Queries read from a block, forward and backward: q `[N, T, K]` -> y `[N, T, V]`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from memkit.engine.core.coefficients import Effect
from memkit.engine.core.rows import Weights
from memkit.engine.gradients.segments import GradientSums, forward_pass
from memkit.engine.gradients.vjp import BlockGradients, Read, ReadResiduals, carry_vjp, read_fwd, read_vjp
from memkit.rule import Rule


class QueryResiduals(NamedTuple):
    """Output and residuals of every linear map, by name, kept for `read_queries_vjp`."""

    outputs: Weights
    reads: dict[str, ReadResiduals]


def read_queries(
    rule: Rule, q: Tensor, constants: dict[str, Tensor], effect: Effect, carry: Weights, a: Weights, r: Weights
) -> tuple[Tensor, QueryResiduals]:
    """Return y and the residuals; every linear map uses its own carry, inputs a and errors r."""
    residuals = QueryResiduals({}, {})

    def linear(name: str, x: Tensor) -> Tensor:
        residuals.outputs[name], residuals.reads[name] = read_fwd(effect, x, carry[name], a[name], r[name])
        return residuals.outputs[name]

    return rule.memory.forward(linear, q, constants), residuals


def read_queries_vjp(
    rule: Rule,
    q: Tensor,
    constants: dict[str, Tensor],
    carry: Weights,
    residuals: QueryResiduals,
    grad_y: Tensor,
    gradients: BlockGradients,
) -> GradientSums:
    """Return the gradients of q and constants; add those of the block's own tensors to `gradients`."""
    inputs, outputs, y = forward_pass(rule, q, constants, lambda name, x: residuals.outputs[name])
    sums = GradientSums([*outputs.values(), q, *constants.values()])
    sums.pull(y, grad_y)
    effect = gradients.coefficients.weight
    for name in reversed(outputs):
        grad_output = sums.get(outputs[name])
        if grad_output is not None:
            x, a, r = inputs[name], gradients.inputs[name], gradients.errors[name]
            read = Read(effect, x.detach(), carry[name], a, r, residuals.reads[name])
            grad_x = read_vjp(
                name, read, grad_output, gradients.grad_weight, gradients.grad_inputs, gradients.grad_errors
            )
            sums.pull(x, grad_x)
            carry_vjp(name, read, grad_output, gradients.grad_carry)
    return sums
