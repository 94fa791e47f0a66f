"""A request of `memkit check`, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memkit.testing.profiles import Profile, profile_named


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """The components, the laws and the effort that the command line asks for."""

    what: tuple[str, ...]  # files, names, or "all"
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "default"
    laws: Sequence[str] = ()  # all, if empty
    seed: int = 0
    examples: int | None = None
    shard: str | None = None
    example: str | None = None
    jobs: int = 1
    folder: Path | None = None

    @property
    def data(self) -> dict[str, Any]:
        """Everything that verdicts depend on, besides the code."""
        options = dict(self.options)
        return {"what": " ".join(self.what), "options": options, "profile": vars(self.effort), "example": self.example}

    @property
    def effort(self) -> Profile:
        """The profile, with the seed and the number of examples of this request."""
        profile = replace(profile_named(self.profile), seed=self.seed)
        return profile if self.examples is None else replace(profile, examples=self.examples)
