"""Holding components to their laws: in one call, or as one pytest item for each law.

Profiles say how many problems a law is tried on: "quick" 3, "default" 10, both the same ones every time, and
"nightly" as many as MEMKIT_LAW_EXAMPLES says (1,000), drawn from MEMKIT_LAW_SEED (0), with single precision
held over MEMKIT_LAW_TOKENS tokens.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy
from torch import nn

import memkit
from memkit.mixers.base import Mixer
from memkit.registry import nearest
from memkit.rule import Rule
from memkit.testing.close import Discarded
from memkit.testing.law import Law, LawBroken
from memkit.testing.laws_mixer import MIXER_LAWS, MODEL_LAWS
from memkit.testing.laws_rule import RULE_LAWS
from memkit.testing.report import Report, Verdict
from memkit.testing.sequences import mixer_problems, model_problems
from memkit.testing.strategies import ENGINE, Engine, rule_problems

MOST_DISCARDED = 0.2
"""A law that says nothing about more of its problems than this has not been tried."""


@dataclass(frozen=True)
class Profile:
    """How hard to try: problems per law, the seed they come from, and whether a failure is made small."""

    examples: int
    seed: int = 0
    shrink: bool = True


def profile_named(name: str) -> Profile:
    """The profile of a name; `ValueError` names the nearest one."""
    examples, seed = (int(os.environ.get(f"MEMKIT_LAW_{key}", n)) for key, n in (("EXAMPLES", 1000), ("SEED", 0)))
    known = {"quick": Profile(3), "default": Profile(10), "nightly": Profile(examples, seed)}
    if name not in known:
        raise ValueError(f"unknown profile {name!r}. {nearest(name, known)}")
    return known[name]


@dataclass(frozen=True)
class Subject:
    """A component with its laws: how to draw problems, and what a law is given for one of them."""

    label: str
    laws: Mapping[str, Law]
    problems: SearchStrategy[Any]
    component_for: Callable[[Any], Any]
    specimen: Any


def check_rule(
    rule: Rule | str | Mapping[str, Any],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str] | None = None,
    engine: Engine = ENGINE,
    raises: bool = True,
) -> Report:
    """Hold a rule (or the name or config of one) to the laws of rules.

    exempt: law -> reason, for laws that the rule is not meant to keep; an exempt law that is kept after all is a
    failure. laws: only these. engine: other functions to run the rule with. Raises `LawBroken`, unless told not
    to, and `ValueError` for unknown laws and profiles and for exemptions without a reason.
    """
    return _check(_rule_subject(memkit.build("rule", rule), engine), exempt, profile, laws, raises)


def check_mixer(
    factory: Callable[[], Mixer],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str] | None = None,
    raises: bool = True,
) -> Report:
    """Hold the mixers that `factory()` makes to the laws of mixers; arguments and errors as for `check_rule`.

    Small ones do: a width of 8, and windows, segments and mini-batches of 3 or 4 tokens, as the laws are tried on
    up to 12 tokens.
    """
    return _check(_sequence_subject(factory, "mixer"), exempt, profile, laws, raises)


def check_model(
    factory: Callable[[], nn.Module],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str] | None = None,
    raises: bool = True,
) -> Report:
    """Hold the language models that `factory()` makes to the laws of sequences, through their ids.

    Arguments, sizes and errors as for `check_mixer`.
    """
    return _check(_sequence_subject(factory, "model"), exempt, profile, laws, raises)


def parametrize_with_laws(
    components: Mapping[str, Any] | Iterable[Any],
    *,
    exempt: Mapping[str, Mapping[str, str]] | None = None,
    profile: str | Profile = "default",
) -> pytest.MarkDecorator:
    """Make one pytest item for each component and each law that applies to it.

        @parametrize_with_laws([my_rule, lambda: MyMixer(dim=8)])
        def test_laws(component, law):
            law(component)

    components: rules, and factories of mixers or language models; a mapping gives them labels. exempt: label ->
    (law -> reason); these items must fail. Raises `ValueError` for unknown labels and laws, and for exemptions
    without a reason.
    """
    subjects = [_subject(component, label) for label, component in _labelled(components)]
    exempt = exempt or {}
    for label in exempt:
        if label not in [subject.label for subject in subjects]:
            raise ValueError(f"{label!r} is exempt but not tested. {nearest(label, [s.label for s in subjects])}")
    items = []
    for subject in subjects:
        reasons = exempt.get(subject.label, {})
        _check_exemptions(subject, reasons)
        for law in subject.laws.values():
            if law.name not in reasons and not law.applies(subject.specimen):
                continue
            fails = [pytest.mark.xfail(strict=True, reason=reasons[law.name])] if law.name in reasons else []
            held = _Held(subject, law, _profile(profile))
            items.append(pytest.param(subject.specimen, held, marks=fails, id=f"{subject.label}-{law.name}"))
    return pytest.mark.parametrize(("component", "law"), items)


@dataclass(frozen=True)
class _Held:
    """A law as a pytest item has it: call it with the item's component."""

    subject: Subject
    law: Law
    profile: Profile

    def __call__(self, component: Any) -> None:
        Report(self.subject.label, (_try(self.subject, self.law, self.profile),)).raise_failures()


@dataclass
class _Tally:
    drawn: int = 0
    discarded: int = 0
    failure: tuple[Any, Exception] | None = field(default=None)


def _check(
    subject: Subject,
    exempt: Mapping[str, str] | None,
    profile: str | Profile,
    laws: Iterable[str] | None,
    raises: bool,
) -> Report:
    exempt, wanted = exempt or {}, list(subject.laws if laws is None else laws)
    _check_exemptions(subject, exempt)
    _check_laws(subject, wanted)
    verdicts = [_judge(subject, subject.laws[name], exempt.get(name), _profile(profile)) for name in wanted]
    report = Report(subject.label, tuple(verdicts))
    if raises:
        report.raise_failures()
    return report


def _judge(subject: Subject, law: Law, reason: str | None, profile: Profile) -> Verdict:
    """Try a law, unless it does not apply; an exemption turns the verdict around."""
    say = partial(Verdict, law=law.name, equation=law.equation)
    if not law.applies(subject.specimen):
        if reason:
            return say(status="failed", detail=f"it is exempt ({reason}), but does not apply. Remove the exemption.")
        return say(status="does not apply", detail=f"it takes {law.asks}.")
    verdict = _try(subject, law, profile)
    if not reason:
        return verdict
    if verdict.status == "passed":
        return say(status="failed", detail=f"it is exempt ({reason}), but kept. Remove the exemption.")
    return say(status="exempt", detail=reason, example=verdict.example)


def _try(subject: Subject, law: Law, profile: Profile) -> Verdict:
    """Try a law on as many problems as the profile says."""
    tally = _Tally()

    def attempt(problem: Any) -> None:
        tally.drawn += 1
        try:
            law(subject.component_for(problem), problem)
        except Discarded:
            tally.discarded += 1
        except Exception as error:
            tally.failure = (problem, error)
            raise

    settings = hypothesis.settings(
        max_examples=max(1, round(profile.examples * law.share)),
        phases=[Phase.generate, Phase.shrink] if profile.shrink else [Phase.generate],
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    # The same problems at each run, and others for each law.
    seeded = hypothesis.seed(zlib.crc32(f"{subject.label} {law.name} {profile.seed}".encode()))
    try:
        seeded(settings(hypothesis.given(subject.problems)(attempt)))()
    except Exception:  # hypothesis raises what `attempt` raised, or says that it could not repeat it
        if tally.failure is None:
            raise
    say = partial(Verdict, law=law.name, equation=law.equation, examples=tally.drawn, discarded=tally.discarded)
    if tally.failure is not None:
        problem, error = tally.failure
        detail = str(error) if isinstance(error, LawBroken) else f"it raised {type(error).__name__}: {error}"
        return say(status="failed", detail=detail, example=problem)
    if tally.discarded > MOST_DISCARDED * tally.drawn:
        detail = f"{tally.discarded} of {tally.drawn} problems left the range in which equality means anything."
        return say(status="failed", detail=detail)
    return say(status="passed")


def _rule_subject(rule: Rule, engine: Engine = ENGINE, label: str | None = None) -> Subject:
    return Subject(label or rule.name, RULE_LAWS, rule_problems(rule, engine), lambda problem: rule, rule)


def _sequence_subject(factory: Callable[[], Any], kind: str, label: str | None = None) -> Subject:
    specimen = factory()
    if not isinstance(specimen, Mixer if kind == "mixer" else nn.Module):
        raise ValueError(f"the factory of a {kind} must make one; it made a {type(specimen).__name__}.")
    laws, problems = (MIXER_LAWS, mixer_problems()) if kind == "mixer" else (MODEL_LAWS, model_problems())
    return Subject(label or type(specimen).__name__, laws, problems, lambda problem: problem.build(factory), specimen)


def _subject(component: Any, label: str | None) -> Subject:
    if isinstance(component, Rule):
        return _rule_subject(component, label=label)
    if not callable(component) or isinstance(component, nn.Module):
        raise ValueError(f"laws are for rules, and factories of mixers and models; got a {type(component).__name__}.")
    return _sequence_subject(component, "mixer" if isinstance(component(), Mixer) else "model", label)


def _labelled(components: Mapping[str, Any] | Iterable[Any]) -> list[tuple[str | None, Any]]:
    return list(components.items()) if isinstance(components, Mapping) else [(None, one) for one in components]


def _profile(profile: str | Profile) -> Profile:
    return profile_named(profile) if isinstance(profile, str) else profile


def _check_laws(subject: Subject, names: Iterable[str]) -> None:
    for name in names:
        if name not in subject.laws:
            raise ValueError(f"there is no law {name!r} for {subject.label}. {nearest(name, subject.laws)}")


def _check_exemptions(subject: Subject, exempt: Mapping[str, str]) -> None:
    _check_laws(subject, exempt)
    for name, reason in exempt.items():
        if not reason.strip():
            raise ValueError(f"the exemption of {subject.label} from {name!r} needs a reason.")
