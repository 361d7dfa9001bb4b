"""Forked processes; and what one does to itself: signals, memory (Linux, glibc)."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from p2p_dml.errors import ExitCode

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1  # prctl.h

STOP_GRACE_S = 60.0
"""How long peers may take to finish their round and save when they are told to stop."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What libraries read at their start: how many threads each process takes."""


def fork(act: Callable[[], int], log: Path, *, own_group: bool = False) -> int:
    """Fork a process that runs `act` and ends with the code it returns; returns its id.

    It is killed with this one, reads nothing, and writes to `log`; nothing of this one's own runs
    in it after `act`. `own_group`: signals to the group of this one do not reach it.
    """
    pid = os.fork()
    if pid == 0:
        _be_child(act, log, own_group)
    return pid


def _be_child(act: Callable[[], int], log: Path, own_group: bool) -> NoReturn:
    code = int(ExitCode.FAILED)
    try:
        signal_with_parent(signal.SIGKILL)
        if own_group:
            os.setpgid(0, 0)
        _redirect(log)
        faulthandler.enable()  # a strategy that writes into memory of others shows where it did
        code = int(act())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def signal_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _redirect(log: Path) -> None:
    """Point standard input at nothing, standard output and error at `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


@contextmanager
def on_stop_signals(act: Callable[[], None], *, each: bool = False) -> Iterator[None]:
    """Call `act` at the first SIGINT or SIGTERM, and let a second one kill; or at `each`.

    Outside the main thread nothing is changed.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        for other in () if each else STOP_SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        act()

    if threading.current_thread() is not threading.main_thread():
        yield  # a host program that runs peers in threads keeps its signals to itself
        return
    before = [signal.signal(number, handle) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
M_ARENA_MAX = -8
_LONGEST_KEPT = 1 << 27  # bytes


def keep_freed_memory(message_bytes: int = 0) -> None:
    """Let malloc reuse the memory of large messages instead of giving it back each time.

    A fresh page costs a fault of 2.7 µs at its first touch, which is more than copying into it.
    For models worth the memory it keeps, up to `_LONGEST_KEPT`: a peer may have two messages of
    each neighbour, the next one early. Where the C library has no mallopt nothing happens.
    """
    threshold = 1 << 25  # the most that glibc takes; it maps longer blocks anew each time
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.mallopt(M_MMAP_THRESHOLD, threshold)
        if threshold <= message_bytes <= _LONGEST_KEPT:
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_ARENA_MAX, 1)  # threads' own are given back, and hold 64 MiB at most
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_TOP_PAD, 1 << 18)


def release_freed_memory() -> None:
    """Give back what start-up has freed, once, where the C library can (glibc)."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_LARGEST_GAP, _AT_MOST = 8192, 100_000  # bytes; chunks of each size


def fill_gaps() -> None:
    """Take up, for good, what malloc has free between what is in use (glibc).

    For a process about to fork: children would fill these gaps, each by writing to a page that all
    of them share and having it copied for a few bytes. Now they fill pages of their own: 1 to 2 MB
    less for each, for as much once.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        malloc, sbrk = libc.malloc, libc.sbrk
        malloc.restype = sbrk.restype = ctypes.c_void_p
        malloc.argtypes, sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_ssize_t]
        top = sbrk(0) or 0
        for size in (*range(_LARGEST_GAP, 1024, -512), *range(1024, 16, -16)):
            fresh = 0  # in a row: smaller gaps are not looked through in order
            for _ in range(_AT_MOST):
                fresh = fresh + 1 if (malloc(size - 8) or top) >= top else 0
                if fresh > 16:
                    break


def allow_many_files() -> None:
    """Let this process open as many files as the system grants it: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def memory_mb() -> tuple[float, float] | None:
    """Proportional and resident set size of this process in MB (10^6 bytes).

    None where they cannot be read, such as for want of a file descriptor.
    """
    try:
        sizes = proc_table(Path("/proc/self/smaps_rollup"))
    except OSError:
        return None
    return sizes["Pss"] * 1024 / 1e6, sizes["Rss"] * 1024 / 1e6


def proc_table(file: Path) -> dict[str, int]:
    """The lines `Key: number unit` of a file in /proc; other lines are left out. OSError: gone."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(":")
        with suppress(ValueError, IndexError):
            found[key] = int(rest.split()[0])
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was no memory left, on the machine or on a GPU."""
    words = ("can't allocate memory", "out of memory")  # of torch, on CPUs and on GPUs
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
