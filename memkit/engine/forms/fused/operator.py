"""The sweep as one operator in the graph that torch makes of a caller's model, however many blocks it runs.

Unrolled, every block would be a hundred operations of that graph. The operator is opaque: torch asks it for shapes,
calls it, and leaves its gradients to another one. Inside runs the sweep itself, its blocks as `compile_blocks` says.
An operator takes tensors and text, so a key stands for everything else: the rule, where mini-batches begin, and the
names of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import batched, graph_wanted, without_autocast
from memkit.engine.core.coefficients import Coefficients, Effect
from memkit.engine.forms.fused.backward import back_through, backward
from memkit.engine.forms.fused.compile import as_written, backend_now, compiler_of
from memkit.engine.forms.fused.forward import Found, Given, Kept, Run, begun, forward, writes
from memkit.engine.gradients.adjoint import Asked
from memkit.likeness import Kind
from memkit.rule import Tokens
from memkit.state import Tree, map_tensors, tensors, with_tensors

POSSIBLE = hasattr(torch._C, "_PreserveDispatchKeyGuard") and hasattr(
    torch._C, "_dispatch_tls_set_dispatch_key_excluded"
)
"""Whether this torch has what gradients inside of an operator take."""
_NUMBERS = torch.empty(0)
"""What stands for a tensor in a tree that has none."""
_WRITTEN = sha256(b"".join(x.read_bytes() for x in sorted(Path(__file__).parents[2].rglob("*.py")))).hexdigest()[:8]
"""torch keeps graphs on disk, by their text: this stands for the engine that says in which order tensors are."""


class _Program(NamedTuple):
    """What a key stands for, without numbers: run and given are what goes in, found and left what comes out."""

    run: Run
    given: Given
    found: Found
    left: tuple[Kept, ...]

    def filled(self, flat: list[Tensor]) -> tuple[Run, Given]:
        """The run, and what it is given, of these tensors."""
        return with_tensors((self.run, self.given), map(_ordinary, flat))


_programs: dict[str, _Program] = {}  # for as long as the process lives, as are the graphs that name them
_keys: dict[tuple[Any, ...], str] = {}


def run_as_operator(run: Run, given: Given) -> Found:
    """`forward`, with its gradients, as one node of the graph that torch is tracing."""
    begins = tuple(None if isinstance(x, Tensor) else x for x in run.begins)
    names = [tuple(x) for x in (given.tokens.gates, given.carry, given.anchor, given.constants)]
    key = _key(run.rule.kind, begins, backend_now(), *names)
    flat = torch.ops.memkit.sweep(tensors((run.begins, given)), key, graph_wanted(given))
    anchored = given.carry if any(x is not False for x in begins) else given.anchor
    found = with_tensors(Found(given.tokens.v, given.carry, dict.fromkeys(anchored, given.tokens.v)), flat)
    if writes(given):
        return found
    carry, anchor = map_tensors(Tensor.detach, (found.carry, found.anchor))
    return found._replace(carry=carry, anchor=anchor)


def _key(kind: Kind, begins: tuple[bool | None, ...], backend: str | None, *names: tuple[str, ...]) -> str:
    """The text that stands for all this from now on.

    A graph that the next process finds on disk asks that process's tables. So equal texts may stand for other rules,
    but not for other places and shapes, which the engine and the memory decide.
    """
    asked = (kind, begins, backend, *names)
    if asked not in _keys:
        gates, carry, anchor, constants = (dict.fromkeys(x, _NUMBERS) for x in names)
        own = Coefficients(Effect(_NUMBERS, _NUMBERS), None, _NUMBERS, _NUMBERS)
        given = Given(Tokens(_NUMBERS, _NUMBERS, _NUMBERS, gates), own, carry, anchor, constants)
        prepared = as_written if backend is None or len(begins) == 1 else compiler_of(backend)
        run = Run(kind.one, tuple(_NUMBERS if x is None else x for x in begins), prepared)
        found = Found(_NUMBERS, carry, anchor if all(x is False for x in begins) else carry)
        later = Kept(carry, {}, carry, carry, carry, dict.fromkeys(carry, Asked(_NUMBERS, _NUMBERS)))
        left = (later._replace(carry={}), *[later] * (len(begins) - 1))
        _keys[asked] = f"{_WRITTEN} {len(_keys)} {kind.one.memory!r}"
        _programs[_keys[asked]] = _Program(run, given, found, left)
    return _keys[asked]


# What torch.compiler.assume_constant_result does, which would load the compiler, a second, for everybody.
_key._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.custom_op("memkit::sweep", mutates_args=(), schema="(Tensor[] flat, str key, bool keep) -> Tensor[]")
def _sweep(flat: list[Tensor], key: str, keep: bool) -> list[Tensor]:
    with _inside(flat[0]):
        run, given = _programs[key].filled(flat)
        kept: list[Kept] = []
        found = forward(run, given, kept if keep else None)
        # An operator returns no views, of what was given or of a carry.
        found = found._replace(anchor=map_tensors(torch.clone, found.anchor))
        return [x.detach().contiguous() for x in tensors((found, _left(kept)))]


@_sweep.register_fake
def _(flat: list[Tensor], key: str, keep: bool) -> list[Tensor]:
    """The same without numbers; blocks are alike, so that one is asked."""
    with _inside(flat[0]):
        run, given = _programs[key].filled(flat)
        tokens, own = map_tensors(lambda x: x[:, :1], (given.tokens, given.own))
        begins = any(x is not False for x in run.begins)
        kept: list[Kept] = []
        given, lone = given._replace(tokens=tokens, own=own), run._replace(begins=(begins,), prepared=as_written)
        found = forward(lone, given, kept if keep else None)
        found = found._replace(y=found.y.expand(-1, len(run.begins), -1, -1))
        return [x.new_empty(x.shape) for x in tensors((found, _left(kept * len(run.begins))))]


@torch.library.custom_op(
    "memkit::sweep_back", mutates_args=(), schema="(Tensor[] flat, Tensor[] left, Tensor[] slopes, str key) -> Tensor[]"
)
def _sweep_back(flat: list[Tensor], left: list[Tensor], slopes: list[Tensor], key: str) -> list[Tensor]:
    program = _programs[key]
    with _inside(flat[0]):
        run, given = program.filled(flat)
        kept = _kept(run, given, with_tensors(program.left, map(_ordinary, left)))
        back = backward(run, given, kept, with_tensors(program.found, map(_ordinary, slopes)))
        back = back._replace(anchor=map_tensors(torch.clone, back.anchor))
        return [x.to(like.dtype).contiguous() for x, like in zip(tensors(back), tensors(given), strict=True)]


@_sweep_back.register_fake
def _(flat: list[Tensor], left: list[Tensor], slopes: list[Tensor], key: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors(with_tensors((_programs[key].run, _programs[key].given), flat)[1])]


def _remember(ctx: Any, inputs: tuple[list[Tensor], str, bool], output: list[Tensor]) -> None:
    flat, ctx.key, _ = inputs
    ctx.count = len(flat)
    ctx.save_for_backward(*flat, *output[len(tensors(_programs[ctx.key].found)) :])


def _slopes(ctx: Any, arriving: list[Tensor]) -> tuple[list[Tensor | None], None, None]:
    """Sweep back; or, to be differentiated again or under vmap, through the blocks as autograd has them."""
    program = _programs[ctx.key]
    flat, left = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    arriving = arriving[: len(tensors(program.found))]
    if torch.is_grad_enabled() or batched(arriving):
        run, given = with_tensors((program.run, program.given), flat)
        found = back_through(run, given, arriving)
    else:
        found = torch.ops.memkit.sweep_back(list(flat), list(left), arriving, ctx.key)
    return [*[None] * (ctx.count - len(found)), *found], None, None


_sweep.register_autograd(_slopes, setup_context=_remember)


@contextmanager
def _inside(like: Tensor) -> Iterator[None]:
    """Leave autocast; and have autograd again, which torch hides from operators.

    Leaving inference mode, even where nobody is in it, brings back gradients, but not that views are seen to change.
    """
    with without_autocast(like), torch.inference_mode(False), torch._C._PreserveDispatchKeyGuard(), torch.no_grad():
        torch._C._dispatch_tls_set_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView, False)
        yield


def _ordinary(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x.detach()


def _left(kept: list[Kept]) -> Tree:
    """What blocks leave of their own, with something in every place: not where one began, as another ended there."""
    found = []
    for i, block in enumerate(kept):
        names = list(block.carry)
        outputs, answers = ({name: x[name] for name in names} for x in (block.outputs, block.answers))
        backs = {name: _something(block.backs.get(name), outputs[name]) for name in names}
        read = {name: block.asked[name] for name in names}
        asked = {name: Asked(x.scores, _something(x.found, x.scores)) for name, x in read.items()}
        found.append(Kept(block.carry if i else {}, {}, outputs, backs, answers, asked))
    return tuple(found)


def _something(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x


def _nothing(x: Tensor | None) -> Tensor | None:
    return None if x is None or x.dim() == 1 else x


def _kept(run: Run, given: Given, left: tuple[Kept, ...]) -> tuple[Kept, ...]:
    """The other way about: with where blocks began, and without what fills places."""
    found, anchor = [], given.anchor
    for begins, block in zip(run.begins, left, strict=True):
        carry = block.carry or given.carry
        anchor = begun(run.rule, begins, carry, anchor, given.tokens)
        backs = {name: x for name, x in block.backs.items() if _nothing(x) is not None}
        asked = {name: Asked(x.scores, _nothing(x.found)) for name, x in block.asked.items()}
        found.append(block._replace(carry=carry, anchor=anchor, backs=backs, asked=asked))
    return tuple(found)
