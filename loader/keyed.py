"""Keyed randomness: every random number is a hash of (seed, epoch, sample id, stream).

There is no generator and no state. Asking again, in any order, on any rank, gives the same number, so
order, crops and flips can be recomputed for any sample of any past epoch. The hash is written out here
with fixed constants (and only wrapping 64-bit integer arithmetic), so it cannot change with a version
of numpy or torch; `tests/loader/test_keyed.py` pins test vectors.

The mix is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; constants: Stafford's variant 13). Each key part is absorbed by
`h = mix(h ^ part + GOLDEN)`, sample ids last and mixed twice, because ids are consecutive integers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from shard.errors import FeedlineError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What a number is drawn for. Values are part of the format: add new ones, never renumber.

    `CROP_*` streams use `value + attempt` for the ten attempts of a random resized crop; `ERASE` up to 127 more;
    `MIX` a few more, per step or sample, for mixed batches; `POLICY` and above belong to the layers of augmentation
    policies.
    """

    SHUFFLE = 0
    FLIP = 1
    SHIFT_TOP = 2
    SHIFT_LEFT = 3
    CROP_AREA = 16
    CROP_RATIO = 32
    CROP_TOP = 48
    CROP_LEFT = 64
    SHARDS = 80
    QUOTAS = 81
    CHOICE = 82
    ERASE = 128
    MIX = 512
    POLICY = 1024


def _mix(h: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    h = (h ^ (h >> np.uint64(30))) * _MUL_1
    h = (h ^ (h >> np.uint64(27))) * _MUL_2
    return h ^ (h >> np.uint64(31))


def _word(name: str, value: int) -> np.uint64:
    if not 0 <= value < 2**64:
        raise FeedlineError(f"{name} is {value}; it must lie in 0 … 2**64 - 1")
    return np.uint64(value)


def hash_u64(seed: int, epoch: int, ids: npt.ArrayLike, stream: int) -> npt.NDArray[np.uint64]:
    """Hash each sample id under (seed, epoch, stream).

    Args:
        seed: 0 … 2**64 - 1.
        epoch: 0 … 2**64 - 1.
        ids: non-negative sample ids, any integer array [N].
        stream: a `Stream` value (plus the attempt where it has attempts).

    Returns:
        uint64 [N], each value uniform over 0 … 2**64 - 1.

    Raises:
        FeedlineError: a key part is out of range.
    """
    with np.errstate(over="ignore"):  # wrapping multiplication is the point
        h = np.zeros(1, np.uint64)
        for name, part in (("seed", seed), ("epoch", epoch), ("stream", stream)):
            h = _mix((h ^ _word(name, part)) + _GOLDEN)
        h = _mix((h ^ np.asarray(ids).astype(np.uint64)) + _GOLDEN)
        return _mix(h + _GOLDEN)


def uniform(seed: int, epoch: int, ids: npt.ArrayLike, stream: int) -> npt.NDArray[np.float64]:
    """Draw one number in [0, 1) per sample id; float64 [N], from the upper 53 bits of `hash_u64`."""
    return (hash_u64(seed, epoch, ids, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53
