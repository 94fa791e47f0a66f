"""`memorize` and `observe`: the doors of the engine for tokens to write."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import plain_mode
from memkit.documents import pieces
from memkit.engine import plan
from memkit.engine.batching import in_micro_batches
from memkit.engine.core.memory_state import MemoryState, from_rows, to_rows
from memkit.engine.core.rows import cut, merge_heads, per_row, split_heads
from memkit.engine.core.surprise import Observed
from memkit.engine.form import Call, Form, Place
from memkit.engine.inputs import Inputs, at_queries, check, filled_in, gather, read
from memkit.engine.options import FormName, Run, run_from
from memkit.engine.recompute import in_groups
from memkit.masks import blank
from memkit.rule import Gates, Rule
from memkit.state import map_tensors


class Observation(NamedTuple):
    """Loss `[B, T, H]` before each write, surprise `[B, T, H]` (gradient norm), and the gates by name."""

    loss: Tensor
    surprise: Tensor
    gates: dict[str, Tensor]


def memorize(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    *,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    run: Run | None = None,
    form: FormName = "auto",
    block_size: int = 64,
    rounds: int | None = None,
    tolerance: float | None = None,
    recompute: int | None = None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, MemoryState]:
    """Write k -> v and read q, token by token in meaning, in blocks in practice.

    q, k `[B, T, H, K]`, v `[B, T, H, V]`, any T >= 0 (k and v `rule.pairs` times as wide, if those are several).
    gates: name -> `[B, T, H]`, or with one more axis where the rule's `gates` say so, within their declared ranges
    (Titans' eta, theta, alpha are `momentum`, `lr`, `decay`).
    mask `[B, T]` bool: a False token changes nothing and reads 0. segment_ids `[B, T]` >= 0: a change, also from one
    call to the next, starts a new document from `state.initial`.
    run: how to run, see `Run`; the keywords after it are its fields, for short.
    Returns y `[B, T, H, V]` in v's dtype, 0 at masked tokens, and the state after the last token, in float32 or
    better. Gradients flow to q, k, v, gates and the state. Raises `ValueError` for arguments that do not fit.
    """
    keywords = {"form": form, "block_size": block_size, "rounds": rounds, "tolerance": tolerance}
    run = run_from(run, keywords | {"recompute": recompute, "products": products})
    inputs = gather(q, k, v, gates, mask, segment_ids)
    setup = _set_up(rule, run, inputs, state)

    def part(inputs: Inputs, state: MemoryState) -> tuple[Tensor, MemoryState]:
        return _run(setup, inputs, state)[:2]

    if run.recompute is None or torch.compiler.is_compiling() or not k.shape[1]:
        return part(inputs, state)
    return in_groups(part, inputs, state, run.recompute)


@torch.no_grad()
def observe(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    *,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    run: Run | None = None,
    form: FormName = "auto",
) -> Observation:
    """Loss and surprise of each token at its gradient point, as `memorize` meets them; 0 at masked tokens.

    Surprise is the gradient's norm before any `surprise_limit`. A token of several steps has the sum of their losses
    and the norm of all their gradients. Arguments and errors as for `memorize`.
    """
    run = run_from(run, {"form": form})
    inputs = gather(q, k, v, gates, mask, segment_ids)
    setup = _set_up(rule, run, inputs, state, observe=True)
    y, _, observed = _run(setup, inputs, state)
    loss, surprise = observed or (y.new_zeros(y.shape[:3]),) * 2
    if rule.steps > 1 and observed is not None:
        loss, surprise = loss.unflatten(1, (-1, rule.steps)).sum(2), surprise.unflatten(1, (-1, rule.steps)).norm(dim=2)
    return Observation(blank(loss, mask), blank(surprise, mask), filled_in(rule, gates, k, v))


class Setup(NamedTuple):
    """Rule, form and options of a call, equal for all of its pieces."""

    rule: Rule
    form: Form
    run: Run
    observe: bool = False


class Outcome(NamedTuple):
    """y `[B, T, H, V]`, the state after the last token, and loss and surprise `[B, T, H]` if they are observed."""

    y: Tensor
    state: MemoryState
    observed: Observed | None


def _set_up(rule: Rule, run: Run, inputs: Inputs, state: MemoryState, *, observe: bool = False) -> Setup:
    """Check a call and choose its form; `ValueError` for anything that does not fit."""
    if run.products is not None:
        plan.check_products(rule, run.form, run.products)
    check(rule, inputs, state)
    return Setup(rule, plan.choose(rule, run.form, inputs.tokens.k.shape[1]), run, observe)


def _run(setup: Setup, inputs: Inputs, state: MemoryState) -> Outcome:
    """Run a checked call."""
    rule, (q, _, v, _) = setup.rule, inputs.tokens
    with plain_mode(q):
        prepared, state = read(rule, inputs, state)
        found = _documents(setup, prepared, state)
        return found._replace(y=blank(at_queries(rule, found.y), inputs.mask).to(v.dtype))


def _documents(setup: Setup, inputs: Inputs, state: MemoryState) -> Outcome:
    """Run pieces that hold one document per row, each from a state that is reset in rows whose document begins."""
    tokens, mask, segment_ids = inputs
    if segment_ids is None:
        return _piece(setup, inputs, state)
    found = pieces(mask, segment_ids, state.segment)
    nothing, *parts = cut(tokens, [0, *(piece.stop - piece.start for piece in found)])
    outputs, seen = [nothing.v], []  # so that no tokens at all give an output of the right shape
    for piece, part in zip(found, parts, strict=True):
        state = state if piece.resets is None else state.reset(piece.resets, setup.rule)
        valid = None if mask is None else mask[:, piece.start : piece.stop]
        y, state, observed = _piece(setup, Inputs(part, valid, None), state)
        state = replace(state, segment=piece.segment)
        outputs.append(y)
        seen.append(observed)
    return Outcome(torch.cat(outputs, 1), state, Observed.join(seen))


def _piece(setup: Setup, inputs: Inputs, state: MemoryState) -> Outcome:
    """Run tokens of one document per row, in micro-batches of rows where that is faster."""
    if setup.observe:
        return _rows(setup, inputs, state)

    def part(inputs: Inputs, state: MemoryState) -> tuple[Tensor, MemoryState]:
        return _rows(setup, inputs, state)[:2]

    return Outcome(*in_micro_batches(part, setup.rule, setup.form.name, setup.run.block_size, inputs, state), None)


def _rows(setup: Setup, inputs: Inputs, state: MemoryState) -> Outcome:
    """Flatten batch and heads, put tokens where the form wants them, run it, and undo both."""
    rule, form, run, observe = setup
    tokens, mask, _ = inputs
    length, heads = tokens.k.shape[1:3]
    rows, offset = to_rows(state, tokens.k.dtype), per_row(state.offset, heads)
    row_mask = None if mask is None else per_row(mask, heads)
    layout = form.layout(rule, Place(row_mask, offset, state.phase, length), run.block_size)
    placed = map_tensors(lambda x: layout.to_slots(merge_heads(x)), tokens)
    result = form.run(Call(rule, placed, rows, layout.blocks, layout.valid, offset, run, observe))
    y, observed = map_tensors(lambda x: split_heads(layout.to_tokens(x), heads), (result.y, result.observed))
    observed = map_tensors(lambda x: x.to(tokens.k.dtype), observed)  # under `products` blocks have another
    valid = length if mask is None else mask.sum(1)
    phase = None if mask is not None or state.phase is None else (state.phase + length) % rule.period
    return Outcome(y, from_rows(result.rows, rows, state, (state.offset + valid) % rule.period, phase), observed)
