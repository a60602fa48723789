"""Memory for weights, touched before there are any: without torch, while that is imported.

The first touch of memory can take longer than reading a checkpoint into it. The kernel clears what
it gives, and on a virtual machine its host may have to find it first. So a thread touches it while
its process imports; the two take about as long.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from contextlib import suppress
from threading import Event, Lock, Thread

from model.cpu_kernels.binary import load_binary

HUGE_PAGE_BYTES = 2 << 20
_AT_ONCE_BYTES = 32 << 20  # so much that waiting for the interpreter in between does not count

_early: EarlyMemory | None = None


class EarlyMemory:
    """Huge pages for so many bytes, touched in turn until the first piece of them is taken."""

    def __init__(self, size_bytes: int) -> None:
        """Begin to touch them. OSError where the address space cannot be had."""
        self._libc = _libc()
        self._free, self._end = _mapped(self._libc, _whole(size_bytes))
        self._lock = Lock()
        self._enough = Event()
        self._thread = Thread(target=self._touch, name="early memory", daemon=True)
        self._thread.start()

    def take(self, size_bytes: int) -> ctypes.Array[ctypes.c_char] | None:
        """Memory from a huge page's start on, given back once nobody holds it. None: no more."""
        self._touch_no_more()
        with self._lock:
            start, end = self._free, self._free + _whole(size_bytes)
            if end > self._end:
                return None
            self._free = end
        piece = (ctypes.c_char * size_bytes).from_address(start)
        # Not as the process ends: a thread may still compute with it.
        weakref.finalize(piece, self._libc.munmap, start, end - start).atexit = False
        return piece

    def end(self) -> None:
        """Give back what nobody has taken; there is no more."""
        self._touch_no_more()
        with self._lock:
            start, self._free = self._free, self._end
        if start < self._end:
            self._libc.munmap(start, self._end - start)

    def _touch(self) -> None:
        """Not by MADV_POPULATE_WRITE: it locks out who maps memory, as imports do all the time."""
        at = self._free
        while at < self._end and not self._enough.is_set():
            size_bytes = min(_AT_ONCE_BYTES, self._end - at)
            self._libc.memset(at, 0, size_bytes)
            at += size_bytes

    def _touch_no_more(self) -> None:
        """From now on others write there."""
        self._enough.set()
        self._thread.join()


def begin(size_bytes: int) -> None:
    """Have memory for weights of so many bytes ready, where compiled kernels will read them."""
    global _early
    if size_bytes >= HUGE_PAGE_BYTES and sys.platform == "linux" and load_binary() is not None:
        with suppress(OSError):  # no such room in one piece: the weights ask for theirs one by one
            _early = EarlyMemory(size_bytes)


def take(size_bytes: int) -> ctypes.Array[ctypes.c_char] | None:
    """A piece of what `begin` has made ready; None where there is none, or no more."""
    return None if _early is None else _early.take(size_bytes)


def end() -> None:
    """The weights are read: what is left goes back."""
    global _early
    if _early is not None:
        _early.end()
        _early = None


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
    libc.mmap.restype = ctypes.c_ssize_t
    libc.munmap.argtypes = [address, size]
    libc.madvise.argtypes = [address, size, number]
    libc.memset.argtypes = [address, number, size]
    return libc


def _mapped(libc: ctypes.CDLL, size_bytes: int) -> tuple[int, int]:
    """Map so many bytes from a huge page's start on: where they begin and end."""
    mapped_bytes = size_bytes + HUGE_PAGE_BYTES
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    first = libc.mmap(None, mapped_bytes, access, kind, -1, 0)
    if first == -1:
        raise OSError(ctypes.get_errno(), f"no {mapped_bytes} bytes of address space")
    start = _whole(first)
    end = start + size_bytes
    if start > first:
        libc.munmap(first, start - first)
    libc.munmap(end, first + mapped_bytes - end)
    libc.madvise(start, size_bytes, mmap.MADV_HUGEPAGE)
    return start, end


def _whole(size_bytes: int) -> int:
    """Up to the next start of a huge page."""
    return -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
