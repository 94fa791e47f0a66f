"""Benchmarks: that they time what they say; the times themselves are nobody's to assert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memkit
from ablations.bench import rounds, rules, run_benchmark
from ablations.bench.timing import Spread, Times, take_turns
from ablations.cli import main


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    heard: list[str] = []
    found = take_turns({"a": lambda: heard.append("A"), "b": lambda: heard.append("B")}, 2, heard.append)
    assert heard == ["a", "A", "b", "B"] * 3
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
    forms = run_benchmark("rounds", lambda *_: None).data["forms"]
    distances = [forms[name]["distance"] for name in ("0 rounds", "2 rounds", "8 rounds", "to rounding (auto)")]
    assert distances[0] > distances[1] > distances[2]
    assert distances[3] < 1e-5


def test_an_unknown_benchmark_is_a_mistake_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rulse"]) == 2
    assert "Did you mean 'rules'?" in capsys.readouterr().err
