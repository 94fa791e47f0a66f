"""One sequence on several ranks: each runs its part of the tokens, from the state of the rank before.

Exact, because any cut of a sequence into calls gives the numbers of one call; gradients of the states come back the
same way. A recurrence has to wait for its past, but only layer by layer: while rank 1 runs its first layer, rank 0 runs
its second, so R ranks take L + R - 1 times a layer's part for L layers, instead of L R.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memkit.autograd import once_differentiable
from memkit.state import Tree, map_tensors, tensors

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class SequenceParallel(nn.Module):
    """A model of this rank's part of every sequence; all ranks of a group call it alike.

    Call it like the model, with consecutive parts `[B, T_r, ...]`, the first tokens on rank 0; parts may differ in
    length. It returns the state after this rank's part; a given state is used on rank 0 only. Gradients are those of
    all ranks' outputs with respect to this rank's tokens: their sum over ranks is the whole (`average_gradients`).
    Backward runs on all ranks or on none, and gradients cannot be differentiated again.

    group: all ranks if not given. It must also carry tensors of the CPU, for the shapes of states, as a group does if
    initialized without the name of a backend.

    layers: the modules with a state, `layer(x, state, ...) -> (y, state)`, in order of computation; for a lone mixer,
    itself. Activation checkpoints must not run them again; a memory's `recompute`, inside of its layer, may.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self._layers, self._line = model, tuple(layers), _Line(group)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; see the class."""
        handles = [layer.register_forward_pre_hook(self._take_over, with_kwargs=True) for layer in self._layers]
        handles += [layer.register_forward_hook(self._hand_on) for layer in self._layers]
        try:
            return self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Give all ranks the mean of their gradients, after backward.

        Only rank 0 has gradients of initial states; `DistributedDataParallel` would wait for the others'.
        """
        used = [x for x in self.parameters() if x.requires_grad]
        for x in used:
            x.grad = torch.zeros_like(x) if x.grad is None else x.grad
        flat = torch.cat([x.grad.flatten() for x in used if x.grad is not None])
        dist.all_reduce(flat, group=self._line.group)
        flat /= dist.get_world_size(self._line.group)
        for x, part in zip(used, flat.split([x.numel() for x in used]), strict=True):
            x.grad = part.view_as(x).to(x.dtype)

    def _take_over(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> _Arguments | None:
        """Run a layer from the state of the rank before, in place of any given one."""
        if self._line.before is None:
            return None
        x, *rest = args
        like, graph = self._line.take_note()
        flat = torch.empty(like.length, dtype=like.dtype, device=x.device)
        if graph and torch.is_grad_enabled():
            x, flat = _TakeOver.apply(x if x.requires_grad else x.detach().requires_grad_(), flat, self._line)
        else:
            self._line.take(flat)
        others = {name: value for name, value in named.items() if name != "state"}
        return (x, self._line.unpack(like.tree, flat), *rest[1:]), others

    def _hand_on(self, layer: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Tree]) -> tuple[Tensor, Tree]:
        """Give a layer's state to the rank after."""
        if self._line.after is None:
            return result
        y, state = result
        flat = torch.cat([x.flatten() for x in tensors(state) if x.is_floating_point()])
        graph = torch.is_grad_enabled() and (y.requires_grad or flat.requires_grad)
        self._line.give_note((_Like(map_tensors(_hollow, state), flat.numel(), flat.dtype), graph))
        if graph:
            y = _HandOn.apply(y, flat, self._line)
        else:
            self._line.give(flat)
        for x in tensors(state):
            if not x.is_floating_point():
                self._line.give(x)
        return y, state


class _Like(NamedTuple):
    """A state without its numbers, and the one tensor for its floating-point numbers to travel in."""

    tree: Tree
    length: int
    dtype: torch.dtype


class _Line:
    """The ranks of a group in a line, seen from one: tensors go to the rank after, their gradients to the one before.

    The order of the layers pairs every send with a receive, so nothing has to be kept.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = dist.group.WORLD if group is None else group
        rank, size = dist.get_rank(self.group), dist.get_world_size(self.group)
        ranks = [dist.get_global_rank(self.group, r) for r in range(size)]  # type: ignore[arg-type]
        self.before = ranks[rank - 1] if rank > 0 else None
        self.after = ranks[rank + 1] if rank + 1 < size else None

    def give(self, x: Tensor, *, back: bool = False) -> None:
        if x.numel():
            dist.send(x.detach().contiguous(), self.before if back else self.after, self.group)

    def take(self, x: Tensor, *, back: bool = False) -> Tensor:
        """Fill a tensor."""
        if x.numel():
            dist.recv(x, self.after if back else self.before, self.group)
        return x

    def give_note(self, note: Any) -> None:
        dist.send_object_list([note], self.after, self.group, device=torch.device("cpu"))

    def take_note(self) -> Any:
        found = [None]
        dist.recv_object_list(found, self.before, self.group, device=torch.device("cpu"))
        return found[0]

    def unpack(self, like: Tree, flat: Tensor) -> Tree:
        """Return the state of this structure with these floating-point numbers; receive the others, sent after them."""
        floats = [x for x in tensors(like) if x.is_floating_point()]
        parts = iter(flat.split([x.numel() for x in floats]))

        def fill(x: Tensor) -> Tensor:
            if x.is_floating_point():
                return next(parts).view(x.shape).to(x.dtype)
            return self.take(torch.empty(x.shape, dtype=x.dtype, device=flat.device))

        return map_tensors(fill, like)


def _hollow(x: Tensor) -> Tensor:
    """Return a tensor's shape and dtype, without its numbers."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


class _TakeOver(torch.autograd.Function):
    """A state arrives; its gradient leaves. The layer's input goes through too: backward cannot miss it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, line: _Line) -> Any:
        """Fill `flat`."""
        ctx.line = line
        ctx.mark_dirty(flat)
        return x.view_as(x), line.take(flat)

    @staticmethod
    @once_differentiable("a sequence cut between ranks", "one rank")
    def backward(ctx: Any, _: Any, x: Tensor, flat: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Send the state's gradient back."""
        ctx.line.give(flat, back=True)
        return x, None, None


class _HandOn(torch.autograd.Function):
    """A state leaves; its gradient arrives. The layer's output goes through too: backward cannot miss it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, flat: Tensor, line: _Line) -> Any:
        """Send `flat`."""
        ctx.line = line
        ctx.like = _hollow(flat)
        line.give(flat)
        return y.view_as(y)

    @staticmethod
    @once_differentiable("a sequence cut between ranks", "one rank")
    def backward(ctx: Any, _: Any, y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for the state's gradient."""
        return y, ctx.line.take(torch.empty(ctx.like.shape, dtype=ctx.like.dtype, device=y.device), back=True), None
