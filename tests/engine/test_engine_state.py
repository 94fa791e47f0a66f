"""The state of a memory in use: selected, merged and reset rows, documents, gradients through time, observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import ROUNDING, near
from memkit import MemoryState, Rule
from memkit.state import map_tensors, tensors
from memkit.testing.strategies import forms
from small_memory import BATCH, HEADS, TOKENS, WIDTH, Case, score, titans

RULES = {
    "mlp": titans(),
    "matrix online": titans(depth=1, mini_batch=1),
    "omega": replace(titans(depth=1), window=3),
    "every third": replace(titans(depth=1, mini_batch=1), update_every=3),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def rows_of(case: Case, rows: list[int]) -> Case:
    """The same case with some of its rows."""
    part = Case(case.rule)
    part.q, part.k, part.v, part.gates = map_tensors(lambda x: x[rows], (case.q, case.k, case.v, case.gates))
    part.state = case.state.select(rows)
    return part


@every_rule
def test_selected_rows_go_on_alone(rule: Rule) -> None:
    case = Case(rule)
    y, end = case.memorize(slice(6, None), state=case.memorize(slice(0, 6))[1])
    rows = [2, 0, 2]
    beam = rows_of(case, rows)
    beam.state = case.memorize(slice(0, 6))[1].select(rows)
    near(beam.memorize(slice(6, None)), (y[rows], end.select(rows)), tolerance=ROUNDING)


@every_rule
def test_merged_rows_stand_at_different_places(rule: Rule) -> None:
    """One row is 6 tokens into its stream, another 3: both go on as if they were alone."""
    case = Case(rule)
    far, close = (case.memorize(slice(0, count))[1] for count in (6, 3))
    takes_close = torch.tensor([False, True, False])
    merged = far.merge(takes_close, close)
    assert merged.offset.tolist() == [count % rule.period for count in (6, 3, 6)]
    y, end = case.memorize(slice(6, None), state=merged)
    for row, state in ((0, far), (1, close), (2, far)):
        alone = rows_of(case, [row])
        expected = alone.memorize(slice(6, None), state=state.select([row]))
        near((y[[row]], replace(end.select([row]), phase=None)), expected, tolerance=ROUNDING)


@every_rule
def test_a_reset_row_begins_afresh_and_the_others_go_on(rule: Rule) -> None:
    case = Case(rule)
    _, state = case.memorize(slice(0, 6))
    reset = state.reset(torch.tensor([True, False, False]), rule)
    y, end = case.memorize(slice(6, None), state=reset)
    near(y[:1], rows_of(case, [0]).memorize(slice(6, None))[0], tolerance=ROUNDING)
    near(
        (y[1:], end.weights["w1"][1:]),
        _rows(case.memorize(slice(6, None), state=state), slice(1, None)),
        tolerance=ROUNDING,
    )


def _rows(result: tuple[Tensor, MemoryState], rows: slice) -> tuple[Tensor, Tensor]:
    return result[0][rows], result[1].weights["w1"][rows]


@every_rule
def test_a_document_goes_on_in_the_next_call_and_a_new_one_does_not(rule: Rule) -> None:
    case = Case(rule)
    first = torch.tensor([[7] * 5, [7] * 5, [7, 7, 8, 8, 8]])
    _, state = case.memorize(slice(0, 5), segment_ids=first)
    assert state.segment.tolist() == [7, 7, 8]
    second = torch.tensor([[7] * 6, [9] * 6, [8, 8, 8, 7, 7, 7]])
    y, _ = case.memorize(slice(5, None), segment_ids=second, state=state)

    def alone(row: int, start: int) -> Tensor:
        """What is read in tokens 5.. of a row whose document begins at `start`."""
        y, _ = rows_of(case, [row]).memorize(slice(start, None))
        return y[0, max(5 - start, 0) :]

    near(y[0], alone(0, 0), tolerance=ROUNDING)
    near(y[1], alone(1, 5), tolerance=ROUNDING)
    near(y[2, :3], alone(2, 2)[:3], tolerance=ROUNDING)
    near(y[2, 3:], alone(2, 8), tolerance=ROUNDING)  # an id that comes back is a new document


@pytest.mark.parametrize("form", ["dual", "scan"])
def test_no_tokens_leave_everything_as_it_was(form: Any) -> None:
    case = Case()
    _, state = case.memorize(slice(0, 6))
    y, after = case.memorize(slice(6, 6), state=state, form=form)
    assert y.shape == (BATCH, 0, HEADS, WIDTH)
    for a, b in zip(tensors(after), tensors(state), strict=True):
        assert torch.equal(a, b)
    assert case.observe(
        **map_tensors(lambda x: x[:, :0], {"q": case.q, "k": case.k, "v": case.v, "gates": case.gates})
    ).loss.shape == (BATCH, 0, HEADS)


def test_a_state_can_be_cast_and_measured() -> None:
    state = Case().memorize()[1]
    narrow = state.to(torch.float32)
    assert {x.dtype for x in tensors(narrow)} == {torch.float32, torch.int64}
    matrices = 2 * 2 * WIDTH * 2 * WIDTH * HEADS * BATCH  # two layers, in and out
    counters = 2 * BATCH * 8  # offset and segment
    assert state.bytes == 4 * matrices // 2 * 8 + counters  # initial, weights, slot, anchor
    assert narrow.bytes == 4 * matrices // 2 * 4 + counters


@pytest.mark.parametrize("form", ["dual", "scan"])
def test_gradients_reach_the_initial_state_through_calls_until_it_is_detached(form: Any) -> None:
    case = Case()
    leaves = case.leaves()
    whole = torch.autograd.grad(score(*case.memorize(form=form)), leaves)

    _, middle = case.memorize(slice(0, 6), form=form)
    y, end = case.memorize(slice(6, None), state=middle, form=form)
    start_y, _ = case.memorize(slice(0, 6), form=form)
    found = torch.autograd.grad(score(torch.cat([start_y, y], 1), end), leaves)
    near(found, whole, tolerance=ROUNDING)
    assert all(grad.abs().max() > 0 for grad in found)

    y, end = case.memorize(slice(6, None), state=middle.detach(), form=form)
    weights = list(case.state.weights.values())
    assert torch.autograd.grad(score(y, end), weights, allow_unused=True) == (None, None)


def hand_made(case: Case, weights: list[Tensor], t: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient norm of token t of every row and head, at weights `[B, H, in, out]`."""
    loss, surprise = torch.zeros(BATCH, HEADS).double(), torch.zeros(BATCH, HEADS).double()
    for b in range(BATCH):
        for h in range(HEADS):
            w1, w2 = (w[b, h].detach().requires_grad_() for w in weights)
            error = torch.nn.functional.silu(case.k[b, t, h] @ w1) @ w2 - case.v[b, t, h]
            grads = torch.autograd.grad(error @ error, (w1, w2))
            loss[b, h] = error.detach() @ error.detach()
            surprise[b, h] = torch.cat([grad.flatten() for grad in grads]).norm()
    return loss, surprise


@pytest.mark.parametrize("limit", [None, 0.5])
def test_observations_are_loss_and_gradient_norm_at_the_gradient_point(limit: float | None) -> None:
    case = Case(titans(surprise_limit=limit))
    seen = case.observe()
    for t in range(TOKENS):
        begins = t - t % 4
        weights = list(case.memorize(slice(0, begins))[1].weights.values())
        loss, surprise = hand_made(case, weights, t)
        near((seen.loss[:, t], seen.surprise[:, t]), (loss, surprise), tolerance=ROUNDING)
    assert seen.gates.keys() == case.gates.keys()
    assert all(torch.equal(seen.gates[name], gate) for name, gate in case.gates.items())


@every_rule
def test_observations_are_equal_in_every_form_and_zero_where_masked(rule: Rule) -> None:
    case = Case(rule)
    mask = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(5)) < 0.6
    ids = torch.tensor([[0] * 4 + [1] * 7, [0] * 11, [0] * 9 + [1] * 2])
    found = case.observe(mask=mask, segment_ids=ids, form="scan")
    for form in forms(rule):
        near(case.observe(mask=mask, segment_ids=ids, form=form), found, tolerance=ROUNDING)
    for what in (found.loss, found.surprise):
        assert not what[~mask].any()
        assert what[mask].all()


def test_nothing_is_observed_of_masked_tokens_where_the_memory_has_a_bias() -> None:
    case = Case(titans(residual=True))
    case.state = replace(case.state, constants=map_tensors(torch.ones_like, case.state.constants))
    mask = torch.tensor([[False, True] * 5 + [False]] * BATCH)
    assert not case.observe(mask=mask).loss[~mask].any()


@pytest.mark.parametrize("options", [{}, {"read": "before"}, {"depth": 3, "activation": "relu"}])
def test_retrieve_reads_what_was_written(options: dict[str, Any]) -> None:
    case = Case(titans(**options))
    _, state = case.memorize()
    still = {name: torch.zeros_like(gate) for name, gate in case.gates.items()}  # momentum 0: nothing moves
    expected, _ = case.memorize(gates=still, state=state)
    near(memkit.retrieve(case.rule, state, case.q), expected, tolerance=ROUNDING)
