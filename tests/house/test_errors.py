"""Every exception survives copying and pickling, and so the way to another process."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator

import pytest
import torch

import ablations
import architectures
import memkit
from memkit.divergence import DivergedError, Divergence, GenerationDivergedError
from memkit.registry import UnknownName
from memkit.state import tensors


def exceptions() -> Iterator[type[Exception]]:
    for storey in (memkit, architectures, ablations):
        for found in pkgutil.walk_packages(storey.__path__, f"{storey.__name__}."):
            if found.name.endswith("triton.kernels"):  # needs triton
                continue
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == found.name:
                    yield value


def diverged_generation() -> GenerationDivergedError:
    state = memkit.init_state(memkit.build("rule", "titans"), batch=2, heads=1, key_dim=2, value_dim=2)
    error = GenerationDivergedError(torch.arange(6).view(2, 3), Divergence(2, 1, "blocks.0.mixer", 0, 1, state))
    error.add_note("after 2 tokens")
    return error


def diverged() -> DivergedError:
    error = DivergedError("the loss is not finite.")
    error.where = Divergence(None, 0, "the head")
    return error


EXAMPLES: dict[type[Exception], Callable[[], Exception]] = {
    DivergedError: diverged,
    GenerationDivergedError: diverged_generation,
    UnknownName: lambda: UnknownName("unknown rule 'x'.", "rule"),
}
"""Of those that are made of more than a message."""


@pytest.mark.parametrize("kind", [*dict.fromkeys(exceptions())])
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_exception_is_the_same_after_a_copy(kind: type[Exception], copied: Callable[[Exception], Exception]) -> None:
    error = EXAMPLES.get(kind, lambda: kind("a message."))()
    again = copied(error)
    assert type(again) is kind and str(again) == str(error) and again.args == error.args
    assert repr(vars(again)) == repr(vars(error))


def test_generated_tokens_survive_in_the_error() -> None:
    error = diverged_generation()
    again = pickle.loads(pickle.dumps(error))
    assert again.state is again.where.state and again.__notes__ == ["after 2 tokens"]
    for ours, theirs in zip(tensors((again.ids, again.state)), tensors((error.ids, error.state)), strict=True):
        assert torch.equal(ours, theirs)
