"""Results of a grid in the form of its files: three variants, two seeds, four evaluations."""

from __future__ import annotations

from typing import Any

import pytest

SCORES = {"lmm": [2.5, 2.7], "mac": [2.375, 2.425], "w/o | <b>conv</b>": [2.9, 2.8]}


def finished(variant: str, seed: int, value: float) -> dict[str, Any]:
    rows = [
        {"step": step, "tokens": 100 * step, "train_loss": 1.0, "held_out": {"bits per byte": value + 4 - step}}
        for step in (1, 2, 3, 4)
    ]
    return {
        "variant": variant,
        "seed": seed,
        "status": "finished",
        "message": "",
        "held_out": rows[-1]["held_out"],
        "parameters": 12_345,
        "state_bytes": 3 * 1024,
        "tokens_per_second": 1000.0 + seed,
        "seconds": 10.0,
        "history": rows,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    runs = [finished(name, seed, value) for name, values in SCORES.items() for seed, value in enumerate(values)]
    return {
        "title": "Parts & wholes <script>alert(1)</script>",
        "description": "What counts.",
        "report": {
            "notes": "Few steps.",
            "source": "table 5",
            "published": {"columns": ["LM ppl", "acc."], "rows": {"lmm": [27.0, 47.83], "mac": [26.67, None]}},
        },
        "definition": {"task": {"name": "text"}, "train": {"steps": 4}, "variants": dict.fromkeys(SCORES, {})},
        "token_digest": "abc123",
        "seeds": [0, 1],
        "baseline": "lmm",
        "metric": {"name": "bits per byte", "unit": "bits per byte", "direction": "lower"},
        "yardstick": {"label": "letter frequencies", "value": 4.6, "means": "a model below that has learned more"},
        "length": 256,
        "text": "title: x\n",
        "environment": {"torch": "2.13", "machine": "2 cores"},
        "runs": runs,
    }
