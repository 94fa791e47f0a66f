"""Kernels for attention and Mamba-2's scan, chosen at run time: torch everywhere, others if they are there."""

from memkit.mixers.backends.banded import Backend, Banded
from memkit.mixers.backends.choice import AUTOMATIC, BACKENDS, SCAN, banded_attention, check_backend, mamba2_scan
from memkit.mixers.backends.scan import Scan

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "SCAN",
    "Backend",
    "Banded",
    "Scan",
    "banded_attention",
    "check_backend",
    "mamba2_scan",
]
