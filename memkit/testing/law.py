"""What a law is: a named function of a component and a problem, with its equation in the docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memkit.testing.tolerance import Mismatch


class LawBroken(AssertionError):
    """A component does not keep a law; the message names the law and has the numbers."""


def always(component: Any) -> bool:
    """Most laws are for everybody."""
    return True


@dataclass(frozen=True)
class Law:
    """A law and who is held to it.

    check(component, problem) raises `Mismatch` where the law is broken, and `Discarded` where the problem says
    nothing about it. applies(component) tells whether the law has a meaning for it; `asks` says in words what
    it takes. share: the part of a profile's examples that an expensive law gets. hint: what is usually wrong where
    the law is broken.
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
        """How it begins to say what it finds wrong."""
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
