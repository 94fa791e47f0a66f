"""Every deliberate fault in one table: the law meant for it, and what is held to that law, broken and honest.

Each has a stored example, the small problem that shows it (tests/data/faults.json), so that telling whether the
law still kills it takes one run. `python tests/helpers/fault_matrix.py` looks for those of new faults, and for what
every other law says of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from broken_engines import ENGINES, OTHERS
from broken_mixers import MIXERS, model
from broken_rules import HONEST, RULES
from literal_laws import LITERAL_LAWS, literal_component
from memkit.testing import MIXER_LAWS, MODEL_LAWS, RULE_LAWS, RuleProblem
from memkit.testing.component import Component, rule_component, sequence_component
from memkit.testing.replay import read_line
from other_mixers import OTHER_MIXERS

STORED = Path(__file__).parents[1] / "data" / "faults.json"

# A model is held to the laws of mixers and to some of its own.
LAWS = {
    "rule": RULE_LAWS,
    "mixer": MIXER_LAWS,
    "model": {name: law for name, law in MODEL_LAWS.items() if name not in MIXER_LAWS},
    "reference": LITERAL_LAWS,
}
# Departures from a paper are tried on the laws of mixers too, besides their own reference.
TRIED = {**LAWS, "reference": LITERAL_LAWS | MIXER_LAWS}


@dataclass(frozen=True)
class Fault:
    """A fault, the law that must find it, and the component that has it beside the one that does not."""

    kind: str
    name: str
    law: str
    broken: Callable[[], Component]
    honest: Callable[[], Component]

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"

    def problem(self, component: Component, example: str) -> Any:
        """The stored problem, for one of the two."""
        problem = read_line(component.problem, example)
        return replace(problem, engine=component.engine) if isinstance(problem, RuleProblem) else problem


def _faults() -> list[Fault]:
    honest = partial(rule_component, HONEST)
    found = [Fault("rule", name, law, partial(rule_component, made), honest) for name, (law, made) in RULES.items()]
    for name, (law, engine) in ENGINES.items():
        found.append(Fault("rule", name, law, partial(rule_component, HONEST, engine), honest))
    halved = ENGINES["arithmetic in half precision"][1]  # which no short stream forgives either
    broken = partial(rule_component, HONEST, halved)
    found.append(Fault("rule", "arithmetic in half precision, briefly", "rounding", broken, honest))
    for name, (law, rule, engine) in OTHERS.items():
        found.append(Fault("rule", name, law, partial(rule_component, rule, engine), partial(rule_component, rule)))
    for name, (law, pair) in MIXERS.items():
        found.append(Fault("mixer", name, law, *(partial(sequence_component, made, "mixer") for made in pair)))
    pair = (partial(sequence_component, partial(model, forgetful), "model") for forgetful in (True, False))
    found.append(Fault("model", "generator without a past", "generate is recomputation", *pair))
    for name, (law, pair) in OTHER_MIXERS.items():
        found.append(Fault("reference", name, law, *(partial(literal_component, law, made) for made in pair)))
    return found


FAULTS = _faults()


def stored() -> dict[str, dict[str, Any]]:
    """What is known of each fault: its example, and the laws that kill it."""
    return json.loads(STORED.read_text(encoding="utf-8"))
