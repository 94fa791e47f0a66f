"""The fused form: the numbers of the dual form, and every gradient, first and second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import compare
import memkit
from compare import ROUNDING, near
from memkit import Rule
from memkit.engine import FormName, exact_forms
from memkit.parts.memory import ACTIVATIONS
from memkit.parts.silu import silu
from memkit.state import tensors
from memkit.testing.results_and_gradients import ResultsAndGradients
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


def everything(case: Case, form: FormName = "fused", **options: Any) -> ResultsAndGradients:
    return compare.everything(case, form=form, **options)


@every_rule
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_fused_equals_dual(rule: Rule, masked: bool) -> None:
    mask = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
    expected = everything(Case(rule), "dual", mask=mask)
    for block_size in (64, 3):
        near(everything(Case(rule), mask=mask, block_size=block_size), expected)


@pytest.mark.parametrize("rule", [RULES["mlp"], RULES["residual"]], ids=["mlp", "residual"])
def test_gradients_of_gradients(rule: Rule) -> None:
    """Of a call of several runs of blocks, which share the constants and hand on what depends on them."""

    def both(form: FormName) -> list[torch.Tensor]:
        case = Case(rule)
        leaves = case.leaves()
        result = score(*case.memorize(form=form))
        first = torch.autograd.grad(result, leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([x.square().sum() for x in first]).sum()
        return [*first, *torch.autograd.grad(total, leaves, materialize_grads=True)]

    near(both("fused"), both("dual"))


def test_only_some_gradients_are_asked_for() -> None:
    alone, among = Case(), Case()
    alone.k.requires_grad_()
    among.leaves()
    found = [torch.autograd.grad(score(*case.memorize()), case.k)[0] for case in (alone, among)]
    near(*found, tolerance=ROUNDING)


def test_fused_runs_again_under_activation_checkpoints() -> None:
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


def test_rules_whose_blocks_do_more_take_the_dual_form() -> None:
    others = [titans(surprise_limit=0.5), replace(titans(), window=2), memkit.build("rule", "moneta")]
    assert [memkit.explain(rule).partition(":")[0] for rule in others] == ["dual"] * 3
    for rule in (*others, memkit.build("rule", "gla")):
        assert "fused" not in exact_forms(rule)


def test_observing_it_is_observing_the_dual_form() -> None:
    for found, expected in zip(*(tensors(Case().observe(form=form)) for form in ("fused", "dual")), strict=True):
        assert torch.equal(found, expected)


def test_products_may_round_and_the_state_does_not() -> None:
    exact, found, seen = Case(dtype=torch.float32), [], []
    rounded = Case(dtype=torch.float32)
    rounded.q, rounded.k, rounded.v = (x.bfloat16().float() for x in (rounded.q, rounded.k, rounded.v))
    expected = everything(exact)
    inherent = [_distance(a, b) for a, b in zip(*map(_numbers, (everything(rounded), expected)), strict=True)]
    forms: tuple[FormName, ...] = ("fused", "dual")
    for form in forms:
        made = everything(Case(dtype=torch.float32), form, products=torch.bfloat16)
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
        (titans(mini_batch=1), {}, "it takes the form 'iterate', and not 'fused'"),
        (titans(), {"form": "scan"}, "it takes the form 'scan', and not 'fused'"),
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
        ({"products": "bfloat16", "rule": titans(mini_batch=1)}, "it takes the form 'iterate', and not 'fused'"),
    ):
        with pytest.raises(ValueError, match=message):
            memkit.build("mixer", "neural_memory", **{"dim": 8, "heads": 2} | options)


def test_silu_is_torchs_to_the_third_derivative() -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.double, requires_grad=True)
    assert ACTIVATIONS["silu"] is silu
    near(_derivatives(silu, z), _derivatives(torch.nn.functional.silu, z), tolerance=ROUNDING)


def test_reading_without_gradients_maps_over_rows() -> None:
    case = Case()
    with torch.no_grad():
        found = torch.func.vmap(lambda q: memkit.retrieve(case.rule, case.state, q))(torch.stack([case.q, -case.q]))
        expected = torch.stack([memkit.retrieve(case.rule, case.state, q) for q in (case.q, -case.q)])
    near(found, expected, tolerance=ROUNDING)


def _derivatives(function: Any, z: torch.Tensor) -> list[torch.Tensor]:
    found = [function(z)]
    for _ in range(3):
        found += torch.autograd.grad(found[-1].sum(), z, create_graph=True)
    return found
