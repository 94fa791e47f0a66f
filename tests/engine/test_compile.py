"""Every mixer compiles as one graph, in training and in decoding, and computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import memkit
from compare import ROUNDING, near
from memkit.engine.forms.fused import form as fused
from mixers_to_compile import DIM, PERIOD, mixer

every_mixer = pytest.mark.parametrize("name", memkit.names("mixer"))


@pytest.fixture(autouse=True)
def tracing() -> Iterator[None]:
    """What users set to compile a memory: gradients taken inside of the graph."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


def compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", ["neural_memory", "mac", "mal", "tnt"])
def test_training_with_blocks_as_an_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where blocks are compiled: the graph has the operator and no tape."""
    monkeypatch.setattr(fused, "as_operator", lambda: True)
    with torch._dynamo.config.patch(trace_autograd_ops=name == "tnt"):  # whose global memory writes once a chunk
        test_training_over_two_mini_batches(name)


@every_mixer
def test_training_over_two_mini_batches(name: str) -> None:
    x, found = torch.randn(2, 2 * PERIOD, DIM, dtype=torch.double), []
    for prepared in (compiled, lambda function: function):
        made = mixer(name)
        y = prepared(lambda x, made=made: made(x)[0])(x)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in made.parameters())])
    near(*found, tolerance=ROUNDING)


@every_mixer
def test_decoding_over_the_end_of_a_mini_batch(name: str) -> None:
    made = mixer(name)
    step = compiled(made)
    with torch.no_grad():
        state = reference = made.init_state(2)
        for x in torch.randn(PERIOD + 1, 2, 1, DIM, dtype=torch.double):
            y, state = step(x, state)
            expected, reference = made(x, reference)
            near((y, state), (expected, reference), tolerance=ROUNDING)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks, not we
def test_decoding_makes_few_programs() -> None:
    """One for the first token, one for tokens that begin a mini-batch, one for all others; torch gives up at eight."""
    made, programs = mixer("neural_memory"), []

    def counted(program: Any, _: Any) -> Any:
        programs.append(program)
        return program.forward

    step = torch.compile(made, fullgraph=True, backend=counted)
    state = made.init_state(1)  # of parameters, which want gradients
    with torch.no_grad():
        for x in torch.randn(3 * PERIOD, 1, 1, DIM, dtype=torch.double):
            _, state = step(x, state)
    assert len(programs) == 3
