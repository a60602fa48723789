"""What a rank's process imports, in processes of its own: this one has had torch for long."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_TELL = """
import json, sys
import actors.ranks.imports as imports
{before}
imports.import_all(calm=False)
import torch
told = dict(
    attention="actors.ranks.attention" in sys.modules,
    expert="actors.ranks.expert" in sys.modules,
    left_out="torch._meta_registrations" not in sys.modules,
    stand_in=hasattr(torch, "_meta_registrations"),
    product=(torch.ones(2, 3) @ torch.ones(3, 2)).tolist(),
)
try:
    import torch._meta_registrations
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        told["fake"] = list((torch.empty(5, 3) @ torch.empty(3, 7)).shape)
except Exception as error:
    told["fake"] = repr(error)
print(json.dumps(told))
"""


def told_by(before: str) -> dict[str, Any]:
    """By a process that imports, and then uses what had been left out after all."""
    code = _TELL.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("before", "left_out"), [("", True), ("import torch", False)])
def test_what_is_for_compilers_is_left_to_them(before: str, left_out: bool) -> None:
    told = told_by(before)
    assert told["attention"] and told["expert"]
    assert told["left_out"] is left_out
    assert told["stand_in"] is not left_out, "who looks for it must not find an empty one"
    assert told["product"] == [[3.0, 3.0], [3.0, 3.0]]
    assert told["fake"] == [5, 7]
