"""`memkit check`: one message per mistake, and several components in one call."""

from __future__ import annotations

import re

import pytest

from check_command import HONEST, check, here, joined, write  # noqa: F401


def test_one_mistake_that_stops_many_laws_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = HONEST.replace("grad, ()", 'grad * gates["gain"], ()')
    text = check(capfd, write(wrong), "--profile", "quick", code=1)
    assert text.count("does not declare") == 1 and text.count("found       it raised KeyError") == 1
    assert len(re.findall(r"^  FAILED .*it raised the same as for 'finite'", text, re.MULTILINE)) > 5


def test_several_components_are_checked_in_one_go(capfd: pytest.CaptureFixture[str]) -> None:
    write(HONEST.replace("return -", "return "))
    text = check(capfd, "own.py", "mamba2", "own.py", "--law", "descent", "--kind", "rule", code=1)
    assert [line.split(",")[0] for line in text.splitlines() if "profile default, seed 0" in line][:2] == [
        "rule own",
        "rule mamba2",
    ]
    assert re.search(r"^ +memkit check own.py --kind rule --law descent --example ", text, re.MULTILINE)
    assert "1 passed, 1 FAILED" in text
