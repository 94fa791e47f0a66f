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

from memkit.engine import coefficients
from memkit.engine.block import fold, for_queries, stacked, turn_back, unstacked
from memkit.engine.coefficients import Coefficients, Effect, Steps
from memkit.engine.dual import after, begin, observe_block, of_blocks, reader
from memkit.engine.memory_state import Rows, Weights, cut
from memkit.engine.one_round import wiring
from memkit.engine.rounds import Rounds, settle
from memkit.engine.scan import Watch
from memkit.engine.settled import Affine, Given, joined
from memkit.engine.solve import affine
from memkit.engine.tape import Tape, graph_wanted, record
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


class _Piece(NamedTuple):
    """Tokens start..stop of the call, whole mini-batches unless at its ends, and what they do."""

    block: Block
    tokens: Tokens
    steps: Steps
    own: Coefficients
    affine: Affine | None


def iterate(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    blocks: list[Block],
    valid: Tensor | None,
    rounds: Rounds,
    watch: Watch | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, L, ...]`, gates `[N, L]`) from `rows`, block by block.

    Blocks and `valid` `[N, L]` come from a layout whose blocks hold several mini-batches, but for a first one that
    may start inside of one. `watch` receives (loss, surprise) `[N, .]` of every block.
    """
    outputs = [tokens.v[:, :0]]
    carry, anchor = stacked(rows, turn=True), dict(rows.anchor)
    # No tokens are enough to see that every weight is used, and which makes the prediction.
    none = map_tensors(lambda x: x[:, :0], tokens)
    record(rule, none.k, none.v, none.gates, rows.weights, rows.constants)
    wired = wiring(rule, none.k, rows.weights, rows.constants)
    graph = graph_wanted((tokens, rows.weights, rows.slots, rows.constants))
    # Nobody keeps a carry that is left behind, unless for gradients or as an anchor.
    spare = {} if rows.anchor or graph else map_tensors(torch.empty_like, carry)
    lengths = [block.stop - block.start for block in blocks]
    steps = coefficients.probe(rule, tokens, valid)
    known = None if wired.solved is None else affine(rule, map_tensors(Tensor.detach, tokens))
    own = of_blocks(steps, lengths, point=True)
    queue = deque(map(_Piece, blocks, cut(tokens, lengths), steps.cut(lengths), own, _cut_up(known, lengths)))
    while queue:
        piece = queue.popleft()
        block, here = piece.block, piece.tokens
        size = block.stop - block.start
        there = None if valid is None else valid[:, block.start : block.stop]
        own = piece.own._replace(weight=for_queries(rule, piece.own.weight))
        if size <= rule.mini_batch:  # one gradient point: what the dual form does
            anchor = begin(rule, block, carry, anchor, rows, here.gates)
            tape = record(rule, here.k, here.v, here.gates, anchor, rows.constants, surprise=watch is not None)
            y, following = _followed(rule, here.q, own, carry, tape, rows, spare)
        else:
            own = own._replace(point=_at_points(own, rule.mini_batch))
            given = Given(here, own, carry, rows.constants)
            start = given.rounds(piece.affine)
            settled = settle(rule, start, rounds, wired, graph=graph, surprise=watch is not None)
            if settled is None:
                queue.extendleft(reversed(_halves(rule, piece, there)))
                continue
            tape = settled.tape
            if graph:
                y, following, tape = joined(rule, given, settled, piece.affine, rounds, wired)
            else:
                y, following = _followed(rule, here.q, own, carry, tape, rows, spare)
            anchor = _last_points(own.point, carry, tape, there, anchor) if rows.anchor else {}
        observe_block(watch, tape, size)
        outputs.append(y)
        carry, spare = following, carry if spare else {}
    weights, slots = unstacked(carry, rows)
    anchor = {name: anchor[name] for name in rows.anchor}
    return torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots, anchor=anchor)


def _followed(
    rule: Rule, q: Tensor, own: Coefficients, carry: Weights, tape: Tape, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights]:
    """What queries read, and the carry after the block, in the spare memory if there is some."""
    return rule.memory.forward(reader(own.weight, carry, tape), q, rows.constants), after(carry, own, tape, spare)


def _at_points(own: Coefficients, mini_batch: int) -> Effect:
    """The effects on what each token's gradient sees: those at the first token of its mini-batch."""
    if own.point is None:
        raise RuntimeError("coefficients were unrolled without the gradient's point.")
    if mini_batch == 1:
        return own.point
    place = torch.arange(own.point.carry.shape[-2], device=own.point.carry.device)
    first = place - place % mini_batch
    return Effect(own.point.carry[:, first], own.point.write[:, first])


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
        found[name] = turn_back(fold(last_carry, last_write, x, a, r), a.shape[-1], r.shape[-1])
        if valid is not None:
            found[name] = torch.where(valid.any(1)[:, None, None], found[name], anchor[name])
    return found


def _halves(rule: Rule, piece: _Piece, valid: Tensor | None) -> list[_Piece]:
    """The piece as two, cut between mini-batches."""
    points = -(-piece.tokens.k.shape[1] // rule.mini_batch)
    size = points // 2 * rule.mini_batch
    middle = piece.block.start + size
    begins = True if valid is None else valid[:, size]
    blocks = [piece.block._replace(stop=middle), piece.block._replace(start=middle, begins=begins)]
    lengths = [block.stop - block.start for block in blocks]
    steps = piece.steps.cut(lengths)
    own = [coefficients.unroll(some, point=True) for some in steps]
    return list(map(_Piece, blocks, cut(piece.tokens, lengths), steps, own, _cut_up(piece.affine, lengths)))


def _cut_up(known: Affine | None, lengths: list[int]) -> list[Affine | None]:
    """Parts of these lengths, one after the other."""
    if known is None:
        return [None] * len(lengths)
    return list(zip(*(x.split(lengths, 1) for x in known), strict=True))
