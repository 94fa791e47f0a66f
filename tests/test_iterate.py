"""The form `iterate`: rounds that settle, rounds that do not, and what fixed rounds promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_memory import TOKENS, Case, titans

from memkit.engine import iterate
from memkit.state import tensors

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
