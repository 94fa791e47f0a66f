"""Hold components to their laws: in one call, or as one pytest item per law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from memkit.mixers.base import Mixer
from memkit.registry import build, exemptions, nearest
from memkit.rule import Rule
from memkit.testing.component import Component, component_of, rule_component, sequence_component
from memkit.testing.law import Law
from memkit.testing.profiles import Profile, profile_of
from memkit.testing.report import Report
from memkit.testing.runner import judge, try_law
from memkit.testing.strategies import ENGINE, Engine


def check_rule(
    rule: Rule | str | Mapping[str, Any],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str | Law] | None = None,
    engine: Engine = ENGINE,
    raises: bool = True,
) -> Report:
    """Hold a rule (or the name or config of one) to the laws of rules.

    exempt: law -> reason, of laws that the rule may break; to keep an exempt law is a failure. Default: the exemptions
    of a registered name. laws: only these, by name, or laws of your own. engine: other functions to run the rule
    with. raises: False to get the report of broken laws instead of an error. Raises `LawBroken`, and `ValueError` for
    unknown laws and profiles and for exemptions without a reason.
    """
    if exempt is None and not isinstance(rule, Rule):
        exempt = exemptions("rule", rule if isinstance(rule, str) else str(rule.get("name")))
    return _check(rule_component(build("rule", rule), engine), exempt, profile, laws, raises)


def check_mixer(
    factory: Callable[[], Mixer],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str | Law] | None = None,
    raises: bool = True,
) -> Report:
    """Hold the mixers made by `factory()` to the laws of mixers; arguments and errors as for `check_rule`.

    Make small ones: a width of 8, and windows, segments and mini-batches of 3 or 4 tokens, as problems have up to 12.
    """
    return _check(sequence_component(factory, "mixer"), exempt, profile, laws, raises)


def check_model(
    factory: Callable[[], nn.Module],
    *,
    exempt: Mapping[str, str] | None = None,
    profile: str | Profile = "default",
    laws: Iterable[str | Law] | None = None,
    raises: bool = True,
) -> Report:
    """Hold the language models made by `factory()` to the laws of sequences, through their ids.

    Arguments, sizes and errors as for `check_mixer`.
    """
    return _check(sequence_component(factory, "model"), exempt, profile, laws, raises)


def parametrize_with_laws(
    components: Mapping[str, Any] | Iterable[Any],
    *,
    exempt: Mapping[str, Mapping[str, str]] | None = None,
    profile: str | Profile = "default",
) -> pytest.MarkDecorator:
    """Make one pytest item for each component and each of its laws.

        @parametrize_with_laws([my_rule, lambda: MyMixer(dim=8)])
        def test_laws(component, law):
            law(component)

    components: rules, and factories of mixers or language models; a mapping gives them labels. exempt: label ->
    (law -> reason); these items must fail. Raises `ValueError` for unknown labels and laws, and for exemptions
    without a reason.
    """
    selected = [component_of(one, label) for label, one in _labeled(components)]
    exempt = exempt or {}
    for label in exempt:
        if label not in (labels := [one.label for one in selected]):
            raise ValueError(f"{label!r} is exempt but not tested. {nearest(label, labels)}")
    items = []
    for one in selected:
        reasons = exempt.get(one.label, {})
        one.check_exemptions(reasons)
        for law in one.laws.values():
            if law.name not in reasons and not law.applies(one.specimen):
                continue
            fails = [pytest.mark.xfail(strict=True, reason=reasons[law.name])] if law.name in reasons else []
            held = _Held(one, law, profile_of(profile))
            items.append(pytest.param(one.specimen, held, marks=fails, id=f"{one.label}-{law.name}"))
    return pytest.mark.parametrize(("component", "law"), items)


@dataclass(frozen=True)
class _Held:
    """The law of a pytest item: call it with the item's component."""

    held: Component
    law: Law
    profile: Profile

    def __call__(self, component: Any) -> None:
        Report(self.held.label, (try_law(self.held, self.law, self.profile),)).raise_failures()


def _check(
    component: Component,
    exempt: Mapping[str, str] | None,
    profile: str | Profile,
    laws: Iterable[str | Law] | None,
    raises: bool,
) -> Report:
    exempt, profile = exempt or {}, profile_of(profile)
    component.check_exemptions(exempt)
    verdicts = [judge(component, law, exempt, profile) for law in component.with_laws(laws).laws.values()]
    report = Report(component.label, tuple(verdicts))
    if raises:
        report.raise_failures()
    return report


def _labeled(components: Mapping[str, Any] | Iterable[Any]) -> list[tuple[str | None, Any]]:
    return list(components.items()) if isinstance(components, Mapping) else [(None, one) for one in components]
