"""A backend of `torch.compile` that computes as `aot_eager` does, and keeps the programs that it was given."""

from __future__ import annotations

from typing import Any

import torch

BACKEND = "counted"
PROGRAMS: list[torch.fx.GraphModule] = []
"""Every program since `PROGRAMS.clear()`: torch hands one over for each that it compiles."""


def counted(program: torch.fx.GraphModule, inputs: Any) -> Any:
    PROGRAMS.append(program)
    return torch._dynamo.lookup_backend("aot_eager")(program, inputs)


torch._dynamo.register_backend(counted, name=BACKEND)
