"""Settings of every test run: the same examples each time, and one thread for each worker."""

import os

import torch
from hypothesis import settings

# HYPOTHESIS_PROFILE=search looks for new examples; what it finds becomes an @example.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

torch.set_num_threads(1)  # pytest-xdist runs a worker for each core
