"""What a process does to its own memory before it forks others."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GAPS = """
import ctypes
from p2p_dml.launchers.process import fill_gaps

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
sizes = range(100, 4000, 100)
chunks = [libc.malloc(size) for size in sizes for _ in range(50)]
for chunk in chunks[::2]:
    libc.free(chunk)
top = libc.sbrk(0)
{fill}
print(sum(libc.malloc(size) < top for size in sizes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc")
@pytest.mark.parametrize(("fill", "fewest", "most"), [("", 30, 39), ("fill_gaps()", 0, 8)])
def test_what_is_allocated_after_gaps_are_filled_is_in_fresh_memory(
    fill: str, fewest: int, most: int
) -> None:
    """Of 39 chunks; without it nearly all go where freed ones were."""
    command = [sys.executable, "-c", GAPS.format(fill=fill)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert fewest <= int(found.stdout) <= most
