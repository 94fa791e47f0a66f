"""Training memory for time: run a part of a call without a graph, keep what it was given, and run it again backward.

`torch.utils.checkpoint` would keep the tapes, whose gradients are taken while the part runs; this keeps nothing
that the part made but its results. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memkit.engine.tape import graph_wanted
from memkit.state import Tree, map_tensors, tensors, with_tensors


def recomputed(run: Callable[[Tree], Tree], given: Tree) -> Tree:
    """`run(given)`, whose graph is made when gradients arrive, and not before.

    All that gradients should flow to must be in the tree `given`. `run` must do the same both times.
    """
    if not graph_wanted(given):
        return run(given)
    results: list[Tree] = []
    flat = _Recomputed.apply(run, map_tensors(_shape_of_nothing, given), results, *tensors(given))
    return with_tensors(results[0], flat)


def in_groups(run: Callable[[Tree, Tree], tuple[Tensor, Tree]], given: Tree, state: Tree, size: int) -> Any:
    """`run(given, state) -> (y, state)`, `size` tokens at a time, each time keeping no more than what went in.

    given: a tree of tensors `[B, T, ...]`, with T >= 1. Returns (y, state) as one call does.
    """
    outputs = []
    # Split all at once: the backward pass of every single slice would write a whole [B, T, ...].
    for group in zip(*(x.split(size, 1) for x in tensors(given)), strict=True):
        y, state = recomputed(lambda tree: run(*tree), (with_tensors(given, group), state))
        outputs.append(y)
    return torch.cat(outputs, 1), state


class _Recomputed(torch.autograd.Function):
    """Results as a function of all tensors that a part of a call is given."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tree], Tree], like: Tree, results: list[Tree], *given: Tensor) -> Any:
        """Run without a graph; `results` receives the tree whose tensors are returned."""
        found = run(with_tensors(like, given))
        flat = tensors(found)
        results.append(map_tensors(_shape_of_nothing, found))
        ctx.run, ctx.like = run, like
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in flat if not x.is_floating_point()))
        return tuple(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run again, with a graph this time, and go back through it."""
        wanted = ctx.needs_input_grad[3:]
        given = [x.detach().requires_grad_(w) for x, w in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad():
            found = tensors(ctx.run(with_tensors(ctx.like, given)))
        reached = [(x, g) for x, g in zip(found, arriving, strict=True) if g is not None and x.requires_grad]
        leaves = [x for x in given if x.requires_grad]
        slopes = iter(
            torch.autograd.grad([x for x, _ in reached], leaves, [g for _, g in reached], allow_unused=True)
            if reached
            else [None] * len(leaves)
        )
        return None, None, None, *(next(slopes) if x.requires_grad else None for x in given)


def _shape_of_nothing(x: Tensor) -> Tensor:
    """What stands for a tensor in a tree that keeps none."""
    return x.new_zeros(0)
