"""The dual form: a block of tokens at once, exactly the definition, derived from the update.

Three steps a block. Tape: one pass over the keys at the mini-batch's weights gives inputs a and errors r,
so that token s's gradient is a_s^T r_s. Probe: scalars fed through the update give the effect C[t, s] of
write s on token t's weight and the effect P[t] of the carried weight and slots. Read: the same memory
runs on the queries with `linear(x)` meaning

    P_weight (x W) + P_slots (x S) + ((x a^T) * C) r

and the last row of C and P is folded into the next state.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core import coefficients
from memkit.engine.core.block import after, begin, for_queries, lowered, parts, reader, stacked, unstacked
from memkit.engine.core.channels import _each
from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, cut
from memkit.engine.core.tape import Watch, observe_block, record
from memkit.engine.core.window import Window, as_window, band, join, latest, spread
from memkit.layout import Block
from memkit.rule import Rule, Tokens, identity


def dual(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    blocks: list[Block],
    valid: Tensor | None,
    watch: Watch | None = None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, L, ...]`, gates `[N, L]`) block by block from `rows`.

    Blocks and `valid` `[N, L]` come from the layout, for rows. `watch` receives (loss, surprise) `[N, L]`
    of every block. products: what blocks multiply in, for rules that `sweep` knows.
    """
    outputs = []
    carry, anchor, window = stacked(rows, turn=not rule.memory.linear), dict(rows.anchor), rows.window
    lengths = [block.stop - block.start for block in blocks]
    steps = coefficients.probe(rule, tokens, valid)
    tokens, constants = lowered((tokens, rows.constants), products)
    for block, here, own in zip(blocks, cut(tokens, lengths), _each(steps, lengths), strict=True):
        size = block.stop - block.start
        anchor = begin(rule, block, carry, anchor, rows, here.gates)
        sources = here if window is None else join(window, as_window(rule, here, valid, slice(block.start, block.stop)))
        weights = lowered(anchor, products)
        tape = record(rule, sources.k, sources.v, sources.gates, weights, constants, surprise=watch is not None)
        observe_block(watch, tape, size)
        if isinstance(sources, Window) and isinstance(own, Coefficients):
            own = spread(own, band(rule, sources, size))
            window = latest(sources, rule.window - 1)
        if isinstance(own, Coefficients):
            own = own._replace(weight=lowered(own.weight, products), last_write=lowered(own.last_write, products))
        past, carry = lowered(carry, products), after(carry, own, tape)
        if rule.effective is identity:
            y = rule.memory.forward(reader(for_queries(rule, own.weight), past, tape), here.q, constants)
        else:
            y = _read_in_use(rule, block, here.q, anchor, carry, rows)
        outputs.append(y)
    weights, slots = unstacked(carry, rows)
    y = torch.cat(outputs, 1) if outputs else tokens.v
    kept = {name: anchor[name] for name in rows.anchor}
    return y, replace(rows, weights=weights, slots=slots, anchor=kept, window=window)


def _read_in_use(rule: Rule, block: Block, q: Tensor, anchor: Weights, carry: Weights, rows: Rows) -> Tensor:
    """Read under `effective`: the mini-batch's weights, and for the query that completes it the next ones."""
    y = rule.memory.forward(lambda name, x: x @ anchor[name], q, rows.constants)
    if rule.read == "before" or block.completes is False:
        return y
    following = {name: rule.effective(part[0]) for name, part in parts(carry, rows).items()}
    last = rule.memory.forward(lambda name, x: x @ following[name], q[:, -1:], rows.constants)
    if isinstance(block.completes, Tensor):
        last = torch.where(block.completes[:, None, None], last, y[:, -1:])
    return torch.cat([y[:, :-1], last], 1)
