"""The work of a call, counted and not timed: its matrix products, and the memory that it leaves behind."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FACTORS = {
    **dict.fromkeys((aten.mm, aten.bmm), (0, 1)),
    **dict.fromkeys((aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_), (1, 2)),
}
"""Operations that every matrix product comes down to, and the places of its two factors among their arguments."""


class Products(TorchDispatchMode):
    """Count the matrix products made inside, and their multiplications; gradients taken inside count too.

    narrowest: leave out products with a shorter side, as those of coefficients, which cost next to nothing.
    """

    def __init__(self, narrowest: int = 1) -> None:
        super().__init__()
        self.narrowest, self.count, self.multiplications = narrowest, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in FACTORS:
            left, right = (args[place] for place in FACTORS[func.overloadpacket])
            if min(*left.shape[-2:], right.shape[-1]) >= self.narrowest:
                self.count += 1
                self.multiplications += math.prod(left.shape) * right.shape[-1]
        return func(*args, **(kwargs or {}))


class Made(TorchDispatchMode):
    """Know the memory of all tensors made inside, and how much of it is still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in _all_tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for x in _all_tensors(result):
            storage = x.untyped_storage()
            if storage.data_ptr() not in given:
                self.made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return result

    @property
    def bytes_in_use(self) -> int:
        """Bytes that something still refers to: a variable, or autograd."""
        return sum(size for storage, size in self.made.values() if not storage.expired())


def _all_tensors(tree: Any) -> list[Tensor]:
    """Tensors in lists, tuples and dicts."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [x for part in tree for x in _all_tensors(part)]
    return [tree] if isinstance(tree, Tensor) else []
