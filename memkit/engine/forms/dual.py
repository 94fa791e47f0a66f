"""The dual form: a block of tokens at once, derived from the update and equal to it.

The steps of docs/how_it_works.md. Tape: one pass over the keys at the mini-batch's weights gives inputs a and errors r,
so that token s's gradient is a_s^T r_s. Probe: scalars fed through the update give the effect C[t, s] of write s on
token t's weight, and the effect P[t] of the carried weight and slots. Read: the same memory runs on the queries with
`linear(x)` meaning

    P_weight (x W) + P_slots (x S) + ((x a^T) * C) r

and the last row of C and P is folded into the next state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from memkit.engine.core.block import (
    fold_all,
    for_queries,
    gradient_weights,
    parts,
    reader,
    stack,
    unstack,
    weights_in_use,
)
from memkit.engine.core.channels import AnyCoefficients
from memkit.engine.core.coefficients import Coefficients, probe
from memkit.engine.core.obstacles import not_linear
from memkit.engine.core.rows import Weights, cut
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import record
from memkit.engine.core.unrolled import unroll_blocks
from memkit.engine.core.window import Window, as_window, band, join, latest, spread
from memkit.engine.form import Call, Form, Result
from memkit.engine.forms.blocks import cast, in_parallel, layout, why_blocks
from memkit.layout import Block
from memkit.rule import Rule, Tokens, identity

Own = TypeVar("Own", bound=AnyCoefficients)


class Carried(NamedTuple):
    """State between two blocks: carries by name, weights that gradients see, tokens of the Omega window."""

    state: Weights
    anchor: Weights
    window: Window | None


def dual(call: Call) -> Result:
    """Run the call block by block."""
    rule, rows, outputs, seen = call.rule, call.rows, [call.tokens.v[:, :0]], []
    coefficients = unroll_blocks(probe(rule, call.tokens, call.valid), call.lengths)
    tokens, constants = cast((call.tokens, rows.constants), call.run.products)
    carried = Carried(stack(rows), dict(rows.anchor), rows.window)
    for block, here, own in zip(call.blocks, cut(tokens, call.lengths), coefficients, strict=True):
        own = prepared(rule, own, call.run.products)
        valid = None if call.valid is None else call.valid[:, block.start : block.stop]
        y, carried, observed = run_block(rule, block, here, valid, own, carried, constants, observe=call.observe)
        outputs.append(y)
        seen.append(observed)
    weights, slots = unstack(parts(carried.state, 1 + rule.slots))
    anchor = {name: carried.anchor[name] for name in rows.anchor}
    after = replace(rows, weights=weights, slots=slots, anchor=anchor, window=carried.window)
    return Result(torch.cat(outputs, 1), after, Observed.join(seen))


def prepared(rule: Rule, own: Own, products: torch.dtype | None) -> Own:
    """Coefficients as queries see them, in the dtype of products."""
    own = own._replace(weight=for_queries(rule, own.weight))
    if products is None:
        return own
    return own._replace(weight=cast(own.weight, products), last_write=cast(own.last_write, products))


def run_block(
    rule: Rule,
    block: Block,
    tokens: Tokens,
    valid: Tensor | None,
    own: AnyCoefficients,
    carried: Carried,
    constants: dict[str, Tensor],
    *,
    observe: bool = False,
) -> tuple[Tensor, Carried, Observed | None]:
    """Tape, read and fold of one block: q, k, v `[N, L, ...]`, valid `[N, L]`; own.weight: for queries."""
    state, window, dtype = carried.state, carried.window, tokens.k.dtype
    anchor = gradient_weights(rule, block, parts(state, 1 + rule.slots), carried.anchor, tokens.gates)
    sources = tokens if window is None else join(window, as_window(rule, tokens, valid))
    tape = record(rule, sources.k, sources.v, sources.gates, cast(anchor, dtype), constants, surprise=observe)
    if isinstance(sources, Window) and isinstance(own, Coefficients):  # a window has no gates per key channel
        own = spread(own, band(rule, sources, tokens.k.shape[1]))
        window = latest(sources, rule.window - 1)
    after = fold_all(state, own, tape)
    if rule.effective is identity:
        y = rule.memory.forward(reader(own.weight, cast(state, dtype), tape), tokens.q, constants)
    else:
        y = _read_effective(rule, block, tokens.q, anchor, after, constants)
    return y, Carried(after, anchor, window), tape.observed(tokens.k.shape[1]) if observe else None


def _read_effective(
    rule: Rule, block: Block, q: Tensor, anchor: Weights, after: Weights, constants: dict[str, Tensor]
) -> Tensor:
    """Read under `effective`: at the mini-batch's weights; the query that completes it at the next ones."""
    y = rule.memory.forward(lambda name, x: x @ anchor[name], q, constants)
    at_end = weights_in_use(rule, block, {name: x[0] for name, x in parts(after, 1 + rule.slots).items()}, anchor)
    if at_end is anchor:
        return y
    last = rule.memory.forward(lambda name, x: x @ at_end[name], q[:, -1:], constants)
    return torch.cat([y[:, :-1], last], 1)


DUAL = Form("dual", not_linear, layout, dual, lambda rule: f"dual: {why_blocks(rule)}", in_parallel)
