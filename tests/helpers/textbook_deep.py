"""Parts of the textbook tests of deep rules: inputs, the comparison, and the memories as plain formulas.

A textbook is a plain loop over the tokens of one head of one row, in the paper's symbols, with nothing of the
engine: it takes tokens and gates by name `[T, ...]`, weights `[in, out]` and constants by name, and returns y
`[T, V]`, the final weights and the final slots of each weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import memkit
from compare import judged
from memkit import Rule
from memkit.engine import FormName as Form

Arrays = dict[str, Tensor]
Textbook = Callable[[Arrays, Arrays, Arrays], tuple[Tensor, Arrays, dict[str, tuple[Tensor, ...]]]]
BATCH, HEADS, TOKENS = 2, 2, 13


def hold_to(
    textbook: Textbook, rule: Rule, *, width: int = 4, form: Form = "auto", **gates: tuple[float, float]
) -> None:
    """Outputs, final state and all gradients of `memorize` are the textbook's, to 1e-10 of the largest number.

    gates: name -> the range that it is drawn from.
    """
    inputs, state = draw(rule, width, gates)
    tokens = {name: inputs[name] for name in ("q", "k", "v", *gates)}
    weights = {name: inputs[f"initial {name}"] for name in state.weights}
    constants = {name: inputs[f"constant {name}"] for name in state.constants}
    begun = replace(state, initial=weights, constants=constants)
    begun = begun.reset(torch.ones(BATCH, dtype=torch.bool), rule)
    given = {name: tokens[name] for name in gates}
    y, after = memkit.memorize(rule, inputs["q"], inputs["k"], inputs["v"], given, begun, form=form)
    found = [y, *after.weights.values(), *(x for slots in after.slots.values() for x in slots)]

    wanted: list[list[Tensor]] = []
    for b in range(BATCH):
        for h in range(HEADS):
            one = {name: x[b, :, h] for name, x in tokens.items()}
            own = ({name: x[b, h] for name, x in tree.items()} for tree in (weights, constants))
            read, ends, slots = textbook(one, *own)
            wanted.append([read, *ends.values(), *(x for held in slots.values() for x in held)])
    columns = [torch.stack(x).unflatten(0, (BATCH, HEADS)) for x in zip(*wanted, strict=True)]
    columns[0] = columns[0].transpose(1, 2)
    for what, actual, reference in zip(range(len(found)), found, columns, strict=True):
        judged(f"result {what}", actual, reference)
    for name, actual, reference in zip(inputs, gradients(found, inputs), gradients(columns, inputs), strict=True):
        judged(f"the gradient of {name}", actual, reference)


def draw(rule: Rule, width: int, ranges: dict[str, tuple[float, float]]) -> tuple[Arrays, Any]:
    """Leaves: tokens with unit keys, gates within their ranges, weights and constants of every row and head."""
    g = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.double)

    state = memkit.init_state(rule, batch=BATCH, heads=HEADS, key_dim=width, value_dim=width, dtype=torch.double)
    shape = (BATCH, TOKENS, HEADS)
    keys = normal(*shape, width)
    found = {"q": normal(*shape, width), "k": keys / keys.norm(dim=-1, keepdim=True), "v": normal(*shape, width)}
    for name, (low, high) in ranges.items():
        found[name] = low + (high - low) * torch.rand(shape, generator=g, dtype=torch.double)
    for name, weight in state.weights.items():
        found[f"initial {name}"] = normal(*weight.shape) / weight.shape[-2] ** 0.5
    for name, constant in state.constants.items():
        found[f"constant {name}"] = constant + 0.3 * normal(*constant.shape)
    return {name: x.requires_grad_() for name, x in found.items()}, state


def gradients(results: list[Tensor], leaves: Arrays) -> tuple[Tensor, ...]:
    """Of a fixed random functional of the results."""
    g = torch.Generator().manual_seed(12)
    total = torch.stack([(x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in results]).sum()
    return torch.autograd.grad(
        total, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )


def slope(loss: Tensor, weights: Arrays) -> Arrays:
    """d loss / d weights, differentiable once more."""
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    return dict(zip(weights, found, strict=True))


def gelu(z: Tensor) -> Tensor:
    """z times the normal distribution function."""
    return z * (1 + torch.erf(z / 2**0.5)) / 2


def silu(z: Tensor) -> Tensor:
    """z times the logistic function."""
    return z / (1 + torch.exp(-z))


def layer_norm(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Mean 0 and variance 1, then gain and bias."""
    centred = z - z.mean()
    return gain * centred / ((centred**2).mean() + 1e-5).sqrt() + bias


def residual_norm(w: Arrays, c: Arrays, x: Tensor) -> Tensor:
    """M(x) = x + LN(gelu(x W_1) W_2)."""
    return x + layer_norm(gelu(x @ w["w1"]) @ w["w2"], c["gain"], c["bias"])


def monomials(x: Tensor) -> Tensor:
    """1, x_i, x_i x_j / sqrt(2) for i = j, x_i x_j for i < j."""
    parts = [torch.ones((), dtype=x.dtype), *x]
    for i in range(len(x)):
        parts += [x[i] * x[j] / (2**0.5 if i == j else 1) for j in range(i, len(x))]
    return torch.stack(parts)
