"""Nodes of the graph whose gradients cannot be differentiated again, and which raise where that is asked of them.

torch's own `once_differentiable` raises where autograd happens to come by: not where a gradient does not depend on the
one that arrives, as that of a linear loss, nor where `inputs=` says how far to go back. Then what should be a
derivative would be 0, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def differentiable_once(what: str, instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make of `backward(ctx, saved, *arriving)` that of an autograd Function; saved are the tensors that it saved.

    what: whose gradient it is, and instead: what to use where gradients of gradients are wanted, for the error.
    """

    def decorated(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def called(ctx: Any, *arriving: Tensor | None) -> Any:
            saved = ctx.saved_tensors  # checkpoints unpack it only once
            with torch.no_grad():
                found = backward(ctx, saved, *arriving)
            if not torch.is_grad_enabled():
                return found
            text = f"the gradient of {what} cannot be differentiated again. For gradients of gradients use {instead}."
            return _refusing(found, [*saved, *arriving], text)

        return called

    return decorated


def _refusing(slopes: Sequence[Any], of: list[Tensor | None], text: str) -> Sequence[Any]:
    """The same slopes as a function of what they were made of, which has no derivative."""
    history = [x for x in of if x is not None and x.requires_grad]
    made = [x for x in slopes if x is not None]
    if not (history and made):
        return slopes
    joined = iter(_Refusing.apply(text, len(made), *made, *history))
    return tuple(None if x is None else next(joined) for x in slopes)


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: str, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        """The first `count` of what is given."""
        ctx.text = text
        return tuple(x.view_as(x) for x in given[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raise `RuntimeError`."""
        raise RuntimeError(ctx.text)
