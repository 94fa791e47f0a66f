"""Getting along with torch: autocast, hooks, vmap, gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from memkit.state import Tree, map_tensors, tensors


@contextmanager
def _plain_mode(like: Tensor) -> Iterator[None]:
    """Leave autocast, which would round the state, and inference mode, in which no gradient can be taken.

    Under torch.compile nothing is asked about inference mode: it cannot be traced, and compiled code runs there.
    """
    with without_autocast(like):
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            yield
        else:
            with torch.inference_mode(False), torch.no_grad():
                yield


def _ordinary(tree: Tree) -> Tree:
    """Copy tensors that were made in inference mode, which autograd refuses."""
    if torch.compiler.is_compiling() or not any(x.is_inference() for x in tensors(tree)):
        return tree
    return map_tensors(lambda x: x.clone() if x.is_inference() else x, tree)


def unhooked() -> AbstractContextManager[object]:
    """Gradients taken inside are no business of hooks on saved tensors.

    Those of activation checkpointing would run all of the caller's forward pass again for each of them. What is saved
    is detached, and autograd attaches it again: an operation that saves its own result would hold itself for ever.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _same)


def _same(x: Tensor) -> Tensor:
    return x


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Leave autocast, which would round what blocks carry, on the device of a tensor."""
    kind = like.device.type
    entered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if entered else nullcontext()


def outside_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward of an autograd Function as written, also where the caller goes back under autocast."""

    @wraps(backward)
    def called(ctx: Any, *arriving: Tensor | None) -> Any:
        some = next((x for x in arriving if x is not None), None)  # slopes that nobody sent may be None
        with nullcontext() if some is None else without_autocast(some):
            return backward(ctx, *arriving)

    return called


def batched(arriving: Iterable[Tensor]) -> bool:
    """Whether vmap hands a backward pass many functionals as one, as for `is_grads_batched` of `torch.autograd.grad`.

    What stands for a batch has no storage, takes no sums in place of what is none, and cannot be looked at.
    """
    return not torch.compiler.is_compiling() and not all(map(_has_storage, arriving))


def _has_storage(x: Tensor) -> bool:
    try:
        x.untyped_storage()
    except NotImplementedError:
        return False
    return True


def graph_wanted(tree: Tree) -> bool:
    """Whether the outer loop can use a graph of gradients taken from these tensors; if not, they are plain numbers."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors(tree))


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
