"""`memkit bench`: named benchmarks, whose figures are ratios between things that take turns in one run."""

from ablations.bench.base import Benchmark, run_benchmark
from ablations.bench.display import print_benchmark, run_shown

__all__ = ["Benchmark", "print_benchmark", "run_benchmark", "run_shown"]
