"""The attention mixers against loops over tokens, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import memkit
from compare import FLOAT32, GRADIENTS, ROUNDING, near
from memkit.mixers.attention import FullAttention, SlidingWindowAttention, attend
from memkit.mixers.rope import Rotary
from memkit.testing import same
from small_attention import DIM, HEADS, WINDOWS, draw, gradients, mixer, reference

TURNED = 1e-13
"""Scores of rotated keys in float64: stricter than a sum, as rotations by any position are exact."""

ONE_ROUNDING = 1e-15
"""The same rotation in float64, by a module that was cast to bfloat16 before."""

HALF = 0.05
"""A whole attention layer in bfloat16: projections, scores and sums over 40 tokens."""


@pytest.mark.parametrize("tokens", [1, 6, 90])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", WINDOWS)
def test_equals_loops_with_all_gradients(window, prefix, tokens):
    m = mixer(window)
    x, front = draw(1, tokens, DIM).requires_grad_(), draw(prefix, DIM, seed=2).requires_grad_()
    y, _ = m(x, m.init_state(1, prefix=front))
    there = reference(m, x[0], front)[None]
    near(y, there)
    inputs = [x, *m.parameters(), *([front] if prefix else [])]
    for a, b in zip(gradients(y, inputs), gradients(there, inputs), strict=True):
        near(a, b, tolerance=GRADIENTS)


@given(
    window=st.sampled_from(WINDOWS),
    prefix=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 50), max_size=5),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_cut_gives_the_same_answer_and_state(window, prefix, cuts, masked, seed):
    """Cuts may coincide (T = 0) or be neighbors (T = 1); rows have different masks, and differ in count."""
    m = mixer(window)
    x = draw(2, 50, DIM, seed=seed)
    mask = draw(2, 50, seed=seed + 1) > 0.3 if masked else None
    start = m.init_state(2, prefix=draw(prefix, DIM))
    whole, end = m(x, start, mask=mask)
    state, parts = start, []
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 50], strict=True):
        y, state = m(x[:, a:b], state, mask=None if mask is None else mask[:, a:b])
        parts.append(y)
    near(torch.cat(parts, 1), whole)
    near(state, end)


@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_equals_prefill(window):
    m = mixer(window)
    x, state = draw(2, 45, DIM), m.init_state(2, prefix=draw(2, DIM))
    whole, _ = m(x, state)
    for t in range(45):
        y, state = m(x[:, t : t + 1], state)
        near(y[:, 0], whole[:, t])


@pytest.mark.parametrize("window", WINDOWS)
def test_masked_tokens_never_were(window):
    """Left padding, holes, and a row that is masked throughout; NaN under the mask; two calls."""
    m = mixer(window)
    x, front = draw(4, 60, DIM), draw(2, DIM, seed=2)
    mask = draw(4, 60, seed=3) > -0.2
    mask[1, :25], mask[1, 25:] = False, True
    mask[2] = False
    mask[3, 10:55] = False  # a window of valid tokens reaches over the hole
    x = torch.where(mask[..., None], x, torch.nan).requires_grad_()
    state, parts = m.init_state(4, prefix=front), []
    for part in (slice(0, 31), slice(31, 60)):
        y, state = m(x[:, part], state, mask=mask[:, part])
        parts.append(y)
    y = torch.cat(parts, 1)
    inputs = [x, *m.parameters()]
    here = gradients(y, inputs)
    rows = [reference(m, x[b][mask[b]], front) for b in range(4)]
    there = torch.zeros_like(y).index_put((mask,), torch.cat(rows))
    near(y, there)
    assert state.count.tolist() == mask.sum(1).tolist()
    for a, b in zip(here, gradients(there, inputs), strict=True):
        assert a.isfinite().all()
        near(a, b, tolerance=GRADIENTS)
    assert not here[0][~mask].any()


@pytest.mark.parametrize("window", WINDOWS)
def test_documents_begin_afresh_but_keep_the_prefix(window):
    m = mixer(window)
    x, front = draw(2, 30, DIM), draw(3, DIM, seed=2)
    ids = torch.tensor([[0] * 12 + [1] * 18, [4] * 20 + [2] * 10])
    state, parts = m.init_state(2, prefix=front), []
    for part in (slice(0, 12), slice(12, 15), slice(15, 30)):  # the first document ends with a call
        y, state = m(x[:, part], state, segment_ids=ids[:, part])
        parts.append(y)
    rows = [[reference(m, x[b][ids[b] == i], front) for i in ids[b].unique_consecutive()] for b in range(2)]
    near(torch.cat(parts, 1), torch.stack([torch.cat(row) for row in rows]))
    assert state.count.tolist() == [18, 10]


def test_a_window_is_that_many_keys_itself_included():
    m = mixer(5)
    x = draw(1, 90, DIM).requires_grad_()
    y, _ = m(x)
    for t in (3, 31, 32, 40, 89):
        (grad,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert grad[0].abs().sum(1).nonzero()[:, 0].tolist() == list(range(max(0, t - 4), t + 1))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_past_does_not_see_the_future(window, masked):
    """Exactly not: the gradient is 0, and so is the change when the future is replaced."""
    m = mixer(window)
    x, cut = draw(2, 90, DIM).requires_grad_(), 45
    mask = draw(2, 90, seed=5) > -0.5 if masked else None
    y, _ = m(x, mask=mask)
    (grad,) = torch.autograd.grad(y[:, :cut].sum(), x)
    assert not grad[:, cut:].any() and grad[:, :cut].any()
    other = torch.cat([x[:, :cut], 7 * draw(2, 45, DIM, seed=6)], 1)
    near(m(other, mask=mask)[0][:, :cut], y[:, :cut], tolerance=ROUNDING)


def test_rows_may_have_prefixes_of_their_own():
    m = mixer(5)
    x, front = draw(2, 8, DIM), draw(2, 3, DIM, seed=2).requires_grad_()
    y, _ = m(x, m.init_state(2, prefix=front))
    near(y, torch.stack([reference(m, x[b], front[b]) for b in range(2)]))
    (grad,) = torch.autograd.grad(y[0, 7].sum(), front)  # token 7 is past the window of token 0
    assert grad[0].abs().sum(1).all() and not grad[1].any()


@pytest.mark.parametrize("window", WINDOWS)
def test_begin_is_a_row_with_persistent_tokens(window):
    m = mixer(window)
    front = draw(3, DIM, seed=2)
    near(m.begin(front), m.init_state(1, prefix=front))


@pytest.mark.parametrize("offset", [2**21, 2**40 + 1])
@pytest.mark.parametrize("window", [None, 40])
def test_outputs_do_not_depend_on_how_long_the_stream_was(window, offset):
    """Only differences of positions count. In float32 plain angles would be off by 0.1 radian at 2^21."""
    for dtype, tolerance in ((torch.float64, ROUNDING), (torch.float32, FLOAT32)):
        m = mixer(window).to(dtype)
        x, start = draw(1, 130, DIM).to(dtype), m.init_state(1)
        late = replace(start, count=start.count + offset, seen=offset)
        _, warm = m(x[:, :50], start)
        _, warm_late = m(x[:, :50], late)  # fills the window: the cache of `late` held nothing real
        near(m(x[:, 50:], warm_late)[0], m(x[:, 50:], warm)[0], tolerance=tolerance)


def test_rotation_is_exact_at_any_position_and_in_any_dtype():
    rotary, x = Rotary(8), draw(1, 1, 2, 8)
    here = rotary(x, torch.tensor([[3, 10]]))
    there = rotary(x, torch.tensor([[3, 10]]) + 2**50)
    near((here[0, 0, 0] * here[0, 0, 1]).sum(), (there[0, 0, 0] * there[0, 0, 1]).sum(), tolerance=TURNED)
    half = Rotary(8).to(torch.bfloat16)  # casting a model leaves the frequencies alone
    near(half(x, torch.tensor([[3, 1000]])), rotary(x, torch.tensor([[3, 1000]])), tolerance=ONE_ROUNDING)


class Largest(TorchDispatchMode):
    """Sees every operation: the largest tensor, the queries that attention got, and looks at the device."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.queries, self.looks = 0, [], []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if "scaled_dot_product" in name and "backward" not in name:
            self.queries.append(args[0].shape[2])
        if "_local_scalar_dense" in name or "nonzero" in name:
            self.looks.append(name)
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_a_window_costs_tokens_times_window(masked):
    tokens, window = 1000, 16
    m = SlidingWindowAttention(8, 2, window)
    mask = torch.rand(1, tokens) > 0.3 if masked else None
    with Largest() as seen:
        y, state = m(torch.randn(1, tokens, 8), mask=mask)
        y.sum().backward()
        assert seen.largest <= 4 * 8 * tokens  # no [T, T], no [T, W] mask either: blocks share one
        assert max(seen.queries) <= 32 and not seen.looks
        seen.queries.clear()
        m(torch.randn(1, 1, 8), state)
        assert seen.queries == [1]  # a single token is not padded to a block


@pytest.mark.parametrize("window", WINDOWS)
def test_half_precision_and_autocast_stay_near(window):
    m, x = mixer(window), draw(2, 40, DIM)
    exact, _ = m(x)
    half, state = mixer(window).bfloat16()(x.bfloat16())
    assert half.dtype == state.keys.dtype == torch.bfloat16
    same("y", half.double(), exact, HALF)
    single = mixer(window).float()
    with torch.autocast("cpu", torch.bfloat16):
        first, state = single(x[:, :25].float(), single.init_state(2))
        second, state = single(x[:, 25:].float(), state)
    assert state.keys.dtype == torch.float32 and state.bytes == 2 * single.state_bytes(40)
    same("y", torch.cat([first, second], 1).double(), exact, HALF)


def test_attend_where_visible_says():
    q, k, v = (draw(2, 3, n, 4, seed=n).requires_grad_() for n in (5, 7, 7))
    visible = draw(2, 1, 5, 7, seed=4) > 0
    visible[1, 0, 2] = False
    y = attend(q, k, v, visible)
    scores = (q @ k.mT / 2).exp() * visible
    there = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30) @ v
    near(y, there)
    assert not y[1, :, 2].any()
    for a, b in zip(gradients(y, [q, k, v]), gradients(there, [q, k, v]), strict=True):
        assert a.isfinite().all()
        near(a, b, tolerance=GRADIENTS)
    near(attend(q, k, v, visible[:1], "torch")[0], y[0])
    with pytest.raises(ValueError, match="'flash_attn' cannot attend with an arbitrary mask"):
        attend(q, k, v, visible, "flash_attn")


def test_built_by_name():
    m = memkit.build("mixer", "sliding_window", dim=32, heads=2, window=8)
    assert isinstance(m, SlidingWindowAttention) and m.window == 8
    assert isinstance(memkit.build("mixer", "full_attention", dim=32), FullAttention)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads = 5 does not divide dim = 12"),
        ({"heads": 4}, "head_dim = 3 must be even"),
        ({"window": 0}, "window must be an integer of at least 1; got 0"),
        ({"backend": "flash-attn"}, "Did you mean 'flash_attn'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindowAttention(**{"dim": DIM, "heads": HEADS, **options})
