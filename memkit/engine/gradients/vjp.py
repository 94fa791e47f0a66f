"""VJPs of `products.read` and `products.fold`: the gradients of their arguments, from the gradient of their result.

Both are sums of matrix products, so each gradient is a product too, and is accumulated in place. Shapes for one
matrix of a block: x `[N, T, in]`, inputs a `[N, S, in]`, errors r `[N, S, out]`, carry `[N, n * in, out]` or
transposed `[N, n * out, in]`; a gradient has the shape of its tensor.
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


class ReadResiduals(NamedTuple):
    """Intermediate results of a read, kept for its VJP.

    scores: x a^T, `[N, T, S]`. by_part: x times weight and slots of a transposed carry, `[N, T, n * out]`, or None.
    """

    scores: Tensor
    by_part: Tensor | None


class Read(NamedTuple):
    """Arguments and residuals of one read, y = P (x Z) + ((x a^T) * C) r; r is None if x sees no write."""

    effect: Effect
    x: Tensor
    carry: Tensor
    a: Tensor
    r: Tensor | None
    residuals: ReadResiduals

    @property
    def masked_scores(self) -> Tensor:
        """(x a^T) * C, `[N, T, S]`."""
        return self.residuals.scores * self.effect.write


def read_state_fwd(
    effect: Effect, x: Tensor, carry: Tensor, a: Tensor, *, transposed: bool
) -> tuple[Tensor, ReadResiduals]:
    """Return P (x Z), the first term of a read, and the residuals of a read with inputs `a`."""
    y, by_part = read_carry(effect, x, carry, transposed=transposed)
    return y, ReadResiduals(x.bmm(a.mT), by_part)


def read_fwd(effect: Effect, x: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> tuple[Tensor, ReadResiduals]:
    """Return `products.read` and its residuals."""
    y, residuals = read_state_fwd(effect, x, carry, a, transposed=is_transposed(carry, r.shape[-1]))
    return plus_product(y, residuals.scores * effect.write, r), residuals


class BlockGradients:
    """Coefficients, inputs a and errors r of a block, with running sums of the gradients of all its tensors.

    Sums are dictionaries, empty at first. By name of the weight: grad_inputs, grad_errors; grad_carry; grad_weights,
    of the weights at which the block's gradients are taken (transposed if the carry is). By "carry" and "write":
    grad_weight, grad_point (effects on the weight and on the gradient point) and grad_last.
    """

    def __init__(self, coefficients: Coefficients, inputs: Weights, errors: Weights) -> None:
        self.coefficients, self.inputs, self.errors = coefficients, inputs, errors
        self.grad_carry: Weights = {}
        self.grad_weights: Weights = {}
        self.grad_inputs: Weights = {}
        self.grad_errors: Weights = {}
        self.grad_weight: Weights = {}
        self.grad_point: Weights = {}
        self.grad_last: Weights = {}

    def grad_coefficients(self) -> Coefficients:
        """Return the gradients of the coefficients."""
        return Coefficients(Effect(**self.grad_weight), None, self.grad_last["carry"], self.grad_last["write"])

    def add_weight(self, name: str, a: Tensor, r: Tensor) -> None:
        """Add a^T r to `grad_weights`."""
        if is_transposed(self.grad_carry[name], r.shape[-1]):
            a, r = r, a
        accumulate_product(self.grad_weights, name, a.mT, r)


def accumulate(sums: Weights, name: str, gradient: Tensor) -> None:
    """Add a gradient to the sum of its name, in place; the first one becomes the sum."""
    sums[name] = sums[name].add_(gradient) if name in sums else gradient


def accumulate_product(sums: Weights, name: str, x: Tensor, y: Tensor) -> None:
    """Add x y to the sum of its name, in place; the first one becomes the sum."""
    sums[name] = plus_product_(sums[name], x, y) if name in sums else x.bmm(y)


def read_vjp(
    name: str, read: Read, grad_y: Tensor, grad_effect: Weights, grad_a: Weights, grad_r: Weights | None
) -> Tensor:
    """Return the gradient of x; add those of a and r under `name`, those of the effect under "carry" and "write".

    `grad_r` is None if it is not wanted. The gradient of the carry is linear in `grad_y`: call `carry_vjp` once, with
    the sum of all `grad_y`.
    """
    grad_x = _read_state_vjp(read, grad_y, grad_effect)
    if read.r is None:
        return grad_x
    if grad_r is not None:
        accumulate_product(grad_r, name, read.masked_scores.mT, grad_y)
    grad_scores = grad_y.bmm(read.r.mT)
    accumulate(grad_effect, "write", grad_scores * read.residuals.scores)
    grad_scores = grad_scores * read.effect.write
    accumulate_product(grad_a, name, grad_scores.mT, read.x)
    return plus_product_(grad_x, grad_scores, read.a)


def _read_state_vjp(read: Read, grad_y: Tensor, grad_effect: Weights) -> Tensor:
    """Return the gradient of x through P (x Z), and add the gradient of P."""
    effect, x, by_part = read.effect, read.x, read.residuals.by_part
    n = effect.carry.shape[-1]
    if by_part is None:
        grad_by_part = grad_y.bmm(read.carry.mT)
        accumulate(grad_effect, "carry", (split_parts(grad_by_part, n) * x.unsqueeze(2)).sum(-1))
        return combine_parts(effect.carry, grad_by_part)
    accumulate(grad_effect, "carry", (split_parts(by_part, n) * grad_y.unsqueeze(2)).sum(-1))
    return scale(effect.carry, grad_y).bmm(read.carry)


def carry_vjp(name: str, read: Read, grad_y: Tensor, grad_carry: Weights) -> None:
    """Add the gradient of the carry of a read."""
    narrow, wide = (read.x, grad_y) if read.residuals.by_part is None else (grad_y, read.x)
    accumulate_product(grad_carry, name, scale(read.effect.carry, narrow).mT, wide)


def fold_vjp(name: str, carry: Tensor, grad_next: Tensor, gradients: BlockGradients) -> None:
    """Backward pass of `products.fold`, from the gradient of the next carry; call it first, as it sets, not adds.

    Sets the gradients of the carry, of inputs and of errors under `name`, and adds those of last_carry and last_write.
    """
    coefficients, a, r = gradients.coefficients, gradients.inputs[name], gradients.errors[name]
    grad_narrow, grad_wide = gradients.grad_inputs, gradients.grad_errors
    if is_transposed(carry, r.shape[-1]):
        a, r, grad_narrow, grad_wide = r, a, grad_wide, grad_narrow
    n = coefficients.last_carry.shape[-1]
    flat = (carry.shape[0], n, carry.shape[1] // n * carry.shape[2])
    gradients.grad_carry[name] = decay_carry(coefficients.last_carry.mT, grad_next)
    accumulate(gradients.grad_last, "carry", grad_next.reshape(flat).bmm(carry.reshape(flat).mT))
    grad_next = grad_next.to(a.dtype)
    grad_wide[name] = scale(coefficients.last_write, a).bmm(grad_next)
    grad_by_part = r.bmm(grad_next.mT)
    accumulate(gradients.grad_last, "write", (split_parts(grad_by_part, n) * a.unsqueeze(2)).sum(-1))
    grad_narrow[name] = combine_parts(coefficients.last_write, grad_by_part)
