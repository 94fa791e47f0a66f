"""Terminal output: progress bars, tables and messages.

console.py      the two streams, messages, bars
runs.py         training runs
benchmarks.py   a benchmark's tables
verdicts.py     verdicts of `memkit check`
"""
