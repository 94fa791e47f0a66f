"""Files appear whole: what fails on the way leaves the old content, and no remains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ablations import checkpoint
from ablations.files import write_json, write_text
from ablations.settings import TrainConfig
from ablations.train import begin
from memkit.atomic import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"old", b"new and longer", b""):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content and os.listdir(tmp_path) == ["file"]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "file", b"x")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    write_text(tmp_path / "below" / "result.json", "old")
    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    for write in (write_text, write_json):
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "below" / "result.json", "new")
    assert (tmp_path / "below" / "result.json").read_text() == "old"
    assert os.listdir(tmp_path / "below") == ["result.json"]


def test_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def named() -> bool:
        return (tmp_path / "file").exists() or (tmp_path / "run" / "checkpoint-000000").exists()

    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, named())))
    write_text(tmp_path / "file", "é")
    assert seen == [(2, False)]
    seen.clear()
    (tmp_path / "file").unlink()
    training = begin(nn.Linear(2, 2), TrainConfig())
    saved = checkpoint.save(training, tmp_path / "run")
    assert {path.stat().st_size for path in saved.iterdir()} <= {size for size, _ in seen}
    assert not any(existed for _, existed in seen)
    assert torch.equal(training.model.get_parameter("weight"), _loaded(saved).weight)


def _loaded(saved: Path) -> nn.Linear:
    model = nn.Linear(2, 2)
    checkpoint.load_weights(model, saved)
    return model
