"""Python runs this first where this folder is on its path: notes each directory made in /tmp."""

from __future__ import annotations

import os
import sys
from typing import Any


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.mkdir" and os.path.dirname(os.fsdecode(arguments[0])) == "/tmp":
        with open(os.environ["WINDROSE_TEST_NOTES"], "a") as notes:
            notes.write(f"{os.fsdecode(arguments[0])}\n")


sys.addaudithook(_note)
