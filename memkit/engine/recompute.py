"""Training memory for time: run a part of a call without a graph, keep what it was given, and run it again backward.

`torch.utils.checkpoint` would keep the tapes, whose gradients are taken while the part runs; this keeps nothing
that the part made but its results. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memkit.engine.tape import graph_wanted
from memkit.state import Tree, emptied, tensors, with_tensors


def recomputed(run: Callable[[Tree], Tree], given: Tree, own: Sequence[Tensor] = ()) -> Tree:
    """`run(given)`, whose graph is made when gradients arrive, and not before.

    All that gradients should flow to must be in the tree `given`, or among the parameters that `run` uses of its
    `own`. `run` must do the same both times; it meets the autocast of the first time at the second too.
    """
    if not graph_wanted((given, tuple(own))):
        return run(given)
    results: list[Tree] = []
    call = _Call(run, emptied(given), results, len(own))
    flat = _Recomputed.apply(call, *tensors(given), *own)
    return with_tensors(results[0], flat)


def in_groups(
    run: Callable[[Tree, Tree], tuple[Tensor, Tree]], given: Tree, state: Tree, size: int, own: Sequence[Tensor] = ()
) -> Any:
    """`run(given, state) -> (y, state)`, `size` tokens at a time, each time keeping no more than what went in.

    given: a tree of tensors `[B, T, ...]`, with T >= 1; own: as for `recomputed`. Returns (y, state) as one call does.
    """
    outputs = []
    # Split all at once: the backward pass of every single slice would write a whole [B, T, ...].
    for group in zip(*(x.split(size, 1) for x in tensors(given)), strict=True):
        y, state = recomputed(lambda tree: run(*tree), (with_tensors(given, group), state), own)
        outputs.append(y)
    return torch.cat(outputs, 1), state


class _Call(NamedTuple):
    """What is run twice. like: `given` without its numbers; results: receives the tree that is returned, likewise."""

    run: Callable[[Tree], Tree]
    like: Tree
    results: list[Tree]
    own: int


class _Recomputed(torch.autograd.Function):
    """Results as a function of all tensors that a part of a call is given, and of the parameters that it has."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *given: Tensor) -> Any:
        """Run without a graph."""
        found = call.run(with_tensors(call.like, given))
        flat = tensors(found)
        call.results.append(emptied(found))
        ctx.call = call
        ctx.autocast = _autocast_now(given[0].device.type)
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in flat if not x.is_floating_point()))
        return tuple(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run again, with a graph this time, and go back through it."""
        call, saved, wanted = ctx.call, ctx.saved_tensors, ctx.needs_input_grad[1:]
        count = len(saved) - call.own
        given = [x.detach().requires_grad_(w) for x, w in zip(saved[:count], wanted[:count], strict=True)]
        with torch.enable_grad(), ctx.autocast():
            found = tensors(call.run(with_tensors(call.like, given)))
        reached = [(x, g) for x, g in zip(found, arriving, strict=True) if g is not None and x.requires_grad]
        inputs = [*given, *saved[count:]]  # what `run` has of its own is not given to it, so it is no copy
        leaves = [x for x, w in zip(inputs, wanted, strict=True) if w]
        slopes = iter(
            torch.autograd.grad([x for x, _ in reached], leaves, [g for _, g in reached], allow_unused=True)
            if reached
            else [None] * len(leaves)
        )
        return None, *(next(slopes) if w else None for w in wanted)


def _autocast_now(kind: str) -> Callable[[], AbstractContextManager[object]]:
    """Makes the autocast that is on now, for later; on a kind of device that has none, nothing."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype, enabled)
