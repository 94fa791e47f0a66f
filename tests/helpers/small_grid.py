"""A grid for tests: three tiny transformers on recall, for three steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ablations.grid import Grid, read_grid

SMALL: dict[str, Any] = {
    "title": "Small",
    "task": {"name": "recall", "length": 16, "pairs": 2, "vocab_size": 16},
    "train": {"steps": 3, "batch": 2, "eval_every": 2},
    "baseline": {"name": "transformer", "dim": 8, "depth": 1, "heads": 2},
    "variants": {"wide": {"dim": 16}, "window": {"name": "sliding_window", "window": 4}},
    "seeds": 1,
}


def grid_file(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "my_grid.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return path


def small(tmp_path: Path, **changes: Any) -> Grid:
    return read_grid(grid_file(tmp_path, **changes))
