"""Equality, defined once for every law.

    |actual - reference| <= tolerance (1 + max |reference|)      over the whole tensor, in float64

An absolute bound fails right engines with large numbers; a bound relative to each element fails right engines with
results that cancel. A reference that is not finite or beyond `LARGEST` says nothing about the engine: the draw is
discarded. The runner counts these and fails if there are many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from memkit.state import State, Tree, fields

VALUES = 1e-10
GRADIENTS = 1e-8
CAUSAL = 1e-12
LARGEST = 1e6
LARGEST_SECOND = 1e9
"""The limit of second gradients: those of a norm with a small eps are large, and still exact to 1e-6."""


class Mismatch(AssertionError):
    """Two results differ although a law calls them equal; the message has the numbers."""


class Discarded(Exception):
    """The draw left the range of meaningful equality; it neither keeps nor breaks a law."""


def same(name: str, actual: Tensor, reference: Tensor, tolerance: float = VALUES, limit: float = LARGEST) -> None:
    """Raise `Mismatch` unless two tensors are equal; integers and booleans must be equal exactly.

    Raises `Discarded` if the reference is not finite or exceeds the `limit`.
    """
    _same_kind(name, actual, reference)
    if not reference.is_floating_point():
        within(name, actual.double(), reference.double(), 0.0)
        return
    largest = _largest(reference)
    if not largest <= limit:  # NaN included
        raise Discarded(f"the reference of {name} reaches {largest:.3g}.")
    within(name, actual, reference, tolerance * (1 + largest))


def same_trees(name: str, actual: Tree, reference: Tree, tolerance: float = VALUES) -> None:
    """`same` for every tensor of two trees of one structure; entries other than tensors are not compared."""
    found, wanted = dict(named(name, actual)), dict(named(name, reference))
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())
        raise Mismatch(f"{name} does not have the structure of its reference: only one of the two has {odd}.")
    for path, tensor in wanted.items():
        same(path, found[path], tensor, tolerance)


def unchanged(name: str, actual: Tensor, reference: Tensor, largest: float) -> None:
    """Raise `Mismatch` if a tensor changed by more than `CAUSAL` of the `largest` output."""
    if not largest <= LARGEST:
        raise Discarded(f"the outputs around {name} reach {largest:.3g}.")
    within(name, actual, reference, CAUSAL * largest)


def identical(name: str, actual: Tree, reference: Tree) -> None:
    """Raise `Mismatch` unless two trees are equal to the last bit, `hints` included (NaN equals NaN)."""
    if hints(actual) != hints(reference):
        raise Mismatch(f"{name}: {hints(actual)} instead of {hints(reference)}.")
    found, wanted = dict(named(name, actual)), dict(named(name, reference))
    if found.keys() != wanted.keys():
        raise Mismatch(f"{name}: its structure changed in {sorted(found.keys() ^ wanted.keys())}.")
    for path, tensor in wanted.items():
        _same_kind(path, found[path], tensor)
        if not torch.allclose(found[path], tensor, rtol=0, atol=0, equal_nan=True):
            within(path, found[path].double(), tensor.double(), 0.0)


def within(name: str, actual: Tensor, reference: Tensor, bound: float) -> None:
    """Raise `Mismatch` with the worst element unless `|actual - reference| <= bound` everywhere."""
    difference = (actual - reference).detach().abs().nan_to_num(nan=math.inf)
    broken = int((difference > bound).sum())
    if not broken:
        return
    worst = int(difference.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), difference.shape)]
    raise Mismatch(
        f"{name}{index} = {actual.flatten()[worst].item():.12g}, but the reference is "
        f"{reference.flatten()[worst].item():.12g}: a distance of {difference.flatten()[worst].item():.3g}, and "
        f"{bound:.3g} is allowed. {broken} of {difference.numel()} elements are off; this is the worst."
    )


def named(name: str, tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its dotted path."""
    if isinstance(tree, Tensor):
        yield name, tree
    for key, value in _children(tree):
        yield from named(f"{name}.{key}", value)


def hints(tree: Tree) -> list[Tree]:
    """Entries of a tree other than tensors: integers known on the host, and None."""
    if isinstance(tree, Tensor):
        return []
    if isinstance(tree, State | dict | tuple):
        return [hint for _, value in _children(tree) for hint in hints(value)]
    return [tree]


def _children(tree: Tree) -> list[tuple[object, Tree]]:
    if isinstance(tree, State):
        return list(fields(tree).items())
    if isinstance(tree, dict):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, tuple) else []


def _same_kind(name: str, actual: Tensor, reference: Tensor) -> None:
    if actual.shape != reference.shape or actual.dtype != reference.dtype:
        raise Mismatch(
            f"{name} is {actual.dtype} {tuple(actual.shape)}, but the reference is "
            f"{reference.dtype} {tuple(reference.shape)}."
        )


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0
