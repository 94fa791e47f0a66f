"""What comes of holding a component to its laws: a verdict for each, and a report in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from memkit.testing.law import LawBroken

RAISED = "it raised "
"""How a verdict begins on a component that fell over before a law could look at it."""
Status = Literal["passed", "failed", "exempt", "does not apply"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One law's verdict.

    hint: what is usually wrong when this law is broken. detail: what broke it, the reason of an exemption, or what
    it takes for the law to apply. example: the smallest failing problem, which can be typed in again. examples,
    discarded: problems tried, and how many of them said nothing; seconds: how long that took.
    """

    law: str
    status: Status
    equation: str
    detail: str = ""
    hint: str = ""
    example: object = None
    examples: int = 0
    discarded: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.status == "passed":
            return f"passed          {self.law}"
        if self.status != "failed":
            return f"{self.status:15} {self.law}: {self.detail}"
        parts = [f"FAILED          {self.law}", *self.equation.splitlines(), *self.detail.splitlines(), self.hint]
        if self.example is not None:
            parts.append(f"smallest example: {self.example!r}")
        return "\n                ".join(part for part in parts if part)


def repeated(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Law -> the law before it that fell over in the same way: one mistake that stops many laws is told once."""
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.status == "failed" and verdict.detail.startswith(RAISED):
            before = first.setdefault(verdict.detail, verdict.law)
            if before != verdict.law:
                found[verdict.law] = before
    return found


@dataclass(frozen=True)
class Report:
    """All verdicts on one component; as text, a line for each and a paragraph for each failure."""

    component: str
    verdicts: tuple[Verdict, ...]

    def __getitem__(self, law: str) -> Verdict:
        """The verdict of one law."""
        return next(verdict for verdict in self.verdicts if verdict.law == law)

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The broken laws."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    def __str__(self) -> str:
        statuses = [verdict.status for verdict in self.verdicts]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        return "\n".join([f"{self.component}: {counts}", *self._told(self.verdicts)])

    def raise_failures(self) -> None:
        """Raise `LawBroken` with everything there is to say about the broken laws, if there are any."""
        if self.failures:
            names = ", ".join(repr(verdict.law) for verdict in self.failures)
            told = "\n".join(self._told(self.failures))
            raise LawBroken(f"{self.component} breaks {names}.\n{told}")

    def _told(self, verdicts: tuple[Verdict, ...]) -> list[str]:
        again = repeated(verdicts)
        return [
            f"  FAILED          {verdict.law}: as for {again[verdict.law]!r}"
            if verdict.law in again
            else f"  {verdict}"
            for verdict in verdicts
        ]
