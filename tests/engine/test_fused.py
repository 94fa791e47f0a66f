"""The dual form as one node of the graph: the numbers of the dual form as autograd sees it, and every gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import memkit
from memkit import Rule
from memkit.engine import run
from memkit.engine.forms.fused import node as sweep
from memkit.parts.memory import ACTIVATIONS
from memkit.parts.silu import silu
from memkit.state import tensors
from memkit.testing.results_and_gradients import differentiate
from small_memory import TOKENS, Case, score, titans

RULES = {
    "mlp": titans(),
    "three layers": titans(depth=3, activation="gelu", read="before"),
    "residual": titans(residual=True),
    "matrix": titans(depth=1),
    "swiglu": replace(titans(), memory=memkit.build("memory", "gated_mlp")),
    "low rank": replace(titans(), memory=memkit.build("memory", "low_rank")),
    "huber": memkit.build("rule", "yaad", mini_batch=4),
    "no momentum": titans(optimizer="gradient_descent"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def everything(case: Case, **options: Any) -> Any:
    """Outputs, state and every gradient, in the dual form."""
    given = {"q": case.q, "k": case.k, "v": case.v, "gates": case.gates, "state": case.state}

    def called(leaves: dict[str, Any]) -> dict[str, Any]:
        y, state = memkit.memorize(case.rule, **leaves, form="dual", **options)
        return {"y": y, "state": state}

    return differentiate(called, given)


def assert_near(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(tuple(found)), tensors(tuple(expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.fixture
def autograd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What autograd makes of the dual form."""

    def called(function: Any, *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(run, "sweeps", lambda rule: False)
            return function(*arguments, **options)

    return called


@every_rule
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_it_is_the_dual_form(rule: Rule, masked: bool, autograd: Any) -> None:
    assert sweep.sweeps(rule)
    mask = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
    expected = autograd(everything, Case(rule), mask=mask)
    for block_size in (64, 3):
        assert_near(everything(Case(rule), mask=mask, block_size=block_size), expected)


@pytest.mark.parametrize("rule", [RULES["mlp"], RULES["residual"]], ids=["mlp", "residual"])
def test_gradients_of_gradients(rule: Rule, autograd: Any) -> None:
    """Of a call of several runs of blocks, which share the constants and hand on what depends on them."""

    def both() -> list[torch.Tensor]:
        case = Case(rule)
        leaves = case.leaves()
        first = torch.autograd.grad(score(*case.memorize()), leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([x.square().sum() for x in first]).sum()
        return [*first, *torch.autograd.grad(total, leaves, materialize_grads=True)]

    for a, b in zip(both(), autograd(both), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_only_some_gradients_are_asked_for() -> None:
    alone, among = Case(), Case()
    alone.k.requires_grad_()
    among.leaves()
    found = [torch.autograd.grad(score(*case.memorize()), case.k)[0] for case in (alone, among)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_it_runs_again_under_activation_checkpoints() -> None:
    found = []
    for again in (False, True):
        case = Case()
        leaves = case.leaves()

        def called(k: torch.Tensor, case: Case = case) -> torch.Tensor:
            return case.memorize(k=k)[0]

        y = checkpoint(called, case.k, use_reentrant=False) if again else called(case.k)
        found.append(torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_rules_whose_blocks_do_more_are_left_to_autograd() -> None:
    others = [titans(surprise_limit=0.5), replace(titans(), window=2), memkit.build("rule", "moneta")]
    assert not any(map(sweep.sweeps, [*others, memkit.build("rule", "gla")]))


def test_products_may_round_and_the_state_does_not(autograd: Any) -> None:
    exact, found, seen = Case(dtype=torch.float32), [], []
    rounded = Case(dtype=torch.float32)
    rounded.q, rounded.k, rounded.v = (x.bfloat16().float() for x in (rounded.q, rounded.k, rounded.v))
    expected = everything(exact)
    inherent = [_distance(a, b) for a, b in zip(*map(_numbers, (everything(rounded), expected)), strict=True)]
    for call in (everything, lambda *args, **options: autograd(everything, *args, **options)):
        made = call(Case(dtype=torch.float32), products=torch.bfloat16)
        found.append([_distance(a, b) for a, b in zip(*map(_numbers, (made, expected)), strict=True)])
        seen.append(_numbers(made))
    assert all(x.dtype == torch.float32 for x in seen[0])
    limit = 10 * max(inherent)  # what the law of single precision grants, for the roundings of bfloat16
    assert 1e-4 < max(found[0]) < limit and 1e-4 < max(found[1]) < limit


def _numbers(made: Any) -> list[torch.Tensor]:
    return [x.detach() for x in tensors(tuple(made)) if x.is_floating_point()]


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / (1 + b.abs().max()))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (titans(mini_batch=1), {}, "it takes the form 'iterate', and not 'dual'"),
        (titans(), {"form": "scan"}, "it takes the form 'scan', and not 'dual'"),
        (titans(surprise_limit=1.0), {}, "it has a surprise_limit"),
        (titans(), {"products": "bfloat16"}, "floating-point dtype.*'bfloat16'"),
        (titans(), {"products": torch.float8_e4m3fn}, "16 bits or more"),
        (titans(), {"form": "duel"}, "unknown form 'duel'"),
        ("titans", {}, "rule must be a Rule; got 'titans'"),
    ],
)
def test_products_are_for_plain_blocks(rule: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case().memorize(slice(None), **{"rule": rule, "products": torch.bfloat16} | options)


def test_a_layer_multiplies_in_bfloat16() -> None:
    found = []
    for products in (None, "bfloat16"):
        torch.manual_seed(0)
        layer = memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=titans(), products=products)
        y, state = layer(torch.randn(2, TOKENS, 8))
        y.square().sum().backward()
        assert all(x.dtype == torch.float32 for x in tensors((state.memory.weights, state.memory.slots)))
        found.append([y.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
    distances = [_distance(a, b) for a, b in zip(*found, strict=True)]
    assert 1e-5 < max(distances) < 0.1
    for options, message in (
        ({"products": "bf16"}, "'products' = 'bf16' does not fit"),
        ({"products": "bfloat16", "rule": titans(mini_batch=1)}, "it takes the form 'iterate', and not 'dual'"),
    ):
        with pytest.raises(ValueError, match=message):
            memkit.build("mixer", "neural_memory", **{"dim": 8, "heads": 2} | options)


def test_silu_is_torchs_to_the_third_derivative() -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.double, requires_grad=True)
    assert ACTIVATIONS["silu"] is silu
    for ours, theirs in zip(_derivatives(silu, z), _derivatives(torch.nn.functional.silu, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_reading_without_gradients_maps_over_rows() -> None:
    case = Case()
    with torch.no_grad():
        found = torch.func.vmap(lambda q: memkit.retrieve(case.rule, case.state, q))(torch.stack([case.q, -case.q]))
        expected = torch.stack([memkit.retrieve(case.rule, case.state, q) for q in (case.q, -case.q)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def _derivatives(function: Any, z: torch.Tensor) -> list[torch.Tensor]:
    found = [function(z)]
    for _ in range(3):
        found += torch.autograd.grad(found[-1].sum(), z, create_graph=True)
    return found
