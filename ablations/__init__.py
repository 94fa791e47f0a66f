"""Ablations: tasks, training, grids, reports and the command line, on top of `architectures` and `memkit`."""
