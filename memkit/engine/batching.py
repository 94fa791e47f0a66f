"""A few rows of the batch after others, where a CPU's cache holds what they carry from block to block, but not all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.memory_state import MemoryState
from memkit.state import Tree, tensors, with_tensors

CACHED = 2 * 2**20
"""Bytes of weights and slots that one thread works on at once: tokens and errors need some more beside them."""
CALLED = 4 * 2**20
"""The same where every product is a call of its own: calls that do more cost less than memory further away does."""
MOVED = ("weights", "slots", "anchor", "pending", "offset")
"""What a call changes of a state whose rule has no window, but its integers."""


def at_once(state: MemoryState, *, compiled: bool) -> int:
    """How many rows of the batch to run at once: a divisor of it, as every other number of rows is compiled anew."""
    batch = state.offset.shape[0]
    room = (CACHED if compiled else CALLED) * torch.get_num_threads()
    carried = sum(x.nbytes for x in tensors((state.weights, state.slots)))
    if state.offset.device.type != "cpu" or carried <= room:
        return batch
    fitting = (size for size in range(batch, 1, -1) if batch % size == 0 and carried * size <= room * batch)
    return next(fitting, 1)


def in_parts(
    run: Callable[[Tree, MemoryState], tuple[Tensor, MemoryState]], given: Tree, state: MemoryState, size: int
) -> tuple[Tensor, MemoryState]:
    """`run(given, state) -> (y, state)` for `size` rows after the other; all tensors given are `[B, ...]`."""
    split = zip(*(x.split(size) for x in tensors((given, state))), strict=True)
    found = [run(*with_tensors((given, state), part)) for part in split]
    outputs, states = zip(*found, strict=True)
    moved = [{name: getattr(after, name) for name in MOVED} for after in states]
    together = with_tensors(moved[0], map(torch.cat, zip(*map(tensors, moved), strict=True)))
    return torch.cat(outputs), replace(state, **together, phase=states[0].phase)
