"""How many pipelines: what the settings that say so demand of each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.schema import WindroseConfig


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        ({"min_replicas": 0}, "min_replicas", "needs max_replicas"),
        ({"initial_replicas": 2}, "initial_replicas", "needs max_replicas"),
        ({"target_ongoing_requests": 4}, "target_ongoing_requests", "needs max_replicas"),
        ({"target_ttft_s": 1}, "target_ttft_s", "needs max_replicas"),
        ({"max_replicas": 3, "replicas": 2}, "max_replicas", "replicas is 2"),
        ({"max_replicas": 3, "min_replicas": 4}, "min_replicas", "more than max_replicas, 3"),
        ({"max_replicas": 3, "initial_replicas": 4}, "initial_replicas", "more than max_replicas"),
        (
            {"max_replicas": 3, "min_replicas": 2, "initial_replicas": 1},
            "initial_replicas",
            "less than min_replicas, 2",
        ),
        ({"max_replicas": 0}, "max_replicas", "greater than or equal to 1"),
        ({"max_replicas": 3, "target_ttft_s": 0}, "target_ttft_s", "greater than 0"),
        ({"max_surge_percent": 101}, "max_surge_percent", "less than or equal to 100"),
        ({"drain_timeout_s": -1}, "drain_timeout_s", "greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(
    settings: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        WindroseConfig(model="m", **settings)
    (error,) = caught.value.errors()
    assert error["loc"] == (key,)
    assert reason in error["msg"]


def test_without_a_maximum_the_number_is_fixed() -> None:
    assert WindroseConfig(model="m").most_replicas == 1
    assert WindroseConfig(model="m", replicas=3).most_replicas == 3
    # as a dump of a config gives them all
    again = WindroseConfig(**WindroseConfig(model="m", replicas=3).model_dump())
    assert again == WindroseConfig(model="m", replicas=3)


def test_with_a_maximum_it_has_a_range() -> None:
    config = WindroseConfig(model="m", max_replicas=4, min_replicas=0, initial_replicas=2)
    assert config.most_replicas == 4
    assert WindroseConfig(**config.model_dump()) == config
