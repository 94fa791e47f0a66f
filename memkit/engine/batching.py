"""Micro-batches: some rows of the batch at a time, so that the state that they carry fits into a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine.core.memory_state import MemoryState
from memkit.engine.forms.fused.compile import backend_now
from memkit.engine.inputs import Inputs
from memkit.rule import Rule
from memkit.state import tensors, with_tensors

CACHED = 2 * 2**20
"""Bytes of weights and slots that one thread works on at once: tokens and errors need some more beside them."""
CALLED = 4 * 2**20
"""Bytes if every product is a call of its own: larger calls save more than distant memory costs."""
MOVED = ("weights", "slots", "anchor", "pending", "offset")
"""Fields of a state that a call changes, of rules without a window; its integers aside."""

Part = Callable[[Inputs, MemoryState], tuple[Tensor, MemoryState]]


def in_micro_batches(
    run: Part, rule: Rule, form: str, block_size: int, inputs: Inputs, state: MemoryState
) -> tuple[Tensor, MemoryState]:
    """`run(inputs, state)`, some rows at a time where that is faster: deep memories in blocks, on a CPU."""
    compiled = form == "fused" and inputs.tokens.k.shape[1] >= 2 * min(rule.mini_batch, block_size)
    if torch.compiler.is_compiling() or not (form == "iterate" or (compiled and backend_now() is not None)):
        return run(inputs, state)
    size = at_once(state, compiled=compiled)
    return in_parts(run, inputs, state, size) if size < state.offset.shape[0] else run(inputs, state)


def at_once(state: MemoryState, *, compiled: bool) -> int:
    """Rows of the batch to run at once: a divisor of it, as every other number of rows is compiled anew."""
    batch = state.offset.shape[0]
    room = (CACHED if compiled else CALLED) * torch.get_num_threads()
    carried = sum(x.nbytes for x in tensors((state.weights, state.slots)))
    if state.offset.device.type != "cpu" or carried <= room:
        return batch
    fitting = (size for size in range(batch, 1, -1) if batch % size == 0 and carried * size <= room * batch)
    return next(fitting, 1)


def in_parts(run: Part, inputs: Inputs, state: MemoryState, size: int) -> tuple[Tensor, MemoryState]:
    """`run(inputs, state)` for `size` rows of the batch at a time."""
    split = zip(*(x.split(size) for x in tensors((inputs, state))), strict=True)
    outputs, states = zip(*(run(*with_tensors((inputs, state), part)) for part in split), strict=True)
    moved = [{name: getattr(after, name) for name in MOVED} for after in states]
    together = with_tensors(moved[0], map(torch.cat, zip(*map(tensors, moved), strict=True)))
    return torch.cat(outputs), replace(state, **together, phase=states[0].phase)
