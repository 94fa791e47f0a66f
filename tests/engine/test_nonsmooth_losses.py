"""The laws of gradients excuse corners, which have no derivative, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memkit.parts.muon import newton_schulz
from memkit.testing.differences import check_gradients
from memkit.testing.tolerance import Discarded, Mismatch

CORNER = 0.7


def hold(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Compare the gradient of one function of one tensor."""
    check_gradients(lambda leaves: {"y": function(leaves["x"])}, {"x": x})


def corner(x: Tensor) -> Tensor:
    """A slope of 1 to the left and of 3 to the right."""
    return torch.where(x < CORNER, x, 3 * x - 2 * CORNER)


class Wrong(torch.autograd.Function):
    """The corner, with a slope that is `by` times the right one."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, by: float) -> Tensor:
        ctx.slope = by * torch.where(x < CORNER, 1.0, 3.0)  # type: ignore[attr-defined]
        return corner(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.slope, None  # type: ignore[attr-defined]


@pytest.mark.parametrize("distance", [1e-7, -3e-7])
def test_beside_a_corner_a_shorter_step_has_a_derivative(distance: float) -> None:
    hold(corner, torch.full((1,), CORNER + distance, dtype=torch.double))


@pytest.mark.parametrize("distance", [0.0, 1e-10, -3e-10])
def test_a_corner_says_nothing(distance: float) -> None:
    with pytest.raises(Discarded, match="no input has a derivative here"):
        hold(corner, torch.full((1,), CORNER + distance, dtype=torch.double))


def test_the_end_of_a_range_says_nothing() -> None:
    """A running mean of squares that is still 0 has nothing below it."""
    with pytest.raises(Discarded, match="no input has a derivative here"):
        hold(torch.sqrt, torch.full((1,), 1e-12, dtype=torch.double))


def test_a_corner_does_not_excuse_other_inputs() -> None:
    given = {"x": torch.full((1,), CORNER, dtype=torch.double), "z": torch.ones(1, dtype=torch.double)}

    def run(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": corner(leaves["x"]), "z": Wrong.apply(leaves["z"], 1.01)}  # type: ignore[dict-item]

    with pytest.raises(Mismatch, match="the derivative along z"):
        check_gradients(run, given)


@pytest.mark.parametrize("by", [-1.0, 0.0, 0.5, 1.001])
@pytest.mark.parametrize("x", [CORNER - 1e-3, CORNER + 1e-3, 2.0])
def test_a_wrong_gradient_beside_a_corner_is_seen(by: float, x: float) -> None:
    point = torch.full((1,), x, dtype=torch.double)
    hold(lambda x: Wrong.apply(x, 1.0), point)  # type: ignore[arg-type,return-value]
    with pytest.raises(Mismatch, match="the derivative along x"):
        hold(lambda x: Wrong.apply(x, by), point)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("curvature", [1.0, 1e4])
def test_curvature_excuses_no_wrong_gradient(curvature: float) -> None:
    x = torch.full((1,), 0.3, dtype=torch.double)
    hold(lambda x: curvature * x.square(), x)
    with pytest.raises(Mismatch):
        hold(lambda x: curvature * (x * x.detach()), x)


def test_what_changes_within_a_step_says_nothing() -> None:
    """Muon's step turns around where a gradient of 0 is moved by less than the difference quotient looks at."""
    smallest = 1e-7 * torch.eye(2, dtype=torch.double)
    with pytest.raises(Discarded):
        hold(lambda x: newton_schulz(x, 5, eps=1e-7), smallest)
    hold(lambda x: newton_schulz(x, 5, eps=1e-7), torch.eye(2, dtype=torch.double) + 0.1)
