"""The files of the code base, by storey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
STOREYS = ("memkit", "architectures", "ablations")
"""From the ground up: no storey imports from one above it."""


def sources(house: Path, *folders: str) -> Iterator[Path]:
    """Python files below folders of a house."""
    for folder in folders:
        yield from sorted((house / folder).rglob("*.py"))
