"""The state of attention: its contents and memory, and rows that are merged, reset and selected."""

from __future__ import annotations

import pytest
import torch

from compare import near
from memkit.state import merge_trees, tensors
from small_attention import DIM, WINDOWS, draw, gradients, mixer, reference


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_state_bytes_is_what_a_row_holds(window, tokens):
    for dtype in (torch.float64, torch.bfloat16):
        m = mixer(window).to(dtype)
        _, state = m(draw(1, tokens, DIM).to(dtype), m.init_state(1))
        assert state.bytes == m.state_bytes(tokens)


def test_a_window_keeps_nothing_else_alive():
    """The cache is no view into the keys of a long call."""
    m = mixer(5)
    for mask in (None, torch.ones(1, 500, dtype=torch.bool)):
        _, state = m(draw(1, 500, DIM), mask=mask)
        assert sum(x.untyped_storage().nbytes() for x in tensors(state)) == m.state_bytes(500)


@pytest.mark.parametrize("window", WINDOWS)
def test_position_tells_which_slots_are_empty(window):
    m = mixer(window)
    mask = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
    _, state = m(draw(3, 3, DIM), mask=mask)
    slots = 3 if window is None else window - 1
    for row, count in zip(state.position.tolist(), (2, 1, 3), strict=True):
        assert row == ([-1] * slots + list(range(count)))[count:][:slots]


def test_caches_of_different_lengths_merge():
    m = mixer(None)
    x, rows = draw(3, 20, DIM), torch.tensor([True, False, True])
    _, long = m(x[:, :15])
    _, short = m(x[:, :6])
    for here, there, lengths in ((long, short, (6, 15, 6)), (short, long, (15, 6, 15))):
        for merged in (here.merge(rows, there), merge_trees(rows, (here,), (there,))[0]):
            y, _ = m(x[:, 15:], merged)
            want = [reference(m, torch.cat([x[b, :n], x[b, 15:]]))[n:] for b, n in enumerate(lengths)]
            near(y, torch.stack(want))


def test_reset_and_select_and_value_semantics():
    m = mixer(5)
    x = draw(2, 20, DIM)
    _, state = m(x[:, :9], m.init_state(2, prefix=draw(2, DIM)))
    before = [t.clone() for t in tensors(state)]
    y, _ = m(x[:, 9:], state)
    again, _ = m(x[:, 9:], state)
    assert torch.equal(y, again) and all(map(torch.equal, before, tensors(state)))
    fresh, _ = m(x[:, 9:], m.reset(state, torch.tensor([False, True])))
    near(fresh[0], y[0])
    near(fresh[1], m(x[1:, 9:], m.init_state(1, prefix=draw(2, DIM)))[0][0])
    swapped, _ = m(x[[1, 0], 9:], state.select([1, 0]))
    near(swapped, y[[1, 0]])


def test_inference_state_serves_training():
    m = mixer(5)
    x = draw(1, 12, DIM)
    with torch.inference_mode():
        _, state = m(x[:, :6], m.init_state(1, prefix=x[0, :2]))
    y, _ = m(x[:, 6:], state)
    assert all(g.isfinite().all() for g in gradients(y, list(m.parameters())))
    near(y, m(x[:, 6:], m(x[:, :6], m.init_state(1, prefix=x[0, :2]))[1])[0])


def test_bad_prefixes():
    m = mixer(5)
    for shape in ((DIM,), (3, 3, DIM), (3, DIM + 1), (1, 1, 3, DIM)):
        with pytest.raises(ValueError, match=r"prefix must be \[P, D\] or \[B, P, D\]"):
            m.init_state(2, prefix=torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="prefixes of 0 and 3 tokens"):
        m.init_state(2).merge(torch.tensor([True, False]), m.init_state(2, prefix=draw(3, DIM)))
