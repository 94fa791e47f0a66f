"""`recompute`: the same numbers and gradients, from memory for the cuts alone."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import memkit
from compare import FLOAT32, everything, near
from memkit import Rule
from memkit.engine.recompute import in_groups
from memkit.state import tensors
from small_memory import TOKENS, Case, score, titans
from work import Made

RULES = {
    "mlp": titans(),
    "matrix online": titans(depth=1, mini_batch=1),
    "deep online": titans(mini_batch=1),
    "limited": titans(surprise_limit=0.5, read="before"),
    "mamba2": memkit.build("rule", "mamba2"),
    "every third": titans(depth=1, mini_batch=1, optimizer="gradient_descent"),
}
RULES["every third"] = replace(RULES["every third"], update_every=3)
RULES["window"] = replace(titans(), window=3)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_recompute_changes_no_number(rule: Rule, size: int) -> None:
    mask = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8
    documents = torch.tensor([[0] * 5 + [1] * 6, [0] * 11, [2] * 3 + [3] * 8])
    given = {"mask": mask, "segment_ids": documents}
    near(everything(Case(rule), recompute=size, **given), everything(Case(rule), **given))


def test_a_call_without_tokens() -> None:
    case = Case(tokens=0)
    y, state = case.memorize(recompute=2)
    assert y.shape == case.v.shape
    near(state.weights, case.state.weights)


@pytest.mark.parametrize("name", ["mlp", "limited", "deep online", "matrix online"])
def test_nothing_but_the_cuts_is_kept(name: str) -> None:
    kept, tokens, group = [], 48, 16
    for recompute in (None, group):
        case = Case(RULES[name], tokens=tokens)
        case.leaves()
        with Made() as made:
            y, state = case.memorize(recompute=recompute)
        gc.collect()
        kept.append(made.bytes_in_use)
        assert y.requires_grad
    assert kept[1] <= y.nbytes + tokens // group * state.bytes < kept[0]


def layer_outcome(recompute: int | None, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Output, state and the gradients of everything, of a layer that goes on from a state."""
    torch.manual_seed(0)
    mixer = memkit.build("mixer", "neural_memory", dim=8, heads=2, recompute=recompute).to(dtype)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 10, 8, generator=g).to(dtype).requires_grad_()
    _, state = mixer(torch.randn(2, 3, 8, generator=g).to(dtype))
    mask = torch.tensor([[True] * 10, [False] * 2 + [True] * 5 + [False] + [True] * 2])
    y, state = mixer(x, state, mask=mask, **options)
    held = [a for a in tensors(state) if a.requires_grad]
    (y.square().sum() + sum(a.square().sum() for a in held)).backward()
    return [y.detach(), *(a.detach() for a in held), *(p.grad for p in (x, *mixer.parameters()) if p.grad is not None)]


@pytest.mark.parametrize("write", [True, False])
def test_a_layer_takes_it_and_trains_the_same(write: bool) -> None:
    kept, again = (layer_outcome(recompute, torch.double, write=write) for recompute in (None, 3))
    near(again, kept)


def test_the_second_run_meets_the_autocast_of_the_first() -> None:
    seen, x = [], torch.ones(2, 1, requires_grad=True)

    def run(x: Tensor, state: None) -> tuple[Tensor, None]:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return 2 * x, state

    for enabled in (True, False):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            y, _ = in_groups(run, x, None, 1)
        with torch.autocast("cpu", torch.bfloat16):
            y.sum().backward()
    (first, again), (outside, after) = seen[:2], seen[2:]
    assert first == again == (True, torch.float16) and not outside[0] and not after[0]


@pytest.mark.parametrize("name", ["delta_net", "mamba2", "titans", "omega"])
def test_autocast_rounds_no_gradient_of_the_memory(name: str) -> None:
    """The way back has products of its own, which autocast would round."""
    rule, found = memkit.build("rule", name), []
    for recompute in (None, 4):
        case = Case(rule, dtype=torch.float32)
        leaves = case.leaves()
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = case.memorize(recompute=recompute)
        y.square().sum().backward()
        found.append([x.grad for x in leaves if x.grad is not None])
    for a, b in zip(*found, strict=True):  # gradients of 11 writes in a row: their relative error is larger
        torch.testing.assert_close(a, b, rtol=10 * FLOAT32, atol=FLOAT32)


def test_a_layer_keeps_its_inputs_and_states_alone() -> None:
    kept = []
    for recompute in (None, 16):
        mixer, found = memkit.build("mixer", "neural_memory", dim=8, heads=2, recompute=recompute), {}
        known = {p.untyped_storage().data_ptr() for p in mixer.parameters()}

        def pack(x: Tensor, found: dict[int, int] = found) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        x = torch.randn(1, 64, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            mixer(x)
        kept.append(sum(size for place, size in found.items() if place not in known))
        state = mixer.init_state(1).bytes
    assert kept[1] <= 64 * 8 * 4 + 5 * state < kept[0] / 2


def test_gradients_of_its_gradients_are_refused() -> None:
    case = Case()
    case.k.requires_grad_()
    y, state = case.memorize(recompute=4)
    for found in (score(y, state), y.sum()):  # also where the slope that arrives has no history
        (first,) = torch.autograd.grad(found, case.k, create_graph=True, retain_graph=True)
        with pytest.raises(RuntimeError, match="use recompute=None"):
            torch.autograd.grad(first.square().sum(), case.k, retain_graph=True)


@pytest.mark.parametrize("size", [0, -3, 1.5])
def test_a_group_has_tokens(size: Any) -> None:
    with pytest.raises(ValueError, match="recompute must be an integer of at least 1"):
        Case().memorize(recompute=size)


def test_activation_checkpoints_run_a_layer_twice_and_not_once_a_tape() -> None:
    mixer = memkit.build("mixer", "neural_memory", dim=8, heads=2)
    x, calls = torch.randn(1, 50, 8), []

    def run(x: Tensor) -> Tensor:
        calls.append(1)
        return mixer(x)[0]

    checkpoint(run, x, use_reentrant=False).square().sum().backward()
    assert len(calls) == 2
