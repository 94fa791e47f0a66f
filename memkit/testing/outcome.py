"""What a run leaves behind, gradients included, so that two ways to run the same can be compared whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.state import Tree, map_tensors, tensors, with_tensors
from memkit.testing.close import GRADIENTS, LARGEST, Discarded, named, same, same_trees, within

STEP = 1e-6
SLOPES = 1e-4
"""How far a central difference with `STEP` may be from the slope; a wrong gradient is off by its own size."""


class Outcome(NamedTuple):
    """The results of a run by name, and the gradients of a fixed random functional of them in what was given."""

    results: dict[str, Tree]
    gradients: dict[str, Tensor]


def outcome(run: Callable[[dict[str, Tree]], dict[str, Tree]], given: dict[str, Tree]) -> Outcome:
    """Run with every floating tensor of `given` as a leaf, and differentiate all results in all of them."""
    leaves = map_tensors(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), given)
    results = run(leaves)
    inputs = {path: x for name in leaves for path, x in named(name, leaves[name]) if x.requires_grad}
    return Outcome(results, gradients(results, inputs))


def gradients(results: Tree, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """d <r, results> / d leaf for a random r that depends on shapes alone; 0 for leaves of no influence."""
    found = torch.autograd.grad(functional(results), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def functional(results: Tree) -> Tensor:
    """A fixed random linear functional of all floating tensors of a tree."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for x in tensors(results):
        if x.is_floating_point():
            total = total + (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum()
    return total


def agree(actual: Outcome, reference: Outcome) -> None:
    """Raise `Mismatch` unless results and gradients are the same."""
    for name in reference.results:
        same_trees(name, actual.results[name], reference.results[name])
    for name in reference.gradients:
        same(f"the gradient of {name}", actual.gradients[name], reference.gradients[name], GRADIENTS)


def stack(trees: Sequence[Tree]) -> Tree:
    """Put trees of single rows below each other; hints are those of the first."""
    columns = zip(*(tensors(tree) for tree in trees), strict=True)
    return with_tensors(trees[0], [torch.cat(column) for column in columns])


def check_slope(run: Callable[[dict[str, Tree]], dict[str, Tree]], inputs: dict[str, Tree]) -> None:
    """Raise `Mismatch` unless gradients are slopes: for each input, along one random direction of it.

    Where there is no slope to compare with, as on the corner of a Huber loss or where a number less makes the root of
    a mean of squares none, an input says nothing; raises `Discarded` if none says anything.
    """
    found = outcome(run, inputs)
    generator, told = torch.Generator().manual_seed(1), 0
    for name, gradient in found.gradients.items():
        direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
        parts = gradient * direction
        size = float(parts.abs().sum())
        if not size <= LARGEST:
            raise Discarded(f"the gradient of {name} reaches {size:.3g}.")

        def along(step: float, name: str = name, direction: Tensor = direction) -> Tensor:
            return functional(run(_moved(inputs, name, direction * step))).detach()

        # Near a sharp bend (Muon's norm near 0) a slope is one over short steps only.
        slopes = (_slope(along, step) for step in (STEP, STEP / 8, STEP / 64, STEP / 512))
        slope = next((s for s in slopes if float((parts.sum() - s).abs()) <= SLOPES * (1 + size)), None)
        if slope is None:
            slope = _slope(along, STEP)
            if not slope.isfinite() or float((parts.sum() - slope).abs()) <= _disagreement(along):
                continue
        within(f"the slope along {name}", parts.sum(), slope, SLOPES * (1 + size))
        told += 1
    if not told:
        raise Discarded("no input has a slope here.")


def _slope(along: Callable[[float], Tensor], step: float) -> Tensor:
    return (along(step) - along(-step)) / (2 * step)


def _disagreement(along: Callable[[float], Tensor]) -> float:
    """How far the slopes to the left and right, over a step and a shorter one, are from each other.

    On a kink they differ by twice a right gradient's error at least. Where all is smooth they differ by the step
    times the curvature, far less than a wrong gradient's error.
    """
    here = along(0.0)
    slopes = [(along(step) - here) / step for size in (STEP, STEP / 4) for step in (size, -size)]
    return float(torch.stack(slopes).max() - torch.stack(slopes).min())


def _moved(inputs: dict[str, Tree], name: str, by: Tensor) -> dict[str, Tree]:
    """The same inputs with one tensor moved."""
    places = iter([path for key in inputs for path, _ in named(key, inputs[key])])
    return map_tensors(lambda x: x + by if next(places) == name else x, inputs)
