"""The page on using a model: its Python runs, block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memkit.engine.forms.fused import compile as compiled
from pages import PAGES, blocks


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for = torch.compile

    def without_a_compiler(*given: Any, **options: Any) -> Any:
        return compile_for(*given, **options | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    compiled.compiler_of.cache_clear()
    program = blocks(PAGES / "using.md", "python")
    assert len(program) == 8
    names: dict[str, Any] = {"__name__": "using"}
    with torch._dynamo.config.patch(trace_autograd_ops=False):  # which the page switches on
        for block in program:
            exec(compile(block, "using.md", "exec"), names)
        torch._dynamo.reset()
