"""The course of a check: find the components, try their laws, show verdicts as they come, sum up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace

from rich.console import Console

from ablations.checking.request import CheckRequest
from ablations.checking.store import Store
from ablations.checking.work import run_units
from ablations.display.verdicts import CheckBar, print_summary, print_unusable, print_verdicts
from memkit.registry import nearest
from memkit.testing.component import Component, small_options
from memkit.testing.report import Verdict
from memkit.testing.selection import Target, Unit, find_targets, joined, units
from memkit.user_modules import digest

KEPT, BROKEN, UNUSABLE = 0, 1, 2
"""Exit codes: all laws kept, a law broken, a component that could not be used."""

Pairs = list[tuple[Target, Component]]


def check(request: CheckRequest, out: Console, err: Console) -> int:
    """Test components against their laws, print the verdicts, and return the exit code.

    Raises `ValueError` for mistakes in the request, before anything is tried.
    """
    began = time.monotonic()
    targets = _targets(request)
    pairs, refused = _components([target for target, _ in targets])
    todo = _units(request, pairs)
    store = Store(request.folder, {**request.data, "files": {file: digest(file) for file in _files(pairs)}})
    print_unusable(refused, out)
    origins = {str(target): argument for target, argument in targets}
    held = _try_all(request, origins, pairs, todo, store, out, err)
    verdicts = [verdict for of_one in held.values() for verdict in of_one]
    print_summary(verdicts, refused, request, time.monotonic() - began, out)
    if refused:
        return UNUSABLE
    return BROKEN if any(verdict.status == "failed" for verdict in verdicts) else KEPT


def _targets(request: CheckRequest) -> list[tuple[Target, str]]:
    """Every component once, with the first argument that names it."""
    targets: dict[str, tuple[Target, str]] = {}
    for argument in request.what:
        for target in find_targets(argument, request.kind, request.options):
            targets.setdefault(str(target), (target, argument))
    return list(targets.values())


def _components(targets: Iterable[Target]) -> tuple[Pairs, dict[str, str]]:
    """The components that can be built, and for each of the others the reason."""
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


def _units(request: CheckRequest, pairs: Pairs) -> list[Unit]:
    """All units of work; `ValueError` for a law of no component here, and for a malformed shard."""
    known = {name for _, component in pairs for name in component.laws}
    for law in request.laws:
        if pairs and law not in known:
            raise ValueError(f"there is no law {law!r} for {', '.join(request.what)}. {nearest(law, known)}")
    if request.example is not None and len(request.laws) != 1:
        raise ValueError("an example belongs to one law: name it with --law.")
    todo = [unit for unit in units(pairs, request.effort) if not request.laws or unit.law in request.laws]
    if request.example is not None:
        return [replace(unit, example=request.example) for unit in todo if unit.part == 0]
    if request.shard is None:
        return todo
    number, _, count = request.shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"a shard is i/n, such as 1/4 for the first of four; got {request.shard!r}.")
    return todo[int(number) - 1 :: int(count)]


def _try_all(
    request: CheckRequest,
    origins: Mapping[str, str],
    pairs: Pairs,
    todo: list[Unit],
    store: Store,
    out: Console,
    err: Console,
) -> dict[str, list[Verdict]]:
    """Try everything; print a component's verdicts as soon as it and all before it are done."""
    parts: dict[str, dict[str, list[Verdict]]] = {str(unit.target): {} for unit in todo}
    left = {name: sum(str(unit.target) == name for unit in todo) for name in parts}
    held: dict[str, list[Verdict]] = {}
    sizes = {str(target): small_options(target.kind, target.name, target.options) for target, _ in pairs}
    with CheckBar(err, len(todo)) as bar, closing(run_units(todo, pairs, request.jobs, store)) as results:
        for unit, verdict in results:
            name = str(unit.target)
            parts[name].setdefault(unit.law, []).append(verdict)
            left[name] -= 1
            bar.advance(unit.key, verdict.status == "failed")
            while len(held) < len(parts) and not left[waiting := list(parts)[len(held)]]:
                # In the order of laws, whichever worker was first.
                order = dict.fromkeys(unit.law for unit in todo if str(unit.target) == waiting)
                held[waiting] = [joined(parts[waiting][law]) for law in order]
                alone = replace(request, what=(origins[waiting],))
                several = list(origins.values()).count(origins[waiting]) > 1
                with bar.aside():
                    print_verdicts(waiting, sizes[waiting], held[waiting], alone, several, out)
    return held
