"""`memkit bench`: named benchmarks, whose figures are ratios between things that take turns in one run."""

from ablations.bench.base import Benchmark, run_benchmark
from ablations.bench.display import run_asked

__all__ = ["Benchmark", "run_asked", "run_benchmark"]
