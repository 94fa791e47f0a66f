"""The gradients of `block.read` and `block.fold`, summed up where they arrive.

Both are products of a few matrices, so their slopes are products too, twice as many, and each is added to what is
already there by the product itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from memkit.engine.core.block import decay_carry
from memkit.engine.core.coefficients import Coefficients, Effect, scale
from memkit.engine.core.rows import Weights
from memkit.engine.gradients.products import (
    combine_parts,
    is_transposed,
    plus_product,
    plus_product_,
    read_carry,
    split_parts,
)


class Asked(NamedTuple):
    """What reading leaves behind for its gradient.

    scores: x a^T, `[N, T, S]`. found: what x_t found in weight and slots of a turned carry, `[N, T, n * out]`.
    """

    scores: Tensor
    found: Tensor | None


class Read(NamedTuple):
    """One read, y = P (x Z) + ((x a^T) * C) r, that was asked; r is None where x saw no writes."""

    effect: Effect
    x: Tensor
    carry: Tensor
    a: Tensor
    r: Tensor | None
    asked: Asked


def recall(effect: Effect, x: Tensor, carry: Tensor, a: Tensor, *, turned: bool) -> tuple[Tensor, Asked]:
    """`products.read_carry`, and what the gradient of a read with inputs `a` needs."""
    y, found = read_carry(effect, x, carry, transposed=turned)
    return y, Asked(x.bmm(a.mT), found)


def ask(effect: Effect, x: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> tuple[Tensor, Asked]:
    """`block.read`, and what its gradient needs."""
    y, asked = recall(effect, x, carry, a, turned=is_transposed(carry, r.shape[-1]))
    return plus_product(y, asked.scores * effect.write, r), asked


class Slopes:
    """A block's coefficients, inputs a and errors r, by the names of the weights; and the sums of slopes of them.

    of_weight, of_last and of_point, what gradients see: of the coefficients, by "carry" and "write". of_carry and
    of_weights, the weights that gradients saw, lie as the carries do.
    """

    def __init__(self, own: Coefficients, inputs: Weights, errors: Weights) -> None:
        self.coefficients, self.inputs, self.errors = own, inputs, errors
        self.of_carry: Weights = {}
        self.of_weights: Weights = {}
        self.of_inputs: Weights = {}
        self.of_errors: Weights = {}
        self.of_weight: Weights = {}
        self.of_point: Weights = {}
        self.of_last: Weights = {}

    def own(self) -> Coefficients:
        """The slopes of the coefficients."""
        return Coefficients(Effect(**self.of_weight), None, self.of_last["carry"], self.of_last["write"])

    def add_weight(self, name: str, a: Tensor, r: Tensor) -> None:
        """Add a^T r to the slope of the weight that gradients saw."""
        if is_transposed(self.of_carry[name], r.shape[-1]):
            a, r = r, a
        add_product(self.of_weights, name, a.mT, r)


def add(sums: Weights, name: str, slope: Tensor) -> None:
    """Add to a sum, which may begin here."""
    sums[name] = sums[name].add_(slope) if name in sums else slope


def add_product(sums: Weights, name: str, x: Tensor, y: Tensor) -> None:
    """Add x y to a sum, which may begin here."""
    sums[name] = plus_product_(sums[name], x, y) if name in sums else x.bmm(y)


def ask_back(name: str, read: Read, slope: Tensor, of_effect: Weights, of_a: Weights, of_r: Weights | None) -> Tensor:
    """The slope of x, from that of y; those of a and r are added under their name, those of the effect under theirs.

    None for `of_r` where nobody asks. That of the carry is left to `carry_back`: of many slopes it is that of the sum.
    """
    effect, x, carry, a, r, asked = read
    back = _recall_back(read, slope, of_effect)
    if r is None:
        return back
    if of_r is not None:
        add_product(of_r, name, (asked.scores * effect.write).mT, slope)
    hears = slope.bmm(r.mT)
    add(of_effect, "write", hears * asked.scores)
    hears = hears * effect.write
    add_product(of_a, name, hears.mT, x)
    return plus_product_(back, hears, a)


def _recall_back(read: Read, slope: Tensor, of_effect: Weights) -> Tensor:
    effect, x, carry, asked = read.effect, read.x, read.carry, read.asked
    n = effect.carry.shape[-1]
    if asked.found is None:
        by_part = slope.bmm(carry.mT)
        add(of_effect, "carry", (split_parts(by_part, n) * x.unsqueeze(2)).sum(-1))
        return combine_parts(effect.carry, by_part)
    add(of_effect, "carry", (split_parts(asked.found, n) * slope.unsqueeze(2)).sum(-1))
    return scale(effect.carry, slope).bmm(carry)


def carry_back(name: str, read: Read, slope: Tensor, of_carry: Weights) -> None:
    """Add to the slope of a carry what reading it does, from the slope of y."""
    narrow, wide = (read.x, slope) if read.asked.found is None else (slope, read.x)
    add_product(of_carry, name, scale(read.effect.carry, narrow).mT, wide)


def fold_back(name: str, carry: Tensor, slope: Tensor, to: Slopes) -> None:
    """Add to `to` the slopes of what `block.fold` took, from that of what it made; the carry's begins here."""
    own, a, r = to.coefficients, to.inputs[name], to.errors[name]
    narrow, wide = to.of_inputs, to.of_errors
    if is_transposed(carry, r.shape[-1]):
        a, r, narrow, wide = r, a, wide, narrow
    n = own.last_carry.shape[-1]
    whole = (carry.shape[0], n, carry.shape[1] // n * carry.shape[2])
    to.of_carry[name] = decay_carry(own.last_carry.mT, slope)
    add(to.of_last, "carry", slope.reshape(whole).bmm(carry.reshape(whole).mT))
    slope = slope.to(a.dtype)
    wide[name] = scale(own.last_write, a).bmm(slope)
    by_part = r.bmm(slope.mT)
    add(to.of_last, "write", (split_parts(by_part, n) * a.unsqueeze(2)).sum(-1))
    narrow[name] = combine_parts(own.last_write, by_part)
