"""The choice of a form, and the reasons that `explain` gives for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import memkit
from memkit import Rule
from memkit.engine import FormName, plan
from memkit.engine.options import FORM_NAMES
from memkit.rule import at_decayed
from small_memory import Case, titans


def not_linear(rule: Rule, part: str) -> Rule:
    return replace(rule, **{part: replace(getattr(rule, part), linear=False)})


SEEN_ONCE = replace(titans(mini_batch=1, depth=1), effective=torch.tanh)
"""One token at a time in its fastest form."""


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (titans(), "fused: every mini-batch of 4 tokens runs at once, because its gradients see the same weights."),
        (titans(mini_batch=1), "iterate: exact online gradients of a deep memory, a block at once"),
        (
            titans(mini_batch=1, depth=1),
            "solve: exact online gradients of a matrix, as one triangular system per",
        ),
        (memkit.build("rule", "mamba2"), "solve: its gradient does not see the weights, so all blocks run at once."),
        (SEEN_ONCE, "step: one token at a time, because mini_batch=1 updates the weights"),
        (SEEN_ONCE, "and its effective weights are not linear in the raw ones."),
        (not_linear(titans(), "optimizer"), "step: token by token, because its optimizer 'momentum' is not linear"),
        (not_linear(titans(), "optimizer"), "With update_every=n it would write once every n tokens, in parallel"),
        (not_linear(titans(), "retention"), "step: token by token, because its retention 'decay' is not linear"),
        (replace(titans(mini_batch=1), update_every=3), "write: one dense gradient every 3 tokens"),
        (
            replace(titans(mini_batch=1), update_every=3, point=at_decayed),
            "scan: token by token, because it writes once every 3 tokens; its gradient point changes from token",
        ),
        (
            replace(SEEN_ONCE, window=3),
            "dual: one token at a time, because mini_batch=1 updates the weights that the next gradient sees at every "
            "token, and its effective weights are not linear in the raw ones; each write uses 3 gradients",
        ),
        (replace(not_linear(titans(), "optimizer"), window=3), "scan: token by token, because its optimizer"),
        (titans(surprise_limit=2.5), "Departure from the paper: each token's gradient norm is limited to 2.5."),
    ],
)
def test_explain_says_which_form_and_why_not_a_faster_one(rule: Rule, text: str) -> None:
    assert text in memkit.explain(rule)
    assert memkit.explain(rule).split(":")[0] == plan.fastest(rule).name


@pytest.mark.parametrize(
    ("rule", "form", "message"),
    [
        (titans(), "solve", "has no solve form: its memory is not a single matrix; its gradients see the weights of"),
        (titans(), "write", "has no write form: it writes at every token. Use form='auto', which takes .*'fused'"),
        (memkit.build("rule", "mamba2"), "iterate", "has no iterate form: its gradient does not see the weights"),
        (not_linear(titans(), "optimizer"), "dual", "its optimizer 'momentum' is not linear in the gradient"),
    ],
)
def test_a_form_that_is_not_exact_is_refused(rule: Rule, form: FormName, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(rule).memorize(form=form)


@pytest.mark.parametrize(
    ("changes", "form", "message"),
    [
        ({}, "iterate", r"has no iterate form: its gates \['decay'\] are per key channel"),
        ({"window": 3}, "dual", r"its gates \['decay'\] are per key channel, and its writes use 3 gradients"),
    ],
)
def test_forms_that_gates_per_key_channel_do_not_have(changes: Any, form: FormName, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.choose(replace(memkit.build("rule", "kda"), **changes), form, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 3}, r"rounds and tolerance are for form='iterate'; got form='auto'"),
        ({"form": "iterate", "rounds": 3, "tolerance": 1e-3}, "give rounds or tolerance, not both"),
        ({"form": "iterate", "rounds": -1}, "rounds must be an integer of at least 0; got -1"),
        ({"form": "iterate", "tolerance": -1.0}, r"tolerance must be a finite number of at least 0; got -1\.0"),
    ],
)
def test_rounds_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(titans(mini_batch=1)).memorize(**options)


@pytest.mark.parametrize(
    ("rule", "form"),
    [
        (titans(), "step"),
        (memkit.build("rule", "delta_net"), "step"),
        (replace(titans(mini_batch=1), update_every=3), "write"),
        (replace(titans(), window=3), "dual"),
        (SEEN_ONCE, "step"),
        (replace(SEEN_ONCE, window=3), "dual"),
    ],
)
def test_a_call_of_one_token_is_a_step_where_each_writes_its_own_gradient(rule: Rule, form: str) -> None:
    assert plan.choose(rule, "auto", 1).name == form
    said = f"A call of a single token, as in decoding, takes the form '{form}'." in memkit.explain(rule)
    assert said == (form != plan.fastest(rule).name)


def test_more_than_1024_tokens_one_at_a_time_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    Case(SEEN_ONCE, tokens=1024, batch=1).memorize()  # warnings are errors
    case = Case(SEEN_ONCE, tokens=1025, batch=1)
    with pytest.warns(UserWarning, match=r"1025 tokens of rule 'titans' run one by one: step: one token at") as told:
        case.memorize()
    assert [warning.filename for warning in told] == [Case.memorize.__code__.co_filename]  # the caller's line
    case.memorize()


@pytest.mark.parametrize("rule", [titans(mini_batch=64), titans(mini_batch=1, depth=1), memkit.build("rule", "mamba2")])
def test_no_warning_for_rules_that_run_in_parallel(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    Case(rule, tokens=1025, batch=1).memorize()


def test_no_warning_for_a_form_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    Case(SEEN_ONCE, tokens=1025, batch=1).memorize(form="dual")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (memkit.build("rule", "moneta"), "its effective weights are others than it keeps"),
        (memkit.build("rule", "omega"), "each write uses 8 gradients"),
        (titans(surprise_limit=1.0), "it has a surprise_limit"),
        (replace(titans(), point=at_decayed), "its gradients are taken at a point of its own"),
    ],
)
def test_rules_that_the_fused_form_does_not_fit_say_why(rule: Rule, why: str) -> None:
    assert f"compile_blocks() and products= are not for it: {why}." in memkit.explain(rule)
    with pytest.raises(ValueError, match=f"products=torch.bfloat16 is not for rule '{rule.name}': {why}. Leave it out"):
        Case(rule).memorize(products=torch.bfloat16)


def test_the_fused_form_is_compiled_and_may_multiply_in_bfloat16() -> None:
    assert "compile_blocks" not in memkit.explain(titans())
    assert Case(titans()).memorize(products=torch.bfloat16)[0].isfinite().all()


def test_every_form_has_a_name_for_runs() -> None:
    assert {"auto", *plan.BY_NAME} == set(FORM_NAMES)
