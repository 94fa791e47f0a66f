"""The iterate form: exact online learning of deep memories, parallel over a block by a fixed point.

A token's gradient is taken at weights that hold the block's earlier writes, which `rounds` settle. Where steps
are large the rounds overshoot before they become exact; a block whose rounds do not come closer is halved, down
to one gradient point, where there is nothing to find.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted
from memkit.engine.core import coefficients
from memkit.engine.core.affine import Affine, affine
from memkit.engine.core.block import for_queries, gradient_weights, unstack
from memkit.engine.core.coefficients import Coefficients, Effect, Steps
from memkit.engine.core.obstacles import moving_weights, online, per_key_channel
from memkit.engine.core.rows import Rows, Weights, cut
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import Tape, record
from memkit.engine.core.unrolled import unroll_head_blocks
from memkit.engine.form import Call, Form, Place, Result
from memkit.engine.forms.iterate.fixed_point import Rounds, Settling, settle
from memkit.engine.forms.iterate.node import Given, joined
from memkit.engine.forms.iterate.round import wiring
from memkit.engine.gradients.products import (
    fold,
    fold_all,
    outputs_of,
    reader,
    stack_narrow,
    upright_parts,
    upright_weight,
)
from memkit.layout import Block, Layout, lay_out, without_periods
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors

POINTS = 32
"""Gradient points that iterations find together: more of them need more iterations, fewer touch the weights oftener."""


class _Piece(NamedTuple):
    """Tokens start..stop of the call, whole mini-batches unless at its ends, and what they do.

    effects: on what queries see and what is left, and on what gradients see. affine: errors that can be solved for.
    """

    block: Block
    tokens: Tokens
    steps: Steps
    effects: tuple[Coefficients, Effect]
    affine: Affine | None


def iterate(call: Call) -> Result:
    """Run the call in blocks of several mini-batches, of which only the first may start inside of one."""
    rule, rows, tokens, valid = call.rule, call.rows, call.tokens, call.valid
    outputs, seen = [tokens.v[:, :0]], []
    carry, anchor, outs = stack_narrow(rows), dict(rows.anchor), outputs_of(rows)
    # No tokens are enough to see that every weight is used, and which makes the prediction.
    none = map_tensors(lambda x: x[:, :0], tokens)
    record(rule, none.k, none.v, none.gates, rows.weights, rows.constants)
    wired = wiring(rule, none.k, rows.weights, rows.constants)
    graph = graph_wanted((tokens, rows.weights, rows.slots, rows.constants, rows.anchor))
    how = Settling(rule, wired, Rounds(call.run.rounds, call.run.tolerance), graph, call.observe)
    queue = deque(_pieces(call, known=wired.solved is not None))
    # Nobody keeps a carry that is left behind, unless for gradients or as an anchor.
    spare = {} if rows.anchor or how.graph else map_tensors(torch.empty_like, carry)
    while queue:
        piece = queue.popleft()
        block = piece.block
        there = None if valid is None else valid[:, block.start : block.stop]
        if block.stop - block.start <= rule.mini_batch:  # one gradient point: what the dual form does
            split = upright_parts(carry, outs, 1 + rule.slots)
            anchor = gradient_weights(rule, block, split, anchor, piece.tokens.gates)
            y, following, tape = _at_point(how, piece, anchor, carry, rows, spare)
        else:
            found = _by_rounds(how, piece, carry, rows, spare)
            if found is None:
                queue.extendleft(reversed(_halves(rule, piece, there)))
                continue
            y, following, tape = found
            anchor = _last_points(piece.effects[1], carry, tape, there, anchor) if rows.anchor else {}
        seen.append(tape.observed(block.stop - block.start) if call.observe else None)
        outputs.append(y)
        carry, spare = following, carry if spare else {}
    weights, slots = unstack(upright_parts(carry, outs, 1 + rule.slots))
    anchor = {name: anchor[name] for name in rows.anchor}
    after = replace(rows, weights=weights, slots=slots, anchor=anchor)
    return Result(torch.cat(outputs, 1), after, Observed.join(seen))


def _pieces(call: Call, *, known: bool) -> list[_Piece]:
    """The blocks of a call; known: the errors of the output layer can be solved for."""
    rule, tokens, lengths = call.rule, call.tokens, call.lengths
    steps = coefficients.probe(rule, tokens, call.valid)
    solved = affine(rule, map_tensors(Tensor.detach, tokens)) if known else None
    each = [_as_seen(rule, own) for own in unroll_head_blocks(steps, lengths, point=True)]
    return list(map(_Piece, call.blocks, cut(tokens, lengths), steps.cut(lengths), each, _cut_up(solved, lengths)))


def _at_point(
    how: Settling, piece: _Piece, anchor: Weights, carry: Weights, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights, Tape]:
    """What queries read, the carry after the block, and its tape, of a block with one gradient point."""
    _, k, v, gates = piece.tokens
    tape = record(how.rule, k, v, gates, anchor, rows.constants, surprise=how.watched)
    return *_followed(how.rule, piece, carry, tape, rows, spare), tape


def _by_rounds(
    how: Settling, piece: _Piece, carry: Weights, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights, Tape] | None:
    """The same of a block with several; None where rounds come no closer."""
    given = Given(piece.tokens, *piece.effects, carry, rows.constants)
    settled = settle(how, given.start(piece.affine))
    if settled is None:
        return None
    if how.graph:
        return joined(how, given, settled, piece.affine)
    return *_followed(how.rule, piece, carry, settled.tape, rows, spare), settled.tape


def _followed(
    rule: Rule, piece: _Piece, carry: Weights, tape: Tape, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights]:
    """What queries read, and the carry after the block, in the spare memory if there is some."""
    own, _ = piece.effects
    y = rule.memory.forward(reader(own.weight, carry, tape), piece.tokens.q, rows.constants)
    return y, fold_all(carry, own, tape, spare)


def _as_seen(rule: Rule, own: Coefficients) -> tuple[Coefficients, Effect]:
    """Effects on what each query sees, and on what each token's gradient does: its mini-batch's first token's."""
    if own.point is None:
        raise RuntimeError("coefficients were unrolled without the gradient's point.")
    point = own.point
    if rule.mini_batch > 1:
        place = torch.arange(point.carry.shape[-2], device=point.carry.device)
        first = place - place % rule.mini_batch
        point = Effect(point.carry[:, first], point.write[:, first])
    return own._replace(weight=for_queries(rule, own.weight), point=None), point


def _last_points(seen: Effect, carry: Weights, tape: Tape, valid: Tensor | None, anchor: Weights) -> Weights:
    """The weights that the gradients of each row's running mini-batch see, after the block."""
    rows, length = seen.carry.shape[:2]
    place = torch.arange(length, device=seen.carry.device)
    last = place[-1].expand(rows) if valid is None else torch.where(valid, place, 0).amax(1)
    each = torch.arange(rows, device=place.device)
    last_carry, last_write = seen.carry[each, last][:, None], seen.write[each, last][..., None]
    found = {}
    for name, x in carry.items():
        a, r = tape.inputs[name], tape.errors[name]
        found[name] = upright_weight(fold(last_carry, last_write, x, a, r), a.shape[-1], r.shape[-1])
        if valid is not None:
            found[name] = torch.where(valid.any(1)[:, None, None], found[name], anchor[name])
    return found


def _halves(rule: Rule, piece: _Piece, valid: Tensor | None) -> list[_Piece]:
    """The piece as two, cut between mini-batches."""
    points = -(-piece.tokens.k.shape[1] // rule.mini_batch)
    size = points // 2 * rule.mini_batch
    middle = piece.block.start + size
    begins = True if valid is None or rule.mini_batch == 1 else valid[:, size]  # of one token, every one begins
    blocks = [piece.block._replace(stop=middle), piece.block._replace(start=middle, begins=begins)]
    lengths = [block.stop - block.start for block in blocks]
    steps = piece.steps.cut(lengths)
    each = [_as_seen(rule, coefficients.unroll(some, point=True)) for some in steps]
    return list(map(_Piece, blocks, cut(piece.tokens, lengths), steps, each, _cut_up(piece.affine, lengths)))


def _cut_up(known: Affine | None, lengths: list[int]) -> list[Affine | None]:
    """Parts of these lengths, one after the other."""
    if known is None:
        return [None] * len(lengths)
    return [Affine(*part) for part in zip(*(x.split(lengths, 1) for x in known), strict=True)]


def not_iterable(rule: Rule) -> list[str]:
    """Reasons against fixed-point iterations over a block."""
    found = moving_weights(rule) + per_key_channel(rule)
    return found + ([] if rule.sees_weights else ["its gradient does not see the weights"])


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    if not rule.sees_weights:
        return without_periods(place.mask, place.tokens, block_size)
    return lay_out(rule.period, *place, min(block_size, POINTS * rule.mini_batch), across=True)


def _why(rule: Rule) -> str:
    return (
        "iterate: exact online gradients of a deep memory, a block at once by rounds that settle; where they do not, "
        "the block is halved, down to one token. A larger mini_batch needs no rounds, and is another rule."
    )


def _suits(rule: Rule) -> bool:
    return online(rule) and not torch.compiler.is_compiling()  # compiled code cannot look whether rounds settle


ITERATE = Form("iterate", not_iterable, _layout, iterate, _why, _suits)
