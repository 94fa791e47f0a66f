"""Results of a run together with their gradients, to compare two ways of running the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.state import Tree, map_tensors, tensors, with_tensors
from memkit.testing.tolerance import GRADIENTS, named, same, same_trees

Run = Callable[[dict[str, Tree]], dict[str, Tree]]
"""Inputs by name -> results by name."""


class ResultsAndGradients(NamedTuple):
    """Results by name, and the gradients of a fixed random functional of them by input."""

    results: dict[str, Tree]
    gradients: dict[str, Tensor]


def differentiate(run: Run, inputs: dict[str, Tree]) -> ResultsAndGradients:
    """Run with every floating tensor of `inputs` as a leaf; differentiate all results in all of them."""
    leaves = leaves_of(inputs)
    results = run(leaves)
    return ResultsAndGradients(results, gradients(functional(results), named_leaves(leaves)))


def leaves_of(inputs: dict[str, Tree]) -> dict[str, Tree]:
    """Copies of the inputs; floating tensors require a gradient."""
    return map_tensors(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), inputs)


def named_leaves(leaves: dict[str, Tree]) -> dict[str, Tensor]:
    """Path -> tensor, of those that require a gradient."""
    return {path: x for name in leaves for path, x in named(name, leaves[name]) if x.requires_grad}


def gradients(loss: Tensor, leaves: dict[str, Tensor], *, graph: bool = False) -> dict[str, Tensor]:
    """d loss / d leaf; 0 for leaves of no influence. graph: record it, for a second gradient."""
    found = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True, create_graph=graph
    )
    return dict(zip(leaves, found, strict=True))


def functional(results: Tree) -> Tensor:
    """A fixed random linear functional of all floating tensors of a tree; it depends on their shapes alone."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for x in tensors(results):
        if x.is_floating_point():
            total = total + (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum()
    return total


def agree(actual: ResultsAndGradients, reference: ResultsAndGradients) -> None:
    """Raise `Mismatch` unless results and gradients are the same."""
    for name in reference.results:
        same_trees(name, actual.results[name], reference.results[name])
    for name in reference.gradients:
        same(f"the gradient of {name}", actual.gradients[name], reference.gradients[name], GRADIENTS)


def stack(trees: Sequence[Tree]) -> Tree:
    """Put trees of single rows below each other; entries other than tensors are those of the first."""
    columns = zip(*(tensors(tree) for tree in trees), strict=True)
    return with_tensors(trees[0], [torch.cat(column) for column in columns])
