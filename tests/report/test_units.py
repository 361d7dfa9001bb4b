"""Numbers in words, at the borders between units."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2p_dml.report._units import clock, count, digits, human_bytes, human_seconds, percent, plural


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (human_bytes, 0, "0 B"),
        (human_bytes, 999, "999 B"),
        (human_bytes, 1000, "1.00 kB"),
        (human_bytes, 1_234_567, "1.23 MB"),
        (human_bytes, 999_600, "1.00 MB"),
        (human_bytes, 2.5e12, "2.50 TB"),
        (human_bytes, None, "–"),
        (human_seconds, 0.0, "0.00 s"),
        (human_seconds, 12.34, "12.3 s"),
        (human_seconds, 125, "2 min 05 s"),
        (human_seconds, 3725, "1 h 02 min"),
        (human_seconds, float("nan"), "–"),
        (clock, 65.9, "1:05"),
        (clock, 3605, "1:00:05"),
        (clock, -1, "0:00"),
        (percent, 0.934, "93.4 %"),
        (percent, None, "–"),
        (digits, 0.0, "0"),
        (digits, 0.9996, "1.00"),
        (digits, 0.01234, "0.0123"),
        (digits, 1234.5, "1234"),
        (digits, 1.5e-7, "1.50e-07"),
        (digits, -2.5, "-2.50"),
        (digits, None, "–"),
        (count, 12345, "12,345"),
        (count, None, "–"),
    ],
)
def test_show(show: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert show(value) == text


def test_plural() -> None:
    assert (plural(1, "peer"), plural(0, "peer")) == ("1 peer", "0 peers")
