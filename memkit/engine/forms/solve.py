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
from memkit.engine.core.block import before, for_queries, heard, kept, met, read, stacked, unstacked, written
from memkit.engine.core.channels import AnyCoefficients, AnyEffect
from memkit.engine.core.coefficients import Coefficients, Effect, Steps
from memkit.engine.core.rows import Rows, cut
from memkit.engine.core.tape import Watch
from memkit.rule import Rule, Tokens


def solve(
    rule: Rule, tokens: Tokens, rows: Rows, valid: Tensor | None, block_size: int, watch: Watch | None = None
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, T, ...]`, gates `[N, T, ...]`) from `rows`; those exist that `valid` `[N, T]` marks.

    `watch` receives (loss, surprise) `[N, .]` of all tokens. Raises `ValueError` when there are several weights.
    """
    name = _only(rule, rows)
    carry = stacked(rows)[name]
    steps = coefficients.probe(rule, tokens, valid)
    outputs = [tokens.v[:, :0]]
    length = tokens.k.shape[1]
    size = min(block_size, max(length, 1))
    size = max(size - size % rule.steps, 1)  # whole tokens, where each takes several steps
    lengths = [length // size * size, length % size]
    for part, some in zip(cut(tokens, lengths), steps.cut(lengths), strict=True):
        if part.k.shape[1]:
            shape = (max(part.k.shape[1] // size, 1), min(size, part.k.shape[1]))
            y, carry = _blocks(rule, part, some, shape, carry, watch)
            outputs.append(y)
    weights, slots = unstacked({name: carry}, rows)
    return torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots)


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
    rule: Rule, tokens: Tokens, steps: Steps, shape: tuple[int, int], carry: Tensor, watch: Watch | None
) -> tuple[Tensor, Tensor]:
    """Run (how many, how long) blocks: the system of all, the loop, the reading of all."""
    rows, count = tokens.k.shape[0], shape[0]
    cut_up = steps.blocks(*shape)
    own = channels.unroll(cut_up, point=True) if steps.per_key else _batched(coefficients.unroll(cut_up, point=True))
    here = _blocks_as_rows(tokens, shape)
    errors = _errors(rule, here, own)
    # The loop: what each block is handed, and its errors.
    add = written(own.last_write, here.k).mT
    past, found = [], []
    apart = [x.unflatten(0, (rows, count)).unbind(1) for x in (add, own.last_carry, errors.fixed)]
    by_carry = None if errors.by_carry is None else errors.by_carry.unflatten(0, (rows, count)).unbind(1)
    for j, (write, keep, r) in enumerate(zip(*apart, strict=True)):
        past.append(carry)
        found.append(r if by_carry is None else torch.baddbmm(r, by_carry[j], carry))
        carry = torch.baddbmm(kept(keep, carry), write, found[-1])
    z, r = (torch.stack(x, 1).flatten(0, 1) for x in (past, found))
    q, effect, each = _asked(rule, here.q, for_queries(rule, own.weight))
    y = rule.memory.forward(lambda name, x: read(effect, x, z, here.k, r), q, {})
    if each > 1:
        y = y.repeat_interleave(each, 1)
    if watch is not None:
        watch.append(_met(rule, here, own, z, r, (rows, count)))
    return y.unflatten(0, (rows, count)).flatten(1, 2), carry


def _asked(rule: Rule, q: Tensor, seen: AnyEffect) -> tuple[Tensor, AnyEffect, int]:
    """The queries that are asked, what they see, and how many steps each answer is for.

    A token of several steps asks once, before its first or after its last.
    """
    if rule.steps == 1 or q.shape[1] % rule.steps or not isinstance(seen, Effect):
        return q, seen, 1
    when = slice(0 if rule.read == "before" else rule.steps - 1, None, rule.steps)
    return q[:, when], Effect(seen.carry[:, when], seen.write[:, when]), rule.steps


def _errors(rule: Rule, here: Tokens, own: AnyCoefficients) -> _Errors:
    """Solve the triangular systems of blocks `[N, L, ...]` for any carry."""
    fixed, slope = affine(rule, here)
    if rule.objective.linear or own.point is None:
        return _Errors(fixed, None)
    system = -slope * heard(own.point, here.k, here.k)  # strictly lower; the diagonal of 1 is implied
    sides = torch.cat([slope * met(own.point, here.k), fixed], -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    by_carry, fixed = solved.split([solved.shape[-1] - fixed.shape[-1], fixed.shape[-1]], -1)
    return _Errors(fixed, by_carry)


def _met(
    rule: Rule, here: Tokens, own: AnyCoefficients, z: Tensor, r: Tensor, blocks: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Loss and surprise of every token at the weights that its gradient saw."""
    seen = own.point or before(own.weight)
    loss = rule.objective.loss(read(seen, here.k, z, here.k, r), here.v, here.gates)
    surprise = here.k.norm(dim=-1) * r.norm(dim=-1)
    loss, surprise = (x.detach().unflatten(0, blocks).flatten(1, 2) for x in (loss, surprise))
    return loss, surprise


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
