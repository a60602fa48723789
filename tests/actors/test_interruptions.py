from __future__ import annotations

from actors.messages import TokenEvent
from actors.ranks.interruptions import Interruptions


def test_who_was_under_way_is_told_once_from_the_first_loss_to_the_last_step() -> None:
    seen = Interruptions()
    seen.over(1.0, ["a"])  # the first epoch
    assert seen.told(TokenEvent("a", (1,))).recovered is None
    seen.lost(10.0)
    seen.over(12.0, ["a", "b"])
    seen.lost(12.5)  # again, before a token
    seen.over(14.0, ["a", "b", "c"])
    assert seen.told(TokenEvent("a", (2,))) == TokenEvent("a", (2,), recovered=(10.0, 14.0))
    assert seen.told(TokenEvent("a", (3,))).recovered is None
    assert seen.told(TokenEvent("c", (4,))).recovered == (12.5, 14.0)
    seen.forget("b")
    assert seen.told(TokenEvent("b", (5,))).recovered is None


def test_a_loss_that_kept_nobody_waiting_is_nobodys() -> None:
    seen = Interruptions()
    seen.lost(10.0)
    seen.over(11.0, [])
    seen.over(500.0, ["later"])
    assert seen.told(TokenEvent("later", (1,))).recovered is None
