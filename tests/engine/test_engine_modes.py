"""torch's modes (no_grad, inference, autocast, checkpointing, compile) do not change the results of the engine."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import memkit
from compare import ROUNDING, near
from memkit import MemoryState, Rule
from memkit.parts import polynomial
from memkit.parts.memory import ACTIVATIONS
from memkit.state import tensors
from small_memory import Case, score, titans

RULES = {
    "mlp": titans(),
    "matrix": titans(depth=1),
    "before": titans(read="before", surprise_limit=1.0),
    "mamba2": memkit.build("rule", "mamba2"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def assert_same(found: tuple[Tensor, MemoryState], expected: tuple[Tensor, MemoryState]) -> None:
    """Equal to the last bit, state included."""
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@every_rule
def test_no_grad_changes_nothing(rule: Rule) -> None:
    case = Case(rule)
    expected = case.memorize()
    case.leaves()
    with torch.no_grad():
        found = case.memorize()
    assert_same(found, expected)
    y, state = found
    assert not any(x.requires_grad for x in tensors((y, state.weights, state.slots, state.anchor)))


@every_rule
@pytest.mark.parametrize("form", ["auto", "scan"])
def test_inference_mode_gives_ordinary_tensors(rule: Rule, form: str) -> None:
    expected = Case(rule).memorize(form=form)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.7
    masked = Case(rule).memorize(form=form, mask=mask)
    with torch.inference_mode():
        case = Case(rule)  # its tensors are drawn in inference mode too
        assert case.q.is_inference()
        found, found_masked = case.memorize(form=form), case.memorize(form=form, mask=mask.clone())
        read = memkit.retrieve(rule, case.state, case.q)
    assert_same(found, expected)
    assert_same(found_masked, masked)
    y, state = found
    assert not any(x.is_inference() or x.requires_grad for x in (y, read, *tensors((state.weights, state.slots))))


@pytest.mark.parametrize("name", ["retnet", "omega"])
def test_a_call_with_fake_tensors_leaves_none_behind(name: str) -> None:
    """What is made once for all calls, or once was: a gate's default and the indices of polynomial features."""
    rule = memkit.build("rule", name)
    expected = Case(rule).memorize()
    polynomial._monomials.cache_clear()
    with FakeTensorMode():
        Case(rule).memorize()
    assert_same(Case(rule).memorize(), expected)


def test_training_goes_on_from_a_state_made_in_inference_mode() -> None:
    case, other = Case(), Case()
    _, other.state = other.memorize()
    with torch.inference_mode():
        _, case.state = Case().memorize()
    grads = []
    for each in (case, other):
        each.k.requires_grad_()
        grads.append(torch.autograd.grad(score(*each.memorize()), each.k)[0])
    assert torch.equal(*grads)


@every_rule
def test_autocast_does_not_round_the_memory(rule: Rule) -> None:
    expected = Case(rule, torch.float32).memorize()
    case = Case(rule, torch.float32)
    read = memkit.retrieve(rule, case.state, case.q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(case.memorize(), expected)
        assert torch.equal(memkit.retrieve(rule, case.state, case.q), read)


@pytest.mark.parametrize("rule", [titans(), titans(mini_batch=1)], ids=["dual", "iterate"])
def test_gradients_may_be_taken_under_autocast(rule: Rule) -> None:
    """Where autograd multiplies, as for coefficients, autocast rounds to bfloat16."""
    case = Case(rule, torch.float32)
    leaves = case.leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = score(*case.memorize())
        found = torch.autograd.grad(result, leaves, retain_graph=True)
    for a, b in zip(found, torch.autograd.grad(result, leaves), strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


@every_rule
def test_half_precision_tokens_are_read_as_they_are(rule: Rule) -> None:
    """Rounding happens to inputs and outputs, nowhere between: the state stays in float32."""
    case, wide = Case(rule, torch.bfloat16), Case(rule, torch.float32)
    for name in ("q", "k", "v"):
        setattr(wide, name, getattr(case, name).float())
    wide.gates = {name: gate.float() for name, gate in case.gates.items()}
    y, state = case.memorize()
    expected, expected_state = wide.memorize()
    assert_same((y, state), (expected.bfloat16(), expected_state))
    assert all(x.dtype == torch.float32 for x in tensors((state.weights, state.slots, state.anchor)))


def test_half_precision_gradients_are_near() -> None:
    case, exact = Case(dtype=torch.bfloat16), Case()
    for each in (case, exact):
        each.k.requires_grad_()
        (each.memorize()[0].double() ** 2).sum().backward()
    found, expected = case.k.grad, exact.k.grad
    assert found is not None and expected is not None
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 0.05 * expected.norm()


@every_rule
def test_activation_checkpointing_changes_no_gradient(rule: Rule) -> None:
    def run(case: Case) -> Tensor:
        return score(*case.memorize())

    case = Case(rule)
    leaves = case.leaves()
    expected = torch.autograd.grad(run(case), leaves)
    total = checkpoint(run, case, use_reentrant=False)
    assert isinstance(total, Tensor)
    for found, reference in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        assert torch.equal(found, reference)


@torch._dynamo.config.patch(trace_autograd_ops=True)  # pytest's own patch would take the setting away at its end
def test_memorize_compiles_as_one_graph() -> None:
    """Two blocks, forward and backward, without a graph break; the tape's gradient is traced like anything else."""
    eager, compiled = Case(tokens=4, batch=1), Case(tokens=4, batch=1)

    def run(q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor], state: MemoryState) -> Any:
        return memkit.memorize(titans_of_two, q, k, v, gates, state)

    titans_of_two = eager.rule = compiled.rule = titans(mini_batch=2)
    leaves, expected_leaves = compiled.leaves(), eager.leaves()
    try:
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(
            compiled.q, compiled.k, compiled.v, compiled.gates, compiled.state
        )
    finally:
        torch._dynamo.reset()
    expected = eager.memorize()
    pairs = [*zip(tensors(found), tensors(expected), strict=True)]
    grads = torch.autograd.grad(score(*found), leaves)
    pairs += zip(grads, torch.autograd.grad(score(*expected), expected_leaves), strict=True)
    near([a for a, _ in pairs], [b for _, b in pairs], tolerance=ROUNDING)


@pytest.fixture
def graphs_wanted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every gradient that is taken: whether it is to be differentiated again."""
    wanted: list[bool] = []
    grad = torch.autograd.grad

    def spy(*arguments: Any, create_graph: bool = False, **options: Any) -> Any:
        wanted.append(create_graph)
        return grad(*arguments, create_graph=create_graph, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    return wanted


def test_no_gradient_wanted_no_graph_kept(graphs_wanted: list[bool]) -> None:
    """Where nothing requires a gradient, the tape is plain numbers, and the second derivative is never recorded."""
    case = Case(titans(surprise_limit=10.0))  # a rule of the dual form
    case.memorize()
    case.q.requires_grad_()  # only reads are trained: what was written does not depend on q
    case.memorize()
    assert graphs_wanted and not any(graphs_wanted)
    graphs_wanted.clear()
    case.v.requires_grad_()
    case.memorize()
    assert graphs_wanted and all(graphs_wanted)


@pytest.mark.parametrize("rule", [titans(), titans(mini_batch=1), titans(depth=1, mini_batch=1)])
def test_where_only_reads_are_trained_the_state_has_no_history(rule: Rule) -> None:
    """So a stream may go on from it after the gradients of what was read were taken, and its graph is gone."""
    case = Case(rule)
    case.q.requires_grad_()
    for _ in range(2):
        y, case.state = case.memorize()
        y.square().sum().backward()
        assert not any(x.requires_grad for x in tensors(case.state))


@pytest.mark.parametrize("rule", [titans(mini_batch=1), titans(surprise_limit=0.5)], ids=["iterate", "dual"])
@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_training_leaves_nothing_behind(rule: Rule, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a memory's operations save their own results, as tanh does, or a triangular system's solution."""
    if activation == "tanh":
        monkeypatch.setitem(ACTIVATIONS, "silu", torch.tanh)
    case, left = Case(rule), []
    case.leaves()
    for _ in range(3):
        score(*case.memorize()).backward()
        case.memorize()  # and nobody goes back through it
        gc.collect()
        left.append(sum(type(x) is Tensor for x in gc.get_objects()))
    assert left[1] == left[2]


def test_a_fused_forward_pass_records_no_second_derivative(graphs_wanted: list[bool]) -> None:
    case = Case()
    leaves = case.leaves()
    result = score(*case.memorize())
    assert graphs_wanted and not any(graphs_wanted)
    assert all(x is not None for x in torch.autograd.grad(result, leaves))
