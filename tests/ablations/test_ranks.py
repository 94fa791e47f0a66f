"""Training on several ranks equals training in one process: weights, losses, held-out metrics, checkpoints."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import memkit
from ablations import checkpoint
from ablations.cli import main
from ablations.ranks import SINGLE, Ranks, join
from ablations.settings import TrainConfig
from ablations.tasks import Batch
from compare import ROUNDING, near
from ranks import (
    BROKEN,
    CUTS,
    MODELS,
    PARALLEL,
    SAVED,
    config,
    divergence,
    model,
    numbers,
    one_mixer,
    run_two,
    steps_of,
    trained,
    two_calls,
)

HOUSE = Path(__file__).parents[2]
SMALL = shlex.split(
    "--steps 2 --option dim=16 --option depth=1 --option heads=2 --train-option batch=2 "
    "--task-option length=16 --task-option held_out_bytes=32"
)
every_way = pytest.mark.parametrize("parallel", PARALLEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have been; the first of pytest's own processes sends them, and the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-ranks"
    try:
        folder.mkdir()
    except FileExistsError:
        for _ in range(3000):
            if (folder / "done").exists():
                return folder
            time.sleep(0.1)
    run_two(folder)
    (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    near(found["weights"], expected["weights"], tolerance=ROUNDING)
    assert len(found["rows"]) == len(expected["rows"])
    for (step, loss, held_out), (*which, expected_loss, expected_held_out) in zip(
        found["rows"], expected["rows"], strict=True
    ):
        assert [step] == which
        assert loss == pytest.approx(expected_loss, rel=1e-10)
        assert held_out == pytest.approx(expected_held_out, rel=1e-10)


def test_every_architecture_is_tried() -> None:
    assert set(MODELS) == set(memkit.names("architecture"))


@every_way
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_take_the_steps_of_one_process(found: list[dict[str, Any]], parallel: str, name: str) -> None:
    alone = numbers(trained(name, steps_of(name)))
    for rank in found:
        assert_same(rank[f"{parallel} {name}"], alone)


@pytest.mark.parametrize(
    "resumed", ["ddp resumes alone", "fsdp resumes alone", "fsdp resumes ddp", "fsdp resumes fsdp"]
)
def test_two_ranks_go_on_from_any_checkpoint(found: list[dict[str, Any]], resumed: str) -> None:
    for rank in found:
        assert_same(rank[resumed], numbers(trained(SAVED, config())))


@every_way
def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(
    found: list[dict[str, Any]], folder: Path, parallel: str
) -> None:
    start = checkpoint.latest(folder / parallel)
    assert start is not None
    assert_same(numbers(trained(SAVED, config(), start=start)), numbers(trained(SAVED, config())))


@every_way
def test_the_weights_alone_can_be_read_by_one_process(found: list[dict[str, Any]], folder: Path, parallel: str) -> None:
    start, expected = checkpoint.latest(folder / parallel), trained(SAVED, config(steps=2)).model
    assert start is not None
    read = trained(SAVED, config(steps=1)).model
    checkpoint.load_weights(read, start)
    near([*read.parameters()], [*expected.parameters()], tolerance=ROUNDING)
    with pytest.raises(ValueError, match="does not hold this model's weights: the shape of"):
        checkpoint.load_weights(trained(BROKEN, config(steps=1)).model, start)


def test_nothing_in_a_checkpoint_of_shares_is_a_pickle(found: list[dict[str, Any]], folder: Path) -> None:
    start = checkpoint.latest(folder / "fsdp")
    assert start is not None
    assert {path.suffix for path in start.iterdir()} == {".safetensors", ".json"}
    assert len(list(start.glob("*.safetensors"))) == 2


@every_way
def test_ranks_name_the_same_place_of_a_divergence(found: list[dict[str, Any]], parallel: str) -> None:
    expected = divergence()
    assert "layer 1" in expected[0] and expected[1]
    for rank in found:
        assert rank[f"{parallel} diverges"] == expected


def test_a_sharded_model_goes_on_from_its_own_state(found: list[dict[str, Any]]) -> None:
    expected = two_calls(SINGLE)
    for rank in found:
        near(rank["two calls"], expected)


@pytest.mark.parametrize("cut", CUTS)
def test_a_sequence_cut_between_two_ranks_is_the_sequence(found: list[dict[str, Any]], cut: int) -> None:
    whole, parts = one_mixer(), [rank[f"cut {cut}"] for rank in found]
    near(torch.cat([part.pop("y") for part in parts], 1), whole.pop("y"), tolerance=ROUNDING)
    for part in parts:
        near({name: 2 * gradient for name, gradient in part.items()}, whole, tolerance=ROUNDING)


# -- the commands of docs/parallel.md


def test_the_documented_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (HOUSE / "docs" / "parallel.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert all(f"--parallel {way}" in "".join(commands) for way in PARALLEL)
    together, alone, generate = [shlex.split(line) for line in commands if "runs/fsdp" in line]
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(together + SMALL, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Saved in") == 1, "one rank speaks"
    result = tmp_path / "runs" / "fsdp" / "result.json"
    ended = json.loads(result.read_text())
    result.unlink()  # as if it had been stopped
    assert main(alone[1:] + SMALL) == 0
    assert json.loads(result.read_text()) == ended and ended["step"] == 2
    assert main([*generate[1:], "--tokens", "4"]) == 0
    assert "The " in capfd.readouterr().out


# -- who does what


def test_blocks_that_run_again_backward_cannot_hand_on_a_state() -> None:
    with pytest.raises(ValueError, match="Use recompute= of the memories instead"):
        Ranks(0, 2, "sequence").wrap(model("lmm", checkpoint=True))


def test_parts_are_the_batch() -> None:
    ids = torch.arange(10).view(5, 2)
    for parallel in PARALLEL:
        axis, sizes = (1, [1, 1, 0]) if parallel == "sequence" else (0, [2, 2, 1])
        parts = [Ranks(rank, 3, parallel).part(Batch(ids, -ids)) for rank in range(3)]
        assert [part.ids.shape[axis] for part in parts] == sizes
        assert torch.equal(torch.cat([part.ids for part in parts], axis), ids)
        assert torch.equal(torch.cat([part.targets for part in parts], axis), -ids)


def test_a_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with join(None, TrainConfig()) as ranks:
        assert ranks == SINGLE and ranks.is_main
    with (
        pytest.raises(ValueError, match="torchrun did not start this one. Use `torchrun --nproc-per-node 2"),
        join("fsdp", TrainConfig()),
    ):
        pass


STARTED = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"LOCAL_RANK": "0"},
            "but RANK is not, WORLD_SIZE is not, MASTER_ADDR is not, MASTER_PORT is not. Start ranks with torchrun",
        ),
        (STARTED | {"WORLD_SIZE": "two"}, "but WORLD_SIZE is 'two'. Start ranks with torchrun"),
        (STARTED | {"LOCAL_RANK": ""}, "but LOCAL_RANK is ''. .* or unset LOCAL_RANK to train in one process."),
    ],
)
def test_an_environment_that_torchrun_did_not_set(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), join(None, TrainConfig()):
        pass


@pytest.mark.parametrize(
    ("batch", "size", "message"),
    [
        (5, 2, "batch = 5 rows cannot be shared equally by 2 ranks. Use batch=4 or batch=6"),
        (3, 4, "batch = 3 rows cannot be shared equally by 4 ranks. Use batch=4."),
    ],
)
def test_a_batch_that_ranks_cannot_share(batch: int, size: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STARTED | {"WORLD_SIZE": str(size)}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), join("ddp", TrainConfig(batch=batch)):
        pass
