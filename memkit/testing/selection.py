"""The work of a check as data, to send to other processes: components by name, and units of work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memkit.registry import exemptions, names, nearest
from memkit.rule import Rule
from memkit.testing.component import KINDS, Component, registered_component
from memkit.testing.profiles import PROFILES, Profile
from memkit.testing.replay import line, read_line
from memkit.testing.report import Verdict
from memkit.testing.runner import judge
from memkit.user_modules import import_file, import_files, in_words, module_of

PART = 100
"""Examples, at most, of one unit of work."""
LONGEST = "single precision"
"""The law with one more example: the profile's `longest` stream."""


@dataclass(frozen=True)
class Target:
    """A component by kind, name and options, and the user's files that register it."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def component(self) -> Component:
        """The component with its laws; imports its files first, once per process.

        Raises `ValueError` with the reason if it cannot be made.
        """
        if self.name not in names(self.kind):
            import_files(self.files)
        try:
            return registered_component(self.kind, self.name, self.options)
        except Exception as error:
            raise ValueError(f"{self} cannot be made: {in_words(error)}") from None

    @property
    def exempt(self) -> dict[str, str]:
        """Law -> reason, from the registration."""
        return exemptions(self.kind, self.name)


@dataclass(frozen=True)
class Unit:
    """One law of one component, and a part of its examples or one example as a line."""

    target: Target
    law: str
    profile: Profile
    part: int = 0
    example: str | None = None

    @property
    def key(self) -> str:
        """The unit in one line."""
        return f"{self.target} | {self.law} | {self.part}"

    def run(self, component: Component) -> Verdict:
        """Try the law on the target's component; the verdict's example is a line to type in again."""
        problem = None if self.example is None else read_line(component.problem, self.example)
        law, exempt = component.law(self.law), self.target.exempt
        verdict = judge(component, law, exempt, self.profile, part=self.part, example=problem)
        return verdict if verdict.example is None else replace(verdict, example=line(verdict.example))


def find_targets(what: str, kind: str | None = None, options: Mapping[str, Any] | None = None) -> list[Target]:
    """Components by "all", by the name of a rule, mixer or architecture, or by a Python file that registers some.

    kind: only this kind. Raises `ValueError` for unknown names, files that fail to import, and files without a
    component that has laws.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there are no laws for the kind {kind!r}. {nearest(kind, KINDS)}")
    wanted = KINDS if kind is None else (kind,)
    options = dict(options or {})
    if what == "all":
        return [Target(k, name, options) for k in wanted for name in names(k)]
    if what.endswith(".py") or Path(what).is_file():
        path = str(Path(what).resolve())
        found = [(k, name) for k, name in import_file(what) if k in wanted]
        if not found:
            raise ValueError(_nothing_in(Path(what), wanted))
        return [Target(k, name, options, (path,)) for k, name in found]
    found = [Target(k, what, options) for k in wanted if what in names(k)]
    if not found:
        known = {name for k in wanted for name in names(k)}
        raise ValueError(f"there is no {_either(wanted)} {what!r}, and no such file. {nearest(what, known)}")
    return found


def units(pairs: Sequence[tuple[Target, Component]], profile: Profile) -> list[Unit]:
    """Every law of every component; a law with many examples is divided into parts."""
    holders: dict[tuple[str, str], int] = {}
    for target, component in pairs:
        for law in component.applicable:
            holders[target.kind, law] = holders.get((target.kind, law), 0) + 1
    found = []
    for target, component in pairs:
        for name, law in component.laws.items():
            many = profile.examples
            if profile.spread:
                many = math.ceil(many / holders.get((target.kind, name), 1))
            if name in target.exempt:  # a fair number of tries before "kept"
                many = max(many, math.ceil(PROFILES["default"].examples / law.share))
            parts = max(1, math.ceil(many * law.share / PART)) if name in component.applicable else 1
            each = replace(profile, examples=math.ceil(many / parts))
            found += [Unit(target, name, each, part) for part in range(parts)]
            if name == LONGEST and profile.longest and name in component.applicable and target.kind == "rule":
                longest = replace(profile, examples=1, stream=profile.longest, shrink=False)
                found.append(Unit(target, name, longest, parts))
    return found


def joined(verdicts: Iterable[Verdict]) -> Verdict:
    """Join the verdicts on a law's parts: the first failure, if there is one.

    A law broken in one part, as an exemption says, is broken, although other parts passed.
    """
    verdicts = list(verdicts)
    worst = next((v for status in ("exempt", "failed") for v in verdicts if v.status == status), verdicts[0])
    return replace(
        worst,
        examples=sum(v.examples for v in verdicts),
        discarded=sum(v.discarded for v in verdicts),
        seconds=sum(v.seconds for v in verdicts),
    )


def _either(kinds: Sequence[str]) -> str:
    """Join names as in `rule, mixer or architecture`."""
    return " or ".join(part for part in (", ".join(kinds[:-1]), kinds[-1]) if part)


def _nothing_in(path: Path, wanted: Sequence[str]) -> str:
    loose = [name for name, value in vars(module_of(path)).items() if isinstance(value, Rule)]
    what = f"{path.name} registers no {_either(wanted)}."
    hint = f" It holds the Rule {loose[0]!r}, but not under a name." if loose else ""
    return f'{what}{hint} Decorate a function that makes one: @memkit.register("rule", "{path.stem}").'
