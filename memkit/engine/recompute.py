"""Less memory for more time: run groups of tokens without a graph, and run each again in the backward pass.

Tokens `[B, T, ...]` -> y `[B, T, ...]` and the last state. Kept for the backward pass: the tokens, and the state before
each group. `torch.utils.checkpoint` would also keep the tapes, whose gradients are taken during the forward pass. All
groups are one autograd node with one buffer for outputs and one for gradients; a node per group would need a second
copy to join them. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, once_differentiable
from memkit.state import Tree, emptied, tensors, with_tensors

Gradients = list[Tensor | None]


def in_groups(
    run: Callable[[Tree, Tree], tuple[Tensor, Tree]],
    tokens: Tree,
    state: Tree,
    size: int,
    parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, Any]:
    """Return (y, state) of `run(tokens, state)`, called on `size` tokens at a time.

    tokens: a tree of tensors `[B, T, ...]`, T >= 1; y is `[B, T, ...]`. Gradients flow to `tokens`, `state` and
    `parameters`, and nowhere else. `run` must do the same in both passes; both see the autocast setting of the first.
    """
    structure: list[Tree] = []
    groups = _Groups(run, emptied(tokens), size, len(tensors(tokens)), len(parameters), [emptied(state)], structure)
    if not graph_wanted((tokens, state, tuple(parameters))):
        return _forward(groups, tensors(tokens), state, None)
    y, *flat = _Recomputed.apply(groups, *tensors(tokens), *parameters, *tensors(state))
    return y, with_tensors(structure[0], flat)


class _Groups(NamedTuple):
    """The function to run twice, the group size in tokens, and the layout of the flat list of tensors.

    tokens, parameters: their numbers of tensors. like: the tree of the tokens. states: the trees of the states before
    each group. structure: receives the tree of the last state.
    """

    run: Callable[[Tree, Tree], tuple[Tensor, Tree]]
    like: Tree
    size: int
    tokens: int
    parameters: int
    states: list[Tree]
    structure: list[Tree]

    def cut(self, tokens: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield each group's slice of the time axis, and its tokens."""
        for start in range(0, tokens[0].shape[1], self.size):
            group = slice(start, start + self.size)
            yield group, [x[:, group] for x in tokens]


def _forward(groups: _Groups, tokens: list[Tensor], state: Tree, kept: list[Tensor] | None) -> tuple[Tensor, Tree]:
    """Run all groups; `kept` receives the state before each group except the first."""
    whole = None
    for group, part in groups.cut(tokens):
        if group.start and kept is not None:
            kept.extend(tensors(state))
            groups.states.append(emptied(state))
        y, state = groups.run(with_tensors(groups.like, part), state)
        whole = y.new_empty(y.shape[0], tokens[0].shape[1], *y.shape[2:]) if whole is None else whole
        whole[:, group] = y
    if whole is None:
        raise ValueError("a call in groups needs at least one token.")
    return whole, state


class _Recomputed(torch.autograd.Function):
    """Outputs and last state as a function of tokens, parameters and first state."""

    @staticmethod
    def forward(ctx: Any, groups: _Groups, *flat: Tensor) -> Any:
        """Run without a graph."""
        kept: list[Tensor] = []
        state = with_tensors(groups.states[0], flat[groups.tokens + groups.parameters :])
        y, state = _forward(groups, list(flat[: groups.tokens]), state, kept)
        groups.structure.append(emptied(state))
        ctx.groups = groups
        ctx.autocast = _autocast_now(y.device.type)
        ctx.save_for_backward(*flat, *kept)
        ctx.set_materialize_grads(False)
        last = tensors(state)
        ctx.mark_non_differentiable(*(x for x in last if not x.is_floating_point()))
        return y, *last

    @staticmethod
    @once_differentiable("recompute=", "recompute=None")
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, saved: tuple[Tensor, ...], grad_y: Tensor | None, *grad_state: Tensor | None
    ) -> Any:
        """Run each group again, last to first, now with a graph, and backpropagate through it."""
        groups, needed = ctx.groups, ctx.needs_input_grad[1:]
        count, before_state = groups.tokens, groups.tokens + groups.parameters
        tokens, parameters = saved[:count], list(saved[count:before_state])
        rest = iter(saved[before_state:])
        states = [with_tensors(like, rest) for like in groups.states]
        sums, later = _GradientSums(tokens), list(grad_state)
        for (group, part), state in reversed(list(zip(groups.cut(tokens), states, strict=True))):
            state_needed = needed[before_state:] if group.start == 0 else [True] * len(tensors(state))
            leaves = [_leaf(x, need) for x, need in zip(part, needed, strict=False)]
            begin = [_leaf(x, need) for x, need in zip(tensors(state), state_needed, strict=True)]
            with torch.enable_grad(), ctx.autocast():  # only the forward pass: autocast would round gradients
                y, after = groups.run(with_tensors(groups.like, leaves), with_tensors(state, begin))
            arriving = [None if grad_y is None else grad_y[:, group], *later]
            gradients = _gradients([y, *tensors(after)], arriving, [*leaves, *parameters, *begin])
            sums.add(group, gradients[:count], gradients[count:before_state])
            later = gradients[before_state:]
        return None, *sums.tokens, *sums.parameters, *later


class _GradientSums:
    """Gradients of all tokens, filled group by group, and of parameters, summed over groups."""

    def __init__(self, tokens: Sequence[Tensor]) -> None:
        self._shapes = [x.shape for x in tokens]
        self.tokens: Gradients = [None] * len(tokens)
        self.parameters: Gradients = []

    def add(self, group: slice, tokens: Gradients, parameters: Gradients) -> None:
        """Write the gradients of a group's tokens into their slice, and add those of parameters."""
        for i, gradient in enumerate(tokens):
            if gradient is not None:
                if self.tokens[i] is None:
                    self.tokens[i] = gradient.new_zeros(self._shapes[i])
                self.tokens[i][:, group] = gradient  # type: ignore[index]
        sums = self.parameters or [None] * len(parameters)
        self.parameters = [b if a is None else a if b is None else a + b for a, b in zip(parameters, sums, strict=True)]


def _leaf(x: Tensor, needs_grad: bool) -> Tensor:
    return x.detach().requires_grad_(needs_grad and x.is_floating_point())


def _gradients(outputs: list[Tensor], arriving: Gradients, leaves: list[Tensor]) -> Gradients:
    """Return the gradients of leaves, from those of outputs; None for leaves without one."""
    pairs = [(x, g) for x, g in zip(outputs, arriving, strict=True) if g is not None and x.requires_grad]
    wanted = [x for x in leaves if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(leaves)
    results, gradients = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, wanted, gradients, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in leaves]


def _autocast_now(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a factory of the autocast context active now, or of an empty one on devices without autocast."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled)
