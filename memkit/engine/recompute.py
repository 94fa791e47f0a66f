"""Training memory for time: run groups of tokens without a graph, keep what each began with, and run it again backward.

`torch.utils.checkpoint` would keep the tapes, whose gradients are taken while a group runs; this keeps nothing that a
group made but its results. All groups are one node, which writes outputs and slopes where they belong: gathered from
nodes of their own they would be there twice. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, once_differentiable
from memkit.state import Tree, emptied, tensors, with_tensors

Slopes = list[Tensor | None]


def in_groups(
    run: Callable[[Tree, Tree], tuple[Tensor, Tree]], given: Tree, state: Tree, size: int, own: Sequence[Tensor] = ()
) -> tuple[Tensor, Any]:
    """`run(given, state) -> (y, state)`, `size` tokens at a time, each time keeping no more than what went in.

    given: a tree of tensors `[B, T, ...]`, with T >= 1; y is `[B, T, ...]` too. All that gradients should flow to must
    be in `given` and `state`, or among the parameters that `run` uses of its `own`. `run` must do the same both times;
    it meets the autocast of the first time at the second too. Returns (y, state) as one call does.
    """
    results: list[Tree] = []
    groups = _Groups(run, emptied(given), size, len(tensors(given)), len(own), [emptied(state)], results)
    if not graph_wanted((given, state, tuple(own))):
        return _forward(groups, tensors(given), state, None)
    y, *flat = _Recomputed.apply(groups, *tensors(given), *own, *tensors(state))
    return y, with_tensors(results[0], flat)


class _Groups(NamedTuple):
    """What is run twice, on how many tokens at a time, and how many tensors are given and its own.

    like: `given` without its numbers; states: likewise, what each group begins with; results: what the last ends with.
    """

    run: Callable[[Tree, Tree], tuple[Tensor, Tree]]
    like: Tree
    size: int
    given: int
    own: int
    states: list[Tree]
    results: list[Tree]

    def cut(self, given: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """The tokens of each group, and its part of what is given."""
        for start in range(0, given[0].shape[1], self.size):
            here = slice(start, start + self.size)
            yield here, [x[:, here] for x in given]


def _forward(groups: _Groups, given: list[Tensor], state: Tree, kept: list[Tensor] | None) -> tuple[Tensor, Tree]:
    """Run all groups; `kept` receives the state that each but the first begins with."""
    whole = None
    for here, part in groups.cut(given):
        if here.start and kept is not None:
            kept.extend(tensors(state))
            groups.states.append(emptied(state))
        y, state = groups.run(with_tensors(groups.like, part), state)
        whole = y.new_empty(y.shape[0], given[0].shape[1], *y.shape[2:]) if whole is None else whole
        whole[:, here] = y
    if whole is None:
        raise ValueError("a call in groups needs at least one token.")
    return whole, state


class _Recomputed(torch.autograd.Function):
    """Outputs and the last state as a function of all that is given, of parameters, and of the first state."""

    @staticmethod
    def forward(ctx: Any, groups: _Groups, *flat: Tensor) -> Any:
        """Run without a graph."""
        kept: list[Tensor] = []
        state = with_tensors(groups.states[0], flat[groups.given + groups.own :])
        y, state = _forward(groups, list(flat[: groups.given]), state, kept)
        groups.results.append(emptied(state))
        ctx.groups = groups
        ctx.autocast = _autocast_now(y.device.type)
        ctx.save_for_backward(*flat, *kept)
        ctx.set_materialize_grads(False)
        found = tensors(state)
        ctx.mark_non_differentiable(*(x for x in found if not x.is_floating_point()))
        return y, *found

    @staticmethod
    @once_differentiable("recompute=", "recompute=None")
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, saved: tuple[Tensor, ...], arriving: Tensor | None, *following: Tensor | None
    ) -> Any:
        """Run each group again, the last one first, with a graph this time, and go back through it."""
        groups, wanted = ctx.groups, ctx.needs_input_grad[1:]
        given, own = saved[: groups.given], list(saved[groups.given : groups.given + groups.own])
        rest = iter(saved[groups.given + groups.own :])
        states = [with_tensors(like, rest) for like in groups.states]
        into, later = _Sums(given), list(following)
        for (here, part), state in reversed(list(zip(groups.cut(given), states, strict=True))):
            first = wanted[groups.given + groups.own :] if here.start == 0 else None
            leaves = [_leaf(x, w) for x, w in zip(part, wanted, strict=False)]
            begun = [_leaf(x, True if first is None else first[i]) for i, x in enumerate(tensors(state))]
            with torch.enable_grad(), ctx.autocast():  # not the way back, which it would round
                y, after = groups.run(with_tensors(groups.like, leaves), with_tensors(state, begun))
            slopes = [None if arriving is None else arriving[:, here], *later]
            found = _slopes([y, *tensors(after)], slopes, [*leaves, *own, *begun])
            into.add(here, found[: groups.given], found[groups.given : groups.given + groups.own])
            later = found[groups.given + groups.own :]
        return None, *into.given, *into.own, *later


class _Sums:
    """The slopes of all tokens, and the sums over groups of those of parameters."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        self._shapes = [x.shape for x in given]
        self.given: Slopes = [None] * len(given)
        self.own: Slopes = []

    def add(self, here: slice, given: Slopes, own: Slopes) -> None:
        """Write a group's slopes in their place, and add those of parameters."""
        for i, slope in enumerate(given):
            if slope is not None:
                if self.given[i] is None:
                    self.given[i] = slope.new_zeros(self._shapes[i])
                self.given[i][:, here] = slope  # type: ignore[index]
        before = self.own or [None] * len(own)
        self.own = [b if a is None else a if b is None else a + b for a, b in zip(own, before, strict=True)]


def _leaf(x: Tensor, wanted: bool) -> Tensor:
    return x.detach().requires_grad_(wanted and x.is_floating_point())


def _slopes(found: list[Tensor], slopes: Slopes, leaves: list[Tensor]) -> Slopes:
    """Those of the leaves, from those of what was found; None where none arrives."""
    reached = [(x, g) for x, g in zip(found, slopes, strict=True) if g is not None and x.requires_grad]
    asked = [x for x in leaves if x.requires_grad]
    if not reached or not asked:
        return [None] * len(leaves)
    results, arriving = zip(*reached, strict=True)
    answers = iter(torch.autograd.grad(results, asked, arriving, allow_unused=True))
    return [next(answers) if x.requires_grad else None for x in leaves]


def _autocast_now(kind: str) -> Callable[[], AbstractContextManager[object]]:
    """Makes the autocast that is on now, for later; on a kind of device that has none, nothing."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype, enabled)
