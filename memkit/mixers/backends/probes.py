"""Whether something optional works here: asked by running it, never by looking for its files."""

from __future__ import annotations

from collections.abc import Callable

import torch

_found: dict[Callable[[], None], str | None] = {}


@torch.compiler.assume_constant_result  # asked while a model is compiled, a probe runs then
def why_not(probe: Callable[[], None]) -> str | None:
    """Run a probe, once per process: None where it passes, else the reason why it does not."""
    if probe not in _found:
        try:
            probe()
            _found[probe] = None
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            _found[probe] = f"{type(error).__name__}: {error}"
    return _found[probe]


def forget() -> None:
    """Run every probe again when it is asked for next."""
    _found.clear()


def require_cuda() -> None:
    """Raise `RuntimeError` without a CUDA device: the part that most probes share."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
