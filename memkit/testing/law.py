"""A law: a named function of a component and a problem, with its equation as docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memkit.testing.tolerance import Mismatch


class LawBroken(AssertionError):
    """A component does not keep a law; the message names the law and has the numbers."""


def always(component: Any) -> bool:
    """The default of `Law.applies`: the law is for every component."""
    return True


@dataclass(frozen=True)
class Law:
    """A law and the components it is for.

    check(component, problem) raises `Mismatch` if the law is broken, and `Discarded` if the problem says nothing
    about it. applies(component): whether the law has a meaning for the component; asks: its condition in words.
    share: the part of a profile's examples, below 1 for expensive laws. hint: the usual cause of a failure.
    """

    name: str
    check: Callable[[Any, Any], None]
    applies: Callable[[Any], bool] = always
    asks: str = ""
    share: float = 1.0
    hint: str = ""

    @property
    def equation(self) -> str:
        """The law itself, in words and symbols."""
        return inspect.getdoc(self.check) or ""

    @property
    def objection(self) -> str:
        """The beginning of this law's messages."""
        return f"law {self.name!r}: "

    def __call__(self, component: Any, problem: Any) -> None:
        """Raise `LawBroken` unless the component keeps the law in this problem."""
        try:
            self.check(component, problem)
        except Mismatch as broken:
            raise LawBroken(f"{self.objection}{broken}") from None


def table(laws: Iterable[Law]) -> dict[str, Law]:
    """Laws by name, in order."""
    return {law.name: law for law in laws}
