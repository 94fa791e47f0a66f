"""The parts of deep rules: numbers promised in their docstrings, and memories written by users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import ROUNDING, VALUES, near, within
from memkit.parts.muon import newton_schulz
from memkit.parts.polynomial import polynomial
from memkit.rule import Linear, Objective, Rule, at_lookahead
from memkit.testing import check_rule


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def slope(objective: Objective, error: Tensor, **gates: float) -> Tensor:
    """The gradient of a loss in the prediction, at a target of 0."""
    prediction = error.clone().requires_grad_()
    loss = objective.loss(prediction, torch.zeros_like(error), {n: torch.tensor(g).double() for n, g in gates.items()})
    return torch.autograd.grad(loss.sum(), prediction)[0]


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_products_of_features_are_the_beginning_of_the_exponential(degree: int) -> None:
    q, k = normal(5, 4), normal(5, 4, seed=1)
    features = polynomial(q, degree)
    assert features.shape[-1] == math.comb(4 + degree, degree)
    wanted = sum((q * k).sum(-1) ** j / math.factorial(j) for j in range(degree + 1))
    near((features * polynomial(k, degree)).sum(-1), wanted, tolerance=ROUNDING)


@pytest.mark.parametrize("of", ["norm", "entries"])
def test_a_huber_loss_pulls_no_harder_than_delta(of: str) -> None:
    error = torch.tensor([3.0, -4.0, 0.5]).double()
    found = slope(memkit.build("objective", "huber", of=of), error, delta=2.0)
    wanted = 2 * error / error.norm() if of == "norm" else error.clamp(-2, 2)
    near(found, wanted)


@pytest.mark.parametrize("of", ["norm", "entries"])
def test_a_huber_loss_of_no_error_has_a_gradient_twice(of: str) -> None:
    error = torch.zeros(3).double().requires_grad_()
    delta = torch.zeros(()).double().requires_grad_()
    loss = memkit.build("objective", "huber", of=of).loss(error, torch.zeros(3).double(), {"delta": delta})
    (first,) = torch.autograd.grad(loss, error, create_graph=True)
    second = torch.autograd.grad(first.sum(), [error, delta], allow_unused=True, materialize_grads=True)
    assert all(bool(x.isfinite().all()) for x in (first, *second))


def test_lp_gradients_are_the_papers() -> None:
    error = torch.tensor([1.5, -0.5, 0.0]).double()
    for p in (1.0, 2.0, 3.0, 4.0):
        found = slope(memkit.build("objective", "lp", p=p), error)
        near(found, p * error.sign() * error.abs() ** (p - 1))
    smooth = slope(memkit.build("objective", "lp", p=1.0, smooth=1e-6), error)
    near(smooth, error / (error**2 + 1e-6).sqrt())


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_newton_schulz_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    matrix = normal(2, *shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ newton_schulz(matrix, 5) @ v.mT
    values = turned.diagonal(dim1=-2, dim2=-1)
    within("turned", turned, torch.diag_embed(values), VALUES)
    assert bool((s[..., 0] > 1.5 * s[..., -1]).all())
    assert bool(((values > 0.6) & (values < 1.3)).all())


def test_retentions_that_are_not_linear() -> None:
    weight, step = normal(2, 4, 3), 0.1 * normal(2, 4, 3, seed=1)
    gates = {"decay": torch.tensor(0.25).double(), "threshold": torch.tensor(0.5).double()}
    elastic = memkit.build("retention", "elastic_net").keep(weight, step, (), gates)
    moved = 0.75 * weight + step
    near(elastic, torch.nn.functional.softshrink(moved, 0.5))
    kept = memkit.build("retention", "normalised")
    after = kept.keep(weight, step, kept.init(weight), {})
    near(after.norm(dim=-2) / weight.norm(dim=-2), torch.ones(2, 3).double(), tolerance=ROUNDING / 2)
    near(after / after.norm(dim=-2, keepdim=True), torch.nn.functional.normalize(weight + step, dim=-2))


def test_effective_weights() -> None:
    raw = normal(2, 4, 3)
    simplex = memkit.build("effective", "softmax", scale=2.0)(raw)
    near(simplex.sum(-2), torch.full((2, 3), 2.0).double())
    near(memkit.build("effective", "softmax", over="matrix")(raw).sum((-2, -1)), torch.ones(2).double())
    near(memkit.build("effective", "soft_threshold", threshold=0.5)(raw), torch.nn.functional.softshrink(raw, 0.5))
    assert bool((memkit.build("effective", "lq")(torch.zeros(2, 4, 3)) == 0).all())


def test_adam_is_torchs_adam() -> None:
    """A matrix written once every 3 tokens, against torch.optim on the same losses."""
    optimizer = memkit.build("optimizer", "adam", eps=1e-30, lr=0.01)
    rule = rule_of(memkit.build("memory", "linear"), optimizer=optimizer, retention=memkit.build("retention", "none"))
    rule = replace(rule, mini_batch=1, update_every=3, read="before")
    assert memkit.explain(rule).startswith("write:")
    state = memkit.init_state(rule, batch=1, heads=1, key_dim=4, value_dim=2, dtype=torch.double)
    q, k, v = normal(1, 12, 1, 4), normal(1, 12, 1, 4, seed=1), normal(1, 12, 1, 2, seed=2)
    weight = state.weights["w1"][0, 0].clone().requires_grad_()
    torchs, wanted = torch.optim.Adam([weight], lr=0.01, eps=0.0), []
    for start in range(0, 12, 3):
        here = slice(start, start + 3)
        wanted.append((q[0, here, 0] @ weight).detach())
        torchs.zero_grad()
        (k[0, here, 0] @ weight - v[0, here, 0]).square().sum().backward()
        torchs.step()
    y, after = memkit.memorize(rule, q, k, v, {}, state)
    near(y[0, :, 0], torch.cat(wanted))
    near(after.weights["w1"][0, 0], weight.detach())


MEMORIES: dict[str, dict[str, Any]] = {
    "gated_mlp": {"expansion": 2},
    "low_rank": {"rank": 2},
    "polynomial": {"memory": {"name": "linear"}, "degree": 3},
}


def rule_of(memory: Any, **options: Any) -> Rule:
    parts = {
        "memory": memory,
        "objective": memkit.build("objective", "l2"),
        "optimizer": memkit.build("optimizer", "heavy_ball"),
        "retention": memkit.build("retention", "decay"),
    }
    return Rule(name="trial", mini_batch=3, **{**parts, **options})


@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_runs_in_every_form(name: str) -> None:
    rule = rule_of(memkit.build("memory", name, **MEMORIES[name]))
    check_rule(rule, laws=["forms agree", "causality", "retrieve is reading"], profile="quick")


@dataclass(frozen=True)
class Mine:
    """M(x) = x W_1 + tanh(x W_2), a memory of one's own."""

    linear = False

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        return {"w1": (key_dim, value_dim), "w2": (key_dim, value_dim)}

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        return {}

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        return linear("w1", x) + torch.tanh(linear("w2", x))


def test_a_memory_of_ones_own_keeps_the_laws() -> None:
    check_rule(rule_of(Mine()), profile="quick")


def test_parts_that_are_not_linear_keep_the_laws() -> None:
    sparse = rule_of(memkit.build("memory", "linear"), retention=memkit.build("retention", "elastic_net"))
    assert memkit.explain(sparse).startswith("step:")
    thresholded = rule_of(memkit.build("memory", "linear"), effective=memkit.build("effective", "soft_threshold"))
    adaptive = rule_of(memkit.build("memory", "linear"), optimizer=memkit.build("optimizer", "adam", eps=0.1))
    adaptive = replace(adaptive, mini_batch=1, update_every=3)
    assert memkit.explain(thresholded).startswith("dual:")
    check_rule(sparse, profile="quick", exempt={"neutral gates": "a threshold cuts whatever else there is"})
    check_rule(thresholded, profile="quick")
    check_rule(adaptive, profile="quick")


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("memory", "low_rank", {"rank": 0}, "rank must be >= 1; got 0"),
        ("memory", "gated_mlp", {"expansion": 0}, "expansion must be >= 1; got 0"),
        ("memory", "polynomial", {"degree": 0}, "degree must be >= 1; got 0"),
        ("objective", "lp", {"p": 0.5}, "p must be >= 1"),
        ("optimizer", "muon", {"steps": -1}, "steps must be >= 0 and eps > 0; got -1"),
        ("optimizer", "adam", {"beta1": 1.0}, r"must be in \[0, 1\)"),
        ("effective", "lq", {"q": 1.0}, "q must be >= 2; got 1.0"),
        ("effective", "softmax", {"scale": 0.0}, "scale must be > 0"),
        ("effective", "soft_threshold", {"threshold": -1.0}, "threshold must be >= 0"),
    ],
)
def test_options_without_meaning_are_refused(kind: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memkit.build(kind, name, **options)


def test_a_layer_norm_needs_three_values() -> None:
    with pytest.raises(ValueError, match="a layer norm of 2 value"):
        memkit.init_state(memkit.build("rule", "yaad"), batch=1, heads=1, key_dim=2, value_dim=2)


def test_a_residual_needs_equal_widths() -> None:
    with pytest.raises(ValueError, match="equally wide; got K = 4 and V = 3"):
        memkit.init_state(memkit.build("rule", "omega"), batch=1, heads=1, key_dim=4, value_dim=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"point": "lookahead", "optimizer": "gradient_descent"}, "needs the gate 'momentum', which its optimizer"),
        ({"point": "decayed", "retention": "none"}, r"needs the gate 'decay'.* or point=at_weights"),
    ],
)
def test_a_gradient_point_by_name_has_what_it_needs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memkit.build("rule", "titans", **options)
    assert memkit.build("rule", "titans", point="lookahead").point is at_lookahead
    assert memkit.names("point") == ["decayed", "lookahead", "weights"]


def test_adams_outer_gradients_are_bounded_where_inner_ones_vanish() -> None:
    optimizer = memkit.build("optimizer", "adam")
    grad = torch.zeros(2, 2).double().requires_grad_()
    step, _ = optimizer.step(grad, grad.detach(), optimizer.init(grad.detach()), {"lr": torch.ones(()).double()})
    slope = torch.autograd.grad(step.sum(), grad)[0]
    near(slope, torch.full_like(slope, -1e3))
