"""How many values of a tensor are worked on at a time."""

from __future__ import annotations

from torch import Tensor

_ELSEWHERE = 1 << 26
"""Values of all rows together: there calls cost more than a cache saves, and memory has an end."""


def at_once(x: Tensor, on_cpu: int, rows: int = 1) -> int:
    """`on_cpu`, which keeps them in the processor's cache; on other devices more, by `rows`."""
    return on_cpu if x.is_cpu else max(1, _ELSEWHERE // rows)
