"""The solve form: exact online gradients of a matrix memory, all blocks of a call at once.

Where the error is affine in what the memory said, r_t = h_t (k_t W_t) + r0_t, and W_t is a sum over what is
carried and the block's earlier writes, the errors of a block solve a triangular system (the UT transform of
the delta-rule papers, for any linear update):

    (I - h * (K K^T * C)) R = h * P (K Z) + r0

Its matrix does not depend on the weights. So everything but R = R_0 + R_1 Z and the fold into the next carry Z
is computed for all blocks at once, before and after the one short loop over blocks. A loss that is linear in
the prediction has h = 0, and nothing to solve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core import channels, coefficients
from memkit.engine.core.affine import affine
from memkit.engine.core.block import decay_carry, for_queries, parts, read, stack, unstack
from memkit.engine.core.channels import AnyCoefficients, AnyEffect
from memkit.engine.core.coefficients import Coefficients, Effect, Steps, scale
from memkit.engine.core.obstacles import moving_weights
from memkit.engine.core.rows import Rows, cut
from memkit.engine.core.surprise import Observed
from memkit.engine.form import Call, Form, Result
from memkit.layout import in_place
from memkit.rule import Rule, Tokens


def solve(call: Call) -> Result:
    """Run the call in blocks of equal length, and the rest; `ValueError` when there are several weights."""
    rule, rows, tokens = call.rule, call.rows, call.tokens
    name = _only(rule, rows)
    carry = stack(rows)[name]
    steps = coefficients.probe(rule, tokens, call.valid)
    outputs, seen = [tokens.v[:, :0]], []
    length = tokens.k.shape[1]
    size = min(call.run.block_size, max(length, 1))
    size = max(size - size % rule.steps, 1)  # whole tokens, where each takes several steps
    lengths = [length // size * size, length % size]
    for part, some in zip(cut(tokens, lengths), steps.cut(lengths), strict=True):
        if part.k.shape[1]:
            shape = (max(part.k.shape[1] // size, 1), min(size, part.k.shape[1]))
            y, carry, observed = _blocks(rule, part, some, shape, carry, observe=call.observe)
            outputs.append(y)
            seen.append(observed)
    weights, slots = unstack(parts({name: carry}, 1 + rule.slots))
    return Result(torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots), Observed.join(seen))


def _only(rule: Rule, rows: Rows) -> str:
    """The name of a matrix memory's one weight."""
    name, *others = rows.weights
    if others:
        raise ValueError(
            f"rule {rule.name!r}: its memory says linear = True, which means one matrix and nothing else, but has the "
            f"weights {list(rows.weights)}. Say linear = False."
        )
    return name


class _Errors(NamedTuple):
    """The errors of blocks as a function of their carry: R = fixed + by_carry Z; by_carry is None where h is 0."""

    fixed: Tensor
    by_carry: Tensor | None


def _blocks(
    rule: Rule, tokens: Tokens, steps: Steps, shape: tuple[int, int], carry: Tensor, *, observe: bool
) -> tuple[Tensor, Tensor, Observed | None]:
    """Run blocks of the shape (how many, how long): the systems of all, the loop, the reading of all."""
    rows, count = tokens.k.shape[0], shape[0]
    blocks = steps.blocks(*shape)
    own = channels.unroll(blocks, point=True) if steps.per_key else _batched(coefficients.unroll(blocks, point=True))
    here = _blocks_as_rows(tokens, shape)
    errors = _errors(rule, here, own)
    # The loop: the carry at the start of each block, and its errors.
    add = scale(own.last_write, here.k).mT
    starts, found = [], []
    by_block = [x.unflatten(0, (rows, count)).unbind(1) for x in (add, own.last_carry, errors.fixed)]
    by_carry = None if errors.by_carry is None else errors.by_carry.unflatten(0, (rows, count)).unbind(1)
    for j, (write, keep, r) in enumerate(zip(*by_block, strict=True)):
        starts.append(carry)
        found.append(r if by_carry is None else torch.baddbmm(r, by_carry[j], carry))
        carry = torch.baddbmm(decay_carry(keep, carry), write, found[-1])
    z, r = (torch.stack(x, 1).flatten(0, 1) for x in (starts, found))
    q, effect, each = _asked(rule, here.q, for_queries(rule, own.weight))
    y = rule.memory.forward(lambda name, x: read(effect, x, z, here.k, r), q, {})
    if each > 1:
        y = y.repeat_interleave(each, 1)
    observed = _observed(rule, here, own, z, r, (rows, count)) if observe else None
    return y.unflatten(0, (rows, count)).flatten(1, 2), carry, observed


def _asked(rule: Rule, q: Tensor, seen: AnyEffect) -> tuple[Tensor, AnyEffect, int]:
    """Queries that are read, effects on the weights that they see, and the steps that share an answer.

    A token of several steps reads once, before its first or after its last.
    """
    if rule.steps == 1 or q.shape[1] % rule.steps or not isinstance(seen, Effect):
        return q, seen, 1
    when = slice(0 if rule.read == "before" else rule.steps - 1, None, rule.steps)
    return q[:, when], Effect(seen.carry[:, when], seen.write[:, when]), rule.steps


def _errors(rule: Rule, here: Tokens, own: AnyCoefficients) -> _Errors:
    """Solve the triangular systems of blocks `[N, L, ...]` for any carry."""
    fixed, factor = affine(rule, here)
    if rule.objective.linear or own.point is None:
        return _Errors(fixed, None)
    system = -factor * own.point.scores(here.k, here.k)  # strictly lower; the diagonal of 1 is implied
    sides = torch.cat([factor * own.point.scale_input(here.k), fixed], -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    by_carry, fixed = solved.split([solved.shape[-1] - fixed.shape[-1], fixed.shape[-1]], -1)
    return _Errors(fixed, by_carry)


def _observed(
    rule: Rule, here: Tokens, own: AnyCoefficients, z: Tensor, r: Tensor, blocks: tuple[int, int]
) -> Observed:
    """Loss and surprise of every token at the weights that its gradient saw."""
    seen = own.point or own.weight.before_writes()
    loss = rule.objective.loss(read(seen, here.k, z, here.k, r), here.v, here.gates)
    surprise = here.k.norm(dim=-1) * r.norm(dim=-1)
    return Observed(*(x.detach().unflatten(0, blocks).flatten(1, 2) for x in (loss, surprise)))


def _blocks_as_rows(tokens: Tokens, shape: tuple[int, int]) -> Tokens:
    """Tokens `[N, L, ...]` as `[N * how many, how long, ...]`."""
    q, k, v = (x.unflatten(1, shape).flatten(0, 1) for x in tokens[:3])
    return Tokens(q, k, v, {name: gate.unflatten(1, shape).flatten(0, 1) for name, gate in tokens.gates.items()})


def _batched(own: Coefficients) -> Coefficients:
    """Coefficients `[N, blocks, ., .]` as `[N * blocks, ., .]`."""

    def batched(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    point = None if own.point is None else Effect(*map(batched, own.point))
    return Coefficients(Effect(*map(batched, own.weight)), point, batched(own.last_carry), batched(own.last_write))


def not_solvable(rule: Rule) -> list[str]:
    """Reasons against a triangular system per block."""
    found = moving_weights(rule)
    if not rule.memory.linear:
        found.append("its memory is not a single matrix")
    if not (rule.objective.quadratic or rule.objective.linear):
        found.append(f"the gradient of its objective {rule.objective.name!r} is not linear in the prediction")
    if rule.sees_weights and rule.mini_batch > 1:
        found.append(f"its gradients see the weights of every {rule.mini_batch}th token only")
    if rule.surprise_limit is not None:
        found.append("its surprise_limit is not linear")
    return found


def _why(rule: Rule) -> str:
    if not rule.sees_weights:
        return "solve: its gradient does not see the weights, so all blocks run at once."
    return "solve: exact online gradients of a matrix, as one triangular system per block; all blocks at once."


SOLVE = Form("solve", not_solvable, lambda rule, place, size: in_place([], place.mask), solve, _why)
