"""`memkit bench`: named benchmarks, whose figures are ratios between things that take turns in one run."""

from ablations.bench.base import Benchmark, run_benchmark
from ablations.bench.display import command_line, run_every, run_shown
from ablations.bench.page import write_page

__all__ = ["Benchmark", "command_line", "run_benchmark", "run_every", "run_shown", "write_page"]
