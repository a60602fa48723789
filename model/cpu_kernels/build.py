"""Building the kernels as the project is installed: the same sources for each kind of CPU.

pyproject.toml names the variants and what tells them apart; setuptools runs this.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

from setuptools.command.build_ext import build_ext

_DIRECTORY = "model/cpu_kernels"
_MOST_AT_ONCE = 8  # compilers, which take up to 0.6 GB each


class BuildKernels(build_ext):
    """setuptools' own, but for where sources come from and how many are compiled at once."""

    def finalize_options(self) -> None:
        """Give each variant all sources; a change in any header compiles them again."""
        super().finalize_options()
        for extension in self.extensions:
            extension.sources = sorted(glob(f"{_DIRECTORY}/*.cpp"))
            extension.depends = sorted(glob(f"{_DIRECTORY}/*.h"))

    def build_extensions(self) -> None:
        """Compile a variant's files on all cores; variants in turn, as they share file names."""
        compile_in_turn = self.compiler.compile
        with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as cores:

            def compile_at_once(sources: list[str], *args: Any, **options: Any) -> list[str]:
                def compile_one(source: str) -> list[str]:
                    objects: list[str] = compile_in_turn([source], *args, **options)
                    return objects

                return [one for objects in cores.map(compile_one, sources) for one in objects]

            self.compiler.compile = compile_at_once
            super().build_extensions()
