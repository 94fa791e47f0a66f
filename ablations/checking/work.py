"""Trying units of work, here or in worker processes, and keeping what they found."""

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
    """Yield each unit's verdict as it comes: those that the store holds, then the rest, `jobs` at a time."""
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
        for news in everything:
            unit = todo[news.key]
            if news.kind == "failed":
                yield unit, Verdict(law=unit.law, status="failed", equation="", detail=f"{news.value}")
            else:
                yield unit, news.value


def _work(unit: Unit, send: Callable[[Any], None]) -> Verdict:
    """One unit in a worker process."""
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
