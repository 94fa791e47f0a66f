"""Benchmarks run and measure the intended calls; their times are not asserted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import memkit
from ablations.bench import compiling, core, decode, length, models, rounds, rules, run_benchmark, stream, systems
from ablations.bench.base import Failure
from ablations.bench.memory import growth
from ablations.bench.timing import Spread, Times, take_turns
from ablations.cli import main
from ablations.pool import Event
from compare import near


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
    assert found.rows[0][1:4] == ("fused", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)")
    assert [done for done, _ in heard] == list(range(heard[0][1]))
    markdown, data = found.write(tmp_path, "rules")
    assert markdown.read_text().splitlines()[4].startswith("| rule | form | forward |")
    titans = json.loads(data.read_text())["data"]["rules"]["titans"]
    assert titans["form"] == "fused"
    assert titans["tokens"] == 8
    # Two matrices and two momenta of 4 x 16 a head, 4 heads; beginning and anchor besides.
    assert titans["state_bytes"] - 16 == 4 * 4 * 2 * (4 * 16) * 4


def test_core_counts_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert core.operations(training=False) == (22 * 64 * 256 + 4 * 64 * (64 + 256)) * 8 * 2048 * 4
    assert core.yardstick_shapes() == "[32, 64, 64] x [32, 64, 256]"
    for name, value in {"BATCH": 1, "TOKENS": 8, "WIDTH": 4, "MINI_BATCH": 4, "REPEATS": 2, "BEST_OF": 2}.items():
        monkeypatch.setattr(core, name, value)
    eager = [variant for variant in core.variants() if not variant.compiled]
    monkeypatch.setattr(core, "variants", lambda: eager)
    found = run_benchmark("core", lambda *_: None)
    assert [row[0] for row in found.rows] == [
        "forward, float32, eager",
        "forward, bfloat16, eager",
        "training, float32, eager",
        "training, bfloat16, eager",
    ]
    for row in found.data["variants"].values():
        assert row["percent"]["low"] > 0 and len(row["seconds"]) == 2
    assert [(goal.reach, goal.unit) for goal in found.goals] == [(75, "percent"), (65, "percent"), (1.6, "times")]


def test_rules_with_a_large_state_are_timed_on_few_tokens() -> None:
    wide = memkit.build("rule", "titans", expansion=64)
    assert rules.state_bytes(wide) > rules.LARGE_STATE
    assert rules.tokens_of(wide) == 128
    assert rules.tokens_of(memkit.build("rule", "kda")) == 2048


def test_rounds_come_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SIZES", rounds.Sizes(batch=1, tokens=32, width=8, repeats=1))
    found = run_benchmark("rounds", lambda *_: None)
    forms = found.data["forms"]
    distances = [forms[name]["distance"] for name in ("0 rounds", "2 rounds", "8 rounds", "to rounding (auto)")]
    assert distances[0] > distances[1] > distances[2]
    assert distances[3] < 1e-5
    assert len(forms) == len(found.rows) == 12
    assert [goal.figure.median for goal in found.goals] == [
        forms[one]["seconds"][0] / forms[other]["seconds"][0]
        for one, other in (
            ("token by token (fused)", "to 1e-05"),
            ("forward and backward, token by token (fused)", "forward and backward, to 1e-05"),
        )
    ]


def test_what_is_compiled_is_timed_beside_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = compiling.Sizes(dim=8, heads=1, mini_batch=2, tokens=(6,), rounds=2, backend="eager")
    monkeypatch.setattr(compiling, "SIZES", sizes)
    monkeypatch.setattr(compiling, "WAYS", {name: compiling.WAYS[name] for name in (compiling.GRAPH,)})
    found = run_benchmark("compile", lambda *_: None)
    assert [row[:2] for row in found.rows] == [("6", compiling.GRAPH)]
    (one,) = found.data.values()
    assert one["first"] > 0 and len(one["shares"]) == 2 and all(share > 0 for share in one["shares"])


def test_an_unknown_benchmark_is_a_mistake_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rulse"]) == 2
    assert "Did you mean 'rules'?" in capsys.readouterr().err
    assert main(["bench", "pages"]) == 2
    assert "Did you mean 'page'? Known: all, compile, core," in capsys.readouterr().err


def test_length_measures_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "LENGTHS", (64, 128))
    monkeypatch.setattr(length, "REPEATS", 1)
    monkeypatch.setattr(length, "growth", lambda prepare, tokens, recompute: float(tokens) / (recompute or 1))
    heard: list[tuple[int, int]] = []
    found = run_benchmark("length", lambda what, done, total: heard.append((done, total)))
    assert heard == [(i, 12) for i in range(12)]
    assert [row[0] for row in found.rows] == ["64", "128"]
    assert found.data["growth_mib"] == {
        "all kept": {"64": 64.0, "128": 128.0},
        length.AGAIN: {"64": 64 / 4096, "128": 128 / 4096},
    }
    assert all(seconds > 0 for own in found.data["seconds_a_token"].values() for seconds in own["64"])
    slower, whole, more, longer = found.goals
    assert whole.figure.median == 128 / 4096 / 1024 and whole.verdict == "reached"
    assert more.figure.median == pytest.approx(64 / 4096 / (64 * 4 * 256 * 4 / 2**20))
    times = found.data["seconds_a_token"]
    assert slower.figure.median == times[length.AGAIN]["128"][0] / times["all kept"]["128"][0]
    assert longer.figure.median == times[length.AGAIN]["128"][0] / times[length.AGAIN]["64"][0]


def test_memory_is_that_of_a_new_process() -> None:
    assert 60 < growth(take, 64) < 200, "64 MiB were filled, and what a call needs besides is small"


def take(mebibytes: int) -> Callable[[], object]:
    return lambda: len(b"x" * (mebibytes * 2**20))


def here(function: Callable[..., Any], calls: dict[str, tuple[Any, ...]], workers: int, fresh: bool) -> Iterator[Event]:
    """Calls in this process, where a benchmark gives each one a process of its own."""
    assert fresh and workers >= 1
    for name, arguments in calls.items():
        heard: list[int] = []
        value = function(*arguments, heard.append)
        yield from (Event(name, "progress", one) for one in heard)
        yield Event(name, "done", value)


def test_a_stream_ends_as_a_call_from_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = stream.Sizes(dim=8, heads=2, depth=1, tokens=256, chunk=16, early=5, decoded=3, rounds=1)
    monkeypatch.setattr(stream, "SIZES", sizes)
    monkeypatch.setattr(stream, "run_all", here)
    heard: list[tuple[int, int]] = []
    found = run_benchmark("stream", lambda what, done, total: heard.append((done, total)))
    assert heard == [(i, 64) for i in range(1, 65)]
    assert [row[0] for row in found.rows] == ["lmm", "mac", "mag", "mal"]
    assert {len(row) for row in found.rows} == {len(found.columns)}
    for figures in found.data["models"].values():
        assert figures["finite"] and figures["difference"] <= 1e-6  # a loaded state lies otherwise in memory
        assert 0 < figures["early_mib"] <= figures["peak_mib"]
        assert [tokens for tokens, _ in figures["us_so_far"]] == [16, 32, 64, 128, 256]
    assert [goal.verdict for goal in found.goals[3::4]] == ["reached"] * 4
    assert [goal.what for goal in found.goals[:2]] == [
        "lmm: largest resident memory after 256 tokens",
        "lmm: time per token after 256 tokens",
    ]


def test_numbers_that_are_not_finite_are_equal_to_nothing() -> None:
    ratio = vars(Spread(1.0, 1.0, 1.0))
    timed = {"us": [1.0, 1.0], "ratio": ratio}
    found = {"early_mib": 1.0, "peak_mib": 1.0, "calls": timed, "decoding": timed, "difference": 0.0}
    verdicts = [stream._goals("x", {**found, "finite": finite})[-1].verdict for finite in (True, False)]
    assert verdicts == ["reached", "not reached"]


@pytest.mark.parametrize("others", [("lmm", "mag", "mal"), ()])
def test_a_stream_that_ends_early_says_why_and_costs_no_other(
    others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = {"us": [1.0, 1.0], "ratio": vars(Spread(1.0, 1.0, 1.0))}
    mib = {"early_mib": 1.0, "peak_mib": 1.0, "state_kib": 1.0, "difference": 0.0, "mib_so_far": []}
    figures = {
        "first_us": 1.0,
        "last_us": 1.0,
        "finite": True,
        "us_so_far": [],
        "calls": timed,
        "decoding": timed,
        **mib,
    }
    ended = [Event("mac", "failed", "killed", "Traceback"), *(Event(name, "done", figures) for name in others)]
    monkeypatch.setattr(stream, "run_all", lambda *_, **__: iter(ended))
    if not others:
        with pytest.raises(RuntimeError, match=r"streaming through mac failed.*: killed\nTraceback"):
            run_benchmark("stream", lambda *_: None)
        return
    found = run_benchmark("stream", lambda *_: None)
    assert found.failures == (Failure("streaming through mac", "killed", "Traceback"),)
    assert tuple(row[0] for row in found.rows) == tuple(found.data["models"]) == tuple(found.plots[0].lines) == others
    assert len(found.goals) == 4 * 3 and not any("mac" in goal.what for goal in found.goals)


SMALL = {"vocab_size": 256, "dim": 16, "heads": 2, "depth": 2}


def test_decoding_is_timed_against_a_cache_written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "SIZES", SMALL)
    monkeypatch.setattr(decode, "SIZES", SMALL)
    for name, value in {"CONTEXTS": (4, 8, 16), "REACHED": (4, 9), "CHUNK": 4, "TOKENS": 2, "ROUNDS": 3}.items():
        monkeypatch.setattr(decode, name, value)
    found = run_benchmark("decode", lambda *_: None)
    assert found.columns == ("context", "transformer", "lmm", "mac", "mag", "mal")
    assert [row[0] for row in found.rows] == ["4", "8", "16", "faster from", "state, KiB"]
    assert found.rows[-1][1] == "4"  # 2 layers of keys and values of 16 numbers, 16 tokens
    assert len(found.data["us"]) == 3 + 4 * 2
    plot = found.plots[0]
    assert {name: [x for x, _ in points] for name, points in plot.lines.items()} == {
        "transformer": [4, 8, 16],
        **dict.fromkeys(found.columns[2:], [4, 9]),
    }
    assert {name: points[0][0] for name, points in plot.beyond.items()} == dict.fromkeys(found.columns[2:], 16)


@torch.no_grad()
def test_the_yardsticks_decoder_computes_what_the_transformer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "SIZES", SMALL)
    model = systems.system("transformer", 24).double()
    ids = torch.randint(256, (1, 7), generator=torch.Generator().manual_seed(0))
    expected, _ = model(ids)
    near(decode.Cached(model, 0, 7, torch.double).read(ids), expected)


def test_models_are_of_one_size_and_stop_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = systems.equal_hidden()
    counts = [systems.system(name, n).num_parameters() for name, n in hidden.items()]
    assert max(counts) - min(counts) <= 8 * 3 * 256 * 2
    monkeypatch.setattr(systems, "SIZES", SMALL)
    monkeypatch.setattr(models, "SIZES", SMALL)
    for name, value in {"LENGTHS": (8, 16, 32, 64), "WEIGHED": (16, 64), "AT_ONCE": 16, "ROUNDS": 1}.items():
        monkeypatch.setattr(models, name, value)
    monkeypatch.setattr(models, "growth", lambda prepare, name, hidden, n: 1000.0 * n * (8 if name == "mac" else 1))
    monkeypatch.setattr(models, "MOST_MIB", 300_000)
    found = run_benchmark("models", lambda *_: None)
    for key, lengths in (("seconds_a_token", ["8", "16", "32"]), ("growth_mib", ["16"])):
        tried = {name: list(own) for name, own in found.data[key].items()}
        assert tried == {name: lengths + ["64"] * (name != "mac") for name in systems.OWN}
    assert found.rows[3][3] == "" and found.rows[3][4].endswith(" us, 64,000 MiB") and found.rows[2][4].endswith(" us")
    assert [found.plots[1].lines["lmm"][-1], set(found.data["faster_from"])] == [
        [64, 64_000.0],
        set(systems.OWN) - {"transformer"},
    ]
