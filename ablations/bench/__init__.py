"""Benchmarks: ratios between systems that take turns in one process or one run."""

from ablations.bench.base import Benchmark, run_benchmark

__all__ = ["Benchmark", "run_benchmark"]
