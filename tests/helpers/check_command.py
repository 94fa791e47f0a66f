"""`memkit check` called as a user calls it, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.cli import main
from memkit import registry

HONEST = """
from memkit import Optimizer, Rule, register
from memkit.parts.memory import mlp
from memkit.parts.objective import l2
from memkit.parts.optimizer import LR
from memkit.parts.retention import decay


def step(grad, weight, slots, gates):
    return -gates["lr"] * grad, ()


@register("rule", "own")
def own(*, depth: int = 1, linear: bool = True):
    optimizer = Optimizer(name="own", step=step, gates=(LR,), linear=linear)
    parts = {"memory": mlp(depth=depth), "objective": l2(), "optimizer": optimizer, "retention": decay()}
    return Rule(name="own", mini_batch=2, **parts)
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    with registry.scratch():
        yield


def write(text: str, name: str = "own.py") -> str:
    Path(name).write_text(text)
    return name


def check(capfd: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    assert main(["check", *arguments]) == code
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return captured.out + captured.err


def joined(text: str) -> str:
    """Without the line breaks of 80 columns."""
    return " ".join(text.split())
