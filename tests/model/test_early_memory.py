"""Memory that is touched ahead of weights: whose it is, what is in it, that it goes back."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model import early_memory
from model.early_memory import HUGE_PAGE_BYTES, EarlyMemory
from model.host_memory import empty_for_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="begin() does nothing elsewhere")

_MB = 1 << 20


def resident_bytes(start: int, end: int) -> int:
    """Of the addresses between, those that memory stands behind (proc_pid_smaps(5))."""
    resident, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            here = low < end and start < high
        elif here and first == "Rss:":
            resident += int(rest[0]) << 10
    return resident


def is_mapped(address: int) -> bool:
    """Whether an address is anybody's, by mincore(2), which fails for one that is nobody's."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_char()
    answer: int = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(1), ctypes.byref(page))
    return answer == 0


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whether they are built or not; ends what a test has begun."""
    monkeypatch.setattr(early_memory, "load_binary", object)
    yield
    early_memory.end()


def test_all_is_touched_though_nobody_takes_any() -> None:
    memory = EarlyMemory(70 * _MB)
    memory._thread.join()
    piece = memory.take(70 * _MB)
    assert piece is not None
    start = ctypes.addressof(piece)
    assert start % HUGE_PAGE_BYTES == 0
    assert resident_bytes(start, start + 70 * _MB) >= 70 * _MB
    memory.end()


def test_what_is_written_is_not_touched_any_more() -> None:
    memory = EarlyMemory(256 * _MB)
    held = []
    for number in range(8):  # the first while the touching goes on
        piece = memory.take(32 * _MB)
        assert piece is not None
        ctypes.memset(piece, number + 1, len(piece))
        held.append(piece)
    memory._thread.join()
    for number, piece in enumerate(held):
        assert bytes(piece).count(number + 1) == 32 * _MB
    assert memory.take(1) is None
    memory.end()


def test_a_piece_is_given_back_with_the_last_who_holds_it(kernels: None) -> None:
    early_memory.begin(20 * _MB)
    first = empty_for_weights((3 * _MB,), torch.bfloat16)
    second = empty_for_weights((3 * _MB,), torch.bfloat16)
    start = first.data_ptr()
    assert second.data_ptr() == start + 6 * _MB  # one behind the other: both are of it
    part = first.fill_(2)[_MB:]
    del first
    gc.collect()
    assert bool((part == 2).all())  # a view keeps its memory
    del part
    gc.collect()
    assert not is_mapped(start)
    assert is_mapped(start + 6 * _MB)
    assert bool((second.fill_(3) == 3).all())


def test_what_nobody_took_is_given_back_at_the_end(kernels: None) -> None:
    early_memory.begin(40 * _MB)
    taken = empty_for_weights((5 * _MB,), torch.uint8).fill_(7)
    after = taken.data_ptr() + 6 * _MB  # whole huge pages
    assert is_mapped(after) and is_mapped(after + 34 * _MB - mmap.PAGESIZE)
    early_memory.end()
    assert not is_mapped(after) and not is_mapped(after + 34 * _MB - mmap.PAGESIZE)
    assert bool((taken == 7).all())
    assert early_memory.take(_MB) is None


def test_what_does_not_fit_any_more_gets_memory_of_its_own(kernels: None) -> None:
    early_memory.begin(8 * _MB)
    first = empty_for_weights((6 * _MB,), torch.uint8).fill_(1)
    large = empty_for_weights((6 * _MB,), torch.uint8).fill_(2)
    small = empty_for_weights((2 * _MB,), torch.uint8).fill_(3)
    assert small.data_ptr() == first.data_ptr() + 6 * _MB
    assert large.data_ptr() % HUGE_PAGE_BYTES == 0
    assert [int(one.float().mean()) for one in (first, large, small)] == [1, 2, 3]


@pytest.mark.parametrize(("size_bytes", "built"), [(0, True), (_MB, True), (8 * _MB, False)])
def test_nothing_is_made_ready_that_nobody_will_take(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, built: bool
) -> None:
    monkeypatch.setattr(early_memory, "load_binary", lambda: object() if built else None)
    early_memory.begin(size_bytes)
    assert early_memory.take(0) is None
    early_memory.end()


def test_address_space_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(OSError, match="bytes of address space"):
        EarlyMemory(1 << 60)


def test_weights_do_without_what_cannot_be_had(kernels: None) -> None:
    early_memory.begin(1 << 60)
    assert bool((empty_for_weights((3 * _MB,), torch.uint8).fill_(5) == 5).all())
