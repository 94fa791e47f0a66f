"""Functions that memories use have right derivatives up to the third, which a Hessian of the outer loss takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import memkit
from compare import ROUNDING, near
from memkit.parts.memory import ACTIVATIONS
from memkit.parts.norm import layer_norm

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "layer norm": layer_norm,
    "lq": memkit.build("effective", "lq"),
    "softmax": memkit.build("effective", "softmax"),
    "elu + 1": lambda x: F.elu(x) + 1,
}


def normal(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def derivative(function: Callable[[Tensor], Tensor], seed: int) -> Callable[[Tensor], Tensor]:
    """x -> the gradient of a random linear functional of function(x), with a graph."""

    def run(x: Tensor) -> Tensor:
        return torch.autograd.grad((function(x) * normal(seed)).sum(), x, create_graph=True)[0]

    return run


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_up_to_the_third(name: str) -> None:
    function = FUNCTIONS[name]
    for seed in (1, 2, 3):
        assert torch.autograd.gradcheck(function, (normal(0).requires_grad_(),))
        function = derivative(function, seed)


def test_the_layer_norm_is_that_of_torch() -> None:
    x = 3 * normal(0) + 5
    near(layer_norm(x), F.layer_norm(x, x.shape[-1:]), tolerance=ROUNDING / 10)
