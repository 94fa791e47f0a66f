"""A run of blocks as one operator, `memkit::fused`, in the graph of a caller's `torch.compile`.

Unrolled, each block would add a hundred operations to that graph. The operator is opaque: torch infers its shapes from
a fake version, and its gradient is a second operator, `memkit::fused_backward`. Both take flat lists of tensors, and
text; a key stands for everything else (the rule, the blocks that begin mini-batches, the tensors' names). Inside, the
blocks are compiled as `compile_blocks` says.
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
from memkit.cache_key import CacheKey
from memkit.engine.core.coefficients import Coefficients, Effect
from memkit.engine.forms.fused.backward import backward, backward_by_autograd
from memkit.engine.forms.fused.compile import as_written, backend_now, compiler_of
from memkit.engine.forms.fused.forward import (
    BlockRun,
    Inputs,
    Outputs,
    Residuals,
    forward,
    next_anchor,
    writes_need_grad,
)
from memkit.engine.gradients.reading import QueryResiduals
from memkit.engine.gradients.vjp import ReadResiduals
from memkit.rule import Tokens
from memkit.state import Tree, map_tensors, tensors, with_tensors

POSSIBLE = hasattr(torch._C, "_PreserveDispatchKeyGuard") and hasattr(
    torch._C, "_dispatch_tls_set_dispatch_key_excluded"
)
"""True if this torch can take gradients inside of an operator."""
_PLACEHOLDER = torch.empty(0)
"""Stands for any tensor in a tree without tensors."""
_VERSION = sha256(b"".join(x.read_bytes() for x in sorted(Path(__file__).parents[2].rglob("*.py")))).hexdigest()[:8]
"""Hash of the engine's source, part of every key: torch reuses graphs on disk by their text, keys included, and another
version of the engine may order tensors in another way."""


class _Program(NamedTuple):
    """The meaning of a key: the trees of the operators' tensors, with placeholders."""

    run: BlockRun
    inputs: Inputs
    outputs: Outputs
    residuals: tuple[Residuals, ...]

    def with_inputs(self, flat: list[Tensor]) -> tuple[BlockRun, Inputs]:
        """Return run and inputs with these tensors."""
        return with_tensors((self.run, self.inputs), map(_without_history, flat))


_programs: dict[str, _Program] = {}  # kept as long as the process, like the graphs with these keys
_keys: dict[tuple[Any, ...], str] = {}


def run_as_operator(run: BlockRun, inputs: Inputs) -> Outputs:
    """Return `forward`, differentiable, as one node of the graph that torch is tracing."""
    begins = tuple(None if isinstance(x, Tensor) else x for x in run.begins)
    names = [tuple(x) for x in (inputs.tokens.gates, inputs.carry, inputs.anchor, inputs.constants)]
    key = _key(run.rule.cache_key, begins, backend_now(), *names)
    flat = torch.ops.memkit.fused(tensors((run.begins, inputs)), key, graph_wanted(inputs))
    anchored = inputs.carry if any(x is not False for x in begins) else inputs.anchor
    like = Outputs(inputs.tokens.v, inputs.carry, dict.fromkeys(anchored, inputs.tokens.v))
    outputs = with_tensors(like, flat)
    if writes_need_grad(inputs):
        return outputs
    carry, anchor = map_tensors(Tensor.detach, (outputs.carry, outputs.anchor))
    return outputs._replace(carry=carry, anchor=anchor)


def _key(rule: CacheKey, begins: tuple[bool | None, ...], backend: str | None, *names: tuple[str, ...]) -> str:
    """Return the key of a program, made on first use.

    A graph loaded from disk looks its key up in the tables of the new process. There the same key may mean another
    rule, but with the same tensors in the same order and shapes: these depend on the engine and the memory only.
    """
    parts = (rule, begins, backend, *names)
    if parts not in _keys:
        gates, carry, anchor, constants = (dict.fromkeys(x, _PLACEHOLDER) for x in names)
        coefficients = Coefficients(Effect(_PLACEHOLDER, _PLACEHOLDER), None, _PLACEHOLDER, _PLACEHOLDER)
        tokens = Tokens(_PLACEHOLDER, _PLACEHOLDER, _PLACEHOLDER, gates)
        inputs = Inputs(tokens, coefficients, carry, anchor, constants)
        prepare = as_written if backend is None or len(begins) == 1 else compiler_of(backend)
        run = BlockRun(rule.one, tuple(_PLACEHOLDER if x is None else x for x in begins), prepare)
        outputs = Outputs(_PLACEHOLDER, carry, anchor if all(x is False for x in begins) else carry)
        queries = QueryResiduals(carry, dict.fromkeys(carry, ReadResiduals(_PLACEHOLDER, _PLACEHOLDER)))
        later = Residuals(carry, {}, carry, carry, queries)
        residuals = (later._replace(carry={}), *[later] * (len(begins) - 1))
        _keys[parts] = f"{_VERSION} {len(_keys)} {rule.one.memory!r}"
        _programs[_keys[parts]] = _Program(run, inputs, outputs, residuals)
    return _keys[parts]


# As torch.compiler.assume_constant_result does, but without importing the compiler, which takes a second.
_key._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.custom_op("memkit::fused", mutates_args=(), schema="(Tensor[] flat, str key, bool keep) -> Tensor[]")
def _fused(flat: list[Tensor], key: str, keep: bool) -> list[Tensor]:
    with _operator_mode(flat[0]):
        run, inputs = _programs[key].with_inputs(flat)
        residuals: list[Residuals] = []
        outputs = forward(run, inputs, residuals if keep else None)
        # An operator must not return views of its inputs or of other results.
        outputs = outputs._replace(anchor=map_tensors(torch.clone, outputs.anchor))
        return [x.detach().contiguous() for x in tensors((outputs, _packed(residuals)))]


@_fused.register_fake
def _(flat: list[Tensor], key: str, keep: bool) -> list[Tensor]:
    """Return empty tensors of the right shapes, from a run of one block: all blocks have the same shapes."""
    with _operator_mode(flat[0]):
        run, inputs = _programs[key].with_inputs(flat)
        tokens, coefficients = map_tensors(lambda x: x[:, :1], (inputs.tokens, inputs.coefficients))
        one_block = run._replace(begins=(any(x is not False for x in run.begins),), prepare=as_written)
        inputs = inputs._replace(tokens=tokens, coefficients=coefficients)
        residuals: list[Residuals] = []
        outputs = forward(one_block, inputs, residuals if keep else None)
        outputs = outputs._replace(y=outputs.y.expand(-1, len(run.begins), -1, -1))
        return [x.new_empty(x.shape) for x in tensors((outputs, _packed(residuals * len(run.begins))))]


@torch.library.custom_op(
    "memkit::fused_backward",
    mutates_args=(),
    schema="(Tensor[] flat, Tensor[] residuals, Tensor[] gradients, str key) -> Tensor[]",
)
def _fused_backward(flat: list[Tensor], residuals: list[Tensor], gradients: list[Tensor], key: str) -> list[Tensor]:
    program = _programs[key]
    with _operator_mode(flat[0]):
        run, inputs = program.with_inputs(flat)
        unpacked = _unpacked(run, inputs, with_tensors(program.residuals, map(_without_history, residuals)))
        found = backward(run, inputs, unpacked, with_tensors(program.outputs, map(_without_history, gradients)))
        found = found._replace(anchor=map_tensors(torch.clone, found.anchor))
        return [x.to(like.dtype).contiguous() for x, like in zip(tensors(found), tensors(inputs), strict=True)]


@_fused_backward.register_fake
def _(flat: list[Tensor], residuals: list[Tensor], gradients: list[Tensor], key: str) -> list[Tensor]:
    """Return empty tensors in the shapes of the inputs."""
    _, inputs = with_tensors((_programs[key].run, _programs[key].inputs), flat)
    return [x.new_empty(x.shape) for x in tensors(inputs)]


def _save_context(ctx: Any, inputs: tuple[list[Tensor], str, bool], output: list[Tensor]) -> None:
    flat, ctx.key, _ = inputs
    ctx.count = len(flat)
    ctx.save_for_backward(*flat, *output[len(tensors(_programs[ctx.key].outputs)) :])


def _autograd_backward(ctx: Any, gradients: list[Tensor]) -> tuple[list[Tensor | None], None, None]:
    """Return the gradients of the inputs; for second derivatives and under vmap, by autograd."""
    program = _programs[ctx.key]
    flat, residuals = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    gradients = gradients[: len(tensors(program.outputs))]
    if torch.is_grad_enabled() or batched(gradients):
        run, inputs = with_tensors((program.run, program.inputs), flat)
        found = backward_by_autograd(run, inputs, gradients)
    else:
        found = torch.ops.memkit.fused_backward(list(flat), list(residuals), gradients, ctx.key)
    return [*[None] * (ctx.count - len(found)), *found], None, None


_fused.register_autograd(_autograd_backward, setup_context=_save_context)


@contextmanager
def _operator_mode(like: Tensor) -> Iterator[None]:
    """Leave autocast, and allow autograd again, disabled by torch inside of operators.

    Inference mode is left even outside of it: that enables gradients, but does not track views changed in place, hence
    the second line.
    """
    with without_autocast(like), torch.inference_mode(False), torch._C._PreserveDispatchKeyGuard(), torch.no_grad():
        torch._C._dispatch_tls_set_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView, False)
        yield


def _without_history(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x.detach()


def _packed(residuals: list[Residuals]) -> Tree:
    """Return the residuals of all blocks as a tree of fixed structure.

    Empty tensors replace None and missing names. Left out, because an operator must not return its inputs or views of
    its results: the first block's carry, and all anchors, views of the carries.
    """
    packed = []
    for i, block in enumerate(residuals):
        names = list(block.carry)
        outputs, answers = ({name: x[name] for name in names} for x in (block.outputs, block.queries.outputs))
        grad_inputs = {name: _filled(block.grad_inputs.get(name), outputs[name]) for name in names}
        reads = {name: block.queries.reads[name] for name in names}
        reads = {name: ReadResiduals(x.scores, _filled(x.by_part, x.scores)) for name, x in reads.items()}
        carry = block.carry if i else {}
        packed.append(Residuals(carry, {}, outputs, grad_inputs, QueryResiduals(answers, reads)))
    return tuple(packed)


def _unpacked(run: BlockRun, inputs: Inputs, packed: tuple[Residuals, ...]) -> tuple[Residuals, ...]:
    """Inverse of `_packed`: restore the first carry and the anchors, drop empty tensors."""
    unpacked, anchor = [], inputs.anchor
    for begins, block in zip(run.begins, packed, strict=True):
        carry = block.carry or inputs.carry
        anchor = next_anchor(run.rule, begins, carry, anchor, inputs.tokens)
        grad_inputs = {name: x for name, x in block.grad_inputs.items() if _unfilled(x) is not None}
        reads = {name: ReadResiduals(x.scores, _unfilled(x.by_part)) for name, x in block.queries.reads.items()}
        queries = block.queries._replace(reads=reads)
        unpacked.append(block._replace(carry=carry, anchor=anchor, grad_inputs=grad_inputs, queries=queries))
    return tuple(unpacked)


def _filled(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x


def _unfilled(x: Tensor | None) -> Tensor | None:
    return None if x is None or x.dim() == 1 else x
