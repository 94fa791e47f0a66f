"""The form `iterate`: rounds that settle, rounds that do not, and what fixed rounds promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_memory import TOKENS, Case, score, titans

from memkit.engine import iterate
from memkit.state import map_tensors, tensors
from memkit.testing.outcome import functional

ONLINE = titans(mini_batch=1)


def near(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the blocks that were halved."""
    lengths: list[int] = []
    halves: Callable[..., Any] = iterate._halves

    def counted(rule: Any, piece: Any, valid: Any) -> Any:
        lengths.append(piece.tokens.k.shape[1])
        return halves(rule, piece, valid)

    monkeypatch.setattr(iterate, "_halves", counted)
    return lengths


@pytest.mark.parametrize(("mini_batch", "steps"), [(1, 8.0), (2, 40.0)])
def test_rounds_that_come_no_closer_halve_the_block(mini_batch: int, steps: float, halved: list[int]) -> None:
    case = Case(titans(mini_batch=mini_batch, expansion=3))
    case.gates["lr"] = steps * case.gates["lr"]  # so large that rounds overshoot
    mask = torch.rand(case.q.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.8
    expected = case.memorize(form="scan", mask=mask)
    near(case.memorize(form="iterate", mask=mask), expected)
    assert halved


def test_rounds_that_overflow_leave_no_trace(halved: list[int]) -> None:
    case = Case(ONLINE, dtype=torch.float32)
    case.k, case.gates["lr"] = 1e9 * case.k, 1e6 * case.gates["lr"]
    case.gates["lr"][:, 1:] = 0  # only the first write is made, and rounds over all of them see infinities
    y, _ = case.memorize(form="iterate")
    reference, _ = case.memorize(form="scan")
    assert torch.equal(y.isfinite(), reference.isfinite())
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=0, equal_nan=True)
    assert halved


def test_small_steps_settle_without_halving(halved: list[int]) -> None:
    case = Case(ONLINE)
    near(case.memorize(form="iterate"), case.memorize(form="scan"))
    assert not halved


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_fixed_rounds_are_exact_for_so_many_gradient_points_and_one(rounds: int) -> None:
    case = Case(ONLINE)
    y, _ = case.memorize(form="iterate", rounds=rounds)
    exact, _ = case.memorize(form="scan")
    near(y[:, : rounds + 1], exact[:, : rounds + 1])
    assert (y - exact)[:, rounds + 1 :].abs().max() > 1e-12, "later ones are not, or this tests nothing"


def test_as_many_rounds_as_tokens_are_exact() -> None:
    case = Case(ONLINE)
    near(case.memorize(form="iterate", rounds=TOKENS - 1), case.memorize(form="scan"))


def test_a_tolerance_bounds_the_distance() -> None:
    case = Case(ONLINE)
    exact, _ = case.memorize(form="scan")
    distances = [(case.memorize(form="iterate", tolerance=t)[0] - exact).abs().max() for t in (1e-2, 1e-4, 1e-8)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-8 * exact.abs().max()


def gradients(case: Case, **given: Any) -> list[torch.Tensor]:
    leaves = case.leaves()
    y, state = case.memorize(**given)
    return list(torch.autograd.grad(functional((y, state.weights, state.slots)), leaves, materialize_grads=True))


def test_gradients_are_exact_at_a_saddle_where_values_settle_at_once() -> None:
    """With weights of zero no write changes anything, so values say nothing of how far gradients have come."""

    def at_zero() -> Case:
        case = Case(ONLINE)
        zeros = map_tensors(torch.zeros_like, case.state.weights)
        case.state = replace(case.state, weights=zeros)
        return case

    found, expected = gradients(at_zero(), form="iterate"), gradients(at_zero(), form="scan")
    near(tuple(found), tuple(expected))
    assert any(x.abs().max() > 1e-3 for x in expected)


@pytest.mark.parametrize("rounds", [2, TOKENS - 1])
def test_fixed_rounds_have_the_gradient_of_what_they_compute(rounds: int) -> None:
    case = Case(ONLINE)
    case.k.requires_grad_()

    def run(k: torch.Tensor) -> torch.Tensor:
        return score(*case.memorize(k=k, form="iterate", rounds=rounds))

    assert torch.autograd.gradcheck(run, (case.k,), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_the_gradient_of_settled_rounds_has_no_gradient_of_its_own() -> None:
    case = Case(ONLINE)
    case.k.requires_grad_()
    (first,) = torch.autograd.grad(score(*case.memorize(form="iterate")), case.k, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
