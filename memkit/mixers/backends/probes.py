"""Whether something optional works here: asked by running it, never by looking for its files."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


@functools.cache
def why_not(probe: Callable[[], None]) -> str | None:
    """Run a probe, once per process: None where it passes, else the reason why it does not."""
    try:
        probe()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def require_cuda() -> None:
    """Raise `RuntimeError` without a CUDA device: the part that most probes share."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
