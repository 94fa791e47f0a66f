"""Rounds that settle: the errors of a block whose gradients see weights that hold the block's own earlier writes.

A round (`one_round`) makes new errors of old ones, r <- G(r). What a token sees of the block's writes is strictly
triangular, so round n is exact for the first n + 1 gradient points of the block, and the answer exact to rounding
after as many rounds as there are points, in practice far sooner. They stop by what the linears say, z, and not by r,
whose own size means nothing where a memory has learned all there is to learn.

The gradient at the fixed point r = G(r, theta) needs no history of rounds: with l = d loss / d r it is
dG/dtheta^T m, where m = l + dG/dr^T m is found by rounds of its own. dG/dr is strictly triangular too, so they
end as the rounds forward do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memkit.engine.coefficients import Effect
from memkit.engine.memory_state import Rows, Weights
from memkit.engine.one_round import Given, Round, RoundResult, pull
from memkit.engine.tape import Tape, batched, graph_wanted, outside_autocast, squared_surprise
from memkit.rule import Rule, Tokens
from memkit.state import emptied, map_tensors, tensors, with_tensors

PATIENCE = 2
"""Rounds in a row that may come no closer before a block is given up."""


class Rounds(NamedTuple):
    """When to stop: after `most` rounds, unlooked; or, where that is None, when what the weights say is foreseen to be
    `tolerance` of a row's largest number from settled (None: what rounding leaves undecided)."""

    most: int | None = None
    tolerance: float | None = None


def settle(
    rule: Rule,
    here: Tokens,
    seen: Effect,
    carry: Weights,
    rows: Rows,
    rounds: Rounds,
    solved: str | None,
    *,
    surprise: bool,
) -> Tape | None:
    """The block's tape, with gradient norms if `surprise` asks; None where rounds come no closer, or overflow.

    solved: the linear whose errors each round solves for, as `one_round.answering` says.
    """
    given = Given(here._replace(q=here.q.detach()[..., :0]), seen, carry, rows.constants)
    points = -(-here.k.shape[1] // rule.mini_batch)
    tolerance = 4 * torch.finfo(here.k.dtype).eps if rounds.tolerance is None else rounds.tolerance
    once = _Once(rule, given, solved, points - 1, tolerance)
    go = Round(rule, map_tensors(Tensor.detach, given), solved)
    if rounds.most is not None:
        found = _fixed(go, once, rounds.most)
    else:
        with torch.no_grad():
            found = _settled(go, points - 1, tolerance)
        if found is None:
            return None
        if graph_wanted(given):
            found = once.joined(found, go.old(found), settled=True)
    loss = rule.objective.loss(found.prediction, here.v, here.gates).detach()
    squared = found.squared_surprise
    if surprise and squared is None:
        squared = squared_surprise(found.inputs, found.errors)
    return Tape(found.inputs, found.errors, loss, squared)


def _fixed(go: Round, once: _Once, most: int) -> RoundResult:
    """What is found after so many rounds, settled or not."""

    def step(old: dict[str, Tensor]) -> RoundResult:
        with torch.no_grad():
            found = go(map_tensors(Tensor.detach, old))
        return once.joined(found, old, settled=False) if graph_wanted(once.like) else found

    old: dict[str, Tensor] = {}
    for _ in range(most):
        old = go.old(step(old))
    return step(old)


def _settled(go: Round, exact: int, tolerance: float) -> RoundResult | None:
    """What rounds settle on, after `exact` of them at the latest; None where they come no closer."""
    found, change, closest, waited = go({}), None, float("inf"), 0
    scales = _scales([found.outputs[name] for name in go.unknown])
    for n in range(1, exact + 1) if go.unknown else ():
        before, found = found, go(go.old(found))
        new, old = ([x.outputs[name] for name in go.unknown] for x in (found, before))
        # What this round's errors write is one round ahead of what the linears say now.
        moved, numbers = _look(new, old, scales, change, rounds=2)
        furthest, left = numbers.tolist()
        if not furthest < float("inf"):
            return None
        if left <= tolerance or n == exact:
            break
        waited = 0 if furthest < closest else waited + 1
        if waited >= PATIENCE:
            return None
        closest, change = min(furthest, closest), moved
    return found


def _scales(numbers: list[Tensor]) -> list[Tensor]:
    """The largest number of every row, `[N, 1]`."""
    return [x.abs().amax((1, 2))[:, None].clamp(min=1e-30) for x in numbers]


def _look(
    found: list[Tensor], before: list[Tensor], scales: list[Tensor], last: Tensor | None, *, rounds: int
) -> tuple[Tensor, Tensor]:
    """The largest change at every token, `[N, L]`, relative to the scale of its row; and two numbers: the largest of
    all, infinite if it is none, and the one foreseen `rounds` from now.

    Where a token's change was c times as large as the one before, `last`, each to come is foreseen to be c times as
    large again. A number is as far from settled as its next change is large.
    """
    changes = [(new - old).abs_().amax(-1) / s for new, old, s in zip(found, before, scales, strict=True)]
    moved = changes[0] if len(changes) == 1 else torch.stack(changes).amax(0)
    if not moved.numel():
        return moved, moved.new_zeros(2)
    furthest = moved.amax()
    ratio = torch.ones_like(moved) if last is None else moved / last.clamp(min=1e-30)
    foreseen = (moved * ratio**rounds).amax()
    furthest, foreseen = (x.nan_to_num(nan=float("inf"), posinf=float("inf")) for x in (furthest, foreseen))
    rounding = 64 * torch.finfo(moved.dtype).eps
    return moved, torch.stack([furthest, torch.where(furthest <= rounding, 0, torch.minimum(furthest, foreseen))])


class _Once(NamedTuple):
    """One round as a function of what is given: what its gradient needs to know."""

    rule: Rule
    like: Given
    solved: str | None
    exact: int
    tolerance: float

    def joined(self, found: RoundResult, old: dict[str, Tensor], *, settled: bool) -> RoundResult:
        """The same numbers as a function of what is given and of the old errors; settled: which are the new ones."""
        numbers = (*found.inputs.values(), *found.errors.values())
        names = (tuple(found.inputs), tuple(found.errors), tuple(old))
        given = tensors(self.like)
        once = self._replace(like=emptied(self.like))
        joined = _AtRound.apply(once, settled, names, numbers, *old.values(), *given)
        n = len(found.inputs)
        inputs, errors = dict(zip(names[0], joined[:n], strict=True)), dict(zip(names[1], joined[n:], strict=True))
        return found._replace(inputs=inputs, errors=errors)


class _AtRound(torch.autograd.Function):
    """What a round found, as a function of what it was given; differentiable once."""

    @staticmethod
    def forward(ctx: Any, once: _Once, settled: bool, names: Any, found: tuple[Tensor, ...], *given: Tensor) -> Any:
        """Hand on what was found, and keep what it came from."""
        ctx.once, ctx.settled, ctx.names = once, settled, names
        ctx.save_for_backward(*given)
        return found

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, *arriving: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """m = l + dG/dr^T m by rounds, where they settled, then dG/dtheta^T m."""
        once: _Once = ctx.once
        inputs, errors, unknown = ctx.names
        wanted = [w or (ctx.settled and i < len(unknown)) for i, w in enumerate(ctx.needs_input_grad[4:])]
        leaves = [x.detach().requires_grad_(w) for x, w in zip(ctx.saved_tensors, wanted, strict=True)]
        old, given = leaves[: len(unknown)], leaves[len(unknown) :]
        with torch.enable_grad():
            go = Round(once.rule, with_tensors(once.like, given), once.solved, graph=True)
            found = go(dict(zip(unknown, old, strict=True)))
        results = [*(found.inputs[name] for name in inputs), *(found.errors[name] for name in errors)]
        total = list(arriving)
        if ctx.settled and unknown:
            where = [len(inputs) + errors.index(name) for name in unknown]
            _adjoint(once, lambda vector: pull(found, results, vector, old), total, where)
        slopes = iter(pull(found, results, total, [x for x in leaves if x.requires_grad]))
        return None, None, None, None, *(next(slopes) if x.requires_grad else None for x in leaves)


def _adjoint(once: _Once, back: Callable[[list[Tensor]], list[Tensor]], total: list[Tensor], where: list[int]) -> None:
    """Add to the vector at the errors that are old ones too what arrives there round by round."""
    arriving, change = [total[i] for i in where], None
    for _ in range(once.exact):
        before = [total[i] for i in where]
        found = [g + x for g, x in zip(arriving, back(total), strict=True)]
        for i, x in zip(where, found, strict=True):
            total[i] = x
        if batched(found):  # all rounds, as nobody can look whether fewer do
            continue
        change, numbers = _look(found, before, _scales(found), change, rounds=1)
        if numbers.tolist()[1] <= once.tolerance:
            break
