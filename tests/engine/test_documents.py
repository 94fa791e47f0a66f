"""Packed documents: state is reset at every boundary, and packed documents equal separate ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compare import ROUNDING, near
from memkit.documents import pieces
from running_mean import RunningMean

draws = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "tokens": st.integers(0, 9),
        "seed": st.integers(0, 10**6),
        "masked": st.booleans(),
    }
)


def draw(batch: int, tokens: int, seed: int, masked: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids, mask and last documents of a call; few documents, so that they come back."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, (batch, tokens), generator=g)
    mask = torch.rand(batch, tokens, generator=g) < 0.6 if masked else None
    last = torch.randint(-1, 3, (batch,), generator=g)
    return ids, mask, last


@given(draws)
def test_pieces_are_what_a_reader_of_one_token_sees(args: dict) -> None:
    ids, mask, last = draw(**args)
    batch, tokens = ids.shape
    here = last.tolist()
    resets, after = [], []  # token by token
    for t in range(tokens):
        now = []
        for b in range(batch):
            new = int(ids[b, t]) if mask is None or bool(mask[b, t]) else here[b]
            now.append(here[b] >= 0 and new != here[b])
            here[b] = new
        resets.append(now)
        after.append(list(here))

    found = pieces(mask, ids, last)
    starts = [0, *(t for t in range(1, tokens) if any(resets[t]))] if tokens else []
    assert [piece.start for piece in found] == starts
    assert [piece.stop for piece in found] == [*starts[1:], tokens][: len(starts)]
    for piece in found:
        assert piece.segment.tolist() == after[piece.stop - 1]
        told = [False] * batch if piece.resets is None else piece.resets.tolist()
        assert told == resets[piece.start]
        assert piece.resets is None or any(told)


def test_the_first_document_needs_no_reset() -> None:
    (piece,) = pieces(None, torch.tensor([[7, 7, 7]]), torch.tensor([-1]))
    assert (piece.start, piece.stop, piece.resets, piece.segment.tolist()) == (0, 3, None, [7])


def test_a_masked_id_does_not_count() -> None:
    ids, mask = torch.tensor([[1, -100, 1, 2]]), torch.tensor([[True, False, True, True]])
    found = pieces(mask, ids, torch.tensor([-1]))
    assert [(piece.start, piece.stop) for piece in found] == [(0, 3), (3, 4)]


def test_negative_documents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"segment_ids must be at least 0; got -1\..*mask"):
        pieces(None, torch.tensor([[0, 0, -1]]), torch.tensor([0]))


def mixer() -> RunningMean:
    torch.manual_seed(0)
    return RunningMean(dim=3).double()


@given(draws)
def test_packed_documents_equal_documents_apart(args: dict) -> None:
    ids, mask, _ = draw(**args)
    layer = mixer()
    x = torch.randn(*ids.shape, 3, generator=torch.Generator().manual_seed(args["seed"]), dtype=torch.double)
    y, _ = layer(x, mask=mask, segment_ids=ids)
    for b in range(ids.shape[0]):
        real = range(ids.shape[1]) if mask is None else mask[b].nonzero()[:, 0].tolist()
        runs: list[list[int]] = []
        for t in real:
            same = bool(runs) and int(ids[b, runs[-1][-1]]) == int(ids[b, t])
            runs[-1].append(t) if same else runs.append([t])
        for run in runs:
            alone, _ = layer(x[b : b + 1, run])
            near(y[b : b + 1, run], alone, tolerance=ROUNDING)


@given(draws, st.integers(0, 9))
def test_documents_may_be_cut_anywhere(args: dict, at: int) -> None:
    ids, mask, _ = draw(**args)
    layer, at = mixer(), min(at, ids.shape[1])
    x = torch.randn(*ids.shape, 3, generator=torch.Generator().manual_seed(args["seed"]), dtype=torch.double)
    whole, end = layer(x, mask=mask, segment_ids=ids)
    parts, state = [], None
    for part in (slice(0, at), slice(at, None)):
        y, state = layer(x[:, part], state, mask=None if mask is None else mask[:, part], segment_ids=ids[:, part])
        parts.append(y)
    assert state is not None
    near(torch.cat(parts, 1), whole, tolerance=ROUNDING)
    near(state.total, end.total, tolerance=ROUNDING)
    assert torch.equal(state.count, end.count)
    assert torch.equal(state.segment, end.segment)


def test_gradients_do_not_cross_documents() -> None:
    layer = mixer()
    x = torch.randn(1, 6, 3, dtype=torch.double, requires_grad=True)
    y, _ = layer(x, segment_ids=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    y[:, 3:].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :3].abs().max() == 0
    assert x.grad[:, 3:].abs().min() > 0
