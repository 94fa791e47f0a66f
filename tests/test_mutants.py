"""The laws are tested themselves: each fault is killed by the law named for it, which its honest twin keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from broken_engines import ENGINES
from broken_mixers import MIXERS, model
from broken_rules import HONEST, RULES

from memkit.testing import MIXER_LAWS, MODEL_LAWS, RULE_LAWS, Profile, Report, check_mixer, check_model, check_rule

TRIED = Profile(10, shrink=False)


class Mutant(NamedTuple):
    """A fault, the law that must find it, and how to hold the mutant and its honest twin to that law."""

    kind: str
    fault: str
    law: str
    broken: Callable[..., Report]
    honest: Callable[..., Report]


def mutants() -> Iterator[Mutant]:
    rule = partial(check_rule, HONEST)
    for fault, (law, made) in RULES.items():
        yield Mutant("rule", fault, law, partial(check_rule, made), rule)
    for fault, (law, engine) in ENGINES.items():
        yield Mutant("rule", fault, law, partial(rule, engine=engine), rule)
    halved = ENGINES["arithmetic in half precision"][1]  # which no short stream forgives either
    yield Mutant("rule", "arithmetic in half precision, briefly", "rounding", partial(rule, engine=halved), rule)
    for fault, (law, (broken, honest)) in MIXERS.items():
        yield Mutant("mixer", fault, law, partial(check_mixer, broken), partial(check_mixer, honest))
    forgetful, honest = (partial(check_model, partial(model, forgetful)) for forgetful in (True, False))
    yield Mutant("model", "generator without a past", "generate is recomputation", forgetful, honest)


MUTANTS = list(mutants())


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{mutant.kind}-{mutant.fault}" for mutant in MUTANTS])
def test_the_law_named_for_a_fault_kills_it(mutant: Mutant) -> None:
    held: dict[str, Any] = {"laws": [mutant.law], "profile": TRIED, "raises": False}
    verdict, twin = mutant.broken(**held)[mutant.law], mutant.honest(**held)[mutant.law]
    assert verdict.status == "failed"
    assert verdict.detail.startswith(f"law {mutant.law!r}: "), "it must be found wrong, not fall over"
    assert twin.status == "passed", str(twin)


# A model is held to the laws of mixers and to some of its own.
HELD = {"rule": RULE_LAWS.keys(), "mixer": MIXER_LAWS.keys(), "model": MODEL_LAWS.keys() - MIXER_LAWS.keys()}


@pytest.mark.parametrize("kind", HELD)
def test_every_law_kills_something(kind: str) -> None:
    assert HELD[kind] - {mutant.law for mutant in MUTANTS if mutant.kind == kind} == set()
