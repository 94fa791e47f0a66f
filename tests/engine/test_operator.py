"""In a caller's graph a run of blocks is one operator, with the numbers and gradients of the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import compare
import memkit
from compare import FLOAT32, near
from counted_programs import BACKEND, PROGRAMS
from fused_rules import RULES
from memkit.engine.forms.fused import form as fused
from memkit.engine.forms.fused import operator
from memkit.parts.memory import MLPMemory
from memkit.rule import Linear
from memkit.state import tensors
from small_memory import Case, titans

HALF = torch.tensor([[True, False] * 4, [False] * 3 + [True] * 5, [True] * 8])


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make runs of blocks operators; compile nothing before a test, and keep nothing after it."""
    monkeypatch.setattr(fused, "as_operator", lambda: True)
    torch._dynamo.reset()
    PROGRAMS.clear()
    yield
    torch._dynamo.reset()


def compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def as_written(function: Any) -> Any:
    return function


everything = partial(compare.everything, form="fused")


@pytest.mark.parametrize(
    ("name", "options"), [("mlp", {"mask": HALF}), ("swiglu", {"block_size": 2}), ("residual, before", {})]
)
def test_the_operator_computes_the_same(name: str, options: dict[str, Any]) -> None:
    rule = RULES[name]
    found, expected = (everything(Case(rule, tokens=8), way, **options) for way in (compiled, as_written))
    near(found, expected)


def test_products_under_autocast() -> None:
    case, options = Case(dtype=torch.float32, tokens=8), {"products": torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (everything(case, way, **options) for way in (compiled, as_written))
    near(found, expected, tolerance=FLOAT32)


def test_calls_and_documents_one_after_the_other() -> None:
    """The second call begins inside of a mini-batch, and only a row of it with a new document."""

    def run(prepared: Any) -> list[Tensor]:
        case = Case(RULES["matrix"])
        leaves = case.leaves()

        def calls() -> Any:
            first, state = case.memorize(slice(0, 6), form="fused")
            state = state.reset(torch.tensor([True, False, True]), case.rule)
            second, state = case.memorize(slice(6, None), form="fused", state=state)
            return torch.cat([first, second], 1), state

        y, state = prepared(calls)()
        loss = y.square().sum() + sum(x.sum() for x in state.weights.values())
        return [y, *tensors(state), *torch.autograd.grad(loss, leaves)]

    near(run(compiled), run(as_written))


def test_layers_of_different_kinds() -> None:
    """Also of one kind, but of other widths, whose carries lie the other way up."""
    torch.manual_seed(0)
    names = [{"depth": 2}, {"depth": 2}, {"depth": 1}]
    rules = [memkit.build("rule", "titans", **name, expansion=1, mini_batch=4) for name in names]
    assert rules[0].cache_key is rules[1].cache_key
    layers = [Case(rule, tokens=8) for rule in rules]
    layers[1].v = torch.randn(3, 8, 2, 2, dtype=torch.double)
    sizes: dict[str, Any] = {"batch": 3, "heads": 2, "key_dim": 4, "value_dim": 2, "dtype": torch.double}
    layers[1].state = memkit.init_state(rules[1], **sizes)
    leaves = [x for case in layers for x in case.leaves()]

    def run() -> Tensor:
        return torch.stack([case.memorize(form="fused")[0].square().sum() for case in layers])

    found = [[y := prepared(run)(), *torch.autograd.grad(y.sum(), leaves)] for prepared in (compiled, as_written)]
    near(*found)


@dataclass(frozen=True)
class Changing(MLPMemory):
    """One whose forward changes a view of what it made, which autograd has to see."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        y = super().forward(linear, x, constants).clone()
        y[..., 0].mul_(3.0)
        return y


def test_in_inference_mode_blocks_are_compiled_once() -> None:
    rule = replace(titans(), memory=Changing(2, 2, "silu", False))
    case = Case(rule, tokens=12)
    with torch.inference_mode(), memkit.compile_blocks(backend=BACKEND):
        memorize, expected = compiled(case.memorize), tensors(Case(rule, tokens=12).memorize(form="scan"))
        for _ in range(2):
            near(tensors(memorize()), expected)
    assert len(PROGRAMS) == 1


def test_gradients_of_gradients_inside_of_the_graph() -> None:
    case, found = Case(RULES["matrix"], tokens=8), []

    def norm(k: Tensor) -> Tensor:
        first = torch.autograd.grad(case.memorize(k=k, form="fused")[0].square().sum(), k, create_graph=True)[0]
        return first.square().sum()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for prepared in (compiled, as_written):
            k = case.k.clone().requires_grad_()
            found.append(torch.autograd.grad(prepared(norm)(k), k))
    near(*found)


def test_where_only_queries_want_gradients_the_state_wants_none() -> None:
    case = Case(tokens=8)
    y, state = torch.compile(lambda q: case.memorize(q=q), fullgraph=True, backend="eager")(case.q.requires_grad_())
    assert y.requires_grad and not any(x.requires_grad for x in tensors(state))


def programs(run: Any) -> list[torch.fx.GraphModule]:
    """What torch makes of a function that compiles with the backend that it is given."""
    found: list[torch.fx.GraphModule] = []

    def kept(program: torch.fx.GraphModule, _: Any) -> Any:
        found.append(program)
        return program.forward

    run(kept)
    return found


def test_the_graph_is_as_long_for_more_blocks() -> None:
    """But for taking what they leave out of a list."""

    def operations(blocks: int) -> int:
        case = Case(tokens=4 * blocks)
        case.leaves()
        (graph,) = programs(lambda kept: torch.compile(case.memorize, fullgraph=True, backend=kept, dynamic=False)())
        return len([node for node in graph.graph.nodes if "getitem" not in str(node.target)])

    assert operations(2) == operations(9)


def test_without_compiled_blocks_they_are_unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting counts that holds when the graph is called."""
    monkeypatch.undo()
    graphs: list[Any] = []

    def kept(program: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(program)
        return program.forward

    def operators(memorize: Any) -> int:
        memorize(form="fused")
        return len([node for node in graphs[-1].graph.nodes if "memkit.fused" in str(node.target)])

    case = Case(RULES["matrix"], tokens=8)
    memorize = torch.compile(case.memorize, fullgraph=True, backend=kept)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        assert operators(memorize) == 0
        with memkit.compile_blocks(backend="eager"):
            assert operators(memorize) == 1


def test_layers_of_one_kind_share_their_graph() -> None:
    def layer(**rule: Any) -> Any:
        options = {"name": "titans", "mini_batch": 4, "expansion": 2} | rule
        return memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=options)

    layers = [layer(), layer(), layer(activation="relu")]
    found = programs(
        lambda kept: [torch.compile(x, fullgraph=True, backend=kept)(torch.randn(2, 8, 8)) for x in layers]
    )
    assert len(found) == 2


def test_torch_finds_the_operator_in_order() -> None:
    """Its shapes without numbers are those with, it returns nothing that it was given, and changes nothing."""
    given: list[Any] = []

    class Watched(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is torch.ops.memkit.fused:
                given.append(args)
            return super().call_function(target, args, kwargs)

    case = Case(tokens=8)
    case.leaves()
    watched = lambda program, _: Watched(program).run  # noqa: E731
    torch.compile(case.memorize, fullgraph=True, backend=watched)(mask=HALF)
    for flat, key, keep in given:
        flat = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in flat]
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(operator._fused, (flat, key, keep), test_utils=tests)
    assert given
