"""Both ways to compute a mean: what `p2p_dml.kernels.backend()` can say."""

from __future__ import annotations

import pytest

from p2p_dml.kernels import _native


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once with the compiled kernels, if they were built, and once without."""
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(_native, "library", None)
    elif _native.library is None:
        pytest.skip("the compiled kernels were not built, or are switched off")
    return name
