"""Benchmarks: that they time what they say; the times themselves are nobody's to assert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import memkit
from ablations.bench import length, rounds, rules, run_benchmark, stream, triton
from ablations.bench.memory import growth
from ablations.bench.timing import Spread, Times, take_turns
from ablations.cli import main


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    heard: list[str] = []
    found = take_turns({"a": lambda: heard.append("A"), "b": lambda: heard.append("B")}, 2, heard.append)
    assert heard == ["a", "A", "b", "B"] * 3
    assert [len(times.seconds) for times in found.values()] == [2, 2]


def test_a_call_may_be_made_again_and_timed_then() -> None:
    heard: list[str] = []
    found = take_turns({"a": lambda: heard.append("A"), "b": lambda: heard.append("B")}, 2, again=True)
    assert heard == ["A", "B", *["A", "A", "B", "B"] * 2]
    assert [len(times.seconds) for times in found.values()] == [2, 2]


def test_ratios_are_taken_round_by_round() -> None:
    slow, fast = Times((2.0, 9.0, 4.0)), Times((1.0, 3.0, 1.0))
    assert slow.relative_to(fast) == Spread(2.0, 3.0, 4.0)
    assert str(slow.relative_to(fast)) == "3.00 (2.00 to 4.00)"
    assert slow.median == 4.0
    assert slow.each(2).relative_to(fast) == Spread(1.0, 1.5, 2.0)


def test_rules_has_a_row_for_every_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rules, "TOKENS", 8)
    monkeypatch.setattr(rules, "WIDTH", 4)
    monkeypatch.setattr(rules, "ROUNDS", 1)
    heard: list[tuple[int, int]] = []
    found = run_benchmark("rules", lambda what, done, total: heard.append((done, total)))
    assert [row[0] for row in found.rows] == [rules.YARDSTICK, *memkit.names("rule")]
    assert found.rows[0][1:4] == ("dual", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)")
    assert [done for done, _ in heard] == list(range(heard[0][1]))
    markdown, data = found.write(tmp_path, "rules")
    assert markdown.read_text().splitlines()[4].startswith("| rule | form | forward |")
    titans = json.loads(data.read_text())["rules"]["titans"]
    assert titans["form"] == "dual"
    assert titans["tokens"] == 8
    # Two matrices and two momenta of 4 x 16 a head, 4 heads; beginning and anchor besides.
    assert titans["state_bytes"] - 16 == 4 * 4 * 2 * (4 * 16) * 4


def test_rules_with_a_large_state_are_timed_on_few_tokens() -> None:
    wide = memkit.build("rule", "titans", expansion=64)
    assert rules.state_bytes(wide) > rules.LARGE_STATE
    assert rules.tokens_of(wide) == 128
    assert rules.tokens_of(memkit.build("rule", "kda")) == 2048


def test_rounds_come_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "TOKENS", 32)
    monkeypatch.setattr(rounds, "WIDTH", 8)
    monkeypatch.setattr(rounds, "REPEATS", 1)
    monkeypatch.setattr(rounds, "BATCH", 1)
    found = run_benchmark("rounds", lambda *_: None)
    forms = found.data["forms"]
    distances = [forms[name]["distance"] for name in ("0 rounds", "2 rounds", "8 rounds", "to rounding (auto)")]
    assert distances[0] > distances[1] > distances[2]
    assert distances[3] < 1e-5
    assert len(forms) == len(found.rows) == 12
    assert [rounds._verdict(Spread(*x)) for x in ((4, 5, 6), (1, 2, 3), (3, 5, 6))] == [
        "reached",
        "not reached",
        "not resolved",
    ]


def test_an_unknown_benchmark_is_a_mistake_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rulse"]) == 2
    assert "Did you mean 'rules'?" in capsys.readouterr().err


def test_length_measures_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "LENGTHS", (64, 128))
    monkeypatch.setattr(length, "REPEATS", 1)
    monkeypatch.setattr(length, "growth", lambda prepare, tokens, recompute: float(tokens) / (recompute or 1))
    found = run_benchmark("length", lambda *_: None)
    assert [row[0] for row in found.rows] == ["64", "128"]
    assert found.data["lengths"]["128"]["growth_mib"] == {"all kept": 128.0, "recompute=1024": 0.125}
    assert all(figure > 0 for figure in found.data["lengths"]["64"]["microseconds_a_token"].values())


def test_memory_is_that_of_a_new_process() -> None:
    assert 60 < growth(take, 64) < 200, "64 MiB were filled, and what a call needs besides is small"


def take(mebibytes: int) -> Callable[[], object]:
    return lambda: len(b"x" * (mebibytes * 2**20))


def test_a_stream_ends_as_a_call_from_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "TOKENS", 64)
    monkeypatch.setattr(stream, "CHUNK", 16)
    monkeypatch.setattr(stream, "SIZES", {"vocab_size": 256, "dim": 8, "heads": 2, "depth": 1})
    heard: list[tuple[int, int]] = []
    found = run_benchmark("stream", lambda what, done, total: heard.append((done, total)))
    assert heard == [(i, 16) for i in range(16)]
    assert [row[0] for row in found.rows] == ["lmm", "mac", "mag", "mal"]
    for figures in found.data["models"].values():
        assert figures["finite"] and figures["distance"] == 0


def test_triton_needs_a_gpu_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "triton"]) == 2
    assert "needs a CUDA device, which this machine lacks" in capsys.readouterr().err


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
