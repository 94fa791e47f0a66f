"""Tasks: the data that models are trained and measured on."""

from ablations.tasks.base import IGNORE, Batch, Metric, Task, Yardstick

__all__ = ["IGNORE", "Batch", "Metric", "Task", "Yardstick"]
