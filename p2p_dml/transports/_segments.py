"""Memory that other processes of this machine can read: made by one, mapped by others, nameless.

A segment is a memfd. It lies in no folder, so nothing is left of it when the last process that has
it is gone, however that ended; and how large /dev/shm is does not matter. Others open it through
/proc/PID/fd, which the kernel grants to processes of the same user that see this one's id. It is
sealed: nobody can shrink it under a reader, and nobody but its maker can write it. Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import weakref
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.transports._machine import boot_id, number_of

HEAD_BYTES = 64
"""In front of the data, which begin aligned: the token."""

_NAME = "p2p_dml"
_ADD_SEALS, _GET_SEALS = 1033, 1034  # fcntl.h
_SHRINK, _GROW, _FUTURE_WRITE, _SEAL = 2, 4, 16, 1
_CLOSE_ON_EXEC, _ALLOW_SEALING = 1, 2  # memfd.h
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a segment is: on which machine, in which process, by which descriptor.

    `token`: a random number at the beginning of the segment, by which it is known.
    """

    machine: int
    pid: int
    descriptor: int
    token: int

    def pack(self) -> Tensor:
        """As it travels: int64 [4]."""
        numbers = [self.machine, self.pid, self.descriptor, self.token]
        return torch.tensor(numbers, dtype=torch.int64)

    @staticmethod
    def unpack(numbers: Tensor) -> Place:
        """What `pack` made. Raises WireError for what it cannot have made."""
        if numbers.dtype != torch.int64 or numbers.shape != (4,) or (numbers < 0).any():
            raise WireError("expected four natural numbers to say where its memory is")
        machine, pid, descriptor, token = numbers.tolist()
        return Place(machine=machine, pid=pid, descriptor=descriptor, token=token)


def this_machine() -> int:
    """A number for this machine since it was started, and for the network that it is seen on.

    So that hosts which are only namespaces, and containers with a network of their own, are
    machines of their own, as everywhere else in a run.
    """
    try:
        return number_of(boot_id() + os.readlink("/proc/self/ns/net"), 7)
    except OSError:
        return secrets.randbits(62)


@final
class Segment:
    """One of this process. `data`: uint8 [num_bytes], zeros at first."""

    def __init__(self, num_bytes: int, *, sparse: bool = False) -> None:
        """Raises OSError if the system has no such memory, or none left.

        `sparse`: what is never touched costs nothing, but may turn out to be missing when it is.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError(errno.ENOSYS, "this system has no memfd")
        size = HEAD_BYTES + num_bytes
        self.descriptor = os.memfd_create(_NAME, _CLOSE_ON_EXEC | _ALLOW_SEALING)
        try:
            (os.truncate if sparse else _allocate)(self.descriptor, size)
            mapped = mmap.mmap(self.descriptor, size, _flags(populate=not sparse))
            seals = _SHRINK | _GROW | _FUTURE_WRITE | _SEAL
            fcntl.fcntl(self.descriptor, _ADD_SEALS, seals)
        except OSError:
            os.close(self.descriptor)
            raise
        self.token = secrets.randbits(62)
        whole = torch.frombuffer(mapped, dtype=torch.uint8)
        whole[:8].view(torch.int64)[0] = self.token
        self.data = whole[HEAD_BYTES:]
        self._closer = weakref.finalize(self, os.close, self.descriptor)

    def close(self) -> None:
        """Let nobody open it any more; who has it mapped keeps it."""
        self._closer()


def _allocate(descriptor: int, size: int) -> None:
    """Have the memory now, with an error if there is not enough, instead of a signal later."""
    os.posix_fallocate(descriptor, 0, size)


@final
class MappedSegment:
    """A segment of another process, to be read. Unmapped when nothing refers to it any more."""

    def __init__(self, pid: int, descriptor: int, token: int, *, populate: bool = False) -> None:
        """Raises OSError if it cannot be mapped, WireError if what is there is something else.

        `populate`: all of it will be read.
        """
        path = f"/proc/{pid}/fd/{descriptor}"
        if not os.readlink(path).startswith(f"/memfd:{_NAME} "):  # opening a device may act
            raise WireError("refers to memory that is not there (any more)")
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._size = os.fstat(opened).st_size
            if self._size < HEAD_BYTES or not fcntl.fcntl(opened, _GET_SEALS) & _SHRINK:
                raise WireError("refers to memory that could shrink")
            self._address = _map(opened, self._size, populate=populate)
        finally:
            os.close(opened)
        weakref.finalize(self, _libc.munmap, self._address, self._size).atexit = False
        if int(self.view(8, begin=0).view(np.int64)[0]) != token:
            raise WireError("refers to memory that is not there any more")

    def view(self, num_bytes: int, *, begin: int = HEAD_BYTES) -> NDArray[np.uint8]:
        """Bytes from `begin` on, which keep the mapping; writing them ends the process.

        Raises WireError if there are not so many.
        """
        if num_bytes > self._size - begin:
            raise WireError(f"refers to {num_bytes} bytes of a memory of {self._size - begin}")
        buffer = (ctypes.c_uint8 * num_bytes).from_address(self._address + begin)
        vars(buffer)["mapping"] = self  # which it keeps
        return np.frombuffer(memoryview(buffer), dtype=np.uint8)


def _flags(*, populate: bool) -> int:
    """For mmap; `populate`: with all pages in place, which costs less than to fault on each."""
    return mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)


def _map(descriptor: int, size: int, *, populate: bool) -> int:
    """Map to be read; not by the module mmap, which would keep a descriptor for each mapping."""
    flags = _flags(populate=populate)
    address: int | None = _libc.mmap(None, size, mmap.PROT_READ, flags, descriptor, 0)
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address
