"""The README says what is so: its examples run, and its table is the one that is generated."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import memkit
from ablations.cli import main
from ablations.grid import read_grid
from ablations.listing import print_rules
from memkit import registry

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(python|yaml|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own, and a registry that forgets what is registered here."""
    registry.discover()
    monkeypatch.setattr(registry, "_factories", {kind: dict(known) for kind, known in registry._factories.items()})
    monkeypatch.chdir(tmp_path)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README.read_text(encoding="utf-8")) if kind == language]


def test_a_hybrid_is_built() -> None:
    found: dict[str, Any] = {}
    exec(blocks("python")[0], found)  # noqa: S102
    assert found["logits"].shape == (2, 7, 256)
    assert found["text"].shape == (2, 21)


def test_the_grid_is_valid() -> None:
    (text,) = blocks("yaml")
    Path("mine.yaml").write_text(text)
    grid = read_grid("mine.yaml")
    assert len(grid.variants) == 4
    assert len(grid.seeds) == 2


def test_the_rule_keeps_the_laws(capfd: pytest.CaptureFixture[str]) -> None:
    Path("my_rule.py").write_text(blocks("python")[1])
    assert main(["check", "my_rule.py", "--profile", "quick"]) == 0
    assert "FAILED" not in capfd.readouterr().out


def test_the_table_of_rules_is_the_generated_one() -> None:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_rules(console)
    generated = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    (shown,) = blocks("text")
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows[2:]] == memkit.names("rule")
    assert all(row in generated for row in rows if not row[0].startswith("─"))
