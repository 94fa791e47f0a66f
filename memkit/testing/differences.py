"""Central differences: an oracle of first and second gradients that is independent of autograd's backward passes.

First gradients are held to differences of results, second gradients to differences of first gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from memkit.state import Tree, map_tensors, tensors
from memkit.testing.results_and_gradients import (
    Run,
    differentiate,
    functional,
    gradients,
    leaves_of,
    named_leaves,
)
from memkit.testing.tolerance import LARGEST, LARGEST_SECOND, Discarded, named, within

STEP = 1e-6
STEPS = (STEP, STEP / 8, STEP / 64, STEP / 512)
"""Near a sharp bend (Muon's norm near 0) only short steps show the derivative."""
DIFFERENCE = 1e-4
"""Allowed distance of a derivative from its difference, per unit of 1 + its size.

Rounding leaves 1e-16 / step, so 1e-10 to 1e-7, and the curve step^2 times a third derivative; at the better of the
steps all registered rules are within 1e-6, up to second gradients of 1e9. A wrong derivative is off by its own size.
"""


def check_gradients(run: Run, inputs: dict[str, Tree]) -> None:
    """Raise `Mismatch` unless gradients equal central differences: for each input, along one random direction.

    An input says nothing without a derivative to compare with: on the corner of a Huber loss, or if a smaller number
    makes the root of a mean of squares NaN. Raises `Discarded` if no input says anything.
    """
    generator, compared = torch.Generator().manual_seed(1), 0
    for name, gradient in differentiate(run, inputs).gradients.items():
        direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
        parts = gradient * direction
        size = float(parts.abs().sum())
        _check_size(f"the gradient of {name}", size, LARGEST)

        def along(step: float, direction: dict[str, Tensor] = {name: direction}) -> Tensor:  # noqa: B006
            return functional(run(_moved(inputs, direction, step))).detach()

        compared += _compare(f"the derivative along {name}", parts.sum(), along, size)
    if not compared:
        raise Discarded("no input has a derivative here.")


def second_gradients(run: Run, inputs: dict[str, Tree], direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of <first gradients, direction>: the Hessian of `curved` results, times the direction."""
    leaves = leaves_of(inputs)
    by_name = named_leaves(leaves)
    total = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for name, first in gradients(curved(run(leaves)), by_name, graph=True).items():
        total = total + (first * direction[name]).sum()
    return gradients(total, by_name)


def check_second_gradients(
    run: Run, inputs: dict[str, Tree], direction: dict[str, Tensor], found: dict[str, Tensor]
) -> None:
    """Raise `Mismatch` unless second gradients equal central differences of the first ones along the direction.

    Entries say nothing and draws are discarded as in `check_gradients`.
    """

    @cache
    def first(step: float) -> dict[str, Tensor]:
        leaves = leaves_of(_moved(inputs, direction, step))
        return gradients(curved(run(leaves)), named_leaves(leaves))

    compared = 0
    for name, second in found.items():
        size = float(second.abs().max()) if second.numel() else 0.0
        _check_size(f"the second gradient of {name}", size, LARGEST_SECOND)
        compared += _compare(f"the second gradient of {name}", second, lambda step, name=name: first(step)[name], size)
    if not compared:
        raise Discarded("no input has a second derivative here.")


def curved(results: Tree) -> Tensor:
    """A loss quadratic in all floating tensors of a tree, so that the gradient of the loss depends on them."""
    loss = functional(results)
    for x in tensors(results):
        if x.is_floating_point():
            loss = loss + x.square().sum() / 2
    return loss


def random_direction(inputs: dict[str, Tree]) -> dict[str, Tensor]:
    """Path -> a fixed random change of each floating input.

    Slots change in proportion to themselves: a mean of squares has no meaning below 0.
    """
    generator, found = torch.Generator().manual_seed(1), {}
    for path, x in named_leaves(leaves_of(inputs)).items():
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        found[path] = noise * x.detach() if path.startswith("state.slots") else noise
    return found


def _compare(name: str, found: Tensor, along: Callable[[float], Tensor], size: float) -> bool:
    """Compare a derivative with differences of `along(step)`; False if no entry has a derivative."""
    bound = DIFFERENCE * (1 + size)
    if any(bool(((found - _central(along, step)).abs() <= bound).all()) for step in STEPS):
        return True
    central = _central(along, STEP)
    kinked = ~central.isfinite() | ((found - central).abs() <= _disagreement(along))
    within(name, torch.where(kinked, 0.0, found), torch.where(kinked, 0.0, central), bound)
    return not bool(kinked.all())


def _central(along: Callable[[float], Tensor], step: float) -> Tensor:
    return (along(step) - along(-step)) / (2 * step)


def _disagreement(along: Callable[[float], Tensor]) -> Tensor:
    """Spread of the differences to the left and right, over a step and a shorter one.

    On a kink they differ by at least twice the error of a right derivative; elsewhere by the step times the
    curvature, far less than the error of a wrong one.
    """
    here = along(0.0)
    sides = torch.stack([(along(step) - here) / step for size in (STEP, STEP / 4) for step in (size, -size)])
    return sides.amax(0) - sides.amin(0)


def _moved(inputs: dict[str, Tree], direction: dict[str, Tensor], step: float) -> dict[str, Tree]:
    """The inputs plus `step` times the direction; inputs without one stay."""
    paths = iter([path for key in inputs for path, _ in named(key, inputs[key])])
    return map_tensors(lambda x: x if (by := direction.get(next(paths))) is None else x + step * by, inputs)


def _check_size(name: str, size: float, limit: float) -> None:
    if not size <= limit:  # NaN included
        raise Discarded(f"{name} reaches {size:.3g}.")
