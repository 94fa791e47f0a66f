"""`memorize`, `retrieve`, `observe`: the engine's doors."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import plain_mode, without_inference_flag
from memkit.checks import positive
from memkit.documents import pieces
from memkit.engine import inputs, plan
from memkit.engine.batching import at_once, in_parts
from memkit.engine.core.memory_state import MemoryState, require_rule
from memkit.engine.core.rows import _flat, _unflat, cut, from_rows, per_row, to_rows
from memkit.engine.core.tape import Watch
from memkit.engine.forms.fused.node import compiles_blocks
from memkit.engine.forms.iterate.fixed_point import Rounds
from memkit.engine.recompute import in_groups
from memkit.engine.retrieve import _at_queries
from memkit.engine.run import How, run
from memkit.masks import blank
from memkit.rule import Gates, Rule, Tokens
from memkit.state import Tree, map_tensors


class Observation(NamedTuple):
    """What a memory met: loss `[B, T, H]` before each write, surprise `[B, T, H]` (gradient norm), and the gates."""

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
    form: plan.Form = "auto",
    block_size: int = 64,
    rounds: int | None = None,
    tolerance: float | None = None,
    recompute: int | None = None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, MemoryState]:
    """Write k -> v and read q, token by token in meaning, in blocks in practice.

    q, k `[B, T, H, K]`, v `[B, T, H, V]`, any T >= 0 (k and v `rule.pairs` times as wide, if those are several).
    gates: name -> `[B, T, H]`, or with one more axis where the rule's `gates` say so, within the ranges that they
    declare (Titans' eta, theta, alpha are `momentum`, `lr`, `decay`).
    mask `[B, T]` bool: False marks a token that never was. segment_ids `[B, T]` >= 0: a change, also from one
    call to the next, starts a new document from `state.initial`.
    form: "auto", which takes the fastest exact one, or one by name: "scan" (the definition), "dual" (blocks at
    once), "solve" (matrix memories, exact online), "iterate" (deep memories, exact online), "write" (writes of
    `update_every` tokens), "expand" (optimizers that turn their steps, as Muon does), "step" (one token after the
    other: what a call of a single token takes, and a rule that no faster form fits); `explain` says more. Never
    chosen, as nobody has measured it: "triton" ("dual" with a kernel, for an MLP of depth 2; see `triton_dual`).
    block_size: how many tokens the engine takes at once at most; it never changes the answer.
    rounds, tolerance: when "iterate" stops: after so many rounds, unlooked and exact only for the first `rounds` + 1
    gradient points of a block; or when what the weights say is foreseen to be `tolerance` of a row's largest number
    from settled (default: what rounding leaves undecided, which is exact); gradients settle to the same tolerance.
    recompute: keep for the backward pass what the call was given and the state at every `recompute`th token, and
    run the tokens between again when gradients arrive: a step takes longer, and its memory grows by no more
    than inputs and outputs. Gradients of such a call cannot be differentiated again; under `torch.compile` it keeps
    everything. None keeps everything.
    products: what blocks multiply in: torch.bfloat16 is faster where a machine has units for it, and rounds keys,
    values, weights and errors as they enter a product. Coefficients, and what is carried from block to block and
    returned as the state, stay as they are. None multiplies in float32 or better. For what `compile_blocks` serves; a
    call of one token, which has no block to multiply, is not rounded.
    Returns y `[B, T, H, V]` in v's dtype, 0 at masked tokens, and the state after the last token, in float32 or
    better. Gradients flow to q, k, v, gates and the state. Raises `ValueError` for what does not fit.
    """
    positive("block_size", block_size)
    if rounds is not None or tolerance is not None:
        inputs.check_rounds(form, rounds, tolerance)
    if products is not None:
        check_products(rule, form, products)
    how = How(form, block_size, Rounds(rounds, tolerance), products)
    if recompute is None or torch.compiler.is_compiling():
        return _memorize(rule, q, k, v, gates, state, mask, segment_ids, how, None)
    positive("recompute", recompute)
    inputs.check(rule, q, k, v, gates, state, mask, segment_ids)
    plan.choose(rule, form, k.shape[1], stacklevel=3)  # warns of all tokens, not of a group's

    def group(given: Tree, state: MemoryState) -> tuple[Tensor, MemoryState]:
        q, k, v, gates, mask, segment_ids = given
        return _memorize(rule, q, k, v, gates, state, mask, segment_ids, how, None)

    given = (q, k, v, dict(gates), mask, segment_ids)
    return in_groups(group, given, state, recompute) if k.shape[1] else group(given, state)


def check_products(rule: Rule, form: str, products: torch.dtype) -> None:
    """Raise `ValueError` unless products of this dtype are for the rule."""
    if not isinstance(products, torch.dtype) or not products.is_floating_point or products.itemsize < 2:
        raise ValueError(f"products is a floating-point dtype of 16 bits or more, as torch.bfloat16; got {products!r}.")
    require_rule(rule)
    taken = plan.choose(rule, form, 0)
    obstacles = plan.not_swept(rule) if taken == "dual" else [f"it takes the form {taken!r}, and not 'dual'"]
    if obstacles:
        raise ValueError(f"products={products} is not for rule {rule.name!r}: {'; '.join(obstacles)}. Leave it out.")


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
    form: plan.Form = "auto",
) -> Observation:
    """What `memorize` meets on the way: each token's loss and surprise at its gradient point, 0 where masked.

    Surprise is the gradient's norm before any `surprise_limit`; of a token of several steps they are the sum of the
    losses and the norm of all gradients. Arguments and errors as for `memorize`.
    """
    watch: Watch = []
    y, _ = _memorize(rule, q, k, v, gates, state, mask, segment_ids, How(form, 64), watch)
    none = y.new_zeros(y.shape[:3])[:, :0]
    loss, surprise = (torch.cat(parts, 1) for parts in zip((none, none), *watch, strict=True))
    if rule.steps > 1:  # a token's steps together
        loss, surprise = loss.unflatten(1, (-1, rule.steps)).sum(2), surprise.unflatten(1, (-1, rule.steps)).norm(dim=2)
    loss, surprise = blank(loss, mask), blank(surprise, mask)
    return Observation(loss, surprise, inputs.filled_in(rule, gates, k, v))


def _memorize(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    mask: Tensor | None,
    segment_ids: Tensor | None,
    how: How,
    watch: Watch | None,
) -> tuple[Tensor, MemoryState]:
    inputs.check(rule, q, k, v, gates, state, mask, segment_ids)
    how = how._replace(form=plan.choose(rule, how.form, k.shape[1]))
    with plain_mode(q):
        dtype = inputs.computation_dtype(q, k, v, *gates.values(), *state.weights.values())
        tokens = Tokens(q, k, v, inputs.filled_in(rule, gates, k, v))
        tokens, state, mask, segment_ids = without_inference_flag((tokens, state, mask, segment_ids))
        tokens = rule.prepare(map_tensors(lambda x: blank(x, mask).to(dtype), tokens))
        inputs.check_widths(rule, state, tokens.k.shape[-1], tokens.v.shape[-1])
        steps_mask, steps_ids = (x if x is None else x.repeat_interleave(rule.steps, 1) for x in (mask, segment_ids))

        if steps_ids is None:
            y, state = _piece(rule, how, tokens, state, steps_mask, watch)
        else:
            y, state = _documents(rule, how, tokens, state, steps_mask, steps_ids, watch)
        return blank(_at_queries(rule, y), mask).to(v.dtype), state


def _documents(
    rule: Rule,
    how: How,
    tokens: Tokens,
    state: MemoryState,
    mask: Tensor | None,
    segment_ids: Tensor,
    watch: Watch | None,
) -> tuple[Tensor, MemoryState]:
    found = pieces(mask, segment_ids, state.segment)
    nothing, *parts = cut(tokens, [0, *(piece.stop - piece.start for piece in found)])
    outputs = [nothing.v]  # so that no tokens at all give an output of the right shape
    for piece, part in zip(found, parts, strict=True):
        state = state if piece.resets is None else state.reset(piece.resets, rule)
        y, state = _piece(rule, how, part, state, None if mask is None else mask[:, piece.start : piece.stop], watch)
        state = replace(state, segment=piece.segment)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def _piece(
    rule: Rule, how: How, tokens: Tokens, state: MemoryState, mask: Tensor | None, watch: Watch | None
) -> tuple[Tensor, MemoryState]:
    """Tokens of one document a row, few rows at a time where that is faster."""

    def part(given: Tree, state: MemoryState) -> tuple[Tensor, MemoryState]:
        tokens, mask = given
        return _at_once(rule, how, tokens, mask, state, watch)

    several = tokens.k.shape[1] >= 2 * min(rule.mini_batch, how.block_size)  # a lone block is not compiled
    few = how.form == "iterate" or (several and how.form == "dual" and compiles_blocks(rule))
    few = few and watch is None and not torch.compiler.is_compiling()
    batch, given = state.offset.shape[0], (tokens, mask)
    size = at_once(state, compiled=how.form == "dual") if few else batch
    return in_parts(part, given, state, size) if size < batch else part(given, state)


def _at_once(
    rule: Rule, how: How, tokens: Tokens, mask: Tensor | None, state: MemoryState, watch: Watch | None
) -> tuple[Tensor, MemoryState]:
    length, heads = tokens.k.shape[1:3]
    rows = to_rows(state, tokens.k.dtype)
    row_mask = None if mask is None else per_row(mask, heads)
    seen: Watch | None = None if watch is None else []
    flat, offset = map_tensors(_flat, tokens), per_row(state.offset, heads)
    y, after = run(rule, how, flat, rows, row_mask, offset, state.phase, seen)
    if watch is not None and seen:
        watch.extend(map_tensors(lambda x: _unflat(x, heads), tuple(seen)))
    valid = length if mask is None else mask.sum(1)
    phase = None if mask is not None or state.phase is None else (state.phase + length) % rule.period
    return _unflat(y, heads), from_rows(after, rows, state, (state.offset + valid) % rule.period, phase)
