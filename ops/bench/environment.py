"""What a figure depends on besides the benchmark: the code, the machine, the libraries."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("windrose", "torch", "transformers", "ray")
UNKNOWN = "unknown"


def commit(root: Path = _ROOT) -> tuple[str, bool]:
    """The commit checked out in the repository at `root`, and whether its files differ from it.

    ("unknown", False) where `root` is not the top of a repository: installed, say, under one.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    head = _git(root, "rev-parse", "HEAD")
    if top is None or head is None or Path(top).resolve() != root.resolve():
        return UNKNOWN, False
    return head, bool(_git(root, "status", "--porcelain"))


def hardware() -> dict[str, Any]:
    """The machine this process runs on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu_name(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None: no git, no repository, no commit."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _gpu_name() -> str | None:
    import torch  # not at the top: benchmarks of a server have no use for it before their end

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # Linux; platform.processor() is often empty there
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
