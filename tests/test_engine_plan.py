"""What the engine says about the form it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_memory import Case, titans

import memkit
from memkit import Rule
from memkit.engine import plan


def not_linear(rule: Rule, part: str) -> Rule:
    return replace(rule, **{part: replace(getattr(rule, part), linear=False)})


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (titans(), "dual: every mini-batch of 4 tokens runs at once, because its gradients see the same weights."),
        (titans(mini_batch=1), "dual: one token at a time, because mini_batch=1 updates the weights"),
        (memkit.build("rule", "mamba2"), "dual: its gradient does not see the weights, so blocks of any size"),
        (not_linear(titans(), "optimizer"), "scan: token by token, because its optimizer 'momentum' is not linear"),
        (not_linear(titans(), "retention"), "scan: token by token, because its retention 'decay' is not linear"),
        (replace(titans(mini_batch=1), update_every=3), "scan: token by token, because it writes once every 3 tokens."),
        (titans(surprise_limit=2.5), "Departure from the paper: each token's gradient norm is limited to 2.5."),
    ],
)
def test_explain_says_which_form_and_why_not_a_faster_one(rule: Rule, text: str) -> None:
    assert text in memkit.explain(rule)
    assert memkit.explain(rule).split(":")[0] in {"scan", "dual"}


def test_more_than_1024_tokens_one_at_a_time_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    slow = titans(mini_batch=1, depth=1)
    Case(slow, tokens=1024, batch=1).memorize()  # warnings are errors
    case = Case(slow, tokens=1025, batch=1)
    with pytest.warns(UserWarning, match=r"1025 tokens of rule 'titans' run one by one: dual: one token at") as told:
        case.memorize()
    assert [warning.filename for warning in told] == [Case.memorize.__code__.co_filename]  # the caller's line
    case.memorize()


@pytest.mark.parametrize("rule", [titans(mini_batch=64), memkit.build("rule", "mamba2")])
def test_no_warning_for_rules_that_run_in_parallel(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    Case(rule, tokens=1025, batch=1).memorize()


def test_no_warning_for_a_form_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_warned", set())
    Case(titans(mini_batch=1, depth=1), tokens=1025, batch=1).memorize(form="dual")
