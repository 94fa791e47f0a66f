"""A block whose errors rounds have found, as one node of the graph: reading it, folding it, and the way back.

The gradient at the fixed point r = G(r, theta) needs no history of rounds: with l = d loss / d r it is
dG/dtheta^T m, where m = l + J^T l + J^T J^T l + ... and J = dG/dr is strictly triangular as the rounds are, so that
the sum ends where they do. After a fixed number of rounds it is that of what they computed, round by round.
Differentiable once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import batched, differentiable_once, outside_autocast
from memkit.engine.core.affine import Affine
from memkit.engine.core.coefficients import Coefficients, Effect
from memkit.engine.core.rows import Weights
from memkit.engine.core.tape import Tape
from memkit.engine.forms.iterate.fixed_point import Settled, Settling, largest, relative, row_scales
from memkit.engine.forms.iterate.round import Kept, Start
from memkit.engine.forms.iterate.round_backward import Leaves, RoundBack
from memkit.engine.gradients.adjoint import Asked, Slopes, add, fold_back
from memkit.engine.gradients.pieces import arrived_at
from memkit.engine.gradients.products import fold_all
from memkit.engine.gradients.reading import answered, read_back
from memkit.rule import Tokens
from memkit.state import emptied, map_tensors, tensors, with_tensors


class Given(NamedTuple):
    """A block's tokens; its coefficients, own.weight for queries, and what gradients see; and where it begins."""

    tokens: Tokens
    own: Coefficients
    seen: Effect
    carry: Weights
    constants: Weights

    def start(self, affine: Affine | None) -> Start:
        """What its rounds start from, as plain numbers."""
        return map_tensors(Tensor.detach, Start(self.tokens, self.seen, self.carry, self.constants, affine))


class Found(NamedTuple):
    """What the block hands on, and the inputs and errors of its tokens."""

    y: Tensor
    carry: Weights
    inputs: Weights
    errors: Weights


class _Arriving(NamedTuple):
    """The slopes of what was found; None, or no name, where nobody sent one."""

    y: Tensor | None
    carry: Weights
    inputs: Weights
    errors: Weights


class _Left(NamedTuple):
    """What rounds and reading leave for the way back."""

    rounds: tuple[tuple[Kept, Weights], ...]
    affine: Affine | None
    inputs: Weights
    errors: Weights
    answers: Weights
    asked: dict[str, Asked]


def joined(how: Settling, given: Given, settled: Settled, affine: Affine | None) -> tuple[Tensor, Weights, Tape]:
    """The block's output, its carry and its tape, as functions of what is given."""
    results: list[Found] = []
    flat = _Block.apply(how, emptied(given), settled, affine, results, *tensors(given))
    found: Found = with_tensors(results[0], flat)
    return found.y, found.carry, settled.tape._replace(inputs=found.inputs, errors=found.errors)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        how: Settling,
        like: Given,
        settled: Settled,
        affine: Affine | None,
        results: list[Found],
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        """Read and fold; `results` receives the tree whose tensors are returned."""
        given: Given = with_tensors(like, [x.detach() for x in flat])
        tape, effect = settled.tape, given.own.weight
        y, answers, asked = answered(
            how.rule, given.tokens.q, given.constants, effect, given.carry, tape.inputs, tape.errors
        )
        left = _Left(settled.rounds, affine, tape.inputs, tape.errors, answers, asked)
        found = Found(y, fold_all(given.carry, given.own, tape), *map_tensors(_as_new, (tape.inputs, tape.errors)))
        ctx.how, ctx.like, ctx.like_left, ctx.like_found = how, like, *emptied((left, found))
        ctx.save_for_backward(*flat, *tensors(left))
        ctx.set_materialize_grads(False)
        results.append(ctx.like_found)
        if not any(x.requires_grad for x in flat[1:]):  # but queries, the first: what is written has no history
            ctx.mark_non_differentiable(*tensors(found)[1:])
        return tuple(tensors(found))

    @staticmethod
    @outside_autocast
    @differentiable_once("the form 'iterate'", "form='step'")
    def backward(ctx: Any, saved: tuple[Tensor, ...], *arriving: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Back through fold and read, and then through rounds."""
        plain = map(Tensor.detach, saved)
        given, left = with_tensors(ctx.like, plain), with_tensors(ctx.like_left, plain)
        found = _back(ctx.how, given, left, _arriving(ctx.like_found, arriving))
        flat = (torch.zeros_like(x) if g is None else g for x, g in zip(tensors(given), found, strict=True))
        return None, None, None, None, None, *flat


def _as_new(x: Tensor) -> Tensor:
    """A view, as a node returns nothing that it was given or keeps."""
    return x.view_as(x)


def _arriving(like: Found, flat: tuple[Tensor | None, ...]) -> _Arriving:
    rest = iter(flat)
    y = next(rest)
    named = ({name: next(rest) for name in names} for names in like[1:])
    return _Arriving(y, *({name: x for name, x in each.items() if x is not None} for each in named))


def _back(how: Settling, given: Given, left: _Left, slope: _Arriving) -> list[Tensor | None]:
    """The slopes of all that was given, in the order of its tensors; None where nothing arrives."""
    to = Slopes(given.own, left.inputs, left.errors)
    leaves = map_tensors(lambda x: x.detach().requires_grad_(), (given.tokens, given.constants))
    here, constants = leaves
    for name, x in slope.carry.items():
        fold_back(name, given.carry[name], x, to)
    sums = []
    if slope.y is not None:
        sums.append(read_back(how.rule, here.q, constants, given.carry, left.answers, left.asked, slope.y, to))
    for sofar, arrived in ((to.of_inputs, slope.inputs), (to.of_errors, slope.errors)):
        for name, x in arrived.items():
            add(sofar, name, x.clone())
    sums.extend(back.totals for back in _rounds_back(how, given, left, leaves, to))
    found = [arrived_at(leaf, sums) for leaf in tensors(leaves)]
    tokens, rest = found[: len(tensors(here))], found[len(tensors(here)) :]
    effects = [some.get(name) for some in (to.of_weight, to.of_last, to.of_point) for name in ("carry", "write")]
    return [*tokens, *effects, *(to.of_carry.get(name) for name in given.carry), *rest]


def _rounds_back(how: Settling, given: Given, left: _Left, leaves: Leaves, to: Slopes) -> list[RoundBack]:
    """Back through the rounds, from the last to the first; or, where they settled, through all that there could be."""
    start = given.start(left.affine)
    found: list[RoundBack] = []
    of_inputs, of_errors = to.of_inputs, to.of_errors
    for kept, heard in reversed(left.rounds):
        back = RoundBack(how.rule, start, how.wired, kept, heard, leaves, to.of_point)
        if how.rounds.most is None:
            _settle_back(back, of_inputs, of_errors, how.points(start), how.rounds.within(start.tokens.k.dtype))
        else:
            of_inputs, of_errors = {}, back.pull(of_inputs, of_errors)
        back.finish(to.of_carry)
        found.append(back)
    return found


def _settle_back(back: RoundBack, of_inputs: Weights, of_errors: Weights, most: int, tolerance: float) -> None:
    """Pull l, then J^T l, and so on, until what is left is within the tolerance.

    Those to come are smaller still, as rounds have settled; and a row that is no number costs all rounds.
    """
    total = {name: x.clone() for name, x in of_errors.items()}  # a pull adds to what it is given
    for _ in range(most):
        of_inputs, of_errors = {}, back.pull(of_inputs, of_errors)
        if not of_errors:
            break
        for name, x in of_errors.items():
            add(total, name, x.clone())
        if batched(of_errors.values()):  # all rounds, as nobody can look whether fewer do
            continue
        names = list(of_errors)
        moved = relative([of_errors[name].abs() for name in names], row_scales([total[name] for name in names]))
        if largest(moved) <= tolerance:
            break
