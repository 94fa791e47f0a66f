"""The result of a check: a verdict per law, and a report in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from memkit.testing.law import LawBroken

RAISED = "it raised "
"""The beginning of a verdict on a component that raised an error of its own."""
Status = Literal["passed", "failed", "exempt", "does not apply"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One law's verdict.

    hint: the usual cause of a failure. detail: the failure, the reason of an exemption, or the condition of a law that
    does not apply. example: the smallest failing problem, to type in again. examples, discarded: the number of problems
    tried, and of those that said nothing. seconds: the time taken.
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
    """Law -> an earlier law with the same error: a mistake that stops many laws is reported once."""
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
        """Raise `LawBroken` with a paragraph per broken law, if there is any."""
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
