"""The form `triton`: `dual` for the memory of Titans, with Triton kernels for tape and fold.

Tokens q, k, v `[N, T, D]`, gates `[N, T]` -> y `[N, T, D]` and the next rows. Only tape and fold depend on the block
before, so one kernel loops over blocks (`kernels`), one launch per up to 32 blocks forward and one backward. torch does
the rest for all blocks at once: coefficients, reads (`dual`'s own `read`, differentiated by autograd), and the
gradients without such a dependence.

Chosen by name only, on CUDA tensors. On a CPU Triton's interpreter runs it; tests there compare outputs, state and
gradients with `scan`. **Its speed has not been measured on a GPU**; `memkit bench triton` measures it. Compiled for
sm_90 by triton 3.9, for heads of 64, mini-batches of 64 and 256 hidden units:

                          registers per thread  bytes spilled     shared memory
    tf32     forward      168                   0                 24 KiB
             backward     254                   0                 24 KiB
    tf32x3   forward      245                   0                 16 KiB
             backward     255                   272               16 KiB

A row, a head of a batch row, is one program of 4 warps; registers allow two per multiprocessor. The state before every
block is kept for the backward pass, as in `dual`. Differentiable once.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.autograd import once_differentiable, outside_autocast
from memkit.engine.core import coefficients
from memkit.engine.core.affine import affine
from memkit.engine.core.block import for_queries, gradient_weights, read
from memkit.engine.core.coefficients import Coefficients, Effect
from memkit.engine.core.obstacles import moving_weights
from memkit.engine.core.rows import Rows, cut
from memkit.engine.form import Call, Form, Place, Result
from memkit.engine.forms.dual import dual
from memkit.layout import Block, Layout, lay_out, without_periods
from memkit.parts.memory import MLPMemory
from memkit.rule import Rule, Tokens, at_weights
from memkit.state import map_tensors

GROUP = 32
"""Blocks per launch; their states, 256 KiB per row at the shape above, are in memory together."""
WIDTHS = (16, 32, 64)
"""Widths of keys and values supported by the kernels."""
MINI_BATCHES = (16, 32, 64)
"""Mini-batches, in tokens, supported by the kernels."""
SLICE = 16
"""Hidden units per step of a kernel, a divisor of all `WIDTHS`; a larger slice spills registers."""
COMPILED = {"num_warps": 4, "num_stages": 1}
"""Compiler options; one stage, because loads must not be moved ahead across a program's own stores."""


def triton_dual(call: Call) -> Result:
    """Run the call as `dual` does, in blocks of whole mini-batches; `dual` itself runs if losses are observed.

    Raises `ValueError` if the kernels cannot run: without triton, on a CPU without its interpreter, or if keys and
    values do not have one of `WIDTHS`, the same for both.
    """
    rule, tokens, rows, blocks = call.rule, call.tokens, call.rows, call.blocks
    _check(tokens, rows)
    if call.observe or not blocks or not tokens.k.shape[0]:
        return dual(call)
    groups = [blocks[i : i + GROUP] for i in range(0, len(blocks), GROUP)]
    outputs = []
    for group, part in zip(groups, cut(tokens, [g[-1].stop - g[0].start for g in groups]), strict=True):
        valid = None if call.valid is None else call.valid[:, group[0].start : group[-1].stop]
        y, rows = _run_group(rule, part, rows, group, valid)
        outputs.append(y)
    return Result(torch.cat(outputs, 1), rows)


def kernels() -> Any:
    """Import and return the module of the kernels; raise `ValueError` if triton is missing."""
    try:
        return importlib.import_module("memkit.engine.forms.triton.kernels")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"form 'triton' is not available here: {type(error).__name__}: {error}. It needs a CUDA device and "
            "`pip install -e '.[triton]'`; form='auto' runs everywhere."
        ) from error


def _check(tokens: Tokens, rows: Rows) -> None:
    """Raise `ValueError` if the kernels cannot run on these tokens here."""
    key_dim, value_dim = rows.weights["w1"].shape[-2], tokens.v.shape[-1]
    if key_dim != value_dim or key_dim not in WIDTHS:
        raise ValueError(
            f"form 'triton' takes keys and values of one width, 16, 32 or 64; got K = {key_dim} and V = {value_dim}. "
            "Use form='auto'."
        )
    compiled = isinstance(kernels().forward, kernels().triton.JITFunction)
    if tokens.k.device.type != "cuda" and compiled:
        raise ValueError(
            f"form 'triton' runs on CUDA tensors; got tensors on {tokens.k.device}. Use form='auto', or, to try the "
            "kernel on a CPU, set TRITON_INTERPRET=1 before the process starts."
        )


def _padded(size: int, tokens: Tokens, blocks: list[Block], valid: Tensor | None) -> tuple[Tokens, Tensor | None, int]:
    """Pad the first and the last block to `size` with invalid tokens; return their number at the front, too."""
    front = size - (blocks[0].stop - blocks[0].start) if len(blocks) > 1 else 0
    back = len(blocks) * size - front - tokens.k.shape[1]
    if front or back:
        unpadded = torch.ones_like(tokens.k[..., 0], dtype=torch.bool) if valid is None else valid
        valid = F.pad(unpadded, (front, back))
        tokens = map_tensors(lambda x: F.pad(x, (0, 0) * (x.dim() - 2) + (front, back)), tokens)
    return tokens, valid, front


def _run_group(
    rule: Rule, tokens: Tokens, rows: Rows, blocks: list[Block], valid: Tensor | None
) -> tuple[Tensor, Rows]:
    """Run the blocks of one launch: return y `[N, T, D]` and the next rows."""
    length = tokens.k.shape[1]
    split = {name: (weight, *rows.slots[name]) for name, weight in rows.weights.items()}
    anchor = gradient_weights(rule, blocks[0], split, dict(rows.anchor), tokens.gates)
    count = len(blocks)
    tokens, valid, front = _padded(rule.mini_batch, tokens, blocks, valid)
    effects = coefficients.unroll(coefficients.probe(rule, tokens, valid).blocks(count, rule.mini_batch))
    chain = _run_chain(rule, tokens, rows, anchor, effects, count)
    y = _read(rule, tokens, effects, chain, count)
    return y[:, front : front + length], _rows_after(rows, blocks, anchor, chain)


class Chain(NamedTuple):
    """States between blocks, and the tapes of all blocks; symbols as in `kernels`.

    before `[blocks, N, 4, D, HIDDEN]`, after `[N, 4, D, HIDDEN]`: W1, S1, W2, S2, the last two transposed.
    k, e `[blocks, N, L, D]`; a, g `[blocks, N, L, HIDDEN]`.
    """

    before: Tensor
    after: Tensor
    k: Tensor
    e: Tensor
    a: Tensor
    g: Tensor


def _run_chain(
    rule: Rule, tokens: Tokens, rows: Rows, anchor: dict[str, Tensor], effects: Coefficients, count: int
) -> Chain:
    """Run tape and fold of all blocks, in the kernels' layout."""
    at_zero, factor = affine(rule, tokens)
    k, r, h = (_by_block(x, count) for x in (tokens.k, at_zero, factor.expand_as(at_zero[..., :1])))
    scalars = torch.cat([effects.last_write.transpose(0, 1), h], -1).mT.contiguous()
    transition = effects.last_carry.transpose(0, 1).flatten(-2).contiguous()
    first = torch.stack([anchor["w1"], anchor["w2"].mT], 1)
    start = torch.stack(
        [rows.weights["w1"], *rows.slots["w1"], rows.weights["w2"].mT, *(x.mT for x in rows.slots["w2"])], 1
    )
    before, after, e, a, g = _Chain.apply(k, r, scalars, transition, first, start)
    return Chain(before, after, k, e, a, g)


def _read(rule: Rule, tokens: Tokens, effects: Coefficients, chain: Chain, count: int) -> Tensor:
    """Read all queries, `[N, blocks * L, D]`, as `dual` does, with blocks as rows."""
    effect = for_queries(rule, Effect(*(x.transpose(0, 1).flatten(0, 1) for x in effects.weight)))
    first, second = chain.before.flatten(0, 1).split(2, 1)
    carry = {"w1": first.flatten(1, 2), "w2": second.mT.flatten(1, 2)}
    k, a, g, e = (x.flatten(0, 1) for x in (chain.k, chain.a, chain.g, chain.e))
    inputs, errors = {"w1": k, "w2": a}, {"w1": g, "w2": e}
    q = _by_block(tokens.q, count).flatten(0, 1)
    y = rule.memory.forward(lambda name, x: read(effect, x, carry[name], inputs[name], errors[name]), q, {})
    return y.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)


def _rows_after(rows: Rows, blocks: list[Block], anchor: dict[str, Tensor], chain: Chain) -> Rows:
    """Return the rows after the last block; a row's anchor is the state before its last mini-batch."""
    w1, s1, w2, s2 = chain.after.unbind(1)
    last = torch.zeros(len(w1), dtype=torch.long, device=w1.device)
    for j, block in enumerate(blocks[1:], 1):
        last = torch.where(block.begins, j, last) if isinstance(block.begins, Tensor) else torch.full_like(last, j)
    index = last.view(1, -1, 1, 1, 1).expand(1, -1, *chain.before.shape[2:])
    state = chain.before.gather(0, index)[0]
    in_first = (last == 0)[:, None, None]
    anchors = {
        "w1": torch.where(in_first, anchor["w1"], state[:, 0]),
        "w2": torch.where(in_first, anchor["w2"], state[:, 2].mT),
    }
    return replace(
        rows,
        weights={"w1": w1, "w2": w2.mT},
        slots={"w1": (s1,), "w2": (s2.mT,)},
        anchor={name: anchors[name] for name in rows.anchor},
    )


def _by_block(x: Tensor, count: int) -> Tensor:
    """Reshape `[N, blocks * L, ...]` to `[blocks, N, L, ...]`."""
    return x.unflatten(1, (count, -1)).transpose(0, 1).contiguous()


class _Chain(torch.autograd.Function):
    """The kernels as a function of keys k, errors r at prediction 0, scalars, transition, first anchor and state."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, r: Tensor, scalars: Tensor, transition: Tensor, first: Tensor, start: Tensor
    ) -> tuple[Tensor, ...]:
        """Return before, after, e, a and g of a `Chain`."""
        count, n, size, width = k.shape
        states = k.new_empty(count + 2, *start.shape)
        states[0, :, 0::2], states[1] = first, start
        predictions, e = torch.empty_like(r), torch.empty_like(r)
        a, g = (k.new_empty(count, n, size, start.shape[-1]) for _ in range(2))
        ctx.precision = _precision(k.dtype)
        _launch("forward", ctx.precision, [k, r, scalars, transition, states, predictions, e, a, g])
        ctx.save_for_backward(k, scalars, transition, states, predictions, e, a, g)
        return states[1:-1], states[-1].clone(), e, a, g

    @staticmethod
    @outside_autocast
    @once_differentiable("the form 'triton'", "form='dual'")
    def backward(ctx: Any, saved: tuple[Tensor, ...], *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the backward kernel, then compute for all blocks at once the gradients without a loop."""
        grad_before, grad_after, *grad_tape = gradients
        k, scalars, transition, states, predictions, e, a, g = saved
        grad_states = torch.cat([torch.zeros_like(states[:1]), grad_before, grad_after[None]])
        grad_r, grad_predictions = torch.empty_like(k), torch.empty_like(k)
        grad_z, grad_d, derivatives = (torch.empty_like(a) for _ in range(3))
        read_and_changed = [grad_states, *(x.contiguous() for x in grad_tape)]
        filled = [grad_r, grad_predictions, grad_z, grad_d, derivatives]
        _launch("backward", ctx.precision, [k, scalars, transition, states, e, a, *read_and_changed, *filled])

        grad_next = grad_states[2:].unflatten(2, (2, 2))  # [blocks, N, layer, (weight, slot), D, HIDDEN]
        by_key = torch.einsum("bnlh,bnidh->bnild", g, grad_next[:, :, 0])
        by_unit = torch.einsum("bnlh,bnidh->bnild", a, grad_next[:, :, 1])
        anchors = torch.cat([states[:1, :, 0], states[2:-1, :, 0]])
        grad_k = torch.einsum("bnlh,bndh->bnld", grad_z, anchors) + (scalars[:, :, :2, :, None] * by_key).sum(2)
        grad_writes = (k[:, :, None] * by_key).sum(-1) + (e[:, :, None] * by_unit).sum(-1)
        grad_h = (grad_r * predictions).sum(-1, keepdim=True).mT
        carries = states[1:-1].unflatten(2, (2, 2))
        grad_transition = torch.einsum("bnyodh,bnyidh->bnoi", grad_next, carries).flatten(-2)
        grad_scalars = torch.cat([grad_writes, grad_h], 2)
        return grad_k, grad_r, grad_scalars, grad_transition, grad_states[0, :, 0::2], grad_states[1]


def _launch(kernel: str, precision: str, tensors: list[Tensor]) -> None:
    """Run a kernel with one program per row; the first tensor is k, the last has HIDDEN columns."""
    k = tensors[0]
    count, rows, size, width = k.shape
    hidden = tensors[-1].shape[-1]
    with torch.cuda.device_of(k):
        run = getattr(kernels(), kernel)[(rows,)]
        run(*tensors, count, L=size, D=width, HIDDEN=hidden, SLICE=SLICE, PRECISION=precision, **COMPILED)


def _precision(dtype: torch.dtype) -> str:
    """Return the precision of products: for float32 three TF32 products (nearly exact), or one if torch allows it."""
    if dtype == torch.float64:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def not_for_the_kernel(rule: Rule) -> list[str]:
    """Return reasons against the kernels, for tokens of any width."""
    reasons = moving_weights(rule)
    memory = rule.memory
    plain = isinstance(memory, MLPMemory) and memory.depth == 2 and memory.activation == "silu" and not memory.residual
    if not plain:
        reasons.append("its memory is not an MLP of depth 2 with silu")
    if not (rule.objective.quadratic or rule.objective.linear):
        reasons.append(f"the gradient of its objective {rule.objective.name!r} is not linear in the prediction")
    if rule.point is not at_weights:
        reasons.append("its gradient point is not the weights themselves")
    if rule.slots != 1:
        reasons.append(f"it keeps {rule.slots} numbers beside each weight, and the kernel one, the momentum")
    if rule.mini_batch not in MINI_BATCHES:
        reasons.append(f"its mini_batch is {rule.mini_batch}, and the kernel's blocks have 16, 32 or 64 tokens")
    if rule.surprise_limit is not None:
        reasons.append("its surprise_limit is not linear")
    return reasons


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    if not rule.sees_weights:
        return without_periods(place.mask, place.tokens, block_size)
    return lay_out(rule.period, *place, rule.mini_batch)  # blocks of one size: whole mini-batches


TRITON = Form("triton", not_for_the_kernel, _layout, triton_dual, suits=lambda rule: False)
