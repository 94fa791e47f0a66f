"""The iterate form: exact online learning of deep memories, in parallel over a block, by fixed-point iteration.

Tokens q, k, v `[N, L, ...]`, gates `[N, L]` -> y `[N, L, V]` and the next rows. Each token's gradient is taken at the
weights after the block's earlier writes, found by `solve_fixed_point`. For large steps the iteration overshoots before
it becomes exact; a block without progress is halved, down to one gradient point, solved without iterating.
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
from memkit.engine.core.block import after, begin, fold, for_queries, reader, stacked, turn_back, unstacked
from memkit.engine.core.coefficients import Coefficients, Effect, Steps, of_blocks
from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, cut
from memkit.engine.core.tape import Tape, Watch, observe_block, record
from memkit.engine.forms.iterate.fixed_point import FixedPointConfig, Rounds, solve_fixed_point
from memkit.engine.forms.iterate.iteration import memory_graph
from memkit.engine.forms.iterate.node import Inputs, apply_block
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


class _Effects(NamedTuple):
    """Coefficients of a block, with the effect on the weights of queries, and the effect on its gradient points."""

    coefficients: Coefficients
    point: Effect


class _Work(NamedTuple):
    """A block still to be run, of whole mini-batches except at the ends of the call.

    affine: errors of the output layer as a function of the prediction; None if they are not solved for.
    """

    block: Block
    tokens: Tokens
    steps: Steps
    effects: _Effects
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
    memory = memory_graph(rule, none.k, rows.weights, rows.constants)
    lengths = [block.stop - block.start for block in blocks]
    steps = coefficients.probe(rule, tokens, valid)
    known = None if memory.output_layer is None else affine(rule, map_tensors(Tensor.detach, tokens))
    each = [_effects(rule, own) for own in of_blocks(steps, lengths, point=True)]
    queue = deque(map(_Work, blocks, cut(tokens, lengths), steps.cut(lengths), each, _split_affine(known, lengths)))
    graph = graph_wanted((tokens, rows.weights, rows.slots, rows.constants, rows.anchor))
    how = FixedPointConfig(rule, memory, rounds, graph, watch is not None)
    # Nobody keeps a carry that is left behind, unless for gradients or as an anchor.
    spare = {} if rows.anchor or how.differentiable else map_tensors(torch.empty_like, carry)
    while queue:
        piece = queue.popleft()
        block = piece.block
        there = None if valid is None else valid[:, block.start : block.stop]
        if block.stop - block.start <= rule.mini_batch:  # one gradient point: what the dual form does
            anchor = begin(rule, block, carry, anchor, rows, piece.tokens.gates)
            y, following, tape = _run_one_point(how, piece, anchor, carry, rows, spare)
        else:
            found = _run_fixed_point(how, piece, carry, rows, spare)
            if found is None:
                queue.extendleft(reversed(_halves(rule, piece, there)))
                continue
            y, following, tape = found
            anchor = _last_anchor(piece.effects.point, carry, tape, there, anchor) if rows.anchor else {}
        observe_block(watch, tape, block.stop - block.start)
        outputs.append(y)
        carry, spare = following, carry if spare else {}
    weights, slots = unstacked(carry, rows)
    anchor = {name: anchor[name] for name in rows.anchor}
    return torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots, anchor=anchor)


def _run_one_point(
    config: FixedPointConfig, work: _Work, anchor: Weights, carry: Weights, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights, Tape]:
    """Run a block with one gradient point: return y, the next carry and the tape."""
    _, k, v, gates = work.tokens
    tape = record(config.rule, k, v, gates, anchor, rows.constants, surprise=config.observe)
    return *_read_and_fold(config.rule, work, carry, tape, rows, spare), tape


def _run_fixed_point(
    config: FixedPointConfig, work: _Work, carry: Weights, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights, Tape] | None:
    """Run a block with several gradient points: return y, the next carry and the tape; None without progress."""
    inputs = Inputs(work.tokens, *work.effects, carry, rows.constants)
    solution = solve_fixed_point(config, inputs.problem(work.affine))
    if solution is None:
        return None
    if config.differentiable:
        return apply_block(config, inputs, solution, work.affine)
    return *_read_and_fold(config.rule, work, carry, solution.tape, rows, spare), solution.tape


def _read_and_fold(
    rule: Rule, work: _Work, carry: Weights, tape: Tape, rows: Rows, spare: Weights
) -> tuple[Tensor, Weights]:
    """Return y and the next carry, in spare memory if there is some."""
    coefficients = work.effects.coefficients
    y = rule.memory.forward(reader(coefficients.weight, carry, tape), work.tokens.q, rows.constants)
    return y, after(carry, coefficients, tape, spare)


def _effects(rule: Rule, unrolled: Coefficients) -> _Effects:
    """Shift effects to queries, and to the gradient point of each token: that of its mini-batch's first token."""
    if unrolled.point is None:
        raise RuntimeError("coefficients were unrolled without the gradient's point.")
    point = unrolled.point
    if rule.mini_batch > 1:
        index = torch.arange(point.carry.shape[-2], device=point.carry.device)
        first = index - index % rule.mini_batch
        point = Effect(point.carry[:, first], point.write[:, first])
    return _Effects(unrolled._replace(weight=for_queries(rule, unrolled.weight), point=None), point)


def _last_anchor(point: Effect, carry: Weights, tape: Tape, valid: Tensor | None, anchor: Weights) -> Weights:
    """Return the gradient point of every row's last mini-batch in the block, as weights by name.

    valid `[N, L]`; rows without a valid token keep their old `anchor`.
    """
    rows, length = point.carry.shape[:2]
    index = torch.arange(length, device=point.carry.device)
    last = index[-1].expand(rows) if valid is None else torch.where(valid, index, 0).amax(1)
    each = torch.arange(rows, device=index.device)
    last_carry, last_write = point.carry[each, last][:, None], point.write[each, last][..., None]
    weights = {}
    for name, x in carry.items():
        a, r = tape.inputs[name], tape.errors[name]
        weights[name] = turn_back(fold(last_carry, last_write, x, a, r), a.shape[-1], r.shape[-1])
        if valid is not None:
            weights[name] = torch.where(valid.any(1)[:, None, None], weights[name], anchor[name])
    return weights


def _halves(rule: Rule, work: _Work, valid: Tensor | None) -> list[_Work]:
    """Cut a block in two, between mini-batches; valid `[N, L]`."""
    points = -(-work.tokens.k.shape[1] // rule.mini_batch)
    size = points // 2 * rule.mini_batch
    middle = work.block.start + size
    # In mini-batches of one token every token begins one; else a row begins one if its token is valid.
    begins = True if valid is None or rule.mini_batch == 1 else valid[:, size]
    blocks = [work.block._replace(stop=middle), work.block._replace(start=middle, begins=begins)]
    lengths = [block.stop - block.start for block in blocks]
    steps = work.steps.cut(lengths)
    effects = [_effects(rule, coefficients.unroll(half, point=True)) for half in steps]
    return list(map(_Work, blocks, cut(work.tokens, lengths), steps, effects, _split_affine(work.affine, lengths)))


def _split_affine(errors: Affine | None, lengths: list[int]) -> list[Affine | None]:
    """Split affine errors `[N, T, ...]` into blocks of these lengths."""
    if errors is None:
        return [None] * len(lengths)
    return [Affine(*block) for block in zip(*(x.split(lengths, 1) for x in errors), strict=True)]
