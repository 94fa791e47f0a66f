"""Settings of every test run (the same examples each time, one thread per worker), and shared fixtures."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import stand_ins
from memkit.mixers.backends import choice
from memkit.mixers.backends.probes import forget

# HYPOTHESIS_PROFILE=search looks for new examples; what it finds becomes an @example.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

torch.set_num_threads(1)  # pytest-xdist runs a worker for each core


@pytest.fixture
def fresh_probes() -> Iterator[None]:
    """Probes are asked once per process; tests change what they find."""
    forget()
    choice._said.clear()
    yield
    forget()


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins in the places of the packages."""
    for name, module in {
        "flash_attn": stand_ins.flash_attn_interface(),
        "flash_attn.flash_attn_interface": stand_ins.flash_attn_interface(),
        "xformers": stand_ins.xformers_ops(),
        "xformers.ops": stand_ins.xformers_ops(),
        "xformers.ops.fmha": stand_ins.xformers_biases(),
        "xformers.ops.fmha.attn_bias": stand_ins.xformers_biases(),
        "mamba_ssm": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops.triton": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops.triton.ssd_combined": stand_ins.mamba_ssd_combined(),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
