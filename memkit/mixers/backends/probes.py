"""Probes of optional packages: run them, never look for their files."""

from __future__ import annotations

from collections.abc import Callable

import torch

_found: dict[Callable[[], None], str | None] = {}


@torch.compiler.assume_constant_result  # while a model is compiled, a probe still runs
def why_not(probe: Callable[[], None]) -> str | None:
    """Run a probe, once per process: return None if it passes, else the reason of its failure."""
    if probe not in _found:
        try:
            probe()
            _found[probe] = None
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            _found[probe] = f"{type(error).__name__}: {error}"
    return _found[probe]


def forget() -> None:
    """Forget all results, so that every probe runs again."""
    _found.clear()


def require_cuda() -> None:
    """Raise `RuntimeError` without a CUDA device, the common part of most probes."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
