"""The expand form: the rules it fits, its explanation, and its observations beside those of the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import memkit
from compare import near
from memkit.engine import plan
from memkit.rule import Gate, Point, Rule, at_decayed, at_lookahead
from memkit.testing import check_rule
from memkit.testing.strategies import RuleProblem


def atlas(**options: Any) -> Rule:
    return memkit.build("rule", "atlas", **{"mini_batch": 3, "window": 3, "expansion": 2, **options})


def muon_rule(**options: Any) -> Rule:
    return replace(memkit.build("rule", "titans", depth=1, optimizer="muon"), **options)


@pytest.mark.parametrize("point", [at_decayed, at_lookahead])
@pytest.mark.parametrize("rule", [muon_rule(mini_batch=3), atlas()])
def test_gradients_are_taken_where_the_rule_says(rule: Rule, point: Point) -> None:
    check_rule(replace(rule, point=point), profile="quick", laws=["forms agree", "split anywhere", "masked token"])


@pytest.mark.parametrize("rule", [atlas(), atlas(window=1), muon_rule(), muon_rule(mini_batch=1)])
def test_a_turned_step_is_expanded_and_watched(rule: Rule) -> None:
    assert memkit.explain(rule).startswith("expand:")
    problem = RuleProblem(tokens=7, key_dim=3, value_dim=3)
    given, state = problem.tokens_for(rule), problem.state_for(rule)
    seen = [memkit.observe(rule, *given, state, form=form) for form in ("scan", "expand")]
    near(seen[1].loss, seen[0].loss)
    near(seen[1].surprise, seen[0].surprise)


@pytest.mark.parametrize(
    ("rule", "form"),
    [
        (muon_rule(mini_batch=1, update_every=3), "write"),
        (muon_rule(effective=torch.tanh), "step"),
        (muon_rule(retention=memkit.build("retention", "elastic_net")), "step"),
        (memkit.build("rule", "titans", optimizer="heavy_ball"), "fused"),
        (replace(muon_rule(), objective=memkit.build("objective", "dot")), "expand"),
    ],
)
def test_other_forms_are_taken_where_they_fit(rule: Rule, form: str) -> None:
    assert memkit.explain(rule).partition(":")[0] == form


def test_explain_says_what_runs_one_by_one_and_what_to_choose_instead() -> None:
    assert not plan.one_by_one(muon_rule(mini_batch=2))
    assert plan.one_by_one(muon_rule(mini_batch=1))
    text = memkit.explain(muon_rule(mini_batch=1))
    assert "one token at a time" in text
    assert "A larger mini_batch is parallel, and another rule; so is update_every=n" in text
    sparse = muon_rule(retention=memkit.build("retention", "elastic_net"))
    assert "With update_every=n it would write once every n tokens" in memkit.explain(sparse)


@pytest.mark.parametrize(
    ("rule", "form", "message"),
    [
        (atlas(), "dual", "its optimizer 'muon' turns each step in a way that is not linear"),
        (memkit.build("rule", "titans"), "expand", "its steps need not be formed"),
        (muon_rule(effective=torch.tanh), "expand", "its effective weights are not linear"),
    ],
)
def test_forms_that_are_not_exact_are_refused(rule: Rule, form: Any, message: str) -> None:
    problem = RuleProblem(tokens=2, key_dim=3, value_dim=3)
    given, state = problem.tokens_for(rule), problem.fresh_state(rule)
    with pytest.raises(ValueError, match=message):
        memkit.memorize(rule, *given, state, form=form)


def test_the_gate_of_each_gradient_has_its_name_and_a_range_of_its_own() -> None:
    rule = memkit.build("rule", "lact", update_every=3)
    assert rule.gates["weight"] == Gate("weight", 0.0, float("inf"))
    assert rule.gates["lr"].default == 1.0
    with pytest.raises(ValueError, match="is called 'weight' and is per head"):
        replace(rule, weight=Gate("eta", 0.0, 1.0))


def test_no_registered_rule_runs_one_by_one_with_a_mini_batch() -> None:
    found = [memkit.build("rule", name) for name in memkit.names("rule")]
    assert [rule.name for rule in found if rule.mini_batch > 1 and plan.one_by_one(rule)] == []
