"""Fixed-point iteration for the errors of a block, r = G(r), with gradients taken after the block's earlier writes.

One iteration (`Iteration`) maps old errors to new ones, `[N, L, out]` per weight. A token depends on earlier tokens
only (a strictly triangular system), so iteration n is exact for the first n + 1 gradient points of the block, and all
is exact after as many iterations as points, in practice far fewer. Convergence is measured on the outputs z of the
linear maps, not on the errors: these have no scale of their own once a memory predicts its values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import squared_surprise
from memkit.engine.core.tape import Tape
from memkit.engine.forms.iterate.iteration import Iteration, IterationResult, MemoryGraph, Problem, Residuals
from memkit.rule import Rule

PATIENCE = 2
"""Iterations in a row without progress before a block is given up."""
ROUNDING = 64
"""Changes below so many machine epsilons count as zero, whatever the tolerance."""


class Rounds(NamedTuple):
    """Stopping rule of the fixed-point iteration.

    fixed: run exactly so many iterations after the first, without a check. If it is None, stop when the predicted
    remaining change of the layer outputs is below `tolerance`, relative to the row's largest output in the first
    iteration (None: 4 machine epsilons).
    """

    fixed: int | None = None
    tolerance: float | None = None

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """Return the tolerance, given the precision."""
        return 4 * torch.finfo(dtype).eps if self.tolerance is None else self.tolerance


class FixedPointConfig(NamedTuple):
    """The rule, its memory's dependencies, and the stopping rule.

    differentiable: gradients will be wanted. observe: losses and gradient norms are wanted.
    """

    rule: Rule
    graph: MemoryGraph
    rounds: Rounds
    differentiable: bool
    observe: bool

    def points(self, problem: Problem) -> int:
        """Return the number of gradient points in a block, one per mini-batch."""
        return -(-problem.tokens.k.shape[1] // self.rule.mini_batch)


class FixedPoint(NamedTuple):
    """The block's tape; and per iteration its residuals and the errors it started from, for the backward pass.

    After convergence only the last iteration is kept, as one from the fixed point to itself.
    """

    tape: Tape
    iterations: tuple[tuple[Residuals, Weights], ...]


@torch.no_grad()
def solve_fixed_point(config: FixedPointConfig, problem: Problem) -> FixedPoint | None:
    """Return the fixed point of a detached problem; None if the iteration stops making progress, or overflows.

    The tape's losses and gradient norms are filled only if the config asks for them.
    """
    rule, tokens, rounds = config.rule, problem.tokens, config.rounds
    step = Iteration(rule, problem, config.graph)
    if rounds.fixed is None:
        # Gradients use the layer outputs as they are; outputs used for values are one iteration further.
        ahead = 1 if config.differentiable else 2
        last = config.points(problem) - 1
        result = _converge(step, last, rounds.tolerance_for(tokens.k.dtype), ahead=ahead)
        if result is None:
            return None
        iterations = ((result.residuals, step.unknown_errors(result)),)
    else:
        result, iterations = _repeat(step, rounds.fixed)
    loss, squared = torch.full_like(tokens.v[..., 0], torch.nan), result.squared_surprise
    if config.observe:
        loss = rule.objective.loss(result.prediction, tokens.v, tokens.gates)
        squared = squared_surprise(result.inputs, result.errors) if squared is None else squared
    return FixedPoint(Tape(result.inputs, result.errors, loss, squared), iterations)


def _repeat(step: Iteration, count: int) -> tuple[IterationResult, tuple[tuple[Residuals, Weights], ...]]:
    """Return the result after `count` more iterations than one, and what `FixedPoint.iterations` holds."""
    old: Weights = {}
    result = step(old)
    iterations = [(result.residuals, old)]
    for _ in range(count):
        old = step.unknown_errors(result)
        result = step(old)
        iterations.append((result.residuals, old))
    return result, tuple(iterations)


def _converge(step: Iteration, most: int, tolerance: float, *, ahead: int) -> IterationResult | None:
    """Iterate until convergence, at most `most` times, when the result is exact; None without progress.

    Convergence: the change predicted for `ahead` iterations from now is within the tolerance, as the distance from the
    fixed point is about the size of the next change.
    """
    result, previous, smallest, waited = step({}), None, math.inf, 0
    scales = row_scales([result.residuals.outputs[name] for name in step.unknown])
    for n in range(1, most + 1) if step.unknown else ():
        old, result = result.residuals.outputs, step(step.unknown_errors(result))
        change = relative([(result.residuals.outputs[name] - old[name]).abs_() for name in step.unknown], scales)
        size, predicted = _predict(change, previous, ahead)
        if not size < math.inf:
            return None
        if size <= ROUNDING * torch.finfo(change.dtype).eps or predicted <= tolerance or n == most:
            break
        waited = 0 if size < smallest else waited + 1
        if waited >= PATIENCE:
            return None
        smallest, previous = min(size, smallest), change
    return result


def row_scales(tensors: list[Tensor]) -> list[Tensor]:
    """Return the largest absolute number of every row, `[N, 1]` per tensor `[N, L, ...]`."""
    return [x.abs().amax((1, 2))[:, None].clamp(min=1e-30) for x in tensors]


def relative(changes: list[Tensor], scales: list[Tensor]) -> Tensor:
    """Return the largest change of every token, `[N, L]`, relative to its row's scale; changes are positive."""
    per_layer = [change.amax(-1) / scale for change, scale in zip(changes, scales, strict=True)]
    return per_layer[0] if len(per_layer) == 1 else torch.stack(per_layer).amax(0)


def largest(change: Tensor) -> float:
    """Return the largest change, 0 if there is none."""
    return max(change.amax().view(1).tolist()) if change.numel() else 0.0


def _predict(change: Tensor, previous: Tensor | None, ahead: int) -> tuple[float, float]:
    """Return the largest change `[N, L]`, and the largest predicted `ahead` iterations from now, at most the first.

    A token's changes are taken as geometric, with the ratio of the last two.
    """
    if not change.numel():
        return 0.0, 0.0
    later = change if previous is None else change * (change / previous.clamp(min=1e-30)) ** ahead
    size, predicted = torch.stack([change.amax(), later.amax()]).tolist()
    return size, predicted if predicted < size else size
