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
from memkit.engine.core.block import for_queries, gradient_weights, unstack
from memkit.engine.core.coefficients import Coefficients, Effect, Steps
from memkit.engine.core.obstacles import moving_weights, online, per_key_channel
from memkit.engine.core.rows import Rows, Weights, cut
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import Tape, record
from memkit.engine.core.unrolled import unroll_head_blocks
from memkit.engine.form import Call, Form, Place, Result
from memkit.engine.forms.iterate.fixed_point import FixedPointConfig, Rounds, solve_fixed_point
from memkit.engine.forms.iterate.iteration import memory_graph
from memkit.engine.forms.iterate.node import Inputs, apply_block
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
"""Gradient points per block. More need more iterations; with fewer the weights are read and written more often."""


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


def iterate(call: Call) -> Result:
    """Run the call in blocks of several mini-batches; only the first block may start inside of one."""
    rule, rows, tokens, valid = call.rule, call.rows, call.tokens, call.valid
    outputs, observed = [tokens.v[:, :0]], []
    carry, anchor, outs = stack_narrow(rows), dict(rows.anchor), outputs_of(rows)
    # No tokens are needed to check that every weight is used, and to find the output layer.
    none = map_tensors(lambda x: x[:, :0], tokens)
    record(rule, none.k, none.v, none.gates, rows.weights, rows.constants)
    graph = memory_graph(rule, none.k, rows.weights, rows.constants)
    differentiable = graph_wanted((tokens, rows.weights, rows.slots, rows.constants, rows.anchor))
    rounds = Rounds(call.run.rounds, call.run.tolerance)
    config = FixedPointConfig(rule, graph, rounds, differentiable, call.observe)
    queue = deque(_all_work(call, solve_output_layer=graph.output_layer is not None))
    # An old carry can be overwritten, unless a graph or an anchor holds it.
    spare = {} if rows.anchor or differentiable else map_tensors(torch.empty_like, carry)
    while queue:
        work = queue.popleft()
        block = work.block
        block_valid = None if valid is None else valid[:, block.start : block.stop]
        if block.stop - block.start <= rule.mini_batch:  # one gradient point: as in the dual form
            split = upright_parts(carry, outs, 1 + rule.slots)
            anchor = gradient_weights(rule, block, split, anchor, work.tokens.gates)
            y, following, tape = _run_one_point(config, work, anchor, carry, rows, spare)
        else:
            result = _run_fixed_point(config, work, carry, rows, spare)
            if result is None:
                queue.extendleft(reversed(_halves(rule, work, block_valid)))
                continue
            y, following, tape = result
            anchor = _last_anchor(work.effects.point, carry, tape, block_valid, anchor) if rows.anchor else {}
        observed.append(tape.observed(block.stop - block.start) if call.observe else None)
        outputs.append(y)
        carry, spare = following, carry if spare else {}
    weights, slots = unstack(upright_parts(carry, outs, 1 + rule.slots))
    anchor = {name: anchor[name] for name in rows.anchor}
    after = replace(rows, weights=weights, slots=slots, anchor=anchor)
    return Result(torch.cat(outputs, 1), after, Observed.join(observed))


def _all_work(call: Call, *, solve_output_layer: bool) -> list[_Work]:
    """Return the blocks of a call with their effects, all unrolled together."""
    rule, tokens, lengths = call.rule, call.tokens, call.lengths
    steps = coefficients.probe(rule, tokens, call.valid)
    errors = affine(rule, map_tensors(Tensor.detach, tokens)) if solve_output_layer else None
    effects = [_effects(rule, unrolled) for unrolled in unroll_head_blocks(steps, lengths, point=True)]
    split = _split_affine(errors, lengths)
    return list(map(_Work, call.blocks, cut(tokens, lengths), steps.cut(lengths), effects, split))


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
    return y, fold_all(carry, coefficients, tape, spare)


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
        weights[name] = upright_weight(fold(last_carry, last_write, x, a, r), a.shape[-1], r.shape[-1])
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


def not_iterable(rule: Rule) -> list[str]:
    """Return reasons against fixed-point iteration over a block."""
    reasons = moving_weights(rule) + per_key_channel(rule)
    return reasons + ([] if rule.sees_weights else ["its gradient does not see the weights"])


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    if not rule.sees_weights:
        return without_periods(place.mask, place.tokens, block_size)
    return lay_out(rule.period, *place, min(block_size, POINTS * rule.mini_batch), across=True)


def _why(rule: Rule) -> str:
    return (
        "iterate: exact online gradients of a deep memory, a block at once by fixed-point iteration; a block that does "
        "not converge is halved, down to one token. A larger mini_batch needs no iteration, and is another rule."
    )


def _suits(rule: Rule) -> bool:
    return online(rule) and not torch.compiler.is_compiling()  # compiled code cannot test for convergence


ITERATE = Form("iterate", not_iterable, _layout, iterate, _why, _suits)
