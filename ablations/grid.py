"""Grids: a baseline and one-factor changes, read from YAML and checked completely before any training."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch

from ablations.settings import TrainConfig
from ablations.strict import Settings, parse
from memkit.registry import Config, UnknownName, build, factory, nearest, register
from memkit.strict_yaml import load_yaml
from memkit.user_modules import import_files

BASELINE = "baseline"
OWN = "The file of one of your own stands in the grid's 'imports:', or is given with --import."
_SHIPPED = Path(__file__).parent / "grids"


class Published(Settings):
    """Figures of a paper, shown beside ours: names of columns, and a row of numbers per variant."""

    columns: list[str]
    rows: dict[str, list[float | None]]


class ReportNotes(Settings):
    """Texts and published figures of a report."""

    notes: str = ""
    source: str = ""  # the paper's table or figure
    published: Published | None = None


class Grid(Settings):
    """A grid file.

    - `task`: a task's name, or a mapping of name and options. `train`: see `TrainConfig`, without `seed`.
    - `baseline`: an architecture's name and options, without the vocabulary size, which the task sets.
    - `variants`: name -> changes to the baseline. A variant without changes is the baseline's row; if there is none,
      a row named `baseline` comes first. A mapping changes the options it names and keeps the others. Another `name`
      is another architecture, and takes over the options of the baseline that it has too.
    - `seeds`: their number, or a list.
    - `imports`: Python files of your own with components of the grid; paths are relative to the grid's file.
    """

    title: str
    description: str = ""
    task: str | dict[str, Any]
    train: dict[str, Any]
    baseline: dict[str, Any]
    variants: dict[str, dict[str, Any] | None]
    seeds: list[int] = [0, 1]
    imports: list[str] = []
    report: ReportNotes = ReportNotes()

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, seeds: Any) -> Any:
        return list(range(seeds)) if type(seeds) is int else seeds

    @pydantic.field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("give how many seeds (1 or more), or a list of different ones (0 or more)")
        return seeds

    @property
    def task_config(self) -> Config:
        """Return the task as a config."""
        return Config.of("task", self.task)

    def settings(self, seed: int = 0) -> TrainConfig:
        """Return the training settings of one seed."""
        if "seed" in self.train:
            raise ValueError("a grid has no train.seed; its seeds are the key 'seeds', beside 'train'.")
        return parse(TrainConfig, {**self.train, "seed": seed}, "train")

    def architectures(self) -> dict[str, dict[str, Any]]:
        """Return every variant's architecture, as a mapping of name and options, in the grid's order."""
        rows = {name: changed(self.baseline, changes or {}) for name, changes in self.variants.items()}
        return rows if self.baseline in rows.values() else {BASELINE: self.baseline, **rows}

    def baseline_row(self) -> str:
        """Return the name of the baseline's variant."""
        return next(name for name, made in self.architectures().items() if made == self.baseline)


def changed(baseline: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a changed copy of the baseline, as `Grid` describes.

    Raises `ValueError` for an unknown architecture.
    """
    name = Config.of("architecture", {**baseline, **changes}).name
    has = inspect.signature(factory("architecture", name)).parameters
    kept = dict(baseline) if name == baseline.get("name") else {k: v for k, v in baseline.items() if k in has}
    for key in changes.keys() & has.keys() - kept.keys():
        if isinstance(has[key].default, str):  # rule: {depth: 1} alone changes the architecture's own default rule
            kept[key] = has[key].default
    return _merge({**kept, "name": name}, changes)


def _merge(base: Any, change: Any) -> Any:
    if isinstance(base, str) and isinstance(change, Mapping) and "name" not in change:
        base = {"name": base}  # a component without options, written short
    if not (isinstance(base, Mapping) and isinstance(change, Mapping)):
        return change
    if "name" in base and change.get("name", base["name"]) != base["name"]:
        return dict(change)  # another component: the old one's options mean nothing to it
    return {**base, **{key: _merge(base.get(key), value) for key, value in change.items()}}


def read_grid(
    source: str | Path,
    *,
    seeds: int | None = None,
    steps: int | None = None,
    text: str | None = None,
    imports: Iterable[Path] = (),
) -> Grid:
    """Read and check a grid: a shipped one by its name, or a file.

    seeds, steps and text (the path of the task `text`) replace those of the grid; imports are added to its own. All
    imports are run here, and have full paths in the returned grid. Raises `ValueError`, with the file and the nearest
    valid key, for anything that could not run.
    """
    content, where = _find(source)
    data = load_yaml(content, where)
    grid = parse(Grid, data, where)
    replaced: dict[str, Any] = {}
    if seeds is not None:
        replaced["seeds"] = seeds
    if steps is not None:
        replaced["train"] = {**grid.train, "steps": steps}
    if text is not None:
        replaced["task"] = {"name": grid.task_config.name, **grid.task_config.options, "path": text}
    beside = [str(Path(source).resolve().parent / file) for file in grid.imports]
    replaced["imports"] = [*beside, *(str(file.resolve()) for file in imports)]
    grid = parse(Grid, {**data, **replaced}, where)
    import_files(grid.imports)
    check(grid, where)
    return grid


def _find(source: str | Path) -> tuple[str, str]:
    """A grid's text, and its name in messages."""
    name, path = str(source), Path(source)
    if name in shipped():
        return (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), f"grid {name!r}"
    if not path.is_file():
        raise ValueError(f"there is no grid {name!r}, neither shipped nor a file. {nearest(name, shipped())}")
    try:
        return path.read_text(encoding="utf-8"), f"grid {name!r}"
    except UnicodeDecodeError as error:
        raise ValueError(f"grid {name!r} is not UTF-8 text ({error}), so it is not YAML. Check the path.") from None


def check(grid: Grid, where: str) -> None:
    """Raise one `ValueError` with all faults of a grid: its task, its training, and each variant, built empty."""
    faults: list[str] = []

    inherited: set[str] = set()

    def attempt(place: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except ValueError as error:
            fault = f"{error} {OWN}" if isinstance(error, UnknownName) else str(error)
            if fault not in inherited:  # every variant has the baseline's faults
                faults.append(f"{where}, {place}: {fault}" if place else f"{where}, {fault}")
            if place == BASELINE:
                inherited.add(fault)

    task = attempt("task", lambda: grid.task_config.build())
    attempt("", grid.settings)  # these errors name their place
    vocab_size = 2 if task is None else task.vocab_size
    for name, changes in {BASELINE: {}, **grid.variants}.items():
        place = f"variant {name!r}" if name in grid.variants else BASELINE
        attempt(place, lambda c=changes or {}: build_empty(changed(grid.baseline, c), vocab_size))
    if not faults:
        attempt("variants", lambda: _check_names(grid))
        attempt("report.published", lambda: _check_published(grid))
    if faults:
        raise ValueError("\n".join(faults))


def build_empty(architecture: Mapping[str, Any], vocab_size: int) -> torch.nn.Module:
    """Build an architecture without memory for its weights; this finds every wrong name, option and size."""
    if "vocab_size" in architecture:
        raise ValueError("vocab_size follows from the task. Leave it out of the architecture.")
    with torch.device("meta"):
        return build("architecture", architecture, vocab_size=vocab_size)


def slug(name: str) -> str:
    """Turn a variant's name into a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "variant"


def _check_names(grid: Grid) -> None:
    rows = grid.architectures()
    if rows.get(BASELINE, grid.baseline) != grid.baseline:
        raise ValueError(f"the variant {BASELINE!r} changes the baseline. Give it another name.")
    for (one, made), (other, made_too) in itertools.combinations(rows.items(), 2):
        if made == made_too:
            raise ValueError(f"{one!r} and {other!r} are the same model. Take one away.")
        if slug(one) == slug(other):
            raise ValueError(f"{one!r} and {other!r} would share the folder {slug(one)!r}. Rename one.")


def _check_published(grid: Grid) -> None:
    published, known = grid.report.published, grid.architectures()
    if published is None:
        return
    for name, values in published.rows.items():
        if name not in known:
            raise ValueError(f"there is no variant {name!r}. {nearest(name, known)}")
        if len(values) != len(published.columns):
            counts = f"{len(values)} figures for {len(published.columns)} columns"
            raise ValueError(f"{name!r} has {counts}. Use null for a column without one.")


def shipped() -> list[str]:
    """Return the names of the package's grids."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def register_shipped() -> None:
    """Register every shipped grid under its file's name, described by its title."""
    for name in shipped():
        register("grid", name)(_reader(name))


def _reader(name: str) -> Callable[[], Grid]:
    def read() -> Grid:
        return read_grid(name)

    content, where = _find(name)
    read.__doc__, read.__qualname__ = f"{load_yaml(content, where)['title']}\n\n{content}", f"grid {name}"
    return read
