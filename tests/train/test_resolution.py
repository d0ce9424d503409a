from __future__ import annotations

import pytest

from shard.errors import FeedlineError
from train.resolution import ResolutionConfig, size_at, sizes
from train.schedule import Length

LENGTH = Length(steps_per_epoch=10, batch_size=8, steps=100)


def test_sizes_grow_along_the_ramp_in_multiples() -> None:
    config = ResolutionConfig(start_size=128, ramp_from="2ep", ramp_to="8ep")
    at = size_at(config, 224, LENGTH)
    assert at is not None
    assert [at(epoch, 40) for epoch in range(10)] == [128, 128, 128, 128, 160, 192, 192, 192, 224, 224]
    assert sizes(at, 224, LENGTH) == [128, 160, 192, 224]


def test_sizes_change_within_an_epoch_if_wanted() -> None:
    config = ResolutionConfig(start_size=16, ramp_from="0ep", ramp_to="20st", size_multiple=4, ramp_by="step")
    at = size_at(config, 24, LENGTH)
    assert at is not None
    assert [at(0, 8 * s) for s in (0, 4, 6, 9)] == [16, 16, 20, 20]
    assert [at(1, 0), at(1, 8 * 5), at(2, 0)] == [20, 24, 24]


def test_no_start_size_means_one_size() -> None:
    assert size_at(ResolutionConfig(), 224, LENGTH) is None
    assert sizes(None, 224, LENGTH) == [224]


def test_ends_that_are_no_multiples_are_kept() -> None:
    at = size_at(ResolutionConfig(start_size=150), 200, LENGTH)
    assert at is not None
    assert [at(0, 0), at(5, 0), at(9, 0), at(10, 0)] == [150, 160, 192, 200]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start_size": 256}, "start_size is 256, above size 224"),
        (
            {"start_size": 160, "ramp_from": "9ep", "ramp_to": "10%"},
            "ramp_from is '9ep', after ramp_to '10%'",
        ),
        ({"start_size": 0}, "start_size is 0"),
        ({"ramp_to": "soon"}, "ramp_to is 'soon'"),
    ],
)
def test_impossible_ramps_are_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        size_at(ResolutionConfig(**given), 224, LENGTH)  # type: ignore[arg-type]
