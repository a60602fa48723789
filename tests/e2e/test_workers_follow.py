"""What is left of test_ray_up.py's machines: nothing, though `ray down` ends the head alone.

A file of its own, and the last one: the workers follow half a minute later, and until then the
other tests go on.
"""

from __future__ import annotations

from tests.e2e.launched import Launched


def test_ray_down_leaves_nothing(launched_site: Launched) -> None:
    assert launched_site.take_down().result() == (0, [])
