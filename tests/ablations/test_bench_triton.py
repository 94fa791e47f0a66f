"""The benchmark of the Triton kernels: all steps that need no GPU."""

from __future__ import annotations

import pytest
import torch

from ablations.bench import run_benchmark, triton
from ablations.cli import main


def test_triton_needs_a_gpu_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "triton"]) == 2
    assert "this machine has no CUDA device. Run it on a machine with one." in capsys.readouterr().err


def test_triton_measures_times_and_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `dual` in the kernel's place, on a CPU."""
    monkeypatch.setattr(triton, "device", lambda: "cpu")
    monkeypatch.setattr(triton, "KERNEL", "dual")
    monkeypatch.setattr(triton, "FORMS", {"dual": {"form": "dual"}, "other": {"form": "scan"}})
    for name, value in {"BATCHES": (1,), "TOKENS": 6, "WIDTH": 4, "MINI_BATCH": 4, "REPEATS": 1}.items():
        monkeypatch.setattr(triton, name, value)
    heard: list[tuple[int, int]] = []
    found = run_benchmark("triton", lambda what, done, total: heard.append((done, total)))
    assert [row[:2] for row in found.rows[:2]] == [("1 x 4, highest, forward", name) for name in ("dual", "other")]
    assert [done for done, _ in heard] == list(range(heard[0][1]))
    assert all(figures["distance"] < 1e-5 for case in found.data["cases"].values() for figures in case.values())
    assert torch.get_float32_matmul_precision() == "highest"
