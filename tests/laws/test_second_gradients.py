"""Second gradients: which form refuses, in which words, and the corner cases of the law that compares them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import near
from memkit.autograd import NotTwiceDifferentiable
from memkit.testing import Discarded, Mismatch
from memkit.testing.differences import check_second_gradients, random_direction, second_gradients
from memkit.testing.laws.gradients import second_gradient
from memkit.testing.strategies import RuleProblem, forms

ONLINE = memkit.build("rule", "titans", expansion=2, mini_batch=1)


def hessian_times_gradient(form: Any) -> Tensor:
    problem = RuleProblem(tokens=3, key_dim=3, value_dim=3)
    q, k, v, gates = problem.tokens_for(ONLINE)
    k.requires_grad_()
    y, _ = memkit.memorize(ONLINE, q, k, v, gates, problem.fresh_state(ONLINE), form=form)
    (first,) = torch.autograd.grad(y.square().sum(), k, create_graph=True)
    return torch.autograd.grad(first.square().sum(), k)[0]


def test_only_rounds_refuse_and_name_another_way() -> None:
    words = (
        r"form='step', or form='scan' .*memkit\.memorize\(\.\.\., form='scan'\), or "
        r"run=memkit\.Run\(form='scan'\) of a mixer or architecture; a rule with mini_batch > 1 needs neither"
    )
    with pytest.raises(NotTwiceDifferentiable, match=words):
        hessian_times_gradient("iterate")
    expected = hessian_times_gradient("scan")
    for form in set(forms(ONLINE)) - {"iterate", "scan"}:
        near(hessian_times_gradient(form), expected)


@pytest.mark.parametrize("name", ["lmm", "bank"])
def test_the_other_way_is_open_to_models(name: str) -> None:
    """Also to a bank, whose levels write every few tokens and have no form `step`."""
    rule = {"name": "titans", "mini_batch": 1, "expansion": 2}
    levels = {"levels": (1, 2)} if name == "bank" else {}
    sizes: dict[str, Any] = {"vocab_size": 5, "dim": 8, "heads": 2, "depth": 1, "rule": rule, **levels}
    model = memkit.build("architecture", name, run={"form": "scan"}, **sizes).double()
    loss = model(torch.tensor([[1, 2, 3, 4, 0]]))[0].square().mean()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(
        torch.stack([x.square().sum() for x in first]).sum(), parameters, materialize_grads=True
    )
    assert all(bool(x.isfinite().all()) for x in second) and any(bool(x.abs().max() > 0) for x in second)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_optimizers_with_sharp_bends_keep_the_law(optimizer: str) -> None:
    """Adam's mean of squares must not be moved below 0; Muon's norm bends near 0."""
    rule = memkit.build("rule", "titans", expansion=2, mini_batch=4, optimizer=optimizer)
    for prefix in (0, 5):
        second_gradient(rule, RuleProblem(key_dim=3, value_dim=3, prefix=prefix, seed=1))


class Bent(torch.autograd.Function):
    """x^2 / 2 with a corner at 0 in its first derivative, and `by` times the right second one."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, by: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by = by  # type: ignore[attr-defined]
        return torch.where(x < 0, 1.0, 3.0) * x.square() / 2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        curve = torch.where(x < 0, 1.0, 3.0)
        return grads[0] * curve * (x.detach() + ctx.by * (x - x.detach())), None  # type: ignore[attr-defined]


def hold(x: float, by: float) -> None:
    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": Bent.apply(inputs["x"], by)}  # type: ignore[dict-item]

    inputs = {"x": torch.full((1,), x, dtype=torch.double)}
    direction = random_direction(inputs)
    check_second_gradients(run, inputs, direction, second_gradients(run, inputs, direction))


def test_a_right_second_derivative_is_kept_on_both_sides_of_a_corner() -> None:
    for x in (-0.7, -1e-7, 1e-7, 0.7):
        hold(x, by=1.0)


def test_a_corner_of_the_gradient_says_nothing() -> None:
    with pytest.raises(Discarded, match="no input has a second derivative here"):
        hold(0.0, by=1.0)


@pytest.mark.parametrize("by", [0.0, 0.98, 1.02])
def test_a_wrong_second_derivative_is_found_beside_a_corner(by: float) -> None:
    for x in (-0.7, 1e-4):
        with pytest.raises(Mismatch, match="the second gradient of x"):
            hold(x, by)
