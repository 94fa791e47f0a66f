"""The page on using a model says what is so: its Python runs, one block after the other."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "using.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # no C++ compiler
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 7
    names: dict[str, Any] = {"__name__": "using"}
    with torch._dynamo.config.patch(trace_autograd_ops=False):  # which the page switches on
        for block in blocks:
            exec(compile(block, "using.md", "exec"), names)
        torch._dynamo.reset()
