"""Try a law on many problems, and judge the result."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from memkit.testing.component import Component
from memkit.testing.law import Law, LawBroken
from memkit.testing.profiles import Profile
from memkit.testing.report import RAISED as RAISES
from memkit.testing.report import Verdict
from memkit.testing.tolerance import Discarded
from memkit.user_modules import in_words

MOST_DISCARDED = 0.2
"""The largest share of problems that may say nothing; above it, the law has not been tried."""

RAISED = (Exception, SystemExit)
"""Errors of a component; a component that exits does not end the check."""


@dataclass
class _Tally:
    drawn: int = 0
    discarded: int = 0
    why: str = ""
    failure: tuple[Any, BaseException] | None = field(default=None)


def judge(
    component: Component, law: Law, exempt: Mapping[str, str], profile: Profile, *, part: int = 0, example: Any = None
) -> Verdict:
    """Try a law, unless it does not apply; an exemption turns the verdict around.

    part: the number of this part, if the examples are divided. example: only this problem, without exemptions.
    """
    reason = exempt.get(law.name) if example is None else None
    say = partial(Verdict, law=law.name, equation=law.equation)
    if not law.applies(component.specimen):
        if reason:
            return say(status="failed", detail=f"it is exempt ({reason}), but does not apply. Remove the exemption.")
        return say(status="does not apply", detail=f"it takes {law.asks}.")
    began = time.monotonic()
    verdict = try_law(component, law, profile, part) if example is None else try_example(component, law, example)
    found_wrong = verdict.detail.startswith(law.objection)  # neither a discarded problem nor an error
    verdict = replace(verdict, seconds=time.monotonic() - began, hint=law.hint if found_wrong else "")
    if not reason:
        return verdict
    if verdict.status == "passed":
        detail = f"it is exempt ({reason}), but kept. Remove the exemption."
        return replace(verdict, status="failed", detail=detail)
    return replace(verdict, status="exempt", detail=reason, hint="")


def try_example(component: Component, law: Law, problem: Any) -> Verdict:
    """Try a law on one problem."""
    say = partial(Verdict, law=law.name, equation=law.equation, examples=1)
    try:
        law(component.instance(problem), problem)
    except Discarded as nothing:
        return say(status="failed", discarded=1, example=problem, detail=f"the example says nothing: {nothing}")
    except RAISED as error:
        return say(status="failed", example=problem, detail=_objection(error))
    return say(status="passed")


def try_law(component: Component, law: Law, profile: Profile, part: int = 0) -> Verdict:
    """Try a law on the profile's number of problems."""
    tally = _Tally()

    def attempt(problem: Any) -> None:
        tally.drawn += 1
        try:
            law(component.instance(problem), problem)
        except Discarded as nothing:
            tally.discarded += 1
            tally.why = str(nothing)
        except RAISED as error:
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
    # The same problems in every run, and others for each law and part.
    drawn_from = f"{component.label} {law.name} {profile.seed}{f' {part}' if part else ''}"
    seeded = hypothesis.seed(zlib.crc32(drawn_from.encode()))
    try:
        seeded(settings(hypothesis.given(component.problems(profile.stream))(attempt)))()
    except RAISED:  # the error of `attempt`, or hypothesis failed to repeat it
        if tally.failure is None:
            raise
    return _verdict(law, tally)


def _verdict(law: Law, tally: _Tally) -> Verdict:
    say = partial(Verdict, law=law.name, equation=law.equation, examples=tally.drawn, discarded=tally.discarded)
    if tally.failure is not None:
        problem, error = tally.failure
        return say(status="failed", detail=_objection(error), example=problem)
    if tally.discarded > max(1, MOST_DISCARDED * tally.drawn):  # one of a few problems is allowed
        detail = (
            f"{tally.discarded} of {tally.drawn} problems left the range in which equality means anything, "
            f"the last because {tally.why}"
        )
        return say(status="failed", detail=detail)
    return say(status="passed")


def _objection(error: BaseException) -> str:
    """The objection of a law, or the component's own error and its place."""
    return str(error) if isinstance(error, LawBroken) else f"{RAISES}{in_words(error)}"
