"""In a caller's graph the sweep is one operator: the numbers of the blocks, every gradient, and no more nodes for more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_memory import Case, titans
from test_compile_blocks import RULES, assert_near

import memkit
from memkit import Rule
from memkit.engine import operator, sweep
from memkit.likeness import kind_of
from memkit.state import map_tensors, tensors
from memkit.testing.outcome import outcome

ONE_BLOCK_MORE = 4


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that may be an operator is one, and nothing is compiled before a test, nor kept after it."""
    monkeypatch.setattr(sweep, "UNROLLED", 0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def everything(case: Case, prepared: Any = compiled, **options: Any) -> list[torch.Tensor]:
    """Outputs, state and every gradient."""
    given = {"q": case.q, "k": case.k, "v": case.v, "gates": case.gates, "state": case.state}
    memorize = prepared(lambda leaves: memkit.memorize(case.rule, **leaves, form="dual", **options))

    def called(leaves: dict[str, Any]) -> dict[str, Any]:
        y, state = memorize(leaves)
        return {"y": y, "state": state}

    return tensors(tuple(outcome(called, given)))


def as_written(function: Any) -> Any:
    return function


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_computes_the_same(rule: Rule) -> None:
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.8
    for given in ({}, {"mask": mask}, {"block_size": 2}):
        assert_near(everything(Case(rule), **given), everything(Case(rule), as_written, **given))


def test_documents_in_their_own_calls_and_in_split_ones() -> None:
    case = Case()

    def twice(prepared: Any) -> list[torch.Tensor]:
        leaves = case.leaves()

        def run() -> Any:
            first, state = case.memorize(slice(0, 6), form="dual")
            second, state = case.memorize(slice(6, None), form="dual", state=state)
            state = state.reset(torch.tensor([True, False, True]), case.rule)
            third, state = case.memorize(slice(0, 9), form="dual", state=state)
            return torch.cat([first, second, third], 1), state

        y, state = prepared(run)()
        found = torch.autograd.grad(y.square().sum() + sum(x.sum() for x in state.weights.values()), leaves)
        return [y, *tensors(state), *found]

    assert_near(twice(compiled), twice(as_written))


def test_products_autocast_and_single_precision() -> None:
    for dtype, products, tolerance in ((torch.float32, torch.bfloat16, 2e-2), (torch.bfloat16, None, 2e-2)):
        case = Case(dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = (everything(case, way, products=products) for way in (compiled, as_written))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    case = Case()
    with mode():
        assert_near(tensors(compiled(case.memorize)()), tensors(case.memorize()))


def test_gradients_of_gradients_inside_of_the_graph() -> None:
    case = Case()

    def norms(k: torch.Tensor) -> torch.Tensor:
        first = torch.autograd.grad(case.memorize(k=k, form="dual")[0].square().sum(), k, create_graph=True)[0]
        return first.square().sum()

    found = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for prepared in (compiled, as_written):
            k = case.k.clone().requires_grad_()
            found.append(torch.autograd.grad(prepared(norms)(k), k))
    assert_near(*found)


def test_only_queries_want_gradients() -> None:
    case = Case()
    q = case.q.requires_grad_()
    y, state = compiled(lambda q: case.memorize(q=q, form="dual"))(q)
    assert y.requires_grad and not any(x.requires_grad for x in tensors(state))


def test_blocks_inside_are_compiled_where_that_is_asked_for() -> None:
    expected = everything(Case(), as_written)
    with memkit.compile_blocks(backend="aot_eager"):
        assert_near(everything(Case()), expected)
        torch._dynamo.utils.counters.clear()
        case = Case(tokens=12)
        memorize = compiled(case.memorize)
        with torch.no_grad():
            for _ in range(2):
                memorize()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the caller's, and a block


def layer(**rule: Any) -> Any:
    torch.manual_seed(0)
    options = {"name": "titans", "mini_batch": 4, "expansion": 2} | rule
    return memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=options).double()


def test_layers_of_different_rules() -> None:
    """Also of one kind but different widths, whose carries do not lie the same way."""
    layers = [layer(), layer(), layer(depth=1), layer(depth=3, read="before")]
    x = torch.randn(2, 10, 8, dtype=torch.double)

    def run(x: torch.Tensor) -> torch.Tensor:
        for each in layers:
            x = x + each(x)[0]
        return x

    weights, found = [p for each in layers for p in each.parameters()], []
    for prepared in (compiled, as_written):
        y = prepared(run)(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    assert_near(*found)


def test_the_graph_does_not_grow_with_the_blocks() -> None:
    """But for taking what blocks leave out of one list: every operation is there as often."""
    counts = []

    def counted(graph: Any, _: Any) -> Any:
        called = [node for node in graph.graph.nodes if node.op == "call_function"]
        counts.append(len([node for node in called if "getitem" not in str(node.target)]))
        return torch._functorch.aot_autograd.make_boxed_func(graph.forward)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=counted, bw_compiler=counted)
    for blocks in (2, 8):
        run = torch.compile(layer(), fullgraph=True, backend=backend, dynamic=False)
        run(torch.randn(2, 4 * blocks, 8, dtype=torch.double))[0].sum().backward()
    few, many = counts[:2], counts[2:]
    assert few == many


def test_layers_of_one_kind_share_their_graph() -> None:
    programs = []

    def counted(program: Any, _: Any) -> Any:
        programs.append(program)
        return program.forward

    x = torch.randn(2, 12, 8, dtype=torch.double)
    for _ in range(3):
        torch.compile(layer(), fullgraph=True, backend=counted)(x)
    assert len(programs) == 1
    torch.compile(layer(activation="relu"), fullgraph=True, backend=counted)(x)
    assert len(programs) == 2


def test_torch_finds_the_operator_in_order() -> None:
    """Its shapes without numbers, its aliases, its gradients, and what it is where lengths may change."""
    given: list[Any] = []

    def caught(graph: Any, _: Any) -> Any:
        def run(*given_: Any) -> Any:
            return torch.fx.Interpreter(graph).run(*given_)

        class Caught(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if target is torch.ops.memkit.sweep:
                    given.append(args)
                return super().call_function(target, args, kwargs)

        return lambda *inputs: Caught(graph).run(*inputs) if not given else run(*inputs)

    case = Case(tokens=8)
    case.leaves()
    torch.compile(case.memorize, fullgraph=True, backend=caught)(mask=torch.rand(3, 8) < 0.8)
    flat, key, keep = given[0]
    flat = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in flat]
    torch.library.opcheck(operator._sweep, (flat, key, keep), test_utils=("test_schema", "test_faketensor"))


def test_kinds() -> None:
    same = [titans(), titans(), replace(titans(), update_every=1)]
    assert len({id(rule.kind) for rule in same}) == 1
    assert kind_of(titans(depth=1)) is not same[0].kind
    others = [
        titans(depth=1),
        titans(mini_batch=3),
        replace(titans(), objective=memkit.build("objective", "l2", scale=2.0)),
    ]
    assert len({id(rule.kind) for rule in [*same, *others]}) == 4

    def scaled(scale: float) -> Any:
        def loss(prediction: torch.Tensor, target: torch.Tensor, gates: Any) -> torch.Tensor:
            return scale * (prediction - target).square().sum(-1)

        return replace(titans(), objective=replace(titans().objective, loss=loss))

    one, again, two = scaled(1.0), scaled(1.0), scaled(2.0)
    assert one.kind is again.kind and one.kind is not two.kind
    assert scaled(1).kind is not one.kind  # an integer is another number to torch
    assert map_tensors(lambda x: x, one.kind) is one.kind
