"""Rounds that settle: the errors of a block whose gradients see weights that hold the block's own earlier writes.

A round (`one_round`) makes new errors of old ones, r <- G(r). What a token sees of the block's writes is strictly
triangular, so round n is exact for the first n + 1 gradient points of the block, and the answer exact to rounding
after as many rounds as there are points, in practice far sooner. They stop by what the linears say, z, and not by r,
whose own size means nothing where a memory has learned all there is to learn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import squared_surprise
from memkit.engine.core.tape import Tape
from memkit.engine.forms.iterate.round import Kept, Round, RoundResult, Start, Wiring
from memkit.rule import Rule

PATIENCE = 2
"""Rounds in a row that come no closer, after which a block is given up."""
ROUNDING = 64
"""Moves of so many roundings are none, whatever the tolerance."""


class Rounds(NamedTuple):
    """When to stop: after `most` rounds, unlooked; or, where that is None, when what the weights say is foreseen to be
    `tolerance` of a row's largest number in the first round from settled (None: what rounding leaves undecided)."""

    most: int | None = None
    tolerance: float | None = None

    def within(self, dtype: torch.dtype) -> float:
        """The tolerance in a precision."""
        return 4 * torch.finfo(dtype).eps if self.tolerance is None else self.tolerance


class Settling(NamedTuple):
    """The rule, its memory's wiring and when rounds stop; whether gradients are wanted, and whether anybody watches."""

    rule: Rule
    wired: Wiring
    rounds: Rounds
    graph: bool
    watched: bool

    def points(self, start: Start) -> int:
        """The gradient points of a block."""
        return -(-start.tokens.k.shape[1] // self.rule.mini_batch)


class Settled(NamedTuple):
    """The block's tape; and of each round what its products found and the errors that it began with.

    Where rounds settle only the last one, as it were one that begins with what it ends with.
    """

    tape: Tape
    rounds: tuple[tuple[Kept, Weights], ...]


@torch.no_grad()
def settle(how: Settling, start: Start) -> Settled | None:
    """What rounds find, all tensors plain numbers; None where they come no closer, or overflow.

    Losses and gradient norms only where somebody watches.
    """
    rule, tokens, rounds = how.rule, start.tokens, how.rounds
    go = Round(rule, start, how.wired)
    if rounds.most is None:
        # Gradients are taken at what the linears say, which lags what the errors write by a round.
        ahead = 1 if how.graph else 2
        found = _settled(go, how.points(start) - 1, rounds.within(tokens.k.dtype), ahead=ahead)
        if found is None:
            return None
        begun = ((found.kept, go.old(found)),)
    else:
        found, begun = _fixed(go, rounds.most)
    loss, squared = torch.full_like(tokens.v[..., 0], torch.nan), found.squared_surprise
    if how.watched:
        loss = rule.objective.loss(found.prediction, tokens.v, tokens.gates)
        squared = squared_surprise(found.inputs, found.errors) if squared is None else squared
    return Settled(Tape(found.inputs, found.errors, loss, squared), begun)


def _fixed(go: Round, most: int) -> tuple[RoundResult, tuple[tuple[Kept, Weights], ...]]:
    """What is found after so many rounds, settled or not."""
    old: Weights = {}
    found = go(old)
    begun = [(found.kept, old)]
    for _ in range(most):
        old = go.old(found)
        found = go(old)
        begun.append((found.kept, old))
    return found, tuple(begun)


def _settled(go: Round, exact: int, tolerance: float, *, ahead: int) -> RoundResult | None:
    """What rounds settle on, after `exact` of them at the latest; None where they come no closer.

    They stop where the move that is foreseen `ahead` rounds from now is within the tolerance: a number is as far from
    settled as its next move is large.
    """
    found, last, closest, waited = go({}), None, math.inf, 0
    scales = row_scales([found.kept.outputs[name] for name in go.unknown])
    for n in range(1, exact + 1) if go.unknown else ():
        before, found = found.kept.outputs, go(go.old(found))
        moved = relative([(found.kept.outputs[name] - before[name]).abs_() for name in go.unknown], scales)
        furthest, foreseen = _foresee(moved, last, ahead)
        if not furthest < math.inf:
            return None
        if furthest <= ROUNDING * torch.finfo(moved.dtype).eps or foreseen <= tolerance or n == exact:
            break
        waited = 0 if furthest < closest else waited + 1
        if waited >= PATIENCE:
            return None
        closest, last = min(furthest, closest), moved
    return found


def row_scales(numbers: list[Tensor]) -> list[Tensor]:
    """The largest number of every row, `[N, 1]`."""
    return [x.abs().amax((1, 2))[:, None].clamp(min=1e-30) for x in numbers]


def relative(moves: list[Tensor], scales: list[Tensor]) -> Tensor:
    """The largest move at every token, `[N, L]`, relative to the scale of its row; all moves are positive."""
    found = [move.amax(-1) / s for move, s in zip(moves, scales, strict=True)]
    return found[0] if len(found) == 1 else torch.stack(found).amax(0)


def largest(moved: Tensor) -> float:
    """The largest of some moves, of which there may be none."""
    return max(moved.amax().view(1).tolist()) if moved.numel() else 0.0


def _foresee(moved: Tensor, last: Tensor | None, ahead: int) -> tuple[float, float]:
    """The largest move of all, `[N, L]`, and the largest one foreseen `ahead` rounds from now, but no larger than it.

    Where a token's move was c times as large as the one before, `last`, each to come is foreseen to be c times as
    large again.
    """
    if not moved.numel():
        return 0.0, 0.0
    to_come = moved if last is None else moved * (moved / last.clamp(min=1e-30)) ** ahead
    furthest, foreseen = torch.stack([moved.amax(), to_come.amax()]).tolist()
    return furthest, foreseen if foreseen < furthest else furthest
