"""One round over a block: forth through the memory and back, each linear at weights that hold the block's own writes.

A token sees P Z of what the block began with and ((x a^T) * C) r of its earlier writes, in both directions: the
errors read the turned matrices as the inputs read the upright ones, with a and r in each other's place,

    z = P (x Z) + ((x x^T) * C) r        g = P (r Z^T) + ((r r^T) * C) x

The inputs a are always this round's own x, and so are the errors on the way back; what comes from the round before
is r on the way forth. Where the prediction is a linear's own output and the loss quadratic in it, even that r is
this round's: it solves the triangular system of the form `solve`, and a round is nearer by so much.

What lies between two linears is differentiated by autograd, piece by piece: every linear's output is a leaf, and
so, if the outer loop wants a graph, is the gradient at its input. `pull` runs back over these cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.block import heard, recalled, recalled_back
from memkit.engine.coefficients import Effect
from memkit.engine.memory_state import Weights
from memkit.engine.solve import affine
from memkit.engine.tape import limit_scale, squared_surprise, unhooked
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


class Given(NamedTuple):
    """What a block's rounds start from: its tokens, what each gradient sees of the carry and of every write."""

    tokens: Tokens
    seen: Effect
    carry: Weights
    constants: Weights


class RoundResult(NamedTuple):
    """What a round found: by name, each linear's inputs, outputs and errors; what the memory said; and the cuts.

    squared_surprise: gradient norms squared before any limit, where there is one.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    errors: dict[str, Tensor]
    prediction: Tensor
    squared_surprise: Tensor | None
    cuts: list[tuple[Tensor, Tensor]]


def answering(rule: Rule, k: Tensor, weights: Weights, constants: Weights) -> str | None:
    """The linear whose errors can be solved for: the one that makes the prediction, under a loss quadratic in it.

    k `[N, T, K]`: any keys, of T = 0 tokens too.
    """
    if not (rule.objective.quadratic or rule.objective.linear) or rule.surprise_limit is not None:
        return None
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor) -> Tensor:
        outputs[name] = x.new_zeros(*x.shape[:-1], weights[name].shape[-1])
        return outputs[name]

    said = rule.memory.forward(linear, k, constants)
    return next((name for name, out in outputs.items() if out is said), None)


class Round:
    """Rounds over one block; `solved` as `answering` says."""

    def __init__(self, rule: Rule, given: Given, solved: str | None, *, graph: bool = False) -> None:
        self.rule, self.given, self.solved, self.graph = rule, given, solved, graph
        self.unknown = tuple(name for name in given.carry if name != solved)
        self._affine = None if solved is None else affine(rule, given.tokens)
        self._shapes = rule.memory.shapes(given.tokens.k.shape[-1], given.tokens.v.shape[-1])
        self._at_keys: dict[str, tuple[Tensor, Tensor]] = {}

    def old(self, found: RoundResult) -> dict[str, Tensor]:
        """What the next round needs of this one."""
        return {name: found.errors[name] for name in self.unknown}

    def __call__(self, old: dict[str, Tensor]) -> RoundResult:
        """One round after one that found the errors `old` of the unknown; empty: none, so that no write is seen."""
        rule, (tokens, _, _, constants) = self.rule, self.given
        found = RoundResult({}, {}, {}, tokens.v, None, [])

        def linear(name: str, x: Tensor) -> Tensor:
            found.inputs[name] = x
            with torch.set_grad_enabled(self.graph):
                out = self._out(found, name, x, old.get(name))
            found.outputs[name] = out if name == self.solved else self._cut(found, out)
            return found.outputs[name]

        with unhooked(), torch.enable_grad():
            found = found._replace(prediction=rule.memory.forward(linear, tokens.k, constants))
            self._back(found, old)
        if not self.graph:
            # Errors too: where one linear map follows another, the error between is the leaf that autograd began at.
            cut = (found.inputs, found.errors, found.prediction)
            inputs, errors, prediction = map_tensors(Tensor.detach, cut)
            found = found._replace(inputs=inputs, errors=errors, prediction=prediction)
        if rule.surprise_limit is None:
            return found
        squared = squared_surprise(found.inputs, found.errors)
        scale = limit_scale(squared, rule.surprise_limit)[..., None]
        found.errors.update({name: error * scale for name, error in found.errors.items()})
        return found._replace(squared_surprise=squared)

    def _out(self, found: RoundResult, name: str, x: Tensor, r: Tensor | None) -> Tensor:
        at_carry, hears = self._meets(name, x)
        if name == self.solved and self._affine is not None:
            at_zero, slope = self._affine
            side = torch.addcmul(at_zero, slope, at_carry)
            # Strictly lower; the diagonal of 1 is implied.
            found.errors[name] = torch.linalg.solve_triangular(-slope * hears, side, upper=False, unitriangular=True)
            r = found.errors[name]
        return at_carry if r is None else torch.baddbmm(at_carry, hears, r)

    def _meets(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """P (x Z), and how much x_t hears of each write; those of the keys are the same in every round."""
        if name in self._at_keys:
            return self._at_keys[name]
        seen, carry = self.given.seen, self.given.carry[name]
        met = recalled(seen, x, carry, self._shapes[name][1]), heard(seen, x, x)
        if x is self.given.tokens.k:
            self._at_keys[name] = met
        return met

    def _back(self, found: RoundResult, old: dict[str, Tensor]) -> None:
        """The errors, from the last linear to the first."""
        rule, (tokens, seen, _, _) = self.rule, self.given
        heads: list[Tensor] = []
        slopes: list[Tensor | None] = []
        if self.solved is None:
            heads.append(rule.objective.loss(found.prediction, tokens.v, tokens.gates).sum())
            slopes.append(None)
        first = next(iter(found.inputs))
        for name, x in reversed(found.inputs.items()):
            if name == self.solved:
                r = found.errors[name]
            else:
                out = found.outputs[name]
                (r,) = torch.autograd.grad(heads, out, slopes, create_graph=self.graph, retain_graph=True)
                found.errors[name] = r
            if name == first or x is tokens.k:
                continue
            with torch.set_grad_enabled(self.graph):
                slope = recalled_back(seen, r, self.given.carry[name])
                written = r if rule.surprise_limit is None else old.get(name)
                if written is not None:
                    slope.baddbmm_(heard(seen, r, written), x)
            heads.append(x)
            slopes.append(self._cut(found, slope))

    def _cut(self, found: RoundResult, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        if self.graph:
            found.cuts.append((x, leaf))
        return leaf


def pull(
    found: RoundResult, results: Sequence[Tensor], vector: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor]:
    """The product of a vector at some results of a round with their Jacobian in the leaves; the graph is kept."""
    wanted = [*(leaf for _, leaf in found.cuts), *leaves]
    total = _slopes(results, wanted, vector)
    for i, (value, _) in reversed(list(enumerate(found.cuts))):
        arrived = total[i]
        if arrived is not None and value.requires_grad:
            before = [*range(i), *range(len(found.cuts), len(wanted))]
            for j, more in zip(before, _slopes([value], [wanted[j] for j in before], [arrived]), strict=True):
                held = total[j]
                total[j] = more if held is None else held if more is None else held + more
    found_at_leaves = zip(total[len(found.cuts) :], leaves, strict=True)
    return [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in found_at_leaves]


def _slopes(results: Sequence[Tensor], leaves: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor | None]:
    pairs = [(x, v) for x, v in zip(results, vector, strict=True) if x.requires_grad]
    if not (pairs and leaves):
        return [None] * len(leaves)
    return list(
        torch.autograd.grad([x for x, _ in pairs], leaves, [v for _, v in pairs], retain_graph=True, allow_unused=True)
    )
