"""Work with torch's modes: autocast, inference mode, saved-tensor hooks, vmap, and second gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from memkit.state import Tree, map_tensors, tensors


class NotTwiceDifferentiable(RuntimeError):
    """A gradient of a gradient was asked of an operation that has only the first; the message names another way."""


@contextmanager
def plain_mode(like: Tensor) -> Iterator[None]:
    """Leave autocast, which would round the state, and inference mode, in which no gradient can be taken.

    Compiled code stays in inference mode: torch.compile cannot trace the question, and the code runs there.
    """
    with without_autocast(like):
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            yield
        else:
            with torch.inference_mode(False), torch.no_grad():
                yield


def without_inference_flag(tree: Tree) -> Tree:
    """Copy the tensors that were made in inference mode: autograd refuses them."""
    if torch.compiler.is_compiling() or not any(x.is_inference() for x in tensors(tree)):
        return tree
    return map_tensors(lambda x: x.clone() if x.is_inference() else x, tree)


def unhooked() -> AbstractContextManager[object]:
    """Disable the caller's saved-tensor hooks while an inner gradient is taken.

    Hooks of activation checkpointing would rerun the caller's whole forward pass for each inner gradient. Saved
    tensors are detached instead, and autograd attaches them again; an operation that saves its own output would
    otherwise leak.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _unchanged)


def _unchanged(x: Tensor) -> Tensor:
    return x


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Leave autocast on the device of `like`: it would round the state that blocks carry."""
    kind = like.device.type
    entered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if entered else nullcontext()


def outside_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run the backward of an autograd Function outside of autocast, also where the caller is inside."""

    @wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        like = next((grad for grad in grads if grad is not None), None)  # None: an output without a gradient
        with nullcontext() if like is None else without_autocast(like):
            return backward(ctx, *grads)

    return wrapped


def batched(grads: Iterable[Tensor]) -> bool:
    """Tell whether vmap hands many gradients to a backward pass as one, as `is_grads_batched` has it.

    Such a tensor has no storage and no values to branch on, and plain tensors cannot accumulate it in place.
    """
    return not torch.compiler.is_compiling() and not all(map(has_storage, grads))


def has_storage(x: Tensor) -> bool:
    """Tell whether a tensor has memory of its own; one that stands for a batch under vmap does not."""
    try:
        x.untyped_storage()
    except NotImplementedError:
        return False
    return True


def graph_wanted(tree: Tree) -> bool:
    """Tell whether gradients of these tensors need a graph; if not, the outer loop cannot use one."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors(tree))


def once_differentiable(name: str, instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make `backward(ctx, saved, *grads)` the backward of an autograd Function; saved: the tensors it saved.

    torch's decorator of this name, with an error that names a way out. name: the operation, for the message;
    instead: a complete remedy, which follows "For gradients of gradients use". The second gradient raises
    `NotTwiceDifferentiable`.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
            saved = ctx.saved_tensors  # activation checkpoints allow one access
            with torch.no_grad():
                found = backward(ctx, saved, *grads)
            if not torch.is_grad_enabled():
                return found
            text = f"the gradient of {name} cannot be differentiated again. For gradients of gradients use {instead}."
            return _refusing(found, [*saved, *grads], text)

        return wrapped

    return decorate


def _refusing(found: Sequence[Any], inputs: list[Tensor | None], text: str) -> Sequence[Any]:
    """Attach gradients to their inputs by a function without a derivative."""
    history = [x for x in inputs if x is not None and x.requires_grad]
    grads = [x for x in found if x is not None]
    if not (history and grads):
        return found
    attached = iter(_Refusing.apply(text, len(grads), *grads, *history))
    return tuple(None if x is None else next(attached) for x in found)


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: str, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the first `count` tensors unchanged."""
        ctx.text = text
        return tuple(x.view_as(x) for x in given[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raise `NotTwiceDifferentiable`."""
        raise NotTwiceDifferentiable(ctx.text)
