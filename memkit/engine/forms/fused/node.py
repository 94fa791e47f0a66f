"""The dual form as one node of the graph: one sweep over the blocks forward, and one back.

What autograd keeps and adds up between the products of a block costs about as much as the products. Here these are
done by hand, and memories and objectives stay as they are written (`between`). It is the same form: `dual` says what
it means, and is what runs where gradients of gradients are asked for, where torch exports, and for rules whose blocks
do more (windows, effective weights, gradient points of their own, limits, gates per channel). Where torch compiles the
caller's model, the node is one of that graph (`operator`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memkit.autograd import batched, graph_wanted, outside_autocast
from memkit.engine.core import coefficients
from memkit.engine.core.block import for_queries, lowered, stacked, unstacked
from memkit.engine.core.coefficients import runs
from memkit.engine.core.rows import Rows, cut
from memkit.engine.forms.fused.backward import backward, backward_by_autograd
from memkit.engine.forms.fused.compile import as_written, backend_now, preparing
from memkit.engine.forms.fused.forward import BlockRun, Inputs, Outputs, Residuals, forward, writes_need_grad
from memkit.engine.forms.fused.operator import POSSIBLE, run_as_operator
from memkit.engine.plan import not_swept
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import emptied, map_tensors, tensors, with_tensors


def sweeps(rule: Rule) -> bool:
    """Whether the dual form of a rule is swept: nothing stands in the way, and torch does not compile, or only blocks.

    What torch exports runs where memkit is not.
    """
    alone = not torch.compiler.is_compiling() or (as_operator() and not torch.compiler.is_exporting())
    return alone and not not_swept(rule)


def as_operator() -> bool:
    """Whether a sweep is one operator of a graph that torch is making."""
    return backend_now() is not None and POSSIBLE


def compiles_blocks(rule: Rule) -> bool:
    """Whether torch compiles the blocks that are swept of a rule."""
    return sweeps(rule) and preparing() is not as_written


def sweep(
    rule: Rule,
    tokens: Tokens,
    rows: Rows,
    blocks: list[Block],
    valid: Tensor | None,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Rows]:
    """Run tokens (q, k, v `[N, L, ...]`, gates `[N, L]`) from `rows`, as `dual` does."""
    outputs, carry, anchor, first = [tokens.v[:, :0]], stacked(rows, turn=not rule.memory.linear), rows.anchor, 0
    steps = coefficients.probe(rule, tokens, valid)
    tokens = tokens._replace(gates={gate.name: tokens.gates[gate.name] for gate in rule.objective.gates})
    tokens, constants = lowered((tokens, rows.constants), products)
    found = list(runs(steps, [block.stop - block.start for block in blocks]))
    sizes = [count * some.write.shape[2] for count, some in found]
    for (count, some), here in zip(found, cut(tokens, sizes), strict=True):
        own = coefficients.unroll(some)
        weight = for_queries(rule, own.weight)
        own = own._replace(weight=lowered(weight, products), last_write=lowered(own.last_write, products))
        here = map_tensors(lambda x, count=count: x.unflatten(1, (count, x.shape[1] // count)), here)
        prepared = preparing() if count > 1 else as_written  # a lone block is of any length
        run = BlockRun(rule, tuple(block.begins for block in blocks[first : first + count]), prepared)
        y, carry, anchor = _apply(run, Inputs(here, own, carry, anchor, constants))
        outputs.append(y.flatten(1, 2))
        first += count
    weights, slots = unstacked(carry, rows)
    anchor = {name: anchor[name] for name in rows.anchor}
    return torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots, anchor=anchor)


def _apply(run: BlockRun, inputs: Inputs) -> Outputs:
    """Run blocks as one node of the autograd graph: an operator under torch.compile, else an autograd Function."""
    if torch.compiler.is_compiling():
        return run_as_operator(run, inputs)
    if not graph_wanted(inputs):
        return forward(run, map_tensors(Tensor.detach, inputs), None)
    structure: list[Outputs] = []
    flat = _FusedBlocks.apply(run, emptied(inputs), structure, *tensors(inputs))
    return with_tensors(structure[0], flat)


class _FusedBlocks(torch.autograd.Function):
    """A run of blocks as a function of all its input tensors."""

    @staticmethod
    def forward(ctx: Any, run: BlockRun, like: Inputs, structure: list[Outputs], *flat: Tensor) -> tuple[Tensor, ...]:
        """Return the output tensors; `structure` receives their tree, without tensors."""
        residuals: list[Residuals] = []
        outputs = forward(run, with_tensors(like, [x.detach() for x in flat]), residuals)
        ctx.run, ctx.like = run, like
        ctx.like_residuals, ctx.like_outputs = emptied((tuple(residuals), outputs))
        ctx.save_for_backward(*flat, *tensors(tuple(residuals)))
        structure.append(ctx.like_outputs)
        if not writes_need_grad(with_tensors(like, flat)):
            ctx.mark_non_differentiable(*tensors((outputs.carry, outputs.anchor)))
        return tuple(tensors(outputs))

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, *flat: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the inputs; for second derivatives and under vmap, by autograd."""
        saved, count = ctx.saved_tensors, len(tensors(ctx.like))  # read once, as activation checkpoints require
        inputs = with_tensors(ctx.like, saved[:count])
        if torch.is_grad_enabled() or batched(flat):
            return None, None, None, *backward_by_autograd(ctx.run, inputs, flat)
        residuals, gradients = with_tensors(ctx.like_residuals, saved[count:]), with_tensors(ctx.like_outputs, flat)
        # Detached, because torch.compile refuses inputs with a history.
        detached = map_tensors(Tensor.detach, (inputs, residuals, gradients))
        return None, None, None, *tensors(backward(ctx.run, *detached))
