"""The keyed hash never changes: these vectors are part of the format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.keyed import Stream, hash_u64, uniform
from shard.errors import FeedlineError

U64 = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1


def reference(seed: int, epoch: int, sample: int, stream: int) -> int:
    """The definition in plain Python integers."""

    def mix(h: int) -> int:
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
        return h ^ (h >> 31)

    h = 0
    for part in (seed, epoch, stream, sample):
        h = mix(((h ^ part) + 0x9E3779B97F4A7C15) & MASK)
    return mix((h + 0x9E3779B97F4A7C15) & MASK)


PINNED = {
    (0, 0, (0, 1), 0): ["0x78ae5a9a6b5fd45e", "0x2d6527ba78af243f"],
    (42, 7, (0, 1281166), 1): ["0x7fff31433020a7d4", "0x17f7922eaa9d921c"],
    (18446744073709551615, 90, (5,), 16): ["0x8e93dfceb2a1789e"],
}


def test_vectors() -> None:
    for (seed, epoch, ids, stream), expected in PINNED.items():
        assert [hex(h) for h in hash_u64(seed, epoch, list(ids), stream).tolist()] == expected


@given(seed=U64, epoch=U64, sample=st.integers(0, 2**62), stream=st.integers(0, 127))
def test_equals_the_definition_in_python_integers(seed: int, epoch: int, sample: int, stream: int) -> None:
    assert int(hash_u64(seed, epoch, [sample], stream)[0]) == reference(seed, epoch, sample, stream)


@given(ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), cut=st.integers(0, 20))
def test_a_sample_is_independent_of_its_neighbours(ids: list[int], cut: int) -> None:
    whole = hash_u64(3, 1, ids, Stream.FLIP).tolist()
    first, second = ids[:cut], ids[cut:]
    parts = [hash_u64(3, 1, np.array(p, np.int64), Stream.FLIP).tolist() for p in (first, second)]
    assert whole == parts[0] + parts[1]


def test_uniform_is_uniform_and_streams_are_independent() -> None:
    ids = np.arange(100_000)
    flip, area = uniform(0, 0, ids, Stream.FLIP), uniform(0, 0, ids, Stream.CROP_AREA)
    assert flip.min() >= 0
    assert flip.max() < 1
    counts, _ = np.histogram(flip, bins=100, range=(0, 1))
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
    assert abs(np.corrcoef(flip, area)[0, 1]) < 0.015
    assert abs(np.corrcoef(flip[1:], flip[:-1])[0, 1]) < 0.015
    assert abs(np.corrcoef(flip, uniform(0, 1, ids, Stream.FLIP))[0, 1]) < 0.015


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (2**64, 0), (0, -1)])
def test_out_of_range_keys_are_named(seed: int, epoch: int) -> None:
    with pytest.raises(FeedlineError, match=r"(seed|epoch) is -?\d+; it must lie in 0"):
        hash_u64(seed, epoch, [0], 0)
