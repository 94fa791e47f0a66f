"""The iterate form: convergence, halved blocks, a fixed number of rounds, and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import memkit
from compare import near
from memkit.engine import batching
from memkit.engine.core.memory_state import to_rows
from memkit.engine.forms.iterate.iteration import memory_graph
from memkit.rule import Rule
from memkit.state import map_tensors, tensors
from memkit.testing.results_and_gradients import functional
from small_memory import TOKENS, Case, score, titans
from work import Products

ONLINE = titans(mini_batch=1)


@pytest.mark.parametrize(("mini_batch", "steps"), [(1, 8.0), (2, 40.0)])
def test_where_rounds_come_no_closer_blocks_are_halved_and_exact(mini_batch: int, steps: float) -> None:
    case = Case(titans(mini_batch=mini_batch, expansion=3))
    case.gates["lr"] = steps * case.gates["lr"]  # so large that rounds overshoot
    mask = torch.rand(case.q.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.8
    expected = case.memorize(form="scan", mask=mask)
    off = [(case.memorize(form="iterate", rounds=n, mask=mask)[0] - expected[0]).abs().max() for n in range(4)]
    assert min(off) > 0.9 * off[0], "rounds come closer, or this tests nothing"
    near(case.memorize(form="iterate", mask=mask), expected)


def test_linear_maps_may_follow_each_other_with_nothing_between() -> None:
    rule = replace(ONLINE, memory=memkit.build("memory", "low_rank", rank=2))
    for trained in (False, True):
        found, expected = Case(rule), Case(rule)
        leaves = [case.leaves() if trained else [] for case in (found, expected)]
        results = [case.memorize(form=form) for case, form in ((found, "iterate"), (expected, "scan"))]
        near(*results)
        if trained:
            near(*(tuple(torch.autograd.grad(score(*made), x)) for made, x in zip(results, leaves, strict=True)))
        else:
            assert not any(x.requires_grad for x in tensors(results[0]))


def test_rounds_that_overflow_leave_no_trace() -> None:
    case = Case(ONLINE, dtype=torch.float32)
    case.k, case.gates["lr"] = 1e9 * case.k, 1e6 * case.gates["lr"]
    case.gates["lr"][:, 1:] = 0  # only the first write is made, and rounds over all of them see infinities
    y, _ = case.memorize(form="iterate")
    reference, _ = case.memorize(form="scan")
    assert torch.equal(y.isfinite(), reference.isfinite())
    assert not torch.equal(case.memorize(form="iterate", rounds=3)[0].isfinite(), reference.isfinite())
    # To single precision of each number, as they lie far apart.
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=0, equal_nan=True)


def test_small_steps_settle_in_few_rounds() -> None:
    """Fewer than tokens, and with less work than where blocks are halved."""
    made = []
    for steps in (1.0, 8.0):
        case = Case(ONLINE)
        case.gates["lr"] = steps * case.gates["lr"]
        with Products() as products:
            found = case.memorize(form="iterate")
        near(found, case.memorize(form="scan"))
        made.append(products.count)
    assert made[0] < made[1]
    case = Case(ONLINE)
    near(case.memorize(form="iterate", rounds=TOKENS - 3), case.memorize(form="scan"))


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
    tolerances = (1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
    found = [
        (case.memorize(form="iterate", tolerance=t)[0] - exact).abs().max() / exact.abs().max() for t in tolerances
    ]
    assert all(distance < t for distance, t in zip(found, tolerances, strict=True))
    assert found[0] > found[2] > found[-1]


def test_a_row_settles_by_its_own_measure() -> None:
    """Beside one with numbers a million times as large it comes as close as alone."""
    case = Case(ONLINE)
    exact, _ = case.memorize(form="scan")
    case.k[1:], case.v[1:] = 0, 1e6 * case.v[1:]
    y, _ = case.memorize(form="iterate", tolerance=1e-6)
    assert (y - exact)[0].abs().max() < 1e-6 * exact[0].abs().max()


def gradients(case: Case, **given: Any) -> list[torch.Tensor]:
    leaves = case.leaves()
    y, state = case.memorize(**given)
    return list(torch.autograd.grad(functional((y, state.weights, state.slots)), leaves, materialize_grads=True))


VARIANTS: dict[str, tuple[Rule, str | None]] = {
    "depth 3": (titans(mini_batch=1, depth=3), "w3"),
    "gated": (replace(ONLINE, memory=memkit.build("memory", "gated_mlp", expansion=2)), "w2"),
    "mini-batches": (titans(mini_batch=2), "w2"),
    "no momentum": (titans(mini_batch=1, optimizer="gradient_descent"), "w2"),
    "norm at the end": (titans(mini_batch=1, residual=True), None),
    "Huber": (replace(ONLINE, objective=memkit.build("objective", "huber")), None),
    "dot": (replace(ONLINE, objective=memkit.build("objective", "dot")), "w2"),
    "limit": (titans(mini_batch=1, surprise_limit=0.5), None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rounds_settle_on_the_definition_and_so_do_their_gradients(name: str) -> None:
    rule, solved = VARIANTS[name]
    case = Case(rule, tokens=7)
    with torch.no_grad():
        near(case.memorize(form="iterate"), case.memorize(form="scan"))
        rows = to_rows(case.state, case.dtype)
        keys = case.k.transpose(1, 2).flatten(0, 1)[:, :0]
        assert memory_graph(rule, keys, rows.weights, rows.constants).output_layer == solved
    near(tuple(gradients(case, form="iterate")), tuple(gradients(case, form="scan")))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("asked", ["outputs", "state"])
def test_gradients_of_a_part_of_the_result_are_those_of_the_definition(name: str, asked: str) -> None:
    """Where nothing arrives at the rest, and no reading or no folding goes back."""

    def slopes(form: str) -> tuple[torch.Tensor, ...]:
        case = Case(VARIANTS[name][0], tokens=7)
        leaves = case.leaves()
        y, state = case.memorize(form=form)
        part = (y,) if asked == "outputs" else (state.weights, state.slots)
        return torch.autograd.grad(functional(part), leaves, materialize_grads=True)

    near(slopes("iterate"), slopes("scan"))


@pytest.mark.parametrize("cut", [3, 4])
def test_gradients_flow_through_the_weights_of_a_mini_batch_that_a_call_leaves(cut: int) -> None:
    def slopes(form: str) -> tuple[torch.Tensor, ...]:
        case = Case(titans(mini_batch=2), tokens=9)
        leaves = case.leaves()
        first, case.state = case.memorize(slice(cut), form=form)
        second, state = case.memorize(slice(cut, None), form=form)
        return torch.autograd.grad(
            functional((first, second, state.weights, state.anchor)), leaves, materialize_grads=True
        )

    near(slopes("iterate"), slopes("scan"))


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
    y, state = case.memorize(form="iterate")
    for found in (score(y, state), y.sum()):  # also where the slope that arrives has no history
        (first,) = torch.autograd.grad(found, case.k, create_graph=True, retain_graph=True)
        with pytest.raises(RuntimeError, match="form 'iterate' cannot be differentiated again"):
            torch.autograd.grad(first.square().sum(), case.k, retain_graph=True)


def test_gradients_of_gradients_by_the_form_that_the_error_names() -> None:
    def run(k: torch.Tensor, form: str) -> torch.Tensor:
        (first,) = torch.autograd.grad(case.memorize(k=k, form=form)[0].square().sum(), k, create_graph=True)
        return torch.autograd.grad(first.square().sum(), k)[0]

    case = Case(ONLINE, tokens=5)
    k = case.k.requires_grad_()
    near((run(k, "step"),), (run(k, "scan"),))


@pytest.mark.parametrize("bad", ["slope", "q", "v"])
def test_a_row_that_is_no_number_leaves_the_gradients_of_others_alone(bad: str) -> None:
    def slopes(form: str) -> list[torch.Tensor]:
        case = Case(ONLINE, tokens=9)
        leaves = case.leaves()
        weigh = torch.ones_like(case.v)
        {"slope": weigh, "q": case.q.data, "v": case.v.data}[bad][0] = float("nan")
        y, _ = case.memorize(form=form)
        return [x[1:] for x in torch.autograd.grad((weigh * y).square().sum(), leaves[:3])]

    near(tuple(slopes("iterate")), tuple(slopes("scan")))


def test_only_what_gradients_of_a_mini_batch_see_may_learn() -> None:
    """The weights that a call begins with, where it begins inside of a mini-batch, and nothing else."""

    def slopes(form: str) -> tuple[torch.Tensor, ...]:
        case = Case(titans(mini_batch=3), tokens=10)
        with torch.no_grad():
            _, state = case.memorize(slice(1), form="scan")
        anchor = {name: x.clone().requires_grad_() for name, x in state.anchor.items()}
        y, _ = case.memorize(slice(1, None), form=form, state=replace(state, anchor=anchor))
        return torch.autograd.grad(y.square().sum(), tuple(anchor.values()))

    near(slopes("iterate"), slopes("scan"))


def test_masked_blocks_are_halved_down_to_a_token() -> None:
    case = Case(ONLINE, dtype=torch.double)
    case.k[0, 2] = float("nan")  # no rounds settle on it, and each block that holds it is halved
    mask = torch.ones(case.q.shape[:2], dtype=torch.bool)
    mask[1, :3] = False
    y, _ = case.memorize(form="iterate", mask=mask)
    exact, _ = case.memorize(form="scan", mask=mask)
    near(y, exact, equal_nan=True)


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_a_batch_too_large_for_the_cache_runs_in_parts(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(ONLINE, batch=4)
    mask = torch.rand(4, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
    expected = gradients(Case(ONLINE, batch=4), form="scan", mask=mask)
    one_row = sum(x[0].nbytes for x in tensors((case.state.weights, case.state.slots)))
    monkeypatch.setattr(batching, "CALLED", 3 * one_row // torch.get_num_threads())
    assert batching.at_once(case.state, compiled=False) == 2
    near(tuple(gradients(case, form="iterate", mask=mask)), tuple(expected))
