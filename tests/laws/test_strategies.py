"""Problems and laws as a public interface: printed lines can be run again, and users write laws of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import find, given
from torch import nn

import memkit
from memkit.rule import Rule
from memkit.testing import (
    Law,
    LawBroken,
    MixerProblem,
    ModelProblem,
    RuleProblem,
    check_rule,
    mixer_problems,
    rule_problems,
    same_trees,
)
from memkit.testing.component import registered_component, small_options
from memkit.testing.profiles import Profile
from memkit.testing.replay import line, read_line
from memkit.testing.report import Verdict
from memkit.testing.runner import try_example
from memkit.testing.selection import Target, joined, units

RULE = memkit.build("rule", "titans", depth=1, mini_batch=3)


@given(rule_problems(RULE))
def test_a_line_is_the_problem_again(problem: RuleProblem) -> None:
    assert read_line(RuleProblem, line(problem)) == problem
    assert eval(repr(problem)) == problem


@given(mixer_problems())
def test_a_mixers_problem_too(problem: MixerProblem) -> None:
    assert read_line(MixerProblem, line(problem)) == problem


def test_the_smallest_problem_is_an_empty_line() -> None:
    assert repr(RuleProblem()) == "RuleProblem()"
    assert line(RuleProblem(tokens=3, form="dual", seed=7)) == "tokens=3, form='dual', seed=7"


def values_count_once(rule: Rule, problem: RuleProblem) -> None:
    """Twice the values make twice the weights: so it is from weights of 0, and from no others."""
    tokens, state = problem.tokens_for(rule), problem.fresh_state(rule)
    twice = tokens._replace(v=2 * tokens.v)
    _, once = problem.engine.memorize(rule, *tokens, state)
    _, after = problem.engine.memorize(rule, *twice, state)
    same_trees("weights", after.weights, {name: 2 * weight for name, weight in once.weights.items()})


def test_a_law_of_ones_own_is_tried_like_any_other() -> None:
    law = Law("values count once", values_count_once, hint="initial weights.")
    with pytest.raises(LawBroken, match="titans breaks 'values count once'") as broken:
        check_rule(RULE, laws=[law])
    assert "RuleProblem(form=" in str(broken.value) and "initial weights." in str(broken.value)
    report = check_rule(RULE, laws=["shapes", Law("holds", lambda rule, problem: None)])
    assert [verdict.status for verdict in report.verdicts] == ["passed", "passed"]


def test_components_are_brought_down_to_the_size_of_the_problems() -> None:
    assert small_options("rule", "titans", {"depth": 1}) == {"mini_batch": 4, "expansion": 2, "depth": 1}
    assert small_options("rule", "mamba2", {}) == {}
    assert small_options("mixer", "mag", {})["rule"] == {"name": "titans", "mini_batch": 4, "expansion": 2, "depth": 1}
    assert small_options("mixer", "mag", {"rule": {"depth": 2}})["rule"]["depth"] == 2
    assert registered_component("architecture", "mal", {"depth": 1}).specimen.vocab_size == 7


@pytest.mark.parametrize("name", ["lmm", "mac", "tnt"])
def test_an_enlarged_model_writes_and_reads_what_equality_is_about(name: str) -> None:
    component = registered_component("architecture", name, {})
    problems = [ModelProblem(tokens=7, gain=3, write=write, seed=seed) for seed in range(4) for write in (True, False)]
    verdicts = [try_example(component, component.law("split anywhere"), problem) for problem in problems]
    assert [verdict.detail for verdict in verdicts if verdict.status != "passed"] == []


def test_an_enlarged_component_has_no_matrix_of_zeros_and_keeps_its_step_sizes() -> None:
    problem = MixerProblem(gain=3)
    mixer = problem.build(lambda: memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=RULE))
    larger = problem.enlarged(mixer).state_dict()
    for name, parameter in mixer.state_dict().items():
        if parameter.dim() < 2:
            assert 0 < float((larger[name] - parameter).abs().max()) < 2, name
        elif parameter.any():
            assert torch.equal(larger[name], 3 * parameter), name
        else:
            assert 1 < float(larger[name].abs().max()) < 10, name
    assert torch.equal(replace(problem, gain=1).enlarged(mixer).initial["w1"], mixer.initial["w1"])


def test_a_filled_component_begins_without_matrices_of_zeros() -> None:
    def made() -> nn.Module:
        return memkit.build("mixer", "mag", dim=8, heads=2, window=3, rule=RULE)

    begun, filled = (MixerProblem(seed=3, filled=how).build(made).state_dict() for how in (False, True))
    empty = [name for name, parameter in begun.items() if parameter.dim() > 1 and not parameter.any()]
    assert empty == ["memory.initial.w1"] and 0.5 < float(filled[empty[0]].abs().max()) < 5
    assert all(torch.equal(filled[name], begun[name]) for name in begun.keys() - empty)
    assert find(mixer_problems(), lambda problem: problem.filled) == MixerProblem(filled=True)
    assert find(mixer_problems(), lambda problem: True) == MixerProblem(), "zeros are the simplest"


def test_rules_begin_anywhere() -> None:
    for seed in range(3):
        assert all(w.all() for w in RuleProblem(seed=seed).fresh_state(RULE).initial.values())


def test_a_laws_examples_are_spread_over_components_and_divided() -> None:
    pairs = [(target, target.component()) for target in (Target("rule", "titans"), Target("rule", "mamba2"))]
    made = units(pairs, Profile(1000, spread=True, longest=5000))
    mine = [unit for unit in made if (unit.target.name, unit.law) == ("titans", "causality")]
    assert [unit.profile.examples for unit in mine] == [100] * 5
    streams = [unit.profile for unit in made if (unit.target.name, unit.law) == ("mamba2", "single precision")]
    assert [(one.examples, one.stream) for one in streams] == [(500, 300), (1, 5000)]
    assert len({unit.key for unit in made}) == len(made)


def test_parts_of_a_law_are_joined() -> None:
    def verdict(status, detail=""):
        return Verdict(law="a", equation="", status=status, detail=detail, examples=3)

    broken = joined([verdict("passed"), verdict("failed", "first"), verdict("failed", "second")])
    assert (broken.status, broken.detail, broken.examples) == ("failed", "first", 9)
    assert joined([verdict("failed", "exempt, but kept"), verdict("exempt")]).status == "exempt"
