"""Running a grid: every variant and seed in parallel, each in its own folder, none affected by another's failure."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ablations import run
from ablations.files import check_ours, difference, read_json, write_json
from ablations.grid import Grid
from ablations.pool import Event, cores, run_all
from ablations.results import GRID_FILE, collect, run_folder
from ablations.run import RunSpec
from memkit.checks import positive
from memkit.strict_yaml import dump_yaml
from memkit.user_modules import digest

Key = tuple[str, int]  # variant, seed
PROGRESS_SECONDS = 0.25


def run_grid(
    grid: Grid,
    out: Path,
    *,
    jobs: int | None = None,
    on_start: Callable[[dict[Key, RunSpec], int], None] = lambda todo, kept: None,
    on_event: Callable[[Event[Key]], None] = lambda event: None,
) -> dict[str, Any]:
    """Run every run that the folder does not hold yet, and return all results.

    jobs: worker processes; default: one per core. on_start is called with the runs to do and the number of finished
    runs kept from before; on_event with (step, loss) of each run, and with its end. Raises `ValueError`, before
    anything is touched, if the folder holds something else.
    """
    jobs = cores() if jobs is None else jobs
    positive("jobs", jobs)
    task = grid.task_config.build()
    _claim(grid, task, out)
    specs = {
        (name, seed): RunSpec(
            name=f"{name} (seed {seed})",
            architecture=architecture,
            vocab_size=task.vocab_size,
            task={"name": grid.task_config.name, **grid.task_config.options},
            train=grid.settings(seed),
            imports=_digests(grid),
        )
        for seed in grid.seeds
        for name, architecture in grid.architectures().items()
    }
    todo = {key: spec for key, spec in specs.items() if not _finished(run_folder(out, *key))}
    on_start(todo, len(specs) - len(todo))
    calls = {key: (spec, run_folder(out, *key)) for key, spec in todo.items()}
    try:
        with closing(run_all(_work, calls, min(jobs, len(calls)))) as everything:
            for event in everything:
                if event.kind == "failed":
                    message = f"{todo[event.key].name} failed: {event.value}"
                    run.record_failure(run_folder(out, *event.key), message, event.details or message)
                on_event(event)
    finally:  # an interrupted grid reports its finished runs
        results = collect(out)
    return results


def _written(grid: Grid) -> dict[str, Any]:
    """Return the grid as its author wrote it, files by name."""
    written = grid.model_dump(exclude_defaults=True)
    return written | ({"imports": [Path(file).name for file in grid.imports]} if grid.imports else {})


def _digests(grid: Grid) -> dict[str, str]:
    """Digests of the user's files by path: numbers depend on their content."""
    return {file: digest(file) for file in grid.imports}


def _work(spec: RunSpec, folder: Path, send: Callable[[Any], None]) -> dict[str, Any]:
    """Execute one run in a worker process; send (step, loss) a few times per second."""
    sent = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal sent
        if time.monotonic() - sent > PROGRESS_SECONDS:
            sent = time.monotonic()
            send((step, loss))

    return run.execute(spec, folder, on_step)


def _finished(folder: Path) -> bool:
    held = run.result(folder)
    return held is not None and held["status"] == run.FINISHED


def _claim(grid: Grid, task: Any, out: Path) -> None:
    """Write the grid into its folder, with the seeds of earlier calls; `ValueError` if that is not this grid's."""
    path = out / GRID_FILE
    check_ours(out, GRID_FILE)
    described = _describe(grid, task)
    if path.exists():
        held = read_json(path)
        for part in ("definition", "token_digest"):
            where = difference(held[part], described[part], part)
            if where:
                raise ValueError(
                    f"{out} holds another grid: {where}. Choose another --out to keep both, or delete that folder."
                )
        described["seeds"] = list(dict.fromkeys([*held["seeds"], *grid.seeds]))
    write_json(path, described)


def _describe(grid: Grid, task: Any) -> dict[str, Any]:
    metric = task.metrics[0]
    return {
        "title": grid.title,
        "description": grid.description,
        "report": grid.report.model_dump(),
        "definition": {  # everything that the numbers of one seed depend on
            "task": {"name": grid.task_config.name, **grid.task_config.options},
            "train": grid.settings().model_dump(exclude={"seed", "compile"}),
            "variants": grid.architectures(),
            **({"imports": {Path(file).name: found for file, found in _digests(grid).items()}} if grid.imports else {}),
        },
        "token_digest": task.fingerprint(),
        "seeds": grid.seeds,
        "baseline": grid.baseline_row(),
        "metric": {key: getattr(metric, key) for key in ("name", "unit", "direction", "solved")},
        "yardstick": vars(task.yardstick),
        "length": task.length,
        "text": dump_yaml(_written(grid), width=100),
        "environment": {
            "memkit": version("memkit"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
    }
