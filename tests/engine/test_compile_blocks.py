"""Blocks compiled by torch: equal to blocks as written, gradients included; and when torch compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

import compare
import memkit
from compare import BFLOAT16, near
from counted_programs import BACKEND, PROGRAMS
from fused_rules import RULES
from memkit import Rule
from memkit.engine import batching
from memkit.engine.forms.fused import compile as compiled
from memkit.state import tensors
from memkit.testing.results_and_gradients import ResultsAndGradients
from small_memory import TOKENS, Case


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing is compiled before a test, nor kept after it."""
    torch._dynamo.reset()
    PROGRAMS.clear()
    yield
    torch._dynamo.reset()


everything = partial(compare.everything, form="fused")


def everything_as_written(case: Case) -> ResultsAndGradients:
    """The same where nothing is compiled."""
    with memkit.compile_blocks(False):
        return everything(case)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_compiled_blocks_compute_the_same(rule: Rule) -> None:
    mask = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8
    for given in ({}, {"mask": mask}):
        expected = everything(Case(rule), **given)
        with memkit.compile_blocks(backend=BACKEND):
            near(everything(Case(rule), **given), expected)
    assert PROGRAMS


def test_without_gradients_and_with_gradients_of_gradients() -> None:
    case = Case()

    def norms() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
        q, k, v = leaves
        y, _ = case.memorize(q=q, k=k, v=v, form="fused")
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in first), leaves))  # type: ignore[arg-type]

    expected, twice = case.memorize(), norms()
    with memkit.compile_blocks(backend=BACKEND), torch.no_grad():
        near(case.memorize(), expected)
    with memkit.compile_blocks(backend=BACKEND):
        near(norms(), twice)


def test_products_in_bfloat16() -> None:
    case = Case(dtype=torch.float32)
    expected = everything(case, products=torch.bfloat16)
    with memkit.compile_blocks(backend=BACKEND):
        near(everything(case, products=torch.bfloat16), expected, tolerance=BFLOAT16)


def test_models_of_one_shape_share_what_is_compiled() -> None:
    """Every layer has a rule of its own, and new ones are built all the time."""
    x, options = torch.randn(2, 12, 8), {"name": "titans", "mini_batch": 4, "expansion": 2}
    with memkit.compile_blocks(backend=BACKEND):
        counts = []
        for _ in range(3):
            memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=options)(x)[0].sum().backward()
            counts.append(len(PROGRAMS))
    assert counts[0] > 0 and counts == [counts[0]] * 3


def test_texts_of_all_lengths_share_what_is_compiled() -> None:
    """And documents: what differs is how many blocks there are."""
    with memkit.compile_blocks(backend=BACKEND):
        everything(Case(tokens=8))
        known = len(PROGRAMS)
        for tokens in (12, 24):
            everything(Case(tokens=tokens))
        everything(Case(tokens=24), segment_ids=torch.tensor([0] * 12 + [1] * 12).expand(3, 24))
    assert len(PROGRAMS) == known > 0


def test_beyond_the_limit_blocks_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "RECOMPILE_LIMIT", 1)
    with torch._dynamo.config.patch(recompile_limit=1), memkit.compile_blocks(backend=BACKEND):
        for batch in (2, 3, 4):
            near(everything(Case(batch=batch)), everything_as_written(Case(batch=batch)))


@pytest.mark.parametrize("tokens", [1, 4], ids=["a token", "a mini-batch"])
def test_a_lone_block_runs_as_written(tokens: int) -> None:
    with memkit.compile_blocks(backend=BACKEND):
        everything(Case(tokens=tokens))
    assert not PROGRAMS


def test_the_setting_ends_with_its_context_and_else_stays() -> None:
    with memkit.compile_blocks():
        assert compiled.preparing() is not compiled.as_written
        with memkit.compile_blocks(False):
            assert compiled.preparing() is compiled.as_written
        assert compiled.preparing() is not compiled.as_written
    assert compiled.preparing() is compiled.as_written
    memkit.compile_blocks()
    assert compiled.preparing() is not compiled.as_written
    again = memkit.compile_blocks()
    memkit.compile_blocks(False)
    assert compiled.preparing() is compiled.as_written
    with again:
        assert compiled.preparing() is not compiled.as_written
    memkit.compile_blocks(False)
    assert compiled.preparing() is compiled.as_written


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_a_batch_too_large_for_the_cache_runs_in_parts(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(batch=4)
    mask = torch.rand(4, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
    ids = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]).expand(4, TOKENS)
    for given in ({"mask": mask}, {"mask": mask, "segment_ids": ids}):
        expected = everything(case, **given)
        one_row = sum(x[0].nbytes for x in tensors((case.state.weights, case.state.slots)))
        monkeypatch.setattr(batching, "CACHED", 3 * one_row // torch.get_num_threads())
        assert batching.at_once(case.state, compiled=True) == 2
        with memkit.compile_blocks(backend="eager"):
            near(everything(case, **given), expected)


def test_a_torch_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.12.0"))
    with pytest.raises(ValueError, match=r"torch 2\.12\.0 cannot compile a block.* Use torch 2\.13 or newer"):
        memkit.compile_blocks()
    with memkit.compile_blocks(False):
        assert compiled.preparing() is compiled.as_written


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a backend of torch.compile"):
        memkit.compile_blocks(backend="inductr")
