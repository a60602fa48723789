"""What every step reads lies in memory that asked for huge pages."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from model.host_memory import Scratch, empty_for_weights

_HUGE = 2 << 20
linux = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="huge pages by request are Linux's",
)


def _flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address lies in (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"{address:x} is in no mapping")


@linux
@pytest.mark.parametrize("size", [_HUGE, _HUGE + 2, 5 * _HUGE - 64])
def test_large_memory_asks_for_huge_pages_from_end_to_end(size: int) -> None:
    memory = empty_for_weights((size // 2,), torch.bfloat16)
    assert memory.data_ptr() % _HUGE == 0
    assert "hg" in _flags_at(memory.data_ptr())
    assert "hg" in _flags_at(memory.data_ptr() + size - 1)


def test_memory_is_written_and_read_like_any_other() -> None:
    shape = (3, _HUGE // 4 + 5)
    held = [empty_for_weights(shape, torch.float32).fill_(i) for i in range(4)]
    part = held[2][1, 7:]
    del held[2]
    gc.collect()
    assert [float(one.sum()) for one in held] == [i * 3 * shape[1] for i in (0, 1, 3)]
    assert bool((part == 2).all())  # a view keeps its memory


def test_small_memory_is_torchs_own() -> None:
    small = empty_for_weights((10, 3), torch.int16)
    assert (small.shape, small.dtype) == ((10, 3), torch.int16)
    assert small.untyped_storage().nbytes() == 60


def test_scratch_is_given_again_only_once_it_is_back() -> None:
    scratch = Scratch()
    first, second = scratch.take(4096), scratch.take(4096)
    assert (first.dtype, first.numel()) == (torch.uint8, 4096)
    assert first.data_ptr() != second.data_ptr()  # both are still read
    scratch.take_back()
    again = {scratch.take(4096).data_ptr() for _ in range(2)}
    assert again == {first.data_ptr(), second.data_ptr()}
    assert scratch.take(64).numel() == 64


def test_scratch_that_was_left_is_not_given_again() -> None:
    scratch = Scratch()
    kept = scratch.take(4096).fill_(7)
    scratch.leave()
    scratch.take(4096).fill_(0)
    scratch.take_back()
    scratch.take(4096).fill_(0)
    assert bool((kept == 7).all())
