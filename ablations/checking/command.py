"""What `memkit check` does: find the components, try their laws, show verdicts as they come, and sum up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ablations.checking.display import Bar, print_summary, print_unusable, print_verdicts
from ablations.checking.store import Store
from ablations.checking.work import run_units
from memkit.own_files import digest
from memkit.registry import nearest
from memkit.testing.component import Component, small_options
from memkit.testing.profiles import Profile, profile_named
from memkit.testing.report import Verdict
from memkit.testing.selection import Target, Unit, find_targets, joined, units

KEPT, BROKEN, UNUSABLE = 0, 1, 2
"""Exit codes: all laws kept, a law broken, something that could not be used."""

Pairs = list[tuple[Target, Component]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for on the command line."""

    what: tuple[str, ...]
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "default"
    laws: Sequence[str] = ()
    seed: int = 0
    examples: int | None = None
    shard: str | None = None
    example: str | None = None
    jobs: int = 1
    folder: Path | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What verdicts depend on, besides the code."""
        options = dict(self.options)
        return {"what": " ".join(self.what), "options": options, "profile": vars(self.effort), "example": self.example}

    @property
    def effort(self) -> Profile:
        """The profile with what was asked for instead."""
        profile = replace(profile_named(self.profile), seed=self.seed)
        return profile if self.examples is None else replace(profile, examples=self.examples)


def check(asked: Asked, out: Console, err: Console) -> int:
    """Hold components to their laws, show what came of it, and return the exit code.

    Raises `ValueError` for mistakes that can be told before anything is tried.
    """
    began = time.monotonic()
    targets = _targets(asked)
    pairs, refused = _components([target for target, _ in targets])
    todo = _units(asked, pairs)
    store = Store(asked.folder, {**asked.data, "files": {file: digest(file) for file in _files(pairs)}})
    print_unusable(refused, out)
    origins = {str(target): what for target, what in targets}
    held = _try_all(asked, origins, pairs, todo, store, out, err)
    print_summary([v for verdicts in held.values() for v in verdicts], refused, asked, time.monotonic() - began, out)
    if refused:
        return UNUSABLE
    broken = any(verdict.status == "failed" for verdicts in held.values() for verdict in verdicts)
    return BROKEN if broken else KEPT


def _targets(asked: Asked) -> list[tuple[Target, str]]:
    """Every component once, and the argument that asked for it first."""
    found: dict[str, tuple[Target, str]] = {}
    for what in asked.what:
        for target in find_targets(what, asked.kind, asked.options):
            found.setdefault(str(target), (target, what))
    return list(found.values())


def _components(targets: Iterable[Target]) -> tuple[Pairs, dict[str, str]]:
    """The components that can be made, and why the others cannot."""
    pairs: Pairs = []
    refused: dict[str, str] = {}
    for target in targets:
        try:
            component = target.component()
            component.check_exemptions(target.exempt)
            pairs.append((target, component))
        except ValueError as error:
            refused[str(target)] = str(error)
    return pairs, refused


def _files(pairs: Pairs) -> list[str]:
    return sorted({file for target, _ in pairs for file in target.files})


def _units(asked: Asked, pairs: Pairs) -> list[Unit]:
    """What is to be tried; `ValueError` for laws that nothing here has, and for a shard that is none."""
    known = {name for _, component in pairs for name in component.laws}
    for law in asked.laws:
        if pairs and law not in known:
            raise ValueError(f"there is no law {law!r} for {', '.join(asked.what)}. {nearest(law, known)}")
    if asked.example is not None and len(asked.laws) != 1:
        raise ValueError("an example is one law's: name it with --law.")
    todo = [unit for unit in units(pairs, asked.effort) if not asked.laws or unit.law in asked.laws]
    if asked.example is not None:
        return [replace(unit, example=asked.example) for unit in todo if unit.part == 0]
    if asked.shard is None:
        return todo
    number, _, count = asked.shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"a shard is i/n, such as 1/4 for the first of four; got {asked.shard!r}.")
    return todo[int(number) - 1 :: int(count)]


def _try_all(
    asked: Asked, origins: Mapping[str, str], pairs: Pairs, todo: list[Unit], store: Store, out: Console, err: Console
) -> dict[str, list[Verdict]]:
    """Try everything, and show each component's verdicts when it and those before it are done."""
    found: dict[str, dict[str, list[Verdict]]] = {str(unit.target): {} for unit in todo}
    left = {name: sum(str(unit.target) == name for unit in todo) for name in found}
    held: dict[str, list[Verdict]] = {}
    sizes = {str(t): small_options(t.kind, t.name, t.options) for t, _ in pairs}
    with Bar(err, len(todo)) as bar, closing(run_units(todo, pairs, asked.jobs, store)) as results:
        for unit, verdict in results:
            name = str(unit.target)
            found[name].setdefault(unit.law, []).append(verdict)
            left[name] -= 1
            bar.advance(unit.key, verdict.status == "failed")
            while len(held) < len(found) and not left[waiting := list(found)[len(held)]]:
                # In the order of laws, whichever worker was first.
                order = dict.fromkeys(unit.law for unit in todo if str(unit.target) == waiting)
                held[waiting] = [joined(found[waiting][law]) for law in order]
                alone = replace(asked, what=(origins[waiting],))
                several = list(origins.values()).count(origins[waiting]) > 1
                with bar.aside():
                    print_verdicts(waiting, sizes[waiting], held[waiting], alone, several, out)
    return held
