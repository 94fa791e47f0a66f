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
"""Shapes and rules that a block may be compiled for; torch gives up after 8, which a grid of models exceeds."""

_backend: str | None = None


class compile_blocks:
    """Have torch compile the blocks of memories, from here on, or inside of a `with`.

    The first call of every shape compiles for some seconds; after it training and long forward passes are
    faster, and compute the same. It is for what is swept: the form "dual" of rules with gradients at the weights as
    they are and gates per head, in calls of several blocks. Everything else, and all that `torch.compile` already
    compiles, runs as it is. On a CPU torch needs a C++ compiler.

    enabled: False runs blocks as they are written, which is how memkit begins. backend: of `torch.compile`. Raises
    `ValueError` for a backend that torch does not have.
    """

    def __init__(self, enabled: bool = True, *, backend: str = "inductor") -> None:
        global _backend
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"{backend!r} is no backend of torch.compile. {nearest(backend, known)}")
        self._before = _backend
        _backend = backend if enabled else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _backend
        _backend = self._before


def as_written(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program itself."""
    return program


def preparing() -> Prepare:
    """How blocks are prepared now."""
    return as_written if _backend is None else compiler_of(_backend)


@cache
def compiler_of(backend: str) -> Prepare:
    """What compiles programs with a backend, each once."""

    @cache
    def prepared(program: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(program, backend=backend, fullgraph=True, dynamic=False)

        @wraps(program)
        def called(*given: Any, **how: Any) -> Any:
            # Gradients are taken inside of a block, of tensors that are made there; nothing has a graph outside.
            with torch.no_grad(), torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=RECOMPILE_LIMIT):
                return compiled(*given, **how)

        return called

    return prepared
