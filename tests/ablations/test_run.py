"""One run in its folder: a resumed run equals an unbroken one bit for bit, and partial results are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import checkpoint, run
from ablations.run import RunSpec
from ablations.settings import TrainConfig

RECALL = {"name": "recall", "length": 16, "pairs": 2, "vocab_size": 16}
TINY = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2}


def spec(**changes: Any) -> RunSpec:
    settings = {"steps": 6, "batch": 4, "eval_every": 2, **changes}
    return RunSpec("tiny", TINY, 16, RECALL, TrainConfig(**settings))


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def on_step(now: int, loss: float) -> None:
        if now == step:
            raise Stop

    return on_step


def quiet(step: int, loss: float) -> None:
    """Hear nothing of the steps."""


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_an_unbroken_one_to_the_bit(tmp_path: Path, stop: int) -> None:
    whole = run.execute(spec(), tmp_path / "whole", quiet)
    with pytest.raises(Stop):
        run.execute(spec(), tmp_path / "broken", stop_at(stop))
    resumed = run.execute(spec(), tmp_path / "broken", quiet)
    for key in ("status", "step", "tokens", "held_out", "parameters", "state_bytes"):
        assert resumed[key] == whole[key]
    rows = [run.history(tmp_path / name) for name in ("whole", "broken")]
    assert [(r["step"], r["train_loss"], r["held_out"]) for r in rows[0]] == [
        (r["step"], r["train_loss"], r["held_out"]) for r in rows[1]
    ]
    (_, one), (_, other) = (run.load(tmp_path / name) for name in ("whole", "broken"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_run_is_not_run_again_and_a_folder_keeps_its_run(tmp_path: Path) -> None:
    first = run.execute(spec(), tmp_path, quiet)
    assert run.execute(spec(), tmp_path, stop_at(1)) == first
    with pytest.raises(ValueError, match="holds another run"):
        run.execute(spec(lr=1e-4), tmp_path, quiet)


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not an output folder"):
        run.execute(spec(), tmp_path, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_diverged_run_is_a_result_with_its_history(tmp_path: Path) -> None:
    found = run.execute(spec(lr=1e30, clip=None, warmup=0.0, eval_every=1, steps=9), tmp_path, quiet)
    assert found["status"] == run.DIVERGED
    assert "tiny diverged at step" in found["message"] and "A smaller lr" in found["message"]
    assert len(run.history(tmp_path)) == len([r for r in run.history(tmp_path) if math.isfinite(r["train_loss"])])
    assert run.result(tmp_path) == found
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.name == f"checkpoint-{found['step']:06d}"
