"""State as a value: frozen trees of tensors, passed in and returned, never mutated.

The first axis of every tensor in a state is the batch, so rows can be selected, merged and reset whatever they mean.
Integers beside tensors are facts known without a look at the device (a position shared by all rows); they become
`None` once rows differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

Tree = Any  # State | Tensor | dict | tuple | int | None
T = TypeVar("T", bound="State")


class State:
    """Base of every state: subclasses are frozen dataclasses whose fields are trees of tensors."""

    kinds: ClassVar[dict[str, type[State]]] = {}

    def __init_subclass__(cls) -> None:
        held = State.kinds.setdefault(cls.__name__, cls)
        if held.__module__ != cls.__module__:
            raise ValueError(f"a state named {cls.__name__!r} already exists in {held.__module__}; rename yours.")
        State.kinds[cls.__name__] = cls

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same tree with `function` applied to every tensor."""
        return map_tensors(function, self)

    def detach(self) -> Self:
        """Cut the graph: the same values without history, for truncated back-propagation."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast as `Tensor.to` does; a floating dtype leaves counters and masks as they are."""
        dtype = kwargs.get("dtype", next((a for a in args if isinstance(a, torch.dtype)), None))
        rest = tuple(a for a in args if not isinstance(a, torch.dtype))
        device = {name: value for name, value in kwargs.items() if name != "dtype"}

        def move(x: Tensor) -> Tensor:
            x = x.to(*rest, **device) if rest or device else x
            return x.to(dtype) if dtype is not None and x.is_floating_point() else x

        return self.map(move)

    def select(self, rows: Tensor | slice | list[int]) -> Self:
        """Keep some batch rows, in the given order (repeats allowed: beam search)."""
        return self.map(lambda x: x[rows])

    def merge(self, rows: Tensor, other: Self) -> Self:
        """Take the rows where `rows` `[B]` is true from `other`, the rest from here."""
        pairs = {n: merge_trees(rows, v, getattr(other, n)) for n, v in fields(self).items()}
        return dataclasses.replace(self, **pairs)  # type: ignore[type-var]

    @property
    def bytes(self) -> int:
        """Memory addressed by the state's tensors, in bytes."""
        return sum(x.numel() * x.element_size() for x in tensors(self))


def fields(state: State) -> dict[str, Tree]:
    """Return the fields of a state by name, without descending."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}  # type: ignore[arg-type]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every tensor of a tree."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, State):
        return type(tree)(**{name: map_tensors(function, value) for name, value in fields(tree).items()})
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [map_tensors(function, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)  # a named tuple stays one
    return tree


def merge_trees(rows: Tensor, here: Tree, other: Tree) -> Tree:
    """Take `other` in rows that are True, else `here`, of one structure (torch.where has them the other way round)."""
    if isinstance(here, Tensor):
        return torch.where(rows.view(-1, *[1] * (here.dim() - 1)), other, here)
    if isinstance(here, State):
        return here.merge(rows, other)  # its own method, for states of differing shapes
    if isinstance(here, dict):
        return {name: merge_trees(rows, value, other[name]) for name, value in here.items()}
    if isinstance(here, tuple):
        return tuple(merge_trees(rows, a, b) for a, b in zip(here, other, strict=True))
    return here if here == other else None


def tensors(tree: Tree) -> list[Tensor]:
    """Return all tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = fields(tree) if isinstance(tree, State) else tree
    parts = parts.values() if isinstance(parts, dict) else parts if isinstance(parts, tuple) else ()
    return [x for part in parts for x in tensors(part)]


def emptied(tree: Tree) -> Tree:
    """Return the tree's structure without its numbers, for `with_tensors` to fill again."""
    return map_tensors(lambda x: x.new_zeros(0), tree)


def with_tensors(tree: Tree, values: Iterable[Tensor]) -> Tree:
    """Return the tree with these tensors in place of its own, in the order of `tensors`."""
    rest = iter(values)
    return map_tensors(lambda _: next(rest), tree)
