"""The work of the form that Titans takes, counted in matrix products: a change that doubles it is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import memkit
from work import Products

BATCH, MINI_BATCH, WIDTH, EXPANSION, BLOCKS = 2, 8, 5, 3, 3


def trained(depth: int, **options: Any) -> Products:
    """Products of a forward and a backward pass over whole mini-batches, everything given wanting its gradient."""
    rule = memkit.build("rule", "titans", depth=depth, expansion=EXPANSION, mini_batch=MINI_BATCH)
    shape = (BATCH, BLOCKS * MINI_BATCH, 1)
    q, k, v = (torch.randn(*shape, WIDTH, requires_grad=True) for _ in range(3))
    gates = {name: torch.rand(shape, requires_grad=True) for name in rule.gates}
    state = memkit.init_state(rule, batch=BATCH, heads=1, key_dim=WIDTH, value_dim=WIDTH)
    for x in state.weights.values():
        x.requires_grad_()
    with Products(narrowest=min(MINI_BATCH, WIDTH)) as made:  # the coefficients' own are narrower
        y, state = memkit.memorize(rule, q, k, v, gates, state, **options)
        (y.sum() + torch.stack([x.sum() for x in state.weights.values()]).sum()).backward()
    return made


def by_algebra(depth: int) -> tuple[int, int]:
    """Matrix products of a mini-batch of L tokens, forward and backward, and their multiplications.

    Of a layer's weight W [in, out], with its slot below it as Z [2 in, out]:
        tape    a W and, above the first layer, r W^T      L in out each
        read    x Z, twice as high; x a^T; (x a^T) r       2 L in out, L^2 in, L^2 out
        fold    a^T r, for weight and slot                 2 L in out
    which is 6 products, and one less in the first layer. Backward, each product has two factors, and so two products
    as large as itself.
    """
    sides = [WIDTH, *[WIDTH * EXPANSION] * (depth - 1), WIDTH]
    products = multiplications = 0
    for layer, (into, out) in enumerate(zip(sides, sides[1:], strict=False)):
        tape = 1 if layer == 0 else 2
        products += tape + 3 + 1
        multiplications += (tape + 2 + 2) * MINI_BATCH * into * out + MINI_BATCH**2 * (into + out)
    return 3 * products, 3 * multiplications


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_titans_makes_no_more_products_than_its_algebra_has(depth: int) -> None:
    made, (products, multiplications) = trained(depth), by_algebra(depth)
    assert 0 < made.count <= BLOCKS * products
    assert 0 < made.multiplications <= BATCH * BLOCKS * multiplications


def test_work_done_twice_is_seen() -> None:
    """`recompute` runs every block forward a second time."""
    made, (products, multiplications) = trained(2, recompute=MINI_BATCH), by_algebra(2)
    assert made.count > 1.2 * BLOCKS * products
    assert made.multiplications > 1.2 * BATCH * BLOCKS * multiplications
