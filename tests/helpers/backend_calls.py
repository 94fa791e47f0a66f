"""Calls of banded attention for every backend, and a reference for them, one query at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from compare import GRADIENTS, near
from memkit.mixers.backends import Banded

TENSORS = ("q", "k", "v", "prefix_k", "prefix_v")


def question(tokens: int, window: int | None, cached: int, prefix: int, first: int | Tensor = 0) -> Banded:
    generator = torch.Generator().manual_seed(tokens + 10 * cached)

    def draw(length: int) -> Tensor:
        return torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator).requires_grad_()

    k, v = draw(cached + tokens), draw(cached + tokens)
    return Banded(draw(tokens), k, v, draw(prefix), draw(prefix), window, first)


def literally(call: Banded) -> Tensor:
    """The definition in the docstring of Banded, one query at a time."""
    rows, _, tokens, width = call.q.shape
    answers = []
    for b in range(rows):
        first = call.first if isinstance(call.first, int) else int(call.first[b])
        for t in range(tokens):
            here = call.cached + t
            slots = [s for s in range(first, here + 1) if call.window is None or here - s < call.window]
            k = torch.cat([call.prefix_k[b], call.k[b][:, slots]], 1)
            v = torch.cat([call.prefix_v[b], call.v[b][:, slots]], 1)
            weights = torch.exp((k * call.q[b, :, t, None]).sum(-1) / width**0.5)
            answers.append((weights[..., None] * v).sum(1) / weights.sum(1)[:, None])
    return torch.stack(answers).unflatten(0, (rows, tokens)).transpose(1, 2)


def agree(run, call: Banded, reference=literally) -> None:
    """Same answer, and the same gradients for every tensor that a kernel differentiates."""
    here, there = run(call), reference(call)
    near(here, there)
    weight = torch.randn(here.shape, dtype=here.dtype, generator=torch.Generator().manual_seed(7))
    inputs = [getattr(call, name) for name in TENSORS]
    for name, a, b in zip(
        TENSORS,
        torch.autograd.grad((here * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((there * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert a.isfinite().all(), name
        near(a, b, tolerance=GRADIENTS)


CASES = {
    "fresh": question(9, 4, 3, 0, first=3),
    "cache": question(9, 4, 3, 0),
    "cache, prefix": question(9, 4, 3, 5),
    "half a cache, prefix": question(9, 4, 3, 2, first=2),
    "one token": question(1, 4, 3, 2, first=1),
    "window of one": question(6, 1, 0, 1),
    "blocks": question(77, 5, 4, 2, first=4),
    "wide blocks": question(95, 40, 39, 1, first=39),
    "no window": question(9, None, 0, 0),
    "no window, cache, prefix": question(9, None, 4, 2),
}
RAGGED = {
    "rows differ": question(9, 4, 3, 2, first=torch.tensor([3, 1])),
    "rows differ, blocks": question(77, 5, 4, 1, first=torch.tensor([0, 4])),
    "rows differ, no window": question(9, None, 4, 2, first=torch.tensor([4, 1])),
    "rows differ, one token": question(1, None, 4, 0, first=torch.tensor([0, 4])),
}
