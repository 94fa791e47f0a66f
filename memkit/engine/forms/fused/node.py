"""A run of blocks of one length as one node of the autograd graph, with a backward pass written by hand.

Tokens `[N, blocks, L, ...]` -> y `[N, blocks, L, V]`, and the carry after the last block. With autograd alone, storing
and summing tensors between the products of a block would take about as long as the products. The memory and the
objective stay as they are written (`gradients.segments`). Inside a caller's torch.compile the node is one operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memkit.autograd import batched, graph_wanted, outside_autocast
from memkit.engine.forms.fused.backward import backward, backward_by_autograd
from memkit.engine.forms.fused.forward import BlockRun, Inputs, Outputs, Residuals, forward, writes_need_grad
from memkit.engine.forms.fused.operator import run_as_operator
from memkit.state import emptied, map_tensors, tensors, with_tensors


def run_blocks(run: BlockRun, inputs: Inputs) -> Outputs:
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
