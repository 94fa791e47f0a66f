"""The page on using a model says what is so: its Python runs, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from memkit.engine.forms.fused import compile as compiled

PAGE = Path(__file__).parents[2] / "docs" / "using.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for = torch.compile

    def without_a_compiler(*given: Any, **options: Any) -> Any:
        return compile_for(*given, **options | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    compiled.compiler_of.cache_clear()
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 8
    names: dict[str, Any] = {"__name__": "using"}
    with torch._dynamo.config.patch(trace_autograd_ops=False):  # which the page switches on
        for block in blocks:
            exec(compile(block, "using.md", "exec"), names)
        torch._dynamo.reset()
