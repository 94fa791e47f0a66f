"""Units of work, tried in this process or in worker processes, and their verdicts kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import cache
from typing import Any

from ablations.checking.store import Store
from ablations.pool import run_all
from memkit.testing.component import Component
from memkit.testing.report import Verdict
from memkit.testing.selection import Target, Unit


def run_units(
    todo: Sequence[Unit], pairs: Sequence[tuple[Target, Component]], jobs: int, store: Store
) -> Generator[tuple[Unit, Verdict], None, None]:
    """Yield each unit's verdict as it comes: first those in the store, then the others, tried `jobs` at a time."""
    waiting = []
    for unit in todo:
        kept = store.get(unit)
        if kept is None:
            waiting.append(unit)
        else:
            yield unit, kept
    with closing(_here(waiting, pairs) if jobs == 1 else _apart(waiting, jobs)) as results:
        for unit, verdict in results:
            store.keep(unit, verdict)
            yield unit, verdict


def _here(
    todo: Sequence[Unit], pairs: Sequence[tuple[Target, Component]]
) -> Generator[tuple[Unit, Verdict], None, None]:
    components = {str(target): component for target, component in pairs}
    for unit in todo:
        yield unit, unit.run(components[str(unit.target)])


def _apart(todo: Sequence[Unit], jobs: int) -> Generator[tuple[Unit, Verdict], None, None]:
    calls = {number: (unit,) for number, unit in enumerate(todo)}
    with closing(run_all(_work, calls, min(jobs, len(calls)))) as everything:
        for event in everything:
            unit = todo[event.key]
            if event.kind == "failed":
                yield unit, Verdict(law=unit.law, status="failed", equation="", detail=f"{event.value}")
            else:
                yield unit, event.value


def _work(unit: Unit, send: Callable[[Any], None]) -> Verdict:
    """Try one unit in a worker process."""
    return unit.run(_component(_Named(unit.target)))


class _Named:
    """A target as a key of a worker's cache."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __hash__(self) -> int:
        return hash(str(self.target))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.target == other.target


@cache
def _component(named: _Named) -> Component:
    return named.target.component()
