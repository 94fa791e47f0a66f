"""The short convolution: the library's equals the sum of taps, and masked tokens leave no trace."""

from __future__ import annotations

import pytest
import torch

from compare import FLOAT32_FEW, ROUNDING, near
from memkit.mixers.conv import ShortConv, by_library, by_sums, has_library

EMPTY = ((0, 8, 6), (2, 3, 6))
"""No rows, and no tokens after the tail."""


@pytest.mark.parametrize("width", [1, 4])
def test_the_library_convolves_as_the_sum_of_taps_says(width: int) -> None:
    """Outputs, and gradients of first and second order, in float64."""
    found = []
    for convolve in (by_sums, by_library):
        g = torch.Generator().manual_seed(0)
        line = torch.randn(2, 8 + width, 6, generator=g, dtype=torch.double).requires_grad_()
        taps = torch.randn(width, 6, generator=g, dtype=torch.double).requires_grad_()
        y = convolve(line, taps)
        first = torch.autograd.grad(y.sin().sum(), (line, taps), create_graph=True)
        second = torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), (line, taps))
        found.append([y, *first, *second])
    near(*found, tolerance=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_keeps_the_precision_of_its_taps(dtype: torch.dtype) -> None:
    """Also where autocast would round them."""
    conv = ShortConv(6)
    x, tail = torch.randn(2, 5, 6).to(dtype), torch.randn(2, 3, 6).to(dtype)
    assert has_library(torch.cat([tail, x], 1), conv.taps)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = conv(x, tail)
    expected = by_sums(torch.cat([tail, x], 1).double(), conv.taps.double())
    assert y.dtype == torch.float32
    near(y, expected.float(), tolerance=FLOAT32_FEW)
    assert torch.equal(after, x[:, -3:])


def test_inputs_that_the_library_does_not_take() -> None:
    conv = ShortConv(6)
    for line in (
        torch.randn(2, 8, 6).double(),
        torch.randn(2, 8, 6).half(),
        torch.randn(2, 8, 6, device="meta"),
        *map(torch.zeros, EMPTY),
    ):
        assert not has_library(line, conv.taps)
    y, after = conv(torch.zeros(2, 0, 6), torch.ones(2, 3, 6))
    assert y.shape == (2, 0, 6) and torch.equal(after, torch.ones(2, 3, 6))


def test_under_torch_compile_the_sum_of_taps_runs() -> None:
    conv, x = ShortConv(6), torch.randn(2, 5, 6)
    expected = conv(x, conv.init_tail(2, x))
    found = torch.compile(conv, fullgraph=True, backend="aot_eager")(x, conv.init_tail(2, x))
    near(found, expected, tolerance=FLOAT32_FEW)
