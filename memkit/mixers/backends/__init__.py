"""Attention and state-space kernels, chosen at run time: torch everywhere, others where they are."""

from memkit.mixers.backends.banded import Backend, Banded
from memkit.mixers.backends.choice import AUTOMATIC, BACKENDS, banded_attention, check_backend
from memkit.mixers.backends.mamba import mamba_ssm_available, ssd

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "Backend",
    "Banded",
    "banded_attention",
    "check_backend",
    "mamba_ssm_available",
    "ssd",
]
