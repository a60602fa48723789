"""Quantized matrices kept on disk: the same as freshly made ones, or not used at all."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import model.loading
from actors.ranks.engine_build import colocated_engine
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.loading import load_decoder, load_experts
from model.quantization import QuantizedMatrix, quantize
from model.quantized_cache import QuantizedCache
from model.weights import HEAD_KEY, expert_keys
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import greedy_requests, make_prompts, run_engine, tiny_plan
from tests.rank_processes import rank_processes

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden": 34, "heads": 2, "head_dim": 16, "ffn": 50, "experts": 3}
KEY = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
BITS = [8, 4]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), **TINY)


def never(*_: Any) -> Any:
    raise AssertionError("it was rounded again")


def same(one: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    return (
        (one.bits, one.dtype) == (other.bits, other.dtype)
        and torch.equal(one.numbers_OI, other.numbers_OI)
        and torch.equal(one.scales_OG, other.scales_OG)
    )


def load_all(directory: Path, cache: QuantizedCache, bits: int) -> None:
    checkpoint, config = Checkpoint(directory), ModelConfig.from_dir(directory)
    pairs = [(i, e) for i in range(config.num_layers) for e in range(config.num_experts)]
    load_decoder(checkpoint, config, torch.float32, CPU, bits=bits, cache=cache)
    load_experts(checkpoint, config, pairs, torch.float32, CPU, workers=2, bits=bits, cache=cache)


def files(cache_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache_dir)): path.read_bytes()
        for path in cache_dir.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 300), (7, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_is_read(
    tmp_path: Path, shape: tuple[int, int], bits: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    cache = QuantizedCache(tmp_path / "cache", Checkpoint(tmp_path))
    assert cache.read("w", bits, dtype) is None
    made = quantize(weight, bits)
    cache.write("w", made)
    kept = cache.read("w", bits, dtype)
    assert kept is not None and same(kept, made)
    assert cache.read("w", 12 - bits, dtype) is None
    for_others = cache.read("w", bits, torch.float16)
    assert for_others is not None and for_others.dtype == torch.float16


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_with_it_are_those_without(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantization: str,
    dtype: str,
) -> None:
    requests = greedy_requests(make_prompts(512)[:5], 8)

    def tokens(where: str) -> Any:
        plan = tiny_plan(
            directory, quantization=quantization, quantization_cache=where, dtype=dtype
        )
        told: list[int] = []
        generated = run_engine(colocated_engine(plan, CPU, told.append).engine, requests)
        return generated, sum(told)

    fresh = tokens("none")
    assert tokens(str(tmp_path)) == fresh
    monkeypatch.setattr(model.loading, "quantize", never)
    assert tokens(str(tmp_path)) == fresh
    assert not (directory / ".windrose").exists()
    with pytest.raises(AssertionError, match="rounded again"):
        tokens("none")


def test_one_expert_reads_and_writes_its_own_files(directory: Path, tmp_path: Path) -> None:
    checkpoint, config = Checkpoint(directory), ModelConfig.from_dir(directory)
    cache = QuantizedCache(tmp_path, checkpoint)
    told: list[int] = []
    for _ in range(2):
        load_experts(
            checkpoint, config, [(1, 2)], torch.float32, CPU, told.append, bits=4, cache=cache
        )
        names = {f"int4/{key}.safetensors" for key in expert_keys(config, 1, 2)}
        assert files(tmp_path).keys() == names
    assert told[0] == told[1] == checkpoint.total_bytes(expert_keys(config, 1, 2))


def test_the_head_has_8_bits(directory: Path, tmp_path: Path) -> None:
    load_all(directory, QuantizedCache(tmp_path, Checkpoint(directory)), 4)
    kept = files(tmp_path)
    assert [name for name in kept if name.startswith("int8")] == [f"int8/{HEAD_KEY}.safetensors"]
    assert len(kept) == 1 + 2 * (4 + 3 * 3)


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [cut(0), cut(0.01), cut(0.5), cut(0.999), flip_last, lambda data: bytes(len(data))],
    ids=["empty", "no-header", "half", "end", "a-bit", "zeros"],
)
@pytest.mark.parametrize("bits", BITS)
def test_a_torn_file_is_made_again(
    directory: Path, tmp_path: Path, bits: int, damage: Callable[[bytes], bytes]
) -> None:
    cache = QuantizedCache(tmp_path, Checkpoint(directory))
    load_all(directory, cache, bits)
    good = files(tmp_path)
    torn = tmp_path / f"int{bits}" / f"{KEY}.safetensors"
    torn.write_bytes(damage(torn.read_bytes()))
    assert cache.read(KEY, bits, torch.float32) is None
    load_all(directory, cache, bits)
    assert files(tmp_path) == good


def test_foreign_files_do_not_count(directory: Path, tmp_path: Path) -> None:
    cache = QuantizedCache(tmp_path, Checkpoint(directory))
    load_all(directory, cache, 8)
    own = tmp_path / "int8" / f"{KEY}.safetensors"
    other = own.with_name(KEY.replace("experts.2", "experts.1") + ".safetensors")
    own.write_bytes(other.read_bytes())  # the same shape, whole, and another tensor's
    assert cache.read(KEY, 8, torch.float32) is None
    save_file(load_file(other), own)  # says nothing of where it comes from
    assert cache.read(KEY, 8, torch.float32) is None


def change_weights(directory: Path, keep_times: bool) -> torch.Tensor:
    """Other weights of the same sizes in the same file; returns those of KEY."""
    file = directory / "model.safetensors"
    stat = file.stat()
    tensors = {key: value * 1.5 for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    if keep_times:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return tensors[KEY]


@pytest.mark.parametrize("keep_times", [False, True])
def test_other_weights_in_the_same_place_are_rounded_anew(tmp_path: Path, keep_times: bool) -> None:
    directory = make_checkpoint(tmp_path / "model", **TINY)
    load_all(directory, QuantizedCache(tmp_path / "cache", Checkpoint(directory)), 8)
    weight = change_weights(directory, keep_times)
    cache = QuantizedCache(tmp_path / "cache", Checkpoint(directory))
    assert cache.read(KEY, 8, torch.float32) is None
    load_all(directory, cache, 8)
    kept = cache.read(KEY, 8, torch.float32)
    assert kept is not None and same(kept, quantize(weight, 8))


def test_a_place_that_cannot_be_written_costs_one_line(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = QuantizedCache(tmp_path / "file" / "cache", Checkpoint(directory))
    with caplog.at_level(logging.WARNING):
        load_all(directory, cache, 8)
    (record,) = caplog.records
    assert str(tmp_path / "file" / "cache" / "int8") in record.getMessage()
    assert os.strerror(errno.ENOTDIR) in record.getMessage()


@contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """The kernel stops every write at that size, as it does where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_nothing_half_written(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = QuantizedCache(tmp_path, Checkpoint(directory))
    with no_file_beyond(1000), caplog.at_level(logging.WARNING):
        load_all(directory, cache, 8)  # files of 800 to 18,000 bytes
    assert len(caplog.records) == 1
    for name in files(tmp_path):
        key = Path(name).name.removesuffix(".safetensors")
        assert cache.read(key, 8, torch.float32) is not None, name


def load_in_process(directory: Path, cache_dir: Path) -> dict[str, float]:
    """What a rank of its own does; returns a number of each matrix that it got."""
    checkpoint = Checkpoint(directory)
    cache = QuantizedCache(cache_dir, checkpoint)
    load_all(directory, cache, 4)
    kept = {key: cache.read(key, 4, torch.float32) for key in checkpoint.entries if "w2" in key}
    return {
        key: float(one.dequantize(torch.float64).sum())
        for key, one in kept.items()
        if one is not None
    }


def test_two_processes_may_make_it_at_once(directory: Path, tmp_path: Path) -> None:
    wanted = {
        key: float(quantize(weight, 4).dequantize(torch.float64).sum())
        for key, weight in load_file(directory / "model.safetensors").items()
        if "w2" in key
    }
    with rank_processes(2) as processes:
        for attempt in range(3):
            cache_dir = tmp_path / str(attempt)
            got = processes.run([(load_in_process, (directory, cache_dir))] * 2)
            assert got == [wanted, wanted]
            assert not list(cache_dir.rglob("*.tmp"))


def test_a_reader_sees_whole_files_while_they_are_replaced(tmp_path: Path) -> None:
    weight = torch.randn(256, 600, generator=torch.Generator().manual_seed(1))
    save_file({"w": weight}, tmp_path / "model.safetensors")
    cache = QuantizedCache(tmp_path / "cache", Checkpoint(tmp_path))
    made = quantize(weight, 4)
    cache.write("w", made)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            cache.write("w", made)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            kept = cache.read("w", 4, torch.float32)
            assert kept is not None and same(kept, made)
    finally:
        done.set()
        for writer in writers:
            writer.join()


def test_what_dead_writers_left_is_removed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    old, new = tmp_path / "int8" / "a.1-2.tmp", tmp_path / "int8" / "b.1-2.tmp"
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (0, 0))
    QuantizedCache(tmp_path, Checkpoint(directory)).remove_abandoned()
    assert list((tmp_path / "int8").iterdir()) == [new]
