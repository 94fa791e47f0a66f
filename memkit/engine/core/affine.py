"""Errors that are affine in the prediction, as those of every squared error: a block can be solved for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, unhooked
from memkit.rule import Rule, Tokens


class Affine(NamedTuple):
    """error = factor * prediction + at_zero: at_zero `[N, L, V]`, factor `[N, L, 1]`."""

    at_zero: Tensor
    factor: Tensor

    def solve(self, scores: Tensor, from_carry: Tensor) -> Tensor:
        """Errors `[N, L, V]`; from_carry: predictions from the carry alone; scores `[N, L, L]`: of other writes."""
        side = torch.addcmul(self.at_zero, self.factor, from_carry)
        # Strictly lower; the diagonal of 1 is implied.
        return torch.linalg.solve_triangular(-self.factor * scores, side, upper=False, unitriangular=True)

    def solve_vjp(self, scores: Tensor, gradient: Tensor) -> Tensor:
        """VJP of `solve` in its right-hand side: from the gradient of the solution."""
        return torch.linalg.solve_triangular((-self.factor * scores).mT, gradient, upper=True, unitriangular=True)


def affine(rule: Rule, here: Tokens) -> Affine:
    """Errors of tokens as a function of the memory's prediction."""
    graph = graph_wanted((here.v, here.gates))
    with unhooked(), torch.enable_grad():
        found = []
        for value in (0.0, 1.0):
            prediction = torch.full_like(here.v, value)
            if torch.compiler.is_compiling() and here.v.requires_grad:
                # A compiled graph returns no tensor after requires_grad_().
                prediction = prediction + 0 * here.v
            else:
                prediction.requires_grad_()
            loss = rule.objective.loss(prediction, here.v, here.gates).sum()
            found += torch.autograd.grad(loss, prediction, create_graph=graph, materialize_grads=True)
    at_zero, at_one = found if graph else (x.detach() for x in found)
    return Affine(at_zero, (at_one - at_zero)[..., :1])
