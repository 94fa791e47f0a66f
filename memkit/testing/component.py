"""A component with its laws and its problems."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hypothesis.strategies import SearchStrategy
from torch import nn

from memkit.mixers.base import Mixer
from memkit.registry import build, factory, nearest
from memkit.rule import Rule
from memkit.testing.law import Law
from memkit.testing.laws.of_mixers import MIXER_LAWS, MODEL_LAWS
from memkit.testing.laws.of_rules import RULE_LAWS
from memkit.testing.sequences import MixerProblem, ModelProblem, mixer_problems, model_problems
from memkit.testing.strategies import ENGINE, Engine, RuleProblem, rule_problems

KINDS = ("rule", "mixer", "architecture")
"""The kinds of components with laws."""

SMALL: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "depth": 2,
    "vocab_size": 7,
    "window": 3,
    "segment": 4,
    "persistent": 2,
    "tokens": 2,
    "chunk": 3,
    "shard": 5,
    "levels": [1, 3],
    "shards": [8],
}
"""Options that reduce mixers and architectures to the sizes of problems."""
SMALL_RULE = {"mini_batch": 4, "update_every": 3, "window": 3, "expansion": 2}
"""Larger defaults of rules are reduced to these, so that 12 tokens cross the ends of mini-batches and writes."""


@dataclass(frozen=True)
class Component:
    """A component with its laws and its problems.

    problems(stream) draws problems of the class `problem`, with long streams of `stream` tokens. instance(problem)
    makes the component for one of them; specimen: one instance, for questions about the component.
    """

    label: str
    laws: Mapping[str, Law]
    problem: type
    problems: Callable[[int], SearchStrategy[Any]]
    instance: Callable[[Any], Any]
    specimen: Any
    engine: Engine = ENGINE

    @property
    def applicable(self) -> list[str]:
        """Names of the laws that apply."""
        return [law.name for law in self.laws.values() if law.applies(self.specimen)]

    def with_laws(self, wanted: Iterable[str | Law] | None) -> Component:
        """A copy with only these laws, by name or as `Law`; `ValueError` names the nearest one."""
        if wanted is None:
            return self
        chosen = [law if isinstance(law, Law) else self.law(law) for law in wanted]
        laws = {law.name: law for law in chosen}
        return replace(self, laws=laws)

    def law(self, name: str) -> Law:
        """A law by name; `ValueError` names the nearest one."""
        if name not in self.laws:
            raise ValueError(f"there is no law {name!r} for {self.label}. {nearest(name, self.laws)}")
        return self.laws[name]

    def check_exemptions(self, exempt: Mapping[str, str]) -> None:
        """Raise `ValueError` for unknown laws and empty reasons."""
        for name, reason in exempt.items():
            self.law(name)
            if not reason.strip():
                raise ValueError(f"the exemption of {self.label} from {name!r} needs a reason.")


def rule_component(rule: Rule, engine: Engine = ENGINE, label: str | None = None) -> Component:
    """A rule, run by an engine."""
    problems = partial(rule_problems, rule, engine)
    problems(1)  # refuse a rule without fitting widths before any law is tried
    return Component(label or rule.name, RULE_LAWS, RuleProblem, problems, lambda problem: rule, rule, engine)


def sequence_component(made_by: Callable[[], Any], kind: str, label: str | None = None) -> Component:
    """A mixer or a model, by its factory; `ValueError` if the factory makes something else."""
    specimen = made_by()
    if not isinstance(specimen, Mixer if kind == "mixer" else nn.Module):
        raise ValueError(f"the factory of a {kind} must make one; it made a {type(specimen).__name__}.")
    laws, problem, problems = (
        (MIXER_LAWS, MixerProblem, mixer_problems) if kind == "mixer" else (MODEL_LAWS, ModelProblem, model_problems)
    )
    label = label or type(specimen).__name__
    return Component(label, laws, problem, lambda stream: problems(), lambda problem: problem.build(made_by), specimen)


def component_of(component: Any, label: str | None) -> Component:
    """A rule, or a factory of mixers or models; `ValueError` for anything else."""
    if isinstance(component, Rule):
        return rule_component(component, label=label)
    if not callable(component) or isinstance(component, nn.Module):
        raise ValueError(f"laws are for rules, and factories of mixers and models; got a {type(component).__name__}.")
    return sequence_component(component, "mixer" if isinstance(component(), Mixer) else "model", label)


def registered_component(kind: str, name: str, options: Mapping[str, Any], engine: Engine = ENGINE) -> Component:
    """A registered component, reduced to the sizes of problems; `options` take precedence.

    Raises `ValueError` for unknown names and options, and for a factory that makes another kind.
    """
    if kind == "rule":
        made = build("rule", name, **small_options(kind, name, options))
        if not isinstance(made, Rule):
            raise ValueError(f"rule {name!r} must make a memkit.Rule; it made a {type(made).__name__}.")
        return rule_component(made, engine, name)
    made_by = partial(build, kind, name, **small_options(kind, name, options))
    return sequence_component(made_by, "mixer" if kind == "mixer" else "model", name)


def small_options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that reduce a component to the sizes of problems; `options` take precedence."""
    if kind == "rule":
        return {**_small_rule(name), **options}
    takes = inspect.signature(factory(kind, name)).parameters
    small = {key: value for key, value in SMALL.items() if key in takes}
    default = takes["rule"].default if "rule" in takes else None
    matrix = _matrix_rule(default if isinstance(default, str) else "titans")
    if "rule" in takes:
        small["rule"] = matrix
    if "mixer" in takes:
        small["mixer"] = {"name": "neural_memory", "rule": matrix}
    if "pattern" in takes:
        small["pattern"] = ["mamba2", {"name": "neural_memory", "rule": matrix}]
    found = {**small, **options}
    if isinstance(found.get("rule"), Mapping) and "name" not in found["rule"]:
        found["rule"] = {**small["rule"], **found["rule"]}
    return found


def _small_rule(name: str) -> dict[str, Any]:
    takes = inspect.signature(factory("rule", name)).parameters
    defaults = {key: takes[key].default for key in SMALL_RULE if key in takes}
    return {key: SMALL_RULE[key] for key, value in defaults.items() if type(value) is int and value > SMALL_RULE[key]}


def _matrix_rule(name: str) -> dict[str, Any]:
    """A rule for mixers: a matrix if it can be one, as deep memories need not stay finite in any stream."""
    depth = {"depth": 1} if "depth" in inspect.signature(factory("rule", name)).parameters else {}
    return {"name": name, **_small_rule(name), **depth}
