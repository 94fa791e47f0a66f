"""`compile_blocks`, a setting of the process: blocks run as programs of torch.compile.

torch fuses the operations between the products of a block into few passes over memory. All blocks of one length use
the same program; the loop over them and the caller's graph are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

from memkit.registry import nearest

Prepare = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A map from a block's function to an equivalent one, compiled or not."""

OLDEST = "2.13"
"""First torch that compiles blocks: 2.11 and 2.12 fail inside its compiler, at the gradients of a block."""

RECOMPILE_LIMIT = 256
"""Programs per block function, one for each shape and rule; torch's own limit of 8 is too low for a grid of models."""

_backend: str | None = None


class compile_blocks:
    """Have torch compile the blocks of memories, from here on, or inside of a `with`.

    The first call of every shape compiles for some seconds; later training steps and long forward passes are faster,
    with the same results up to rounding. Only calls of several blocks in the fused form are compiled, of rules with
    gradients at the memory's own weights, one gradient per write, gates per head and no `surprise_limit`; `explain`
    names the obstacles of other rules, and those run as before. Inside a model under `torch.compile`, neighboring
    blocks of one length become one operator instead of one part of the graph each, so a long text compiles sooner.
    On a CPU torch needs a C++ compiler.

    The setting holds for the whole process, all threads included. A block is compiled once for every number of rows;
    beyond 256 programs it runs uncompiled.

    enabled: False turns compilation off, the default of memkit. backend: of `torch.compile`. Raises `ValueError` for a
    backend unknown to torch, or if torch is too old.
    """

    def __init__(self, enabled: bool = True, *, backend: str = "inductor") -> None:
        global _backend
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"{backend!r} is not a backend of torch.compile. {nearest(backend, known)}")
        if enabled and torch.__version__ < OLDEST:
            raise ValueError(
                f"torch {torch.__version__} cannot compile a block, because a gradient is taken inside it. Use torch "
                f"{OLDEST} or newer, or do not compile blocks."
            )
        self._before, self._now = _backend, backend if enabled else None
        _backend = self._now

    def __enter__(self) -> None:
        global _backend
        _backend = self._now

    def __exit__(self, *_: object) -> None:
        global _backend
        _backend = self._before


def as_written(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself, uncompiled."""
    return program


def backend_now() -> str | None:
    """Return the backend set by `compile_blocks`, or None if blocks are not compiled."""
    return _backend


def preparing() -> Prepare:
    """Return the present `Prepare`: `as_written` if compilation is off, or torch already compiles the caller."""
    return as_written if torch.compiler.is_compiling() or _backend is None else compiler_of(_backend)


@cache
def compiler_of(backend: str) -> Prepare:
    """Return a `Prepare` for a backend; it compiles each function once."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # late: importing torch's compiler takes a second

    @cache
    def prepared(program: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(program, backend=backend, fullgraph=True, dynamic=False)

        @wraps(program)
        def called(*args: Any, **options: Any) -> Any:
            # A block takes gradients of its own tensors (trace_autograd_ops); no graph leads outside (no_grad).
            limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
            with torch.no_grad(), torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=limit):
                try:
                    return compiled(*args, **options)
                except FailOnRecompileLimitHit:
                    return program(*args, **options)

        return called

    return prepared
