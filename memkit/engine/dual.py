"""The dual form: a block of tokens at once, exactly the definition, derived from the update.

Three steps a block. Tape: one pass over the keys at the mini-batch's weights gives inputs a and errors r,
so that token s's gradient is a_s^T r_s. Probe: scalars fed through the update give the effect C[t, s] of
write s on token t's weight and the effect P[t] of the carried weight and slots. Read: the same memory
runs on the queries with `linear(x)` meaning

    P_weight (x W) + P_slots (x S) + ((x a^T) * C) r

and the last row of C and P is folded into the next state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from memkit.alignment import pick
from memkit.engine import coefficients
from memkit.engine.coefficients import Coefficients
from memkit.engine.memory_state import Rows, Weights, Window, as_window, cut, gate_at, join
from memkit.engine.scan import Watch
from memkit.engine.tape import Tape, record
from memkit.layout import Block
from memkit.rule import Gates, Linear, Rule, Tokens, identity


def dual(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    blocks: list[Block],
    valid: Tensor | None,
    watch: Watch | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, L, ...]`, gates `[N, L]`) block by block from `rows`.

    Blocks and `valid` `[N, L]` come from the layout, for rows. `watch` receives (loss, surprise) `[N, L]`
    of every block.
    """
    outputs = []
    # Weight and slots of a matrix lie below each other, `[N, n * in, out]`: one product reads them all.
    carry = {name: torch.cat([weight, *rows.slots[name]], 1) for name, weight in rows.weights.items()}
    anchor, window = dict(rows.anchor), rows.window
    lengths = [block.stop - block.start for block in blocks]
    parts = zip(blocks, cut(tokens, lengths), _coefficients(rule, tokens, valid, lengths), strict=True)
    for block, here, own in parts:
        size = block.stop - block.start
        anchor = _begin(rule, block, carry, anchor, rows, here.gates)
        sources = here if window is None else join(window, as_window(rule, here, valid, slice(block.start, block.stop)))
        tape = record(rule, sources.k, sources.v, sources.gates, anchor, rows.constants, surprise=watch is not None)
        if watch is not None and tape.squared_surprise is not None:
            watch.append((tape.loss.detach()[:, -size:], tape.squared_surprise.detach()[:, -size:].sqrt()))
        if isinstance(sources, Window):
            own = _spread(own, _band(rule, sources, size))
            window = _latest(sources, rule.window - 1)
        seen = own if rule.read == "after" else coefficients.before(own)
        past, carry = carry, {name: _fold(carry[name], own, tape, name) for name in carry}
        if rule.effective is identity:
            y = rule.memory.forward(_reader(past, seen, tape), here.q, rows.constants)
        else:
            y = _read_in_use(rule, block, here.q, anchor, carry, rows)
        outputs.append(y)
    weights, slots = _split(carry, rows)
    y = torch.cat(outputs, 1) if outputs else tokens.v
    kept = {name: anchor[name] for name in rows.anchor}
    return y, replace(rows, weights=weights, slots=slots, anchor=kept, window=window)


def _coefficients(rule: Rule, tokens: Tokens, valid: Tensor | None, lengths: list[int]) -> Iterator[Coefficients]:
    """Coefficients of every block; neighbouring blocks of one length are computed at once, as they see no weights."""
    transition, write = coefficients.probe(rule, tokens.gates, valid, tokens.q[..., 0])
    runs = [(len(list(group)), length) for length, group in groupby(lengths)]
    spans = [count * length for count, length in runs]
    for shape, *some in zip(runs, transition.split(spans, 1), write.split(spans, 1), strict=True):
        run = coefficients.unroll(*(x.unflatten(1, shape) for x in some))
        yield from map(Coefficients, *(x.unbind(1) for x in run))


def _begin(rule: Rule, block: Block, carry: Weights, anchor: Weights, rows: Rows, gates: Gates) -> Weights:
    """The weights that gradients of this block see: new ones for rows whose mini-batch begins here."""
    if block.begins is False:
        return anchor
    first = gate_at(rule, gates, 0)
    fresh = {}
    for name, (weight, *slots) in _parts(carry, rows).items():
        fresh[name] = rule.effective(rule.point(weight, tuple(slots), first))
        if isinstance(block.begins, Tensor):
            fresh[name] = torch.where(block.begins[:, None, None], fresh[name], anchor[name])
    return fresh


def _parts(carry: Weights, rows: Rows) -> dict[str, tuple[Tensor, ...]]:
    """Views of weight and slots in the carry."""
    return {name: x.split(rows.weights[name].shape[1], 1) for name, x in carry.items()}


def _split(carry: Weights, rows: Rows) -> tuple[Weights, dict[str, tuple[Tensor, ...]]]:
    parts = _parts(carry, rows)
    return {name: p[0] for name, p in parts.items()}, {name: tuple(p[1:]) for name, p in parts.items()}


def _reader(carry: Weights, seen: Coefficients, tape: Tape) -> Linear:
    """What `linear` means when a query is read: x times the weight after each token's writes."""

    def linear(name: str, x: Tensor) -> Tensor:
        mixed = torch.cat([p * x for p in seen.weight_carry.split(1, -1)], -1)
        scores = (x @ tape.inputs[name].mT) * seen.weight_write
        return torch.baddbmm(mixed @ carry[name], scores, tape.errors[name])

    return linear


def _fold(carry: Tensor, own: Coefficients, tape: Tape, name: str) -> Tensor:
    """(Weight, slots) after the block."""
    parts = carry.unflatten(1, (own.last_carry.shape[1], -1)).flatten(2)  # [N, 1 + slots, in * out]
    kept = (own.last_carry @ parts).view_as(carry)
    written = torch.cat([tape.inputs[name] * c for c in own.last_write.split(1, -1)], -1)
    return torch.baddbmm(kept, written.mT, tape.errors[name])


def _read_in_use(rule: Rule, block: Block, q: Tensor, anchor: Weights, carry: Weights, rows: Rows) -> Tensor:
    """Read under `effective`: the mini-batch's weights, and for the query that completes it the next ones."""
    y = rule.memory.forward(lambda name, x: x @ anchor[name], q, rows.constants)
    if rule.read == "before" or block.completes is False:
        return y
    after = {name: rule.effective(parts[0]) for name, parts in _parts(carry, rows).items()}
    last = rule.memory.forward(lambda name, x: x @ after[name], q[:, -1:], rows.constants)
    if isinstance(block.completes, Tensor):
        last = torch.where(block.completes[:, None, None], last, y[:, -1:])
    return torch.cat([y[:, :-1], last], 1)


def _band(rule: Rule, sources: Window, writes: int) -> Tensor:
    """How much write s uses source i, `[N, writes, sources]`: its weight if it is one of the last `window` tokens."""
    rank = sources.filled.long().cumsum(1)
    age = rank[:, -writes:, None] - rank[:, None, :]
    used = (age >= 0) & (age < rule.window) & sources.filled[:, None, :]
    return torch.where(used, sources.gates["weight"][:, None, :], 0)


def _spread(own: Coefficients, band: Tensor) -> Coefficients:
    """Coefficients of sources instead of writes."""
    return own._replace(weight_write=own.weight_write @ band, last_write=band.mT @ own.last_write)


def _latest(sources: Window, count: int) -> Window:
    """The last `count` filled tokens of each row, right-aligned."""
    order = torch.sort(sources.filled.byte(), dim=1, stable=True).indices[:, -count:]
    return sources.map(lambda x: pick(x, order))
