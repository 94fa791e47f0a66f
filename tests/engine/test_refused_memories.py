"""Memories that the engine cannot write are refused with reasons in every form: cut off, unused, used twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

import memkit
from memkit.parts.memory import MLPMemory
from memkit.rule import Linear, Rule
from small_memory import Case, titans


@dataclass(frozen=True)
class Faulty(MLPMemory):
    """Two layers, of which the first cannot be written, or neither."""

    how: str = "detached"
    linear: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        hidden = linear("w1", x)
        if self.how == "thrown away":
            return linear("w2", hidden * 0 + 1).detach()
        return linear("w2", hidden.detach() if self.how == "detached" else hidden)


def faulty(rule: Rule, **options: Any) -> Rule:
    return replace(rule, memory=Faulty(2, 1, "silu", False, **options))


FORMS: dict[str, Rule] = {
    "scan": titans(),
    "dual": titans(),
    "iterate": titans(mini_batch=1),
    "write": replace(titans(mini_batch=1), update_every=3),
    "expand": titans(optimizer="muon"),
}


@pytest.mark.parametrize(("how", "names"), [("detached", r"\['w1'\]"), ("thrown away", r"\['w1', 'w2'\]")])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_the_loss_does_not_see_is_named(form: str, how: str, names: str) -> None:
    case = Case(faulty(FORMS[form], how=how))
    with pytest.raises(ValueError, match=rf"rule 'titans': its loss does not depend on the weights {names}, .*detach"):
        case.memorize(form=form)


def test_a_refused_weight_is_named_when_the_outer_loop_learns_too() -> None:
    case = Case(faulty(titans()))
    case.leaves()
    with pytest.raises(ValueError, match=r"does not depend on the weights \['w1'\]"):
        case.memorize(form="dual")


def test_two_matrices_are_no_matrix() -> None:
    rule = faulty(titans(mini_batch=1), how="whole", linear=True)
    assert memkit.explain(rule).startswith("solve:")
    with pytest.raises(ValueError, match=r"linear = True, .* but has the weights \['w1', 'w2'\].* Say linear = False"):
        Case(rule).memorize()
