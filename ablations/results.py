"""The results of a grid's folder as data: `results.json`, the source of every report."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import run
from ablations.files import read_json, write_json
from ablations.grid import slug

GRID_FILE, RESULTS_FILE = "grid.json", "results.json"
MISSING = "missing"  # a run without a result yet
UNSUCCESSFUL = (run.DIVERGED, run.FAILED)


@dataclass(frozen=True)
class Summary:
    """One variant over its finished seeds.

    values: the headline metric at the last step, one per seed. curve: (tokens, mean, least, largest) at each
    evaluation common to all seeds. solved: the step of the first evaluation that solved the task, one per evaluated
    run, None for a run that never did. failures: messages of failed runs.
    """

    name: str
    values: list[float]
    curve: list[tuple[int, float, float, float]]
    solved: list[int | None]
    parameters: int | None
    state_bytes: int | None
    tokens_per_second: float | None
    seconds: float | None
    failures: list[str]

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return out / "runs" / slug(variant) / f"seed-{seed}"


def collect(out: Path) -> dict[str, Any]:
    """Read a grid's folder, finished or not, write `results.json` and return its contents.

    Raises `ValueError` for a folder without a grid.
    """
    path = out / GRID_FILE
    if not path.exists():
        raise ValueError(f"{out} holds no grid's results. Give the folder that `memkit ablate` wrote with --out.")
    grid = read_json(path)
    runs = [
        {"variant": variant, "seed": seed, **_read_run(run_folder(out, variant, seed))}
        for variant in grid["definition"]["variants"]
        for seed in grid["seeds"]
    ]
    results = {**grid, "runs": runs}
    write_json(out / RESULTS_FILE, results)
    return results


def _read_run(folder: Path) -> dict[str, Any]:
    ended = run.result(folder) or {"status": MISSING, "message": ""}
    return {**ended, "history": run.history(folder)}


def summaries(results: dict[str, Any]) -> list[Summary]:
    """Return one summary per variant, in the grid's order."""
    return [
        _summarize(variant, [one for one in results["runs"] if one["variant"] == variant], results["metric"])
        for variant in results["definition"]["variants"]
    ]


def _summarize(variant: str, runs: list[dict[str, Any]], measured: dict[str, Any]) -> Summary:
    metric = measured["name"]
    done = [one for one in runs if one["status"] == run.FINISHED]
    seen = [one for one in runs if one["history"]]
    shown = done or seen  # a variant that never finished still shows its progress
    curve = []
    for rows in zip(*(one["history"] for one in shown), strict=False):
        values = [row["held_out"][metric] for row in rows]
        curve.append((rows[0]["tokens"], statistics.fmean(values), min(values), max(values)))

    def mean(key: str) -> float | None:
        return statistics.fmean(one[key] for one in done) if done else None

    return Summary(
        name=variant,
        values=[one["held_out"][metric] for one in done],
        curve=curve,
        solved=[_first_solved(one["history"], measured) for one in seen],
        parameters=done[0]["parameters"] if done else None,
        state_bytes=done[0]["state_bytes"] if done else None,
        tokens_per_second=mean("tokens_per_second"),
        seconds=mean("seconds"),
        failures=[one["message"] for one in runs if one["status"] in UNSUCCESSFUL],
    )


def _first_solved(history: list[dict[str, Any]], metric: dict[str, Any]) -> int | None:
    """The step of the first evaluation that solved the task; None if none did, or if the metric has no such value."""
    enough, sign = metric.get("solved"), 1 if metric["direction"] == "higher" else -1
    if enough is None:
        return None
    return next((row["step"] for row in history if sign * row["held_out"][metric["name"]] >= sign * enough), None)


def failed(results: dict[str, Any]) -> bool:
    """Return True if any run of the grid diverged or stopped with an error."""
    return any(one["status"] in UNSUCCESSFUL for one in results["runs"])
