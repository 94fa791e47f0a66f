"""A run of blocks of one length as one node of the graph: one pass forward, and a backward pass written by hand.

Autograd would keep and add up between the products of a block about as much as the products cost. Here products are
done by hand, and memories and objectives stay as they are written (`gradients.pieces`). Where torch compiles the
caller's model, the node is one operator of that graph (`operator`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memkit.autograd import batched, graph_wanted, outside_autocast
from memkit.engine.forms.fused.backward import back_through, backward
from memkit.engine.forms.fused.forward import Found, Given, Kept, Run, forward, writes
from memkit.engine.forms.fused.operator import run_as_operator
from memkit.state import emptied, map_tensors, tensors, with_tensors


def run_blocks(run: Run, given: Given) -> Found:
    """Run blocks from what they are given, with gradients where any are wanted."""
    if torch.compiler.is_compiling():
        return run_as_operator(run, given)
    if not graph_wanted(given):
        return forward(run, map_tensors(Tensor.detach, given), None)
    results: list[Found] = []
    flat = _Sweep.apply(run, emptied(given), results, *tensors(given))
    return with_tensors(results[0], flat)


class _Sweep(torch.autograd.Function):
    """A run of blocks as a function of all tensors that it is given."""

    @staticmethod
    def forward(ctx: Any, run: Run, like: Given, results: list[Found], *given: Tensor) -> tuple[Tensor, ...]:
        """Sweep forward; `results` receives the tree whose tensors are returned."""
        kept: list[Kept] = []
        found = forward(run, with_tensors(like, [x.detach() for x in given]), kept)
        ctx.run, ctx.like = run, like
        ctx.like_kept, ctx.like_found = emptied((tuple(kept), found))
        ctx.save_for_backward(*given, *tensors(tuple(kept)))
        results.append(ctx.like_found)
        if not writes(with_tensors(like, given)):
            ctx.mark_non_differentiable(*tensors((found.carry, found.anchor)))
        return tuple(tensors(found))

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, *arriving: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sweep back; or, to be differentiated again or under vmap, through the blocks as autograd has them."""
        saved, count = ctx.saved_tensors, len(tensors(ctx.like))  # checkpoints unpack it only once
        given = with_tensors(ctx.like, saved[:count])
        if torch.is_grad_enabled() or batched(arriving):
            return None, None, None, *back_through(ctx.run, given, arriving)
        kept, slope = with_tensors(ctx.like_kept, saved[count:]), with_tensors(ctx.like_found, arriving)
        # Detached, as a compiler takes no input with a history.
        return None, None, None, *tensors(backward(ctx.run, *map_tensors(Tensor.detach, (given, kept, slope))))
