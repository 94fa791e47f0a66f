"""The first layer, head and token at which a model's numbers leave the range of floats.

Nothing here runs during a model's own work. The search follows a number that is not finite: it runs the same tokens
again in ever shorter parts, since any cut of a sequence gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memkit.engine import MemoryState
from memkit.mixers.base import Mixer
from memkit.state import State, Tree, fields, tensors

REMEDY = (
    " Of a memory, surprise_limit=1.0 bounds each token's step, and a smaller mini_batch lets fewer of them add up."
)


@dataclass(frozen=True)
class Divergence:
    """The first token after which a model is not finite, and the first part to fail, in order of computation.

    token: its index in the call, None for a fault before the first; row: its row of the batch.
    part: the innermost mixer with finite inputs and an output that is not, as a module's name ("blocks.0.mixer"), or
    another cause in words. layer: index of the model's mixer that contains it, or None. head: the first head of its
    memory with weights that are not finite, or the one with the largest if reading them overflowed; None without one.
    state: the model's state before that token, all finite; None if no token is to blame.
    """

    token: int | None
    row: int | None
    part: str
    layer: int | None = None
    head: int | None = None
    state: Any = None

    def __str__(self) -> str:
        where = self.part if self.layer is None else f"layer {self.layer} ({self.part})"
        where += "" if self.head is None else f", head {self.head},"
        return where + (
            " is not finite" if self.token is None else f" diverged at token {self.token} of row {self.row}"
        )

    @property
    def remedy(self) -> str:
        """A remedy for a memory, as a sentence; empty if none is to blame."""
        return "" if self.head is None else REMEDY


class DivergedError(RuntimeError):
    """Numbers that are not finite; `where` is their place, None if it was not found."""

    where: Divergence | None = None


class GenerationDivergedError(DivergedError):
    """Generation met numbers that are not finite.

    ids `[B, N]`: the prompt and all tokens drawn from finite logits. state: it has read all of them but the last, as
    `generate` returns them; None if the given state is at fault. Reading that last token failed.
    """

    def __init__(self, ids: Tensor, where: Divergence | None) -> None:
        found = "the logits were not finite, though reading the same tokens again they are" if where is None else where
        super().__init__(
            f"{found}.{where.remedy if where else ''} The tokens until then are kept: `ids` and `state` of this error."
        )
        self.ids, self.where, self.state = ids, where, None if where is None else where.state

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the arguments for a copy, also in another process: `args` hold the message only."""
        return type(self), (self.ids, self.where), self.__dict__


def all_finite(tree: Tree) -> Tensor:
    """Return whether every floating-point number of a tree is finite, as a scalar on its device, without a sync."""
    found = [x.isfinite().all() for x in tensors(tree) if x.is_floating_point()]
    return torch.stack(found).all() if found else torch.tensor(True)


@torch.no_grad()
def find_divergence(model: Any, x: Tensor, state: Any = None, *, mask: Tensor | None = None) -> Divergence | None:
    """Find the first place where a call `model(x, state, mask=mask)` of a language model or a mixer is not finite.

    x: ids `[B, T]`, or a mixer's input `[B, T, D]`. Returns None if everything is finite. Runs the model about
    log2(T) times, without gradients, so call it after a failure only.
    """
    for name, parameter in model.named_parameters():
        if not bool(all_finite(parameter)):
            return Divergence(None, None, f"the parameter {name}")
    start = model.init_state(x.shape[0]) if state is None else state
    if not bool(all_finite(start)):
        row, where = _first_bad_row(start), ".".join(_first_bad_path(start))
        return Divergence(None, row, f"before the first token the state's {where}", head=_worst_head(start, row))

    def run(first: int, last: int, state: Any) -> Any:
        valid = None if mask is None else mask[:, first:last]
        return model(x[:, first:last], state, mask=valid)

    if bool(all_finite(run(0, x.shape[1], start))):
        return None
    good, bad = 0, x.shape[1]  # tokens known to stay finite, and known not to
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if bool(all_finite(run(0, middle, start))) else (good, middle)
    before = run(0, good, start)[1]
    with _watch(model) as seen:
        result = run(good, bad, before)
    row = _first_bad_row(result)
    if not seen:
        return Divergence(good, row, "a part between the layers, or the head,", state=before)
    name, output = seen[0]
    part = name or type(model).__name__
    return Divergence(good, row, part, _layer(model, name), _worst_head(output, row), before)


def generation_error(model: Any, ids: Tensor, state: Any, mask: Tensor | None) -> GenerationDivergedError:
    """Return the error of `generate` after ids `[B, N]` from a state; mask `[B, T]` is the prompt's."""
    if mask is not None:
        drawn = mask.new_ones(mask.shape[0], max(0, ids.shape[1] - mask.shape[1]))
        mask = torch.cat([mask, drawn], 1)[:, : ids.shape[1]]
    where = find_divergence(model, ids, state, mask=mask)
    unread = 0 if where is None or where.token is None else where.token
    return GenerationDivergedError(ids if where is None else ids[:, : unread + 1], where)


@contextmanager
def _watch(model: nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """Collect (name, result) of every mixer with finite input and state and a result that is not, inner ones first.

    Mixers end in order of computation, so the first one collected failed first.
    """
    seen: list[tuple[str, Any]] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
            if bool(all_finite((*given, *named.values()))) and not bool(all_finite(result)):
                seen.append((name, result))

        return look

    mixers = [(name, module) for name, module in model.named_modules() if isinstance(module, Mixer)]
    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in mixers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer(model: nn.Module, name: str) -> int:
    """Return the index of the outermost mixer that is, or contains, the mixer of this name."""
    outermost: list[str] = []
    for found, module in model.named_modules():
        if isinstance(module, Mixer) and not any(_inside(found, outer) for outer in outermost):
            outermost.append(found)
    return next(layer for layer, outer in enumerate(outermost) if _inside(name, outer))


def _inside(name: str, outer: str) -> bool:
    return outer in ("", name) or name.startswith(f"{outer}.")


def _first_bad_row(result: Tree) -> int:
    """Return the first row `[B, ...]` of a result that is not finite."""
    bad = [~x.isfinite().flatten(1).all(1) for x in tensors(result) if x.is_floating_point() and x.dim() > 1]
    return int(torch.stack(bad).any(0).long().argmax())


def _worst_head(result: Tree, row: int) -> int | None:
    """Return the first head, of any memory, not finite in this row, or else the one with the largest weights."""
    sizes = [
        torch.stack([x[row].abs().flatten(1).amax(1) for x in tensors((memory.weights, memory.slots))]).amax(0)
        for memory in _memories(result)
    ]
    lost = [size for size in sizes if not bool(all_finite(size))]  # a maximum of NaN is NaN
    if lost:
        return int((~lost[0].isfinite()).long().argmax())
    return int(max(sizes, key=lambda size: float(size.max())).argmax()) if sizes else None


def _memories(tree: Tree) -> Iterator[MemoryState]:
    """Yield every memory's state inside of a state."""
    if isinstance(tree, MemoryState):
        yield tree
    else:
        for _, part in _parts(tree):
            yield from _memories(part)


def _first_bad_path(tree: Tree) -> list[str]:
    """Return the path of names to the first tensor of a tree that is not finite."""
    name, part = next(((name, part) for name, part in _parts(tree) if not bool(all_finite(part))), ("", None))
    return [name, *_first_bad_path(part)] if name else []


def _parts(tree: Tree) -> list[tuple[str, Tree]]:
    """Return the parts of a tree by name; a tensor or a number has none."""
    if isinstance(tree, State):
        return list(fields(tree).items())
    if isinstance(tree, dict):
        return list(tree.items())
    return [(str(index), part) for index, part in enumerate(tree)] if isinstance(tree, tuple) else []
