"""A block's program as torch compiles it: what lies between products becomes few passes over memory.

Blocks of one length do the same to other numbers, so that one compiled block serves a whole sequence, and the loop
over blocks, the graph of the outer loop and everything before and after stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

from memkit.registry import nearest

Prepare = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a block's program another one that does the same."""

RECOMPILE_LIMIT = 256
"""Shapes and rules that a block may be compiled for; torch's own limit of 8 is too few for a grid of models."""

_backend: str | None = None


class compile_blocks:
    """Have torch compile the blocks of memories, from here on, or inside of a `with`.

    The first call of every shape compiles for some seconds; after it training and long forward passes are
    faster, and compute the same. It is for the form "dual", in calls of several blocks, of rules with gradients at
    the weights as they are, one for each write, gates per head and no `surprise_limit`; of others `explain` says what
    stands in the way. Everything else runs as it is. In a model that `torch.compile` compiles, neighbouring blocks of
    one length become one operator instead of a part each of the model's graph, which compiles the sooner for it the
    longer the text is. On a CPU torch needs a C++ compiler.

    It is one setting for the process, all threads included. A block is compiled for every number of rows, and after
    256 programs runs as it is written.

    enabled: False runs blocks as they are written, which is how memkit begins. backend: of `torch.compile`. Raises
    `ValueError` for a backend that torch does not have.
    """

    def __init__(self, enabled: bool = True, *, backend: str = "inductor") -> None:
        global _backend
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"{backend!r} is no backend of torch.compile. {nearest(backend, known)}")
        if enabled and not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            raise ValueError(
                f"torch {torch.__version__} compiles no gradients that are taken inside of a block. Use a newer torch, "
                "or leave blocks as they are written."
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
    """The program itself."""
    return program


def backend_now() -> str | None:
    """What compiles blocks now; None where they run as they are written."""
    return _backend


def preparing() -> Prepare:
    """How blocks are prepared now; where torch compiles already, as they are written."""
    return as_written if torch.compiler.is_compiling() or _backend is None else compiler_of(_backend)


@cache
def compiler_of(backend: str) -> Prepare:
    """What compiles programs with a backend, each once."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # late, because torch's compiler is a second to import

    @cache
    def prepared(program: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(program, backend=backend, fullgraph=True, dynamic=False)

        @wraps(program)
        def called(*given: Any, **how: Any) -> Any:
            # Gradients are taken inside of a block, of tensors that are made there; nothing has a graph outside.
            limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
            with torch.no_grad(), torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=limit):
                try:
                    return compiled(*given, **how)
                except FailOnRecompileLimitHit:
                    return program(*given, **how)

        return called

    return prepared
