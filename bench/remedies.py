"""What may help against a bottleneck, as changes of a training's setup that can be measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.bottleneck import Costs, Verdict
from bench.samples import Sample, pack
from loader.resolve import usable_cores
from shard.dataset import Dataset
from train.config import Config

_EVALUATED = 256 / 224  # shorter side of the usual evaluation, over the crop's
_CAREFUL = 400 / 224  # what FFCV packs ImageNet at for crops of 224 pixels (its rn50 configurations)
_WORTH = 1.15  # times a size that images must have for a reduction to be worth trying
_READERS = 4  # the most threads that read, as in loader.loader
_SEVERAL = (
    "nothing yet: it is tried on some images packed anew, which is not done with those of several classes"
)
_DEEP = 8  # batches of prefetch, as much as the loader itself would take


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A training as it is measured.

    Attributes:
        config: of the training; `data` is set.
        prefetch: batches ahead; None: the loader finds out.
    """

    config: Config
    prefetch: int | None = None

    def input(self, **changes: Any) -> Setup:
        """Another one, with these values in the config's input group."""
        config = dataclasses.replace(self.config, input=dataclasses.replace(self.config.input, **changes))
        return dataclasses.replace(self, config=config)

    def step(self, **changes: Any) -> Setup:
        """Another one, with these values in the config's step group."""
        config = dataclasses.replace(self.config, step=dataclasses.replace(self.config.step, **changes))
        return dataclasses.replace(self, config=config)

    @property
    def threads(self) -> int:
        """Decoding threads."""
        return self.config.input.loader_threads or usable_cores()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something to try.

    Attributes:
        how: what to do, in words and flags.
        setup: with the change; None: it cannot be tried here.
        rests_on: for what cannot be tried: figures that speak for it.
        caution: what else it changes.
    """

    how: str
    setup: Setup | None = None
    rests_on: str = ""
    caution: str = ""


class Remedies:
    """Finds changes.

    Args:
        setup: as it is.
        sample: images in memory; those that are packed anew are made from it.
        scratch: folder for datasets made of the sample.
        backend: of the loader, resolved.
        gpu: whether the model computes on a GPU.
        compilation: try torch.compile on a CPU, too, where it takes a minute.
    """

    def __init__(
        self, setup: Setup, sample: Sample, scratch: Path, *, backend: str, gpu: bool, compilation: bool
    ) -> None:
        self._setup, self._sample, self._scratch = setup, sample, scratch
        self._backend, self._gpu, self._compilation = backend, gpu, compilation

    def against(self, verdict: Verdict, costs: Costs) -> list[Change]:
        """Changes against a bottleneck, most promising first; costs are the medians."""
        find = {
            "storage": self._storage,
            "decode": self._decode,
            "augment": self._augment,
            "host-to-device": self._host_to_device,
            "model": self._model,
        }[verdict.bottleneck]
        found = list(find(costs))
        if verdict.uneven and verdict.bottleneck != "storage":
            found.append(self._deeper())
        return found

    def _storage(self, costs: Costs) -> Iterator[Change]:
        faster = "faster storage: copy the dataset to a local disk or into memory, or give a cache that "
        faster += "holds all of it (--cache FOLDER --cache-gb N)"
        if self._several:
            yield Change(how=faster, rests_on=_SEVERAL)
        else:
            at_hand = pack(self._sample, self._scratch / "at-hand", None)
            yield Change(
                how=f"{faster}; measured with some images in the page cache", setup=self._packed(at_hand)
            )
        if self._setup.config.input.shuffle == "global":
            yield Change(
                how="read a few shards at a time: --shuffle window",
                setup=self._setup.input(shuffle="window"),
                caution="the order is less random: see `bench shuffle`",
            )
        if self._setup.threads < _READERS:
            yield Change(
                how=f"more reads at a time: --loader-threads {_READERS}",
                setup=self._setup.input(loader_threads=_READERS),
            )
        yield self._deeper()
        yield from self._smaller(elsewhere=True)

    def _decode(self, costs: Costs) -> Iterator[Change]:
        yield from self._smaller()
        yield from self._more_work_at_once(costs)

    def _augment(self, costs: Costs) -> Iterator[Change]:
        images = self._setup.config.input
        if (lighter := fewer_operations(images.augment)) is not None:
            yield Change(
                how=f"one operation per image: --augment {lighter}",
                setup=self._setup.input(augment=lighter),
                caution="a lighter policy regularises less",
            )
        if images.augment != "none":
            yield Change(
                how="no policy: --augment none",
                setup=self._setup.input(augment="none"),
                caution="it regularises less; this shows what the policy costs",
            )
        for name in ("color_jitter", "erase"):
            if getattr(images, name):
                yield Change(
                    how=f"--{name.replace('_', '-')} 0",
                    setup=self._setup.input(**{name: 0.0}),
                    caution="it regularises less",
                )
        yield from self._more_work_at_once(costs)

    def _host_to_device(self, costs: Costs) -> Iterator[Change]:
        if self._gpu and self._backend == "torch":
            yield Change(
                how="send encoded bytes instead of pixels, and decode on the GPU: --loader-backend dali",
                setup=self._setup.input(loader_backend="dali"),
            )
        yield self._larger_batch("fewer copies, larger ones")
        megabytes = 3e-6 * self._setup.config.input.size**2
        yield Change(
            how="a faster link: a slot with more PCIe lanes, a process bound to the GPU's NUMA node",
            rests_on=f"{megabytes / costs.copy_s:,.0f} MB/s were measured; PCIe 4.0 x16 gives some 25,000",
        )

    def _model(self, costs: Costs) -> Iterator[Change]:
        precision = self._setup.config.step.precision
        if precision in ("fp32", "tf32"):
            yield Change(
                how="--precision bf16",
                setup=self._setup.step(precision="bf16"),
                caution="compare accuracy once",
            )
        elif not self._gpu:
            yield Change(
                how="--precision fp32: this CPU may lack fast bf16", setup=self._setup.step(precision="fp32")
            )
        yield self._larger_batch("more work per step")
        compiled = self._gpu if self._setup.config.step.compile is None else self._setup.config.step.compile
        if not compiled and (self._gpu or self._compilation):
            yield Change(how="--compile", setup=self._setup.step(compile=True))
        elif not compiled:
            yield Change(
                how="--compile", rests_on="nothing yet: it takes a minute on a CPU; --try-compile measures it"
            )
        yield Change(
            how="more or faster accelerators, or a lighter model or smaller images (another training, then)",
            rests_on=f"the step alone takes {1 / costs.model_s:,.0f} images/s, and is not waiting for data",
        )

    def _smaller(self, *, elsewhere: bool = False) -> Iterator[Change]:
        """Reduced images; measured but for those that would have to lie `elsewhere`, in a slow storage."""
        images = self._setup.config.input
        split, ids = self._sample.split, self._sample.ids
        short = float(np.median(np.minimum(split.width[ids], split.height[ids])))
        for factor in (_CAREFUL, _EVALUATED):
            side = round(images.size * factor)
            if images.crop != "random-resized" or short <= _WORTH * side:
                continue
            how = f"smaller images at packing: python -m shard build --short-side {side} "
            how += f"(the median is {short:.0f} px now)"
            caution = "crops of a small part of an image are made from fewer pixels"
            if self._several:
                yield Change(how=how, rests_on=_SEVERAL, caution=caution)
                continue
            small = pack(self._sample, self._scratch / f"short-{side}", side)
            share = float(Dataset.open(small).split("train").size.mean()) / self._sample.mean_bytes
            yield Change(
                how=how,
                setup=None if elsewhere else self._packed(small),
                rests_on=f"they take {share:.0%} of the bytes" if elsewhere else "",
                caution=caution,
            )

    @property
    def _several(self) -> bool:
        """Whether images have several classes, or none; `pack` makes a folder per class."""
        return self._sample.split.lists is not None

    def _more_work_at_once(self, costs: Costs) -> Iterator[Change]:
        threads, cores = self._setup.threads, usable_cores()
        if threads < cores:
            yield Change(
                how=f"a decoding thread per core: --loader-threads {cores}",
                setup=self._setup.input(loader_threads=cores),
            )
        other = "torch" if self._backend == "dali" else "dali"
        yield Change(how=f"--loader-backend {other}", setup=self._setup.input(loader_backend=other))
        core_s = costs.decode_core_s + costs.augment_core_s
        if self._gpu:
            rests_on = f"the step takes {1 / costs.model_s:,.0f} images/s; for that {core_s / costs.model_s:.1f} cores "
            rests_on += f"have to prepare images at {core_s * 1000:.2f} CPU s per 1,000; there are {cores}"
        else:
            rests_on = f"preparing takes {core_s * 1000:.2f} CPU s per 1,000 images and the model "
            rests_on += f"{costs.model_core_s * 1000:.2f} on the same {cores} cores"
        yield Change(how="more cores per accelerator", rests_on=rests_on)

    def _deeper(self) -> Change:
        return Change(
            how=f"a deeper queue: prefetch={_DEEP} of `Loader`",
            setup=dataclasses.replace(self._setup, prefetch=_DEEP),
            caution="more memory for batches",
        )

    def _larger_batch(self, why: str) -> Change:
        batch_size = 2 * self._setup.config.input.batch_size
        if batch_size > len(self._sample.split):
            return Change(how=f"{why}: a larger batch", rests_on="nothing: the split is too small to try it")
        return Change(
            how=f"{why}: --batch-size {batch_size}",
            setup=self._setup.input(batch_size=batch_size),
            caution="another learning rate may be due",
        )

    def _packed(self, folder: Path) -> Setup:
        setup = self._setup.input(train_split="train", shuffle="global")
        return dataclasses.replace(setup, config=dataclasses.replace(setup.config, data=str(folder)))


def fewer_operations(policy: str) -> str | None:
    """The RandAugment with one operation per image, None if it has one or is none."""
    if policy.split("-")[0] != "rand":
        return None
    number = re.search(r"-n(\d+)", policy)
    if number is None:
        return policy + "-n1"  # timm's default is two
    return policy.replace(number[0], "-n1") if int(number[1]) > 1 else None
