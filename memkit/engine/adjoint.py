"""The gradients of `block.read` and `block.fold`, summed up where they arrive.

Both are products of a few matrices, so their slopes are products too, twice as many, and each is added to what is
already there by the product itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from memkit.engine.block import is_turned, kept, mixed, plus_product, recalled, weighted, with_product, written
from memkit.engine.coefficients import Coefficients, Effect
from memkit.engine.memory_state import Weights


class Asked(NamedTuple):
    """What reading leaves behind for its gradient.

    scores: x a^T, `[N, T, S]`. found: what x_t found in weight and slots of a turned carry, `[N, T, n * out]`.
    """

    scores: Tensor
    found: Tensor | None


def ask(effect: Effect, x: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> tuple[Tensor, Asked]:
    """`block.read`, and what its gradient needs."""
    scores = x.bmm(a.mT)
    found = x.bmm(carry.mT) if is_turned(carry, r.shape[-1]) else None
    y = recalled(effect, x, carry, r.shape[-1]) if found is None else weighted(effect.carry, found)
    return with_product(y, scores * effect.write, r), Asked(scores, found)


class Slopes:
    """A block's coefficients, inputs a and errors r, by the names of the weights; and the sums of slopes of them.

    of_carry and of_weights, the weights that gradients saw, lie as the carries do.
    """

    def __init__(self, own: Coefficients) -> None:
        self.coefficients = own
        self.inputs: Weights = {}
        self.errors: Weights = {}
        self.of_carry: Weights = {}
        self.of_weights: Weights = {}
        self.of_inputs: Weights = {}
        self.of_errors: Weights = {}
        self._of_own: dict[str, Tensor] = {}

    def own(self) -> Coefficients:
        """The slopes of the coefficients."""
        effect = Effect(self._of_own["carry"], self._of_own["write"])
        return Coefficients(effect, None, self._of_own["last_carry"], self._of_own["last_write"])

    def add(self, name: str, slope: Tensor) -> None:
        """Add to the slope of one of the coefficients."""
        self._of_own[name] = slope if name not in self._of_own else self._of_own[name].add_(slope)

    def add_weight(self, name: str, a: Tensor, r: Tensor) -> None:
        """Add a^T r to the slope of the weight that gradients saw."""
        if is_turned(self.of_carry[name], r.shape[-1]):
            a, r = r, a
        add_product(self.of_weights, name, a.mT, r)


def add_product(sums: Weights, name: str, x: Tensor, y: Tensor) -> None:
    """Add x y to a sum, which may begin here."""
    sums[name] = plus_product(sums[name], x, y) if name in sums else x.bmm(y)


def ask_back(name: str, x: Tensor, carry: Tensor, asked: Asked, slope: Tensor, to: Slopes) -> Tensor:
    """The slope of x, from that of y; those of everything else are added to `to`."""
    effect, a, r = to.coefficients.weight, to.inputs[name], to.errors[name]
    n = effect.carry.shape[-1]
    add_product(to.of_errors, name, (asked.scores * effect.write).mT, slope)
    hears = slope.bmm(r.mT)
    to.add("write", hears * asked.scores)
    hears = hears * effect.write
    add_product(to.of_inputs, name, hears.mT, x)
    if asked.found is None:
        by_part = slope.bmm(carry.mT)
        to.add("carry", (by_part.unflatten(-1, (n, x.shape[-1])) * x.unsqueeze(2)).sum(-1))
        back = weighted(effect.carry, by_part)
        add_product(to.of_carry, name, mixed(effect.carry, x).mT, slope)
    else:
        to.add("carry", (asked.found.unflatten(-1, (n, slope.shape[-1])) * slope.unsqueeze(2)).sum(-1))
        by_part = mixed(effect.carry, slope)
        back = by_part.bmm(carry)
        add_product(to.of_carry, name, by_part.mT, x)
    return plus_product(back, hears, a)


def fold_back(name: str, carry: Tensor, slope: Tensor, to: Slopes) -> None:
    """Add to `to` the slopes of what `block.fold` took, from that of what it made; the carry's begins here."""
    own, a, r = to.coefficients, to.inputs[name], to.errors[name]
    narrow, wide = to.of_inputs, to.of_errors
    if is_turned(carry, r.shape[-1]):
        a, r, narrow, wide = r, a, wide, narrow
    n = own.last_carry.shape[-1]
    split = (n, carry.shape[1] // n)
    to.of_carry[name] = kept(own.last_carry.mT, slope)
    to.add("last_carry", slope.unflatten(1, split).flatten(2).bmm(carry.unflatten(1, split).flatten(2).mT))
    slope = slope.to(a.dtype)
    wide[name] = written(own.last_write, a).bmm(slope)
    by_part = r.bmm(slope.mT)
    to.add("last_write", (by_part.unflatten(-1, (n, a.shape[-1])) * a.unsqueeze(2)).sum(-1))
    narrow[name] = weighted(own.last_write, by_part)
