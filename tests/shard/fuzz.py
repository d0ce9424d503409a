"""Mutate JPEGs and see that nothing gets through the packer that a decoder refuses.

    python tests/shard/fuzz.py 20000 [FOLDER OF JPEGS]

prints how many were kept, mended and rejected, and every failure. The test suite runs a few hundred.
"""

from __future__ import annotations

import faulthandler
import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from shard.image import BadImageError, check

_HANG_S = 60


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Damaged copies: bits, bytes, runs, cuts, insertions, exchanged blocks; in the header as often as behind it."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        header = data.index(b"\xff\xda")
        for _ in range(int(rng.integers(1, 5))):
            size = len(data)
            place = int(rng.integers(2, header)) if rng.random() < 0.5 else int(rng.integers(2, size))
            place = min(place, size - 2)
            run = int(rng.integers(1, 40))
            match int(rng.integers(7)):
                case 0:
                    data[place] ^= 1 << int(rng.integers(8))
                case 1:
                    data[place] = int(rng.integers(256))
                case 2:
                    data[place : place + run] = rng.integers(0, 256, run, dtype=np.uint8).tobytes()[
                        : size - place
                    ]
                case 3:
                    del data[place : place + run]
                case 4:
                    data[place:place] = rng.integers(0, 256, run, dtype=np.uint8).tobytes()
                case 5:
                    data[place : place + 2] = bytes([0xFF, int(rng.integers(0xC0, 0x100))])
                case 6 if rng.random() < 0.3:
                    del data[place:]
            if len(data) < 8:
                break
        yield bytes(data)


class Decoders:
    """The decoders that will see a dataset: DALI's and torchvision's (torch's own, and Pillow through it)."""

    def __init__(self) -> None:
        self._pipe: Pipeline | None = None
        self._data = b""

    def refusals(self, data: bytes) -> list[str]:
        """Who refuses these bytes, and why."""
        found = []
        for name in ("dali", "torchvision", "pillow"):
            try:
                getattr(self, f"_{name}")(data)
            except Exception as error:  # noqa: BLE001, PERF203  whatever it is, it is a refusal
                found.append(f"{name}: {' '.join(str(error).split())[:200]}")
        return found

    def _dali(self, data: bytes) -> None:
        self._data = data
        if self._pipe is None:
            self._pipe = Pipeline(
                batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
            )
            with self._pipe as pipe:
                jpeg = fn.external_source(
                    source=lambda: [np.frombuffer(self._data, np.uint8)],
                    batch=True,
                    dtype=types.UINT8,
                    ndim=1,
                )
                pipe.set_outputs(fn.decoders.image(jpeg, output_type=types.RGB, adjust_orientation=False))
            self._pipe.build()
        try:
            self._pipe.run()
        except RuntimeError:
            self._pipe = None  # not valid any more
            raise

    def _torchvision(self, data: bytes) -> None:
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)

    def _pillow(self, data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            image.convert("RGB")


def fuzz(seeds: Sequence[bytes], count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Put mutants through the packer and what it accepts through the decoders: outcomes, and failures."""
    decoders, outcomes, failures = Decoders(), Counter[str](), []
    for number, data in enumerate(mutants(seeds, count, seed)):
        faulthandler.dump_traceback_later(_HANG_S, exit=True)  # a hang ends the run
        try:
            checked = check(data)
        except BadImageError:
            outcomes["rejected"] += 1
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
        outcomes[f"mended: {', '.join(sorted(checked.changes))}" if checked.changes else "kept"] += 1
        failures += [f"mutant {number}: {refusal}" for refusal in decoders.refusals(checked.data)]
    return outcomes, failures


if __name__ == "__main__":
    from tests.shard.hostile import encoded, picture

    images = (
        [path.read_bytes() for path in sorted(Path(sys.argv[2]).rglob("*.JPEG"))] if len(sys.argv) > 2 else []
    )
    images = images or [encoded(picture(), "JPEG"), encoded(picture(), "JPEG", progressive=True)]
    outcomes, failures = fuzz(images, int(sys.argv[1]))
    for outcome, number in outcomes.most_common():
        print(f"{number:7,} {outcome}")
    print(*failures, f"{len(failures)} failures", sep="\n")
    sys.exit(bool(failures))
