"""The engine under every mode of torch, and what it says to inputs that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import memkit

RULE = memkit.build("rule", "titans", depth=2, expansion=2, mini_batch=4)


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], memkit.MemoryState]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 11, 2, 4, generator=g).to(dtype) for _ in range(3))
    gates = {name: (0.1 * torch.rand(2, 11, 2, generator=g)).to(dtype) for name in RULE.gates}
    state = memkit.init_state(RULE, batch=2, heads=2, key_dim=4, value_dim=4, generator=g)
    return q, k, v, gates, state


def test_inference_mode_gives_ordinary_tensors() -> None:
    expected, _ = memkit.memorize(RULE, *problem())
    with torch.inference_mode():
        y, state = memkit.memorize(RULE, *problem())  # drawn in inference mode too
    assert not y.is_inference() and not y.requires_grad
    assert torch.equal(y, expected)
    assert not any(weight.is_inference() for weight in state.weights.values())


def test_autocast_does_not_round_the_memory() -> None:
    expected, _ = memkit.memorize(RULE, *problem())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = memkit.memorize(RULE, *problem())
    assert torch.equal(y, expected)
    assert state.weights["w1"].dtype == torch.float32


def test_half_precision_tokens_keep_a_full_state() -> None:
    q, k, v, gates, state = problem(torch.bfloat16)
    y, after = memkit.memorize(RULE, q, k, v, gates, state)
    wide = {name: gate.float() for name, gate in gates.items()}
    expected, _ = memkit.memorize(RULE, q.float(), k.float(), v.float(), wide, state)
    assert y.dtype == torch.bfloat16 and after.weights["w2"].dtype == torch.float32
    assert torch.equal(y, expected.bfloat16())


def test_activation_checkpointing_changes_no_gradient() -> None:
    found = []
    for lean in (False, True):
        q, k, v, gates, state = problem()
        k.requires_grad_()

        def run(k: Tensor, q: Tensor = q, v: Tensor = v, gates: Any = gates, state: Any = state) -> Tensor:
            return memkit.memorize(RULE, q, k, v, gates, state)[0]

        y = checkpoint(run, k, use_reentrant=False) if lean else run(k)
        assert isinstance(y, Tensor)
        found.append(torch.autograd.grad(y.square().sum(), k)[0])
    assert torch.equal(*found)


def test_observe_equals_the_definition() -> None:
    q, k, v, gates, state = problem()
    seen = memkit.observe(RULE, q, k, v, gates, state)
    by_token = memkit.observe(replace(RULE, optimizer=replace(RULE.optimizer, linear=False)), q, k, v, gates, state)
    torch.testing.assert_close(seen.loss, by_token.loss)
    torch.testing.assert_close(seen.surprise, by_token.surprise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": {}}, "needs the gate 'lr'"),
        ({"gates": {"lrr": torch.zeros(2, 11, 2)}}, "Did you mean 'lr'"),
        ({"gates": dict.fromkeys(RULE.gates, torch.zeros(2, 11))}, "per head"),
        ({"q": torch.zeros(2, 11, 2, 3)}, "equally wide"),
        ({"v": torch.zeros(2, 10, 2, 4)}, "does not fit"),
        ({"form": "duel"}, "Did you mean 'dual'"),
        ({"block_size": 0}, "must be >= 1"),
        ({"mask": torch.ones(2, 11)}, "boolean"),
        ({"segment_ids": torch.ones(2, 11)}, "integers"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    q, k, v, gates, state = problem()
    given = {"q": q, "k": k, "v": v, "gates": gates, "state": state} | change
    with pytest.raises(ValueError, match=message):
        memkit.memorize(RULE, **given)


def test_a_state_of_other_rows_is_refused() -> None:
    q, k, v, gates, state = problem()
    with pytest.raises(ValueError, match="select"):
        memkit.memorize(RULE, q, k, v, gates, state.select([0]))
