"""One round over a block: forth through the memory and back, each linear at weights that hold the block's own writes.

A token sees P Z of what the block began with and ((x a^T) * C) r of its earlier writes, in both directions: the
errors read the turned matrices as the inputs read the upright ones, with a and r in each other's place,

    z = P (x Z) + ((x x^T) * C) r        g = P (r Z^T) + ((r r^T) * C) x

The inputs a are always this round's own x, and so are the errors on the way back; what comes from the round before
is r on the way forth. Where the prediction is a linear's own output and the loss quadratic in it, even that r is
this round's: it solves the triangular system of the form `solve`, and a round is nearer by so much.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.affine import Affine
from memkit.engine.core.coefficients import Effect
from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import limit_errors, squared_surprise
from memkit.engine.gradients.adjoint import Asked, recall
from memkit.engine.gradients.pieces import write_pass
from memkit.engine.gradients.products import is_transposed
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


class Start(NamedTuple):
    """What a block's rounds start from: its tokens, what each gradient sees of the carry and of every write.

    affine: the errors that can be solved for; None where there are none.
    """

    tokens: Tokens
    seen: Effect
    carry: Weights
    constants: Weights
    affine: Affine | None


class Kept(NamedTuple):
    """The results of a round's products, by name: of each linear and of its transpose, and what was asked of both."""

    outputs: Weights
    backs: Weights
    asked: dict[str, Asked]
    asked_back: dict[str, Asked]


class RoundResult(NamedTuple):
    """What a round found: by name, each linear's inputs and errors; what the memory said; and what the way back needs.

    squared_surprise: gradient norms squared before any limit, where there is one.
    """

    inputs: Weights
    errors: Weights
    prediction: Tensor
    squared_surprise: Tensor | None
    kept: Kept


class Wiring(NamedTuple):
    """How a memory's linears hang together.

    solved: the one whose errors can be solved for: it makes the prediction, under a loss quadratic in it; or None.
    behind: those that come after others, so that what they are given changes from round to round.
    """

    solved: str | None
    behind: frozenset[str]


def wiring(rule: Rule, k: Tensor, weights: Weights, constants: Weights) -> Wiring:
    """k `[N, T, K]`: any keys, of T = 0 tokens too."""
    outputs: dict[str, Tensor] = {}
    behind = set()

    def linear(name: str, x: Tensor) -> Tensor:
        if x.requires_grad:
            behind.add(name)
        outputs[name] = x.new_zeros(*x.shape[:-1], weights[name].shape[-1]).requires_grad_()
        return outputs[name]

    with torch.enable_grad():
        said = rule.memory.forward(linear, k.detach(), map_tensors(Tensor.detach, constants))
    affine_in_it = (rule.objective.quadratic or rule.objective.linear) and rule.surprise_limit is None
    solved = next((name for name, out in outputs.items() if affine_in_it and out is said), None)
    return Wiring(solved, frozenset(behind))


class Round:
    """Rounds over one block, all whose tensors are plain numbers."""

    def __init__(self, rule: Rule, start: Start, wired: Wiring) -> None:
        if (wired.solved is None) != (start.affine is None):
            raise RuntimeError("errors are solved for where it is known how they depend on what the memory says.")
        self.rule, self.start, self.wired = rule, start, wired
        self.unknown = tuple(name for name in start.carry if name != wired.solved)
        self._shapes = rule.memory.shapes(start.tokens.k.shape[-1], start.tokens.v.shape[-1])
        self._known: dict[str, tuple[Tensor, Asked, Tensor]] = {}

    def old(self, found: RoundResult) -> Weights:
        """What the next round needs of this one."""
        return {name: found.errors[name] for name in self.unknown}

    def __call__(self, old: Weights) -> RoundResult:
        """One round after one that found the errors `old` of the unknown; empty: none, whose writes nobody sees."""
        seen, limit = self.start.seen, self.rule.surprise_limit
        asked: dict[str, Asked] = {}
        asked_back: dict[str, Asked] = {}
        solved: Weights = {}

        def forth(name: str, x: Tensor) -> Tensor:
            at_carry, asked[name], hears = self._meets(name, x)
            r = old.get(name)
            if name == self.wired.solved and self.start.affine is not None:
                r = solved[name] = self.start.affine.solved(hears, at_carry)
            if r is None:
                return at_carry
            known = name in self._known  # for the rounds to come, and not changed in place
            return at_carry.baddbmm(hears, r) if known else at_carry.baddbmm_(hears, r)

        def back(name: str, x: Tensor, error: Tensor) -> Tensor | None:
            if name not in self.wired.behind:
                return None
            carry, written = self.start.carry[name], error if limit is None else old.get(name)
            a, upright = error if written is None else written, not is_transposed(carry, error.shape[-1])
            slope, asked_back[name] = recall(seen, error, carry, a, turned=upright)
            return slope if written is None else slope.baddbmm_(asked_back[name].scores * seen.write, x.detach())

        tokens, constants = self.start.tokens, self.start.constants
        writing = write_pass(self.rule, tokens, constants, self.start.carry, forth, back, graph=False, known=solved)
        (inputs, outputs, prediction), errors, backs = map_tensors(Tensor.detach, writing)
        found = RoundResult(inputs, errors, prediction, None, Kept(outputs, backs, asked, asked_back))
        if limit is None:
            return found
        squared = squared_surprise(inputs, errors)
        return found._replace(errors=limit_errors(self.rule, squared, errors), squared_surprise=squared)

    def _meets(self, name: str, x: Tensor) -> tuple[Tensor, Asked, Tensor]:
        """P (x Z), and how much x_t hears of each write; where no linear comes before, the same in every round."""
        if name in self._known:
            return self._known[name]
        seen, carry = self.start.seen, self.start.carry[name]
        at_carry, asked = recall(seen, x, carry, x, turned=is_transposed(carry, self._shapes[name][1]))
        met = at_carry, asked, asked.scores * seen.write
        if name not in self.wired.behind:
            self._known[name] = met
        return met
