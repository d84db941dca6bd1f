"""Reading bytes where they lie in another process, which the system allows among processes of one user unless it is set to be stricter."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from functools import cache

_CREDENTIALS = struct.Struct("3i")


class _Span(ctypes.Structure):
    """A struct iovec."""

    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


def peer_of_unix(connection: socket.socket) -> tuple[int, int]:
    """Return process id and user of whoever connected; the id is 0 for a process that can't be seen from here."""
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, user


def read_memory(pid: int, address: int, room: memoryview) -> None:
    """Fill `room` with what lies at an address of a process; one copy, without the GIL.

    Nothing of it can be trusted: the process may write there meanwhile. Raises OSError where the system does not allow it, where nothing
    lies there, and where the process is gone.
    """
    copy = _system_call()
    here = ctypes.addressof(ctypes.c_char.from_buffer(room))
    done = 0
    while done < room.nbytes:
        to, source = _Span(here + done, room.nbytes - done), _Span(address + done, room.nbytes - done)
        count = copy(pid, ctypes.byref(to), 1, ctypes.byref(source), 1, 0)
        if count <= 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        done += count


@cache
def _system_call() -> Callable[..., int]:
    """Return process_vm_readv (Linux 3.2); raises OSError on a system without it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except AttributeError as error:
        raise OSError("this system has no process_vm_readv") from error
    call.restype = ctypes.c_ssize_t
    call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    return call
