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
from memkit.engine import channels, coefficients
from memkit.engine.block import fold, for_queries, parts, read, stacked, unstacked
from memkit.engine.channels import AnyCoefficients, AnyEffect
from memkit.engine.coefficients import Coefficients, Effect, Steps
from memkit.engine.memory_state import Rows, Weights, Window, as_window, cut, gate_at, join
from memkit.engine.scan import Watch
from memkit.engine.tape import Tape, record
from memkit.layout import Block
from memkit.rule import Gates, Linear, Rule, Tokens, identity
from memkit.state import Tree, map_tensors, merge_trees


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


def lowered(tree: Tree, products: torch.dtype | None) -> Tree:
    """A tree of tensors in the dtype of products, if that is another one."""
    return tree if products is None else map_tensors(lambda x: x.to(products), tree)


def of_blocks(steps: Steps, lengths: list[int], *, point: bool = False) -> Iterator[Coefficients]:
    """Coefficients of every block; neighbouring blocks of one length are computed at once, as they see no weights."""
    for _, run in runs(steps, lengths):
        yield from _unbound(coefficients.unroll(run, point=point))


def _each(steps: Steps, lengths: list[int]) -> Iterator[AnyCoefficients]:
    """The same for gates of any kind."""
    if not steps.per_key:
        yield from of_blocks(steps, lengths)
        return
    for count, run in runs(steps, lengths):
        yield from channels.unroll(run).apart(count)


def runs(steps: Steps, lengths: list[int]) -> Iterator[tuple[int, Steps]]:
    """Neighbouring blocks of one length, as many as there are, with an axis of their own."""
    runs = [(len(list(group)), length) for length, group in groupby(lengths)]
    for run, some in zip(runs, steps.cut([count * length for count, length in runs]), strict=True):
        yield run[0], some.blocks(*run)


def _unbound(run: Coefficients) -> Iterator[Coefficients]:
    """The blocks `[..., blocks, ., .]` one by one."""
    effects = [run.weight] if run.point is None else [run.weight, run.point]
    flat = [*(x for effect in effects for x in effect), run.last_carry, run.last_write]
    for own in zip(*(x.unbind(-3) for x in flat), strict=True):
        point = None if run.point is None else Effect(own[2], own[3])
        yield Coefficients(Effect(own[0], own[1]), point, own[-2], own[-1])


def begin(rule: Rule, block: Block, carry: Weights, anchor: Weights, rows: Rows, gates: Gates) -> Weights:
    """The weights that gradients of this block see: new ones for rows whose mini-batch begins here."""
    if block.begins is False:
        return anchor
    first = gate_at(rule, gates, 0)
    fresh = {
        name: rule.effective(rule.point(weight, tuple(slots), first))
        for name, (weight, *slots) in parts(carry, rows).items()
    }
    return merge_trees(block.begins, anchor, fresh) if isinstance(block.begins, Tensor) else fresh


def reader(effect: AnyEffect, carry: Weights, tape: Tape) -> Linear:
    """What `linear` means when a query is read: x times the weight that the query sees."""
    return lambda name, x: read(effect, x, carry[name], tape.inputs[name], tape.errors[name])


def after(carry: Weights, own: AnyCoefficients, tape: Tape, spare: Weights | None = None) -> Weights:
    """(Weight, slots) after the block, in the spare memory if there is some: new memory costs more than the sums."""
    into = spare or {}
    return {
        name: fold(own.last_carry, own.last_write, x, tape.inputs[name], tape.errors[name], into.get(name))
        for name, x in carry.items()
    }


def observe_block(watch: Watch | None, tape: Tape, size: int) -> None:
    """Tell the watch, if there is one, what the block's own tokens, the last `size` of the tape, met."""
    if watch is not None and tape.squared_surprise is not None:
        watch.append((tape.loss.detach()[:, -size:], tape.squared_surprise.detach()[:, -size:].sqrt()))


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


def band(rule: Rule, sources: Window, writes: int) -> Tensor:
    """How much write s uses source i, `[N, writes, sources]`: its weight if it is one of the last `window` tokens."""
    rank = sources.filled.long().cumsum(1)
    age = rank[:, -writes:, None] - rank[:, None, :]
    used = (age >= 0) & (age < rule.window) & sources.filled[:, None, :]
    return torch.where(used, sources.gates["weight"][:, None, :], 0)


def spread(own: Coefficients, used: Tensor) -> Coefficients:
    """Coefficients of sources instead of writes, from how much writes use them."""
    weight = own.weight._replace(write=own.weight.write @ used)
    return own._replace(weight=weight, last_write=used.mT @ own.last_write)


def latest(sources: Window, count: int) -> Window:
    """The last `count` filled tokens of each row, right-aligned."""
    order = torch.sort(sources.filled.byte(), dim=1, stable=True).indices[:, -count:]
    return sources.map(lambda x: pick(x, order))
