"""`memorize` equals the recurrence of Titans, written out in numpy without the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import memkit
from compare import judged
from memkit import MemoryState, Rule
from recurrence import ACTIVATIONS, Array, Arrays, Memory, Norm, Result, recurrence

Form = Literal["scan", "dual"]
BATCH, HEADS, KEY, VALUE, TOKENS = 2, 2, 3, 4, 21
GATES = {"lr": "theta", "momentum": "eta", "decay": "alpha"}


@dataclass
class Inputs:
    """Inputs of `memorize`: tokens of every row and head, and a state with memories and momenta of their own."""

    rule: Rule
    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]
    state: MemoryState

    def memorize(self, form: Form, **options: Any) -> tuple[Tensor, MemoryState]:
        return memkit.memorize(self.rule, self.q, self.k, self.v, self.gates, self.state, form=form, **options)

    def rows(self) -> Iterator[tuple[Arrays, list[Array], list[Array]]]:
        """What the recurrence needs, for one row and head after the other."""
        tokens = {"q": self.q, "k": self.k, "v": self.v, **{GATES[n]: gate for n, gate in self.gates.items()}}
        for b in range(self.q.shape[0]):
            for h in range(self.q.shape[2]):
                yield (
                    {name: x[b, :, h].detach().numpy() for name, x in tokens.items()},
                    [w[b, h].detach().numpy() for w in self.state.weights.values()],
                    [s[0][b, h].detach().numpy() for s in self.state.slots.values()],
                )


def gate(high: float, shape: tuple[int, int, int], g: torch.Generator, **exact: tuple[int, int]) -> Tensor:
    """Gates between 0 and high; zero=(3, 7) puts exact zeros at tokens 3, 10, 17, ..., and `one` ones."""
    drawn = high * torch.rand(shape, generator=g, dtype=torch.double)
    for name, (first, every) in exact.items():
        drawn[:, first::every] = {"zero": 0.0, "one": 1.0}[name]
    return drawn


def draw(rule: Rule, *, batch: int, tokens: int, heads: int, key: int, value: int, lr: float = 0.1) -> Inputs:
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.double)

    shape = (batch, tokens, heads)
    decay = gate(0.05, shape, g, zero=(1, 5))
    decay[0, 3::11, 0] = 1  # one head only, because a deep memory hardly learns from nothing
    gates = {
        "lr": gate(lr, shape, g, zero=(1, 7)),
        "momentum": gate(0.9, shape, g, zero=(2, 7), one=(4, 7)),
        "decay": decay,
    }
    empty = memkit.init_state(rule, batch=batch, heads=heads, key_dim=key, value_dim=value, dtype=torch.double)
    # Weights larger than at initialization, other ones in every row, and a past surprise.
    weights = {name: 1.5 * normal(*w.shape) / w.shape[-2] ** 0.5 for name, w in empty.weights.items()}
    state = replace(
        empty,
        initial=weights,
        weights=weights,
        anchor=weights if empty.anchor else {},
        slots={name: (0.3 * normal(*w.shape),) for name, w in weights.items()},
        constants={name: normal(*x.shape) for name, x in empty.constants.items()},
    )
    q, k = (normal(*shape, key) / key**0.5 for _ in range(2))
    return Inputs(rule, q, k, normal(*shape, value), gates, state)


def assert_equal(found: tuple[Tensor, MemoryState], references: list[Result]) -> None:
    """Compare with what the recurrence found for one row and head after the other."""
    y, state = found

    def whole(parts: list[Array]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).unflatten(0, (y.shape[0], y.shape[2]))

    judged("y", y.transpose(1, 2), whole([outputs for outputs, _, _ in references]))
    for i, name in enumerate(state.weights):
        judged(name, state.weights[name], whole([weights[i] for _, weights, _ in references]))
        for slot in state.slots[name]:
            judged(f"momentum of {name}", slot, whole([momenta[i] for _, _, momenta in references]))


@cache
def case_and_references(depth: int, activation: str, mini_batch: int, read: str) -> tuple[Inputs, list[Result]]:
    rule = memkit.build(
        "rule", "titans", depth=depth, expansion=2, activation=activation, mini_batch=mini_batch, read=read
    )
    case = draw(rule, batch=BATCH, tokens=TOKENS, heads=HEADS, key=KEY, value=VALUE)
    memory = Memory(activation)
    return case, [recurrence(memory, *row, mini_batch=mini_batch, read=read) for row in case.rows()]


@pytest.mark.parametrize("form", ["scan", "dual"])
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("mini_batch", [1, 3, 16, 64])
@pytest.mark.parametrize(
    ("depth", "activation"),
    [(1, "silu"), *((depth, name) for depth in (2, 3) for name in ACTIVATIONS)],
)
def test_memorize_is_the_recurrence_of_titans(
    depth: int, activation: str, mini_batch: int, read: str, form: Form
) -> None:
    case, references = case_and_references(depth, activation, mini_batch, read)
    assert list(case.state.weights) == [f"w{i + 1}" for i in range(depth)]
    assert_equal(case.memorize(form), references)


@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_blocks_smaller_than_the_mini_batch_are_the_recurrence_too(block_size: int) -> None:
    case, references = case_and_references(2, "silu", 16, "after")
    assert_equal(case.memorize("dual", block_size=block_size), references)


@pytest.mark.parametrize("form", ["scan", "dual"])
def test_a_stream_of_calls_is_the_recurrence(form: Form) -> None:
    case, references = case_and_references(3, "gelu", 3, "after")
    outputs, state = [], case.state
    for start, stop in ((0, 1), (1, 8), (8, 8), (8, 10), (10, TOKENS)):
        part = slice(start, stop)
        gates = {name: gate[:, part] for name, gate in case.gates.items()}
        y, state = memkit.memorize(
            case.rule, case.q[:, part], case.k[:, part], case.v[:, part], gates, state, form=form
        )
        outputs.append(y)
    assert_equal((torch.cat(outputs, 1), state), references)


@pytest.mark.parametrize("form", ["scan", "dual"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_residual_memory_is_its_recurrence(depth: int, form: Form) -> None:
    rule = memkit.build("rule", "titans", depth=depth, expansion=2, residual=True, mini_batch=3)
    case = draw(rule, batch=BATCH, tokens=TOKENS, heads=HEADS, key=KEY, value=KEY, lr=0.02)
    norms = [
        Norm(gain.numpy(), bias.numpy())
        for gain, bias in zip(*(x.flatten(0, 1) for x in case.state.constants.values()), strict=True)
    ]
    references = [
        recurrence(Memory(norm=norm), *row, mini_batch=3) for norm, row in zip(norms, case.rows(), strict=True)
    ]
    assert_equal(case.memorize(form), references)


@pytest.mark.parametrize("form", ["scan", "dual"])
def test_a_surprise_limit_is_its_recurrence(form: Form) -> None:
    rule = memkit.build("rule", "titans", expansion=2, mini_batch=4, surprise_limit=6.0)
    case = draw(rule, batch=BATCH, tokens=TOKENS, heads=HEADS, key=KEY, value=VALUE)
    surprise = memkit.observe(rule, case.q, case.k, case.v, case.gates, case.state).surprise
    assert 0.2 < (surprise > 6.0).double().mean() < 0.8  # some tokens are limited, others are not
    references = [recurrence(Memory(), *row, mini_batch=4, limit=6.0) for row in case.rows()]
    assert_equal(case.memorize(form), references)


@pytest.mark.parametrize("form", ["scan", "dual"])
def test_without_momentum_and_decay(form: Form) -> None:
    """The ablations of Titans Table 5 are the recurrence with eta = 0 and alpha = 0."""
    rule = memkit.build("rule", "titans", expansion=2, mini_batch=3, optimizer="gradient_descent", retention="none")
    full = memkit.build("rule", "titans", expansion=2, mini_batch=3)
    case = draw(full, batch=BATCH, tokens=TOKENS, heads=HEADS, key=KEY, value=VALUE, lr=0.02)
    for name in ("momentum", "decay"):
        case.gates[name] = torch.zeros_like(case.gates[name])
    state = replace(case.state, slots={name: () for name in case.state.slots})
    found = memkit.memorize(rule, case.q, case.k, case.v, {"lr": case.gates["lr"]}, state, form=form)
    assert_equal(found, [recurrence(Memory(), *row, mini_batch=3) for row in case.rows()])


@pytest.mark.parametrize("form", ["scan", "dual"])
@pytest.mark.parametrize("read", ["after", "before"])
def test_outer_gradients_are_those_of_the_recurrence(read: str, form: Form) -> None:
    """Differences of the numpy recurrence with an imaginary step, which subtract nothing and so lose nothing."""
    rule = memkit.build("rule", "titans", expansion=2, mini_batch=2, read=read)
    case = draw(rule, batch=1, tokens=5, heads=1, key=2, value=2)
    leaves = {"q": case.q, "k": case.k, "v": case.v, **case.gates}
    leaves |= {name: weight for name, weight in case.state.weights.items()}
    leaves |= {f"momentum of {name}": slots[0] for name, slots in case.state.slots.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y, state = case.memorize(form)
    results = [y, *state.weights.values(), *(slots[0] for slots in state.slots.values())]
    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.double) for x in results]
    found = torch.autograd.grad(results, list(leaves.values()), cotangents)

    ((tokens, weights, momenta),) = case.rows()
    tokens, weights, momenta = (
        {name: x.astype(complex) for name, x in tokens.items()},
        [x.astype(complex) for x in weights],
        [x.astype(complex) for x in momenta],
    )
    arrays = [*(tokens[name] for name in ("q", "k", "v", *GATES.values())), *weights, *momenta]
    step = 1e-30
    for name, array, grad in zip(leaves, arrays, found, strict=True):
        reference = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            real = array[index]
            array[index] = real + 1j * step
            outputs, *ends = recurrence(Memory(), tokens, weights, momenta, mini_batch=2, read=read)
            total = sum(
                np.sum(x * np.reshape(c.numpy(), x.shape))
                for x, c in zip([outputs, *ends[0], *ends[1]], cotangents, strict=True)
            )
            reference[index] = total.imag / step
            array[index] = real
        judged(f"gradient of {name}", grad.view(array.shape), torch.from_numpy(reference))
