"""Settings for all tests: one torch thread, as on shared cores, and repeatable hypothesis."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
