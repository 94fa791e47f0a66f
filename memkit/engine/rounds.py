"""Rounds that settle: the errors of a block whose gradients see weights that hold the block's own earlier writes.

A round (`one_round`) makes new errors of old ones, r <- G(r). What a token sees of the block's writes is strictly
triangular, so round n is exact for the first n + 1 gradient points of the block, and the answer exact to rounding
after as many rounds as there are points, in practice far sooner. They stop by what the linears say, z, and not by r,
whose own size means nothing where a memory has learned all there is to learn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.memory_state import Weights
from memkit.engine.one_round import Given, Round, RoundResult, Wiring
from memkit.engine.tape import Tape, squared_surprise
from memkit.rule import Rule

PATIENCE = 2
"""Rounds in a row that may come no closer before a block is given up."""


class Rounds(NamedTuple):
    """When to stop: after `most` rounds, unlooked; or, where that is None, when what the weights say is foreseen to be
    `tolerance` of a row's largest number from settled (None: what rounding leaves undecided)."""

    most: int | None = None
    tolerance: float | None = None

    def within(self, dtype: torch.dtype) -> float:
        """The tolerance in a precision."""
        return 4 * torch.finfo(dtype).eps if self.tolerance is None else self.tolerance


class Settled(NamedTuple):
    """The block's tape, and the errors that every round began with; where they settled, only those of one more."""

    tape: Tape
    olds: tuple[Weights, ...]


@torch.no_grad()
def settle(rule: Rule, given: Given, rounds: Rounds, wired: Wiring, *, surprise: bool) -> Settled | None:
    """What rounds find, all tensors plain numbers; with losses and gradient norms if `surprise` asks.

    None where rounds come no closer, or overflow.
    """
    tokens = given.tokens
    go = Round(rule, given, wired)
    if rounds.most is None:
        found = _settled(go, points(rule, given) - 1, rounds.within(tokens.k.dtype))
        if found is None:
            return None
        olds = (go.old(found),)
    else:
        found, olds = _fixed(go, rounds.most)
    loss, squared = tokens.v[..., 0], found.squared_surprise
    if surprise:
        loss = rule.objective.loss(found.prediction, tokens.v, tokens.gates)
        squared = squared_surprise(found.inputs, found.errors) if squared is None else squared
    return Settled(Tape(found.inputs, found.errors, loss, squared), olds)


def points(rule: Rule, given: Given) -> int:
    """The gradient points of the block."""
    return -(-given.tokens.k.shape[1] // rule.mini_batch)


def _fixed(go: Round, most: int) -> tuple[RoundResult, tuple[Weights, ...]]:
    """What is found after so many rounds, settled or not."""
    olds: list[Weights] = [{}]
    found = go({})
    for _ in range(most):
        olds.append(go.old(found))
        found = go(olds[-1])
    return found, tuple(olds)


def _settled(go: Round, exact: int, tolerance: float) -> RoundResult | None:
    """What rounds settle on, after `exact` of them at the latest; None where they come no closer."""
    found, change, closest, waited = go({}), None, float("inf"), 0
    scales = row_scales([found.outputs[name] for name in go.unknown])
    for n in range(1, exact + 1) if go.unknown else ():
        before, found = found, go(go.old(found))
        moves = [found.outputs[name] - before.outputs[name] for name in go.unknown]
        moved = relative(moves, scales)
        furthest, left = _foresee(moved, change).tolist()
        if not furthest < float("inf"):
            return None
        if left <= tolerance or n == exact:
            break
        waited = 0 if furthest < closest else waited + 1
        if waited >= PATIENCE:
            return None
        closest, change = min(furthest, closest), moved
    return found


def row_scales(numbers: list[Tensor]) -> list[Tensor]:
    """The largest number of every row, `[N, 1]`."""
    return [x.abs().amax((1, 2))[:, None].clamp(min=1e-30) for x in numbers]


def relative(moves: list[Tensor], scales: list[Tensor]) -> Tensor:
    """The largest move at every token, `[N, L]`, relative to the scale of its row."""
    found = [move.abs().amax(-1) / s for move, s in zip(moves, scales, strict=True)]
    return found[0] if len(found) == 1 else torch.stack(found).amax(0)


def _foresee(moved: Tensor, last: Tensor | None) -> Tensor:
    """Two numbers: the largest move of all, infinite if it is none, and the one foreseen two rounds from now.

    Where a token's move was c times as large as the one before, `last`, each to come is foreseen to be c times as
    large again. A number is as far from settled as its next move is large, and what this round's errors write is one
    round ahead of what the linears say now.
    """
    if not moved.numel():
        return moved.new_zeros(2)
    furthest = moved.amax()
    ratio = torch.ones_like(moved) if last is None else moved / last.clamp(min=1e-30)
    foreseen = (moved * ratio**2).amax()
    furthest, foreseen = (x.nan_to_num(nan=float("inf"), posinf=float("inf")) for x in (furthest, foreseen))
    rounding = 64 * torch.finfo(moved.dtype).eps
    return torch.stack([furthest, torch.where(furthest <= rounding, 0, torch.minimum(furthest, foreseen))])
