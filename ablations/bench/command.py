"""`memkit bench`: run one benchmark or all, show and keep the figures, write the page."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from rich.console import Console

from ablations.bench.base import run_benchmark
from ablations.bench.page import write_page
from ablations.display.benchmarks import benchmark_bar, print_benchmark
from ablations.display.console import say
from memkit.registry import names, nearest

ALL, PAGE = "all", "page"
AFTERWARDS = {
    "failed": "{0} failed, see above; the page has no new figures of it. Again: `memkit bench {0}`.",
    "failed in part": "{0} failed in part, see above; the page has the rest. Again: `memkit bench {0}`.",
}
"""The last message about a benchmark that did not go well, by how it ended."""


def bench(name: str, folder: Path, threads: int | None, out: Console, err: Console) -> bool:
    """Run a benchmark, `all` of them, or none for the `page` alone, then write the page of the folder.

    Returns True if nothing failed, not even a part. Among `all`, a benchmark that this machine cannot run is left
    out with a message, and one that fails is reported with its traceback; the others run. Raises `ValueError` for an
    unknown name, and for a page of an empty folder.
    """
    known = names("benchmark")
    if name not in (*known, ALL, PAGE):
        raise ValueError(f"unknown benchmark {name!r}. {nearest(name, (*known, ALL, PAGE))}")
    if threads is not None:
        torch.set_num_threads(threads)
    ended = {}
    if name == ALL:
        ended = {one: _run_among_others(one, folder, threads, out, err) for one in known}
    elif name != PAGE:
        ended = {name: _run(name, folder, threads, out, err)}
    bad = {one: how for one, how in ended.items() if how in AFTERWARDS}
    for one, how in bad.items():
        say(err, AFTERWARDS[how].format(one))
    say(err, f"Page: {write_page(folder)}")
    return not bad


def _run_among_others(name: str, folder: Path, threads: int | None, out: Console, err: Console) -> str:
    """Run a benchmark; no error in it stops the others. Returns "left out", "failed", or as `_run`."""
    try:
        return _run(name, folder, threads, out, err)
    except ValueError as error:
        say(err, f"{name} was left out: {error}")
        return "left out"
    except Exception:  # of any kind: it must not cost the other benchmarks their figures
        say(err, traceback.format_exc())
        return "failed"


def _run(name: str, folder: Path, threads: int | None, out: Console, err: Console) -> str:
    """Run a benchmark, keep its figures in a folder and show them.

    Returns "done", or "failed in part" if some figures are there beside something that failed.
    """
    again = f"memkit bench {name}" + (f" --threads {threads}" if threads is not None else "")
    with benchmark_bar(name, err) as progress:
        benchmark = run_benchmark(name, progress, again)
    paths = benchmark.write(folder, name)
    print_benchmark(benchmark, out)
    for failure in benchmark.failures:
        say(err, f"{failure}\n{failure.details}".rstrip())
    say(err, f"Saved: {', '.join(map(str, paths))}")
    return "failed in part" if benchmark.failures else "done"
