"""What tells machines apart."""

from __future__ import annotations

import hashlib
from pathlib import Path


def number_of(boot: str, num_bytes: int) -> int:
    """A number for what `boot_id` returned, or a text that begins with it."""
    return int.from_bytes(hashlib.blake2b(boot.encode(), digest_size=num_bytes).digest(), "big")


def boot_id() -> str:
    """A text that all processes of this machine read alike until it is started again.

    Raises OSError where the system has none.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
