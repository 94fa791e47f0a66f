"""The form `triton`: `dual` for the memory of Titans, with kernels for what blocks hand on to each other.

Only tape and fold wait for the block before. So a kernel walks the blocks (`kernels`), one launch for up to 32
of them forward and one backward. All else is done for all blocks at once by torch: the coefficients, the gradients
that wait for no block, and the reading, which is `dual`'s own `read`, differentiated by autograd.

It is asked for by name, on CUDA tensors. Triton's interpreter runs it on a CPU, where tests hold it to `scan` in
outputs, state and gradients. **Its speed is not measured**, as no GPU was at hand; `memkit bench triton` measures it
where there is one. What compiling it for sm_90 says, with triton 3.9, heads of 64, mini-batches of 64 and 256 hidden
units:

                          registers a thread    spilled, bytes    shared memory
    tf32     forward      168                   0                 24 KiB
             backward     254                   0                 24 KiB
    tf32x3   forward      245                   0                 16 KiB
             backward     255                   272               16 KiB

A row, a head of a batch row, is one program of 4 warps, and registers let two be on a multiprocessor. For the backward
pass a call keeps the state before every block, as `dual` does. Gradients cannot be differentiated again.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.autograd import differentiable_once, outside_autocast
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
"""Blocks of one launch: their states, 256 KiB a row at the shape above, are in memory together."""
WIDTHS = (16, 32, 64)
"""Of keys and values that the kernel takes."""
MINI_BATCHES = (16, 32, 64)
"""Tokens of a mini-batch that the kernel takes."""
SLICE = 16
"""Hidden units that the kernels take at once, a divisor of all `WIDTHS`; more of them spill registers."""
COMPILED = {"num_warps": 4, "num_stages": 1}
"""How the kernels are compiled: loads are not moved ahead across a program's own stores."""


def triton_dual(call: Call) -> Result:
    """Run the call as `dual` does, in blocks that end where mini-batches do.

    Where losses are observed it is `dual`. Raises `ValueError` where the kernels cannot run: without triton, on a CPU
    without its interpreter, for widths that are not equal or none of `WIDTHS`.
    """
    rule, tokens, rows, blocks = call.rule, call.tokens, call.rows, call.blocks
    _check(tokens, rows)
    if call.observe or not blocks or not tokens.k.shape[0]:
        return dual(call)
    groups = [blocks[i : i + GROUP] for i in range(0, len(blocks), GROUP)]
    outputs = []
    for group, here in zip(groups, cut(tokens, [g[-1].stop - g[0].start for g in groups]), strict=True):
        there = None if call.valid is None else call.valid[:, group[0].start : group[-1].stop]
        y, rows = _group(rule, here, rows, group, there)
        outputs.append(y)
    return Result(torch.cat(outputs, 1), rows)


def kernels() -> Any:
    """The module of the kernels, which imports triton; `ValueError` without it."""
    try:
        return importlib.import_module("memkit.engine.forms.triton.kernels")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"form 'triton' is not available here: {type(error).__name__}: {error}. It needs a CUDA device and "
            "`pip install -e '.[triton]'`; form='auto' runs everywhere."
        ) from error


def _check(tokens: Tokens, rows: Rows) -> None:
    """Raise `ValueError` unless the kernel can take these tokens here."""
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
    """Fill the first and the last block up to `size` with tokens that never were, and say how many come first."""
    front = size - (blocks[0].stop - blocks[0].start) if len(blocks) > 1 else 0
    back = len(blocks) * size - front - tokens.k.shape[1]
    if front or back:
        there = torch.ones_like(tokens.k[..., 0], dtype=torch.bool) if valid is None else valid
        valid = F.pad(there, (front, back))
        tokens = map_tensors(lambda x: F.pad(x, (0, 0) * (x.dim() - 2) + (front, back)), tokens)
    return tokens, valid, front


def _group(rule: Rule, tokens: Tokens, rows: Rows, blocks: list[Block], valid: Tensor | None) -> tuple[Tensor, Rows]:
    """Blocks of one launch."""
    length = tokens.k.shape[1]
    split = {name: (weight, *rows.slots[name]) for name, weight in rows.weights.items()}
    anchor = gradient_weights(rule, blocks[0], split, dict(rows.anchor), tokens.gates)
    count = len(blocks)
    tokens, valid, front = _padded(rule.mini_batch, tokens, blocks, valid)
    own = coefficients.unroll(coefficients.probe(rule, tokens, valid).blocks(count, rule.mini_batch))
    chain = _chain(rule, tokens, rows, anchor, own, count)
    y = _read(rule, tokens, own, chain, count)
    return y[:, front : front + length], _rows_after(rows, blocks, anchor, chain)


class Chain(NamedTuple):
    """What blocks hand on, and the tapes of all; see `kernels`.

    before `[blocks, N, 4, D, HIDDEN]`, after `[N, 4, D, HIDDEN]`: W1, S1, W2, S2, the second layer's transposed.
    k, e `[blocks, N, L, D]`; a, g `[blocks, N, L, HIDDEN]`.
    """

    before: Tensor
    after: Tensor
    k: Tensor
    e: Tensor
    a: Tensor
    g: Tensor


def _chain(rule: Rule, tokens: Tokens, rows: Rows, anchor: dict[str, Tensor], own: Coefficients, count: int) -> Chain:
    fixed, slope = affine(rule, tokens)
    k, r, h = (_by_block(x, count) for x in (tokens.k, fixed, slope.expand_as(fixed[..., :1])))
    numbers = torch.cat([own.last_write.transpose(0, 1), h], -1).mT.contiguous()
    folding = own.last_carry.transpose(0, 1).flatten(-2).contiguous()
    first = torch.stack([anchor["w1"], anchor["w2"].mT], 1)
    start = torch.stack(
        [rows.weights["w1"], *rows.slots["w1"], rows.weights["w2"].mT, *(x.mT for x in rows.slots["w2"])], 1
    )
    before, after, e, a, g = _Chain.apply(k, r, numbers, folding, first, start)
    return Chain(before, after, k, e, a, g)


def _read(rule: Rule, tokens: Tokens, own: Coefficients, chain: Chain, count: int) -> Tensor:
    """What all queries read, `[N, blocks * L, V]`: `dual`'s reading, with blocks as rows."""
    effect = Effect(*(x.transpose(0, 1).flatten(0, 1) for x in own.weight))
    seen = for_queries(rule, effect)
    first, second = chain.before.flatten(0, 1).split(2, 1)
    carry = {"w1": first.flatten(1, 2), "w2": second.mT.flatten(1, 2)}
    k, a, g, e = (x.flatten(0, 1) for x in (chain.k, chain.a, chain.g, chain.e))
    inputs, errors = {"w1": k, "w2": a}, {"w1": g, "w2": e}
    q = _by_block(tokens.q, count).flatten(0, 1)
    y = rule.memory.forward(lambda name, x: read(seen, x, carry[name], inputs[name], errors[name]), q, {})
    return y.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)


def _rows_after(rows: Rows, blocks: list[Block], anchor: dict[str, Tensor], chain: Chain) -> Rows:
    """The rows after the last block; a row's anchor is what its last mini-batch began with."""
    w1, s1, w2, s2 = chain.after.unbind(1)
    last = torch.zeros(len(w1), dtype=torch.long, device=w1.device)
    for j, block in enumerate(blocks[1:], 1):
        last = torch.where(block.begins, j, last) if isinstance(block.begins, Tensor) else torch.full_like(last, j)
    there = last.view(1, -1, 1, 1, 1).expand(1, -1, *chain.before.shape[2:])
    seen = chain.before.gather(0, there)[0]
    in_first = (last == 0)[:, None, None]
    kept = {
        "w1": torch.where(in_first, anchor["w1"], seen[:, 0]),
        "w2": torch.where(in_first, anchor["w2"], seen[:, 2].mT),
    }
    return replace(
        rows,
        weights={"w1": w1, "w2": w2.mT},
        slots={"w1": (s1,), "w2": (s2.mT,)},
        anchor={name: kept[name] for name in rows.anchor},
    )


def _by_block(x: Tensor, count: int) -> Tensor:
    """`[N, blocks * L, ...]` -> `[blocks, N, L, ...]`."""
    return x.unflatten(1, (count, -1)).transpose(0, 1).contiguous()


class _Chain(torch.autograd.Function):
    """The kernels as a function of keys, errors at a prediction of 0, numbers, folding, anchor and state."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, r: Tensor, numbers: Tensor, folding: Tensor, first: Tensor, start: Tensor
    ) -> tuple[Tensor, ...]:
        """Return before, after, e, a and g of a `Chain`."""
        count, n, size, width = k.shape
        states = k.new_empty(count + 2, *start.shape)
        states[0, :, 0::2], states[1] = first, start
        predictions, e = torch.empty_like(r), torch.empty_like(r)
        a, g = (k.new_empty(count, n, size, start.shape[-1]) for _ in range(2))
        ctx.precision = _precision(k.dtype)
        _launch("forward", ctx.precision, [k, r, numbers, folding, states, predictions, e, a, g])
        ctx.save_for_backward(k, numbers, folding, states, predictions, e, a, g)
        return states[1:-1], states[-1].clone(), e, a, g

    @staticmethod
    @outside_autocast
    @differentiable_once("the form 'triton'", "form='dual'")
    def backward(ctx: Any, saved: tuple[Tensor, ...], *arriving: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The kernel goes back from block to block; what is left waits for none."""
        before, after, *others = arriving
        k, numbers, folding, states, predictions, e, a, g = saved
        grads = torch.cat([torch.zeros_like(states[:1]), before, after[None]])
        grad_r, scaled = torch.empty_like(k), torch.empty_like(k)
        grad_z, grad_d, slopes = (torch.empty_like(a) for _ in range(3))
        arrived = [grads, *(x.contiguous() for x in others)]
        made = [grad_r, scaled, grad_z, grad_d, slopes]
        _launch("backward", ctx.precision, [k, numbers, folding, states, e, a, *arrived, *made])

        left = grads[2:].unflatten(2, (2, 2))  # [blocks, N, layer, (weight, slot), D, HIDDEN]
        by_key = torch.einsum("bnlh,bnidh->bnild", g, left[:, :, 0])
        by_unit = torch.einsum("bnlh,bnidh->bnild", a, left[:, :, 1])
        seen = torch.cat([states[:1, :, 0], states[2:-1, :, 0]])
        grad_k = torch.einsum("bnlh,bndh->bnld", grad_z, seen) + (numbers[:, :, :2, :, None] * by_key).sum(2)
        writes = (k[:, :, None] * by_key).sum(-1) + (e[:, :, None] * by_unit).sum(-1)
        slope = (grad_r * predictions).sum(-1, keepdim=True).mT
        carried = states[1:-1].unflatten(2, (2, 2))
        grad_folding = torch.einsum("bnyodh,bnyidh->bnoi", left, carried).flatten(-2)
        return grad_k, grad_r, torch.cat([writes, slope], 2), grad_folding, grads[0, :, 0::2], grads[1]


def _launch(kernel: str, precision: str, tensors: list[Tensor]) -> None:
    """Run a kernel with a program a row on tensors, the first of which is k."""
    k = tensors[0]
    count, rows, size, width = k.shape
    hidden = tensors[-1].shape[-1]
    with torch.cuda.device_of(k):
        run = getattr(kernels(), kernel)[(rows,)]
        run(*tensors, count, L=size, D=width, HIDDEN=hidden, SLICE=SLICE, PRECISION=precision, **COMPILED)


def _precision(dtype: torch.dtype) -> str:
    """How exact products are: three of TF32 make one of nearly float32, unless torch was told that one is enough."""
    if dtype == torch.float64:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def not_for_the_kernel(rule: Rule) -> list[str]:
    """Reasons against the kernel, for tokens of any width."""
    found = moving_weights(rule)
    memory = rule.memory
    plain = isinstance(memory, MLPMemory) and memory.depth == 2 and memory.activation == "silu" and not memory.residual
    if not plain:
        found.append("its memory is not an MLP of depth 2 with silu")
    if not (rule.objective.quadratic or rule.objective.linear):
        found.append(f"the gradient of its objective {rule.objective.name!r} is not linear in the prediction")
    if rule.point is not at_weights:
        found.append("its gradient point is not the weights themselves")
    if rule.slots != 1:
        found.append(f"it keeps {rule.slots} numbers beside each weight, and the kernel one, the momentum")
    if rule.mini_batch not in MINI_BATCHES:
        found.append(f"its mini_batch is {rule.mini_batch}, and the kernel's blocks have 16, 32 or 64 tokens")
    if rule.surprise_limit is not None:
        found.append("its surprise_limit is not linear")
    return found


def _layout(rule: Rule, place: Place, block_size: int) -> Layout:
    if not rule.sees_weights:
        return without_periods(place.mask, place.tokens, block_size)
    return lay_out(rule.period, *place, rule.mini_batch)  # blocks of one size: whole mini-batches


TRITON = Form("triton", not_for_the_kernel, _layout, triton_dual, suits=lambda rule: False)
