"""Which backend answers: asked by name or chosen, at run time, by probes that run."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from memkit.mixers.backends import flash, flex, memory_efficient, sdpa
from memkit.mixers.backends.banded import Backend, Banded
from memkit.mixers.backends.probes import why_not
from memkit.registry import nearest

logger = logging.getLogger("memkit")

BACKENDS = {each.name: each for each in (sdpa.BACKEND, flex.BACKEND, flash.BACKEND, memory_efficient.BACKEND)}

# What `auto` tries before torch. FlexAttention is not among them: it compiles anew for new lengths.
AUTOMATIC = ("flash_attn", "xformers")

_said: set[str] = set()


def check_backend(name: str) -> None:
    """Raise `ValueError` unless `name` is `"auto"` or a backend that can run here."""
    if name == "auto":
        return
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}. {nearest(name, ['auto', *BACKENDS])}")
    reason = why_not(BACKENDS[name].probe)
    if reason is not None:
        raise ValueError(
            f"attention backend {name!r} is not available here: {reason}. It needs {BACKENDS[name].remedy}. "
            "Use backend='auto' to take what there is."
        )


def banded_attention(call: Banded, backend: str = "auto") -> Tensor:
    """Answer a call `[B, H, T, K]` by a backend, by name or `"auto"`.

    Where the backend cannot take this one call (its dtype, say), torch does, and the log says so once.
    Raises `ValueError` as `check_backend`.
    """
    check_backend(backend)
    return _choose(call, backend).run(call)


def _choose(call: Banded, name: str) -> Backend:
    reasons = []
    for candidate in AUTOMATIC if name == "auto" else (name,):
        backend = BACKENDS[candidate]
        reason = why_not(backend.probe) or backend.refusal(call)
        if reason is None:
            return backend
        reasons.append(f"{candidate}: {reason}")
    level = logging.INFO if name == "auto" else logging.WARNING  # who named one did not ask for another
    _say_once(level, f"attention runs by torch's scaled_dot_product_attention ({'; '.join(reasons)})")
    return BACKENDS["torch"]


@torch.compiler.assume_constant_result  # said while a model is compiled
def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.log(level, message)
