"""Errors that are affine in the prediction: what can be solved for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, unhooked
from memkit.rule import Rule, Tokens


class Affine(NamedTuple):
    """Errors that are affine in the prediction: those at 0, `[N, L, V]`, and how they grow with it, `[N, L, 1]`."""

    at_zero: Tensor
    slope: Tensor

    def solved(self, hears: Tensor, at_carry: Tensor) -> Tensor:
        """Errors of tokens that hear `at_carry` of the carry, and `hears` `[N, L, L]` of each other's writes."""
        side = torch.addcmul(self.at_zero, self.slope, at_carry)
        # Strictly lower; the diagonal of 1 is implied.
        return torch.linalg.solve_triangular(-self.slope * hears, side, upper=False, unitriangular=True)

    def solved_back(self, hears: Tensor, slope: Tensor) -> Tensor:
        """From the slope of what was solved for, that of the same errors at a given prediction."""
        return torch.linalg.solve_triangular((-self.slope * hears).mT, slope, upper=True, unitriangular=True)


def affine(rule: Rule, here: Tokens) -> Affine:
    """The errors of tokens as a function of what the memory says."""
    graph = graph_wanted((here.v, here.gates))
    with unhooked(), torch.enable_grad():
        found = []
        for value in (0.0, 1.0):
            prediction = torch.full_like(here.v, value)
            if torch.compiler.is_compiling() and here.v.requires_grad:
                # It returns nothing that requires_grad_() was called on.
                prediction = prediction + 0 * here.v
            else:
                prediction.requires_grad_()
            loss = rule.objective.loss(prediction, here.v, here.gates).sum()
            found += torch.autograd.grad(loss, prediction, create_graph=graph, materialize_grads=True)
    at_zero, at_one = found if graph else (x.detach() for x in found)
    return Affine(at_zero, (at_one - at_zero)[..., :1])
