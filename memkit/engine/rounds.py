"""Rounds that settle: the errors of a block whose gradients see weights that hold the block's own earlier writes.

A round is the tape under the read meaning of `linear`, with the round before's inputs a and errors r:

    (a, r) <- G(a, r) = tape of linear(x) = P (x Z) + ((x a^T) * C) r

C is strictly triangular, so round n is exact for the first n + 1 gradient points of the block, and the answer
exact to rounding after as many rounds as there are points, in practice far sooner.

The gradient at the fixed point z = G(z, theta) needs no history of rounds: with l = d loss / d z it is
dG/dtheta^T m, where m = l + dG/dz^T m is found by rounds of its own. dG/dz is strictly triangular too, so they
end as the rounds forward do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memkit.engine.block import mixed, read
from memkit.engine.coefficients import Effect
from memkit.engine.memory_state import Rows, Weights
from memkit.engine.tape import Tape, graph_wanted, record_through
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors, tensors, with_tensors

PATIENCE = 2
"""Rounds in a row that may come no closer before a block is given up."""


class Rounds(NamedTuple):
    """When to stop: after `most` rounds, unlooked; or, where that is None, at a change of `tolerance` of the largest
    number (None: what rounding leaves undecided)."""

    most: int | None = None
    tolerance: float | None = None


class Given(NamedTuple):
    """What a block's rounds start from: its tokens, what each gradient sees of the carry and of every write."""

    tokens: Tokens
    seen: Effect
    carry: Weights
    constants: Weights


def settle(
    rule: Rule, here: Tokens, seen: Effect, carry: Weights, rows: Rows, rounds: Rounds, *, surprise: bool
) -> Tape | None:
    """The block's tape, with gradient norms if `surprise` asks; None where rounds come no closer, or overflow."""
    given = Given(here._replace(q=here.q[..., :0]), seen, carry, rows.constants)
    graph = graph_wanted(given)
    if rounds.most is not None:
        tape = None
        for _ in range(rounds.most + 1):
            tape = _round(rule, given, tape, graph=graph, surprise=surprise)
        return tape
    points = -(-here.k.shape[1] // rule.mini_batch)
    tolerance = 64 * torch.finfo(here.k.dtype).eps if rounds.tolerance is None else rounds.tolerance
    with torch.no_grad():
        tape = _settled(rule, map_tensors(Tensor.detach, given), points - 1, tolerance, surprise=surprise)
    if tape is None or not graph:
        return tape
    once = _Once(rule, given, tuple(tape.inputs), points - 1, tolerance)
    found = _AtFixedPoint.apply(once, (*tape.inputs.values(), *tape.errors.values()), *tensors(given))
    return _tape(tape, found)


def _settled(rule: Rule, given: Given, exact: int, tolerance: float, *, surprise: bool) -> Tape | None:
    tape, closest, waited = _round(rule, given, None, surprise=surprise), float("inf"), 0
    for n in range(1, exact + 1):
        found = _round(rule, given, tape, surprise=surprise)
        change = _distance(_unknowns(found), _unknowns(tape))
        tape = found
        if not change < float("inf"):
            return None
        waited = 0 if change < closest else waited + 1
        if change <= tolerance or n == exact:
            break
        if waited >= PATIENCE:
            return None
        closest = min(change, closest)
    return tape


def _round(rule: Rule, given: Given, tape: Tape | None, *, graph: bool = False, surprise: bool = False) -> Tape:
    """One round: the tape at weights that hold the writes of the tape before, or none in the first round."""
    here, seen, carry, constants = given

    def linear(name: str, x: Tensor) -> Tensor:
        if tape is None:
            return mixed(seen.carry, x) @ carry[name]
        return read(seen, x, carry[name], tape.inputs[name], tape.errors[name])

    return record_through(
        rule, here.k, here.v, here.gates, linear, carry.keys(), constants, graph=graph, surprise=surprise
    )


class _Once(NamedTuple):
    """One round at a fixed point: what the gradient there needs to know."""

    rule: Rule
    like: Given
    names: tuple[str, ...]
    exact: int
    tolerance: float

    def round(self, unknowns: tuple[Tensor, ...], given: list[Tensor]) -> tuple[Tensor, ...]:
        """G(unknowns; given), with a graph."""
        start = with_tensors(self.like, given)
        n = len(self.names)
        inputs, errors = (dict(zip(self.names, part, strict=True)) for part in (unknowns[:n], unknowns[n:]))
        none = given[0].new_zeros(0)
        return _unknowns(_round(self.rule, start, Tape(inputs, errors, none, None), graph=True))


class _AtFixedPoint(torch.autograd.Function):
    """The fixed point as a function of what is given; differentiable once."""

    @staticmethod
    def forward(ctx: Any, once: _Once, found: tuple[Tensor, ...], *given: Tensor) -> tuple[Tensor, ...]:
        """Hand on what was found, and keep it."""
        ctx.once, ctx.count = once._replace(like=map_tensors(lambda x: x.new_zeros(0), once.like)), len(found)
        ctx.save_for_backward(*found, *given)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """m = l + dG/dz^T m by rounds, then dG/dtheta^T m."""
        once: _Once = ctx.once
        saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            unknowns = tuple(x.detach().requires_grad_() for x in saved[: ctx.count])
            given = [x.detach().requires_grad_(w) for x, w in zip(saved[ctx.count :], wanted, strict=True)]
            results = once.round(unknowns, given)
        back = _pull(results, unknowns)
        total = arriving
        for _ in range(once.exact):
            found = tuple(g + x for g, x in zip(arriving, back(total), strict=True))
            change, total = _distance(found, total), found
            if change <= once.tolerance:
                break
        leaves = [x for x in given if x.requires_grad]
        slopes = iter(_pull(results, leaves)(total))
        return None, None, *(next(slopes) if x.requires_grad else None for x in given)


def _pull(
    results: tuple[Tensor, ...], leaves: tuple[Tensor, ...] | list[Tensor]
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The product of a vector at the results with their Jacobian in the leaves; the graph is kept."""

    def back(vector: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = [(x, v) for x, v in zip(results, vector, strict=True) if x.requires_grad]
        return torch.autograd.grad(
            [x for x, _ in pairs],
            list(leaves),
            [v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    return back


def _unknowns(tape: Tape) -> tuple[Tensor, ...]:
    return (*tape.inputs.values(), *tape.errors.values())


def _tape(tape: Tape, unknowns: tuple[Tensor, ...]) -> Tape:
    """The tape with other inputs and errors."""
    n = len(tape.inputs)
    inputs, errors = (dict(zip(tape.inputs, part, strict=True)) for part in (unknowns[:n], unknowns[n:]))
    return tape._replace(inputs=inputs, errors=errors)


def _distance(found: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> float:
    """The largest change of any tensor, relative to its largest number before; infinite if it is no number."""
    pairs = [(new, old) for new, old in zip(found, before, strict=True) if new.numel()]  # there may be no rows
    changes = [(new - old).abs().amax() / old.abs().amax().clamp(min=1e-30) for new, old in pairs]
    return float(torch.stack(changes).amax().nan_to_num(nan=float("inf"))) if changes else 0.0
