"""The same work done by other loaders: `PEERS` names them, one adapter file each.

An adapter is a `bench.peers.base.Peer`. It does what its library's own documentation or examples do, on the same
images, with the same crop and the same number of threads or worker processes, and yields what its users get.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bench.peers.base import Job, Peer
from shard.errors import FeedlineError

OURS = "feedline"
_DALI = "nvidia-dali-cuda120"


@dataclass(frozen=True, slots=True)
class Entry:
    """How to make a peer.

    Attributes:
        title: for people.
        adapter: module below `bench.peers` and class, "module:Class".
        packages: distributions whose versions decide its speed, the peer itself first.
        policies: kinds of augmentation policy that it offers (first part of the name, such as "rand").
        operations: how many of the operations that RandAugment chooses are none (the identity), and of how many.
        whole_shards: whether it deals whole shards to its workers, so that each needs one.
    """

    title: str
    adapter: str
    packages: tuple[str, ...]
    policies: tuple[str, ...] = ()
    operations: tuple[int, int] = (0, 1)
    whole_shards: bool = False

    def versions(self) -> dict[str, str | None]:
        """Versions of its packages; None for what is not installed."""
        return {package: _version(package) for package in self.packages}

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package, found in self.versions().items() if found is None]

    def make(self, job: Job) -> Peer:
        """Import the adapter and make the peer in this process; see `isolated.Isolated` for one of its own.

        Raises:
            FeedlineError: a package is not installed.
        """
        if self.missing:
            raise FeedlineError(f"peer {self.title} needs {self.missing[0]}, which is not installed")
        module, _, name = self.adapter.partition(":")
        peer: Peer = getattr(importlib.import_module(f"bench.peers.{module}"), name)(job)
        return peer


_VISION = ("rand", "ta_wide", "autoaugment")  # as torchvision has them
_ONE_OF_14 = (1, 14)

PEERS: dict[str, Entry] = {
    OURS: Entry(
        "feedline", "ours:Ours", ("torch", _DALI, "turbojpeg"), ("rand", "ta_wide", "autoaugment", "3a")
    ),
    "dali": Entry("DALI, webdataset reader", "dali_plain:DaliPlain", (_DALI,), ("rand",), _ONE_OF_14),
    "torchvision": Entry(
        "torchvision ImageFolder, Pillow", "torchvision_folder:TorchvisionFolder",
        ("torchvision", "torch", "pillow"), _VISION, _ONE_OF_14,
    ),
    "torchvision_v2": Entry(
        "torchvision ImageFolder, v2 tensors", "torchvision_v2:TorchvisionTensors", ("torchvision", "torch"),
        _VISION, _ONE_OF_14,
    ),
    "timm": Entry("timm create_loader", "timm_loader:TimmLoader", ("timm", "torchvision", "pillow"), ("rand", "3a")),
    "webdataset": Entry(
        "webdataset", "web_dataset:WebDataset", ("webdataset", "torchvision", "pillow"), _VISION, _ONE_OF_14,
        whole_shards=True,
    ),
    "hf_datasets": Entry(
        "Hugging Face datasets", "hf_datasets:HuggingFace", ("datasets", "pyarrow", "torchvision", "pillow"),
        _VISION, _ONE_OF_14,
    ),
    "streaming": Entry(
        "MosaicML streaming", "mosaic_streaming:MosaicStreaming", ("mosaicml-streaming", "torchvision", "pillow"),
        _VISION, _ONE_OF_14,
    ),
    "litdata": Entry(
        "LitData", "lit_data:LitData", ("litdata", "torchvision", "torch"), _VISION, _ONE_OF_14
    ),
    "ffcv": Entry("FFCV", "ffcv_loader:FFCV", ("ffcv", "numba", "numpy")),
    "spdl": Entry("SPDL", "spdl_pipeline:SPDL", ("spdl", "spdl-io", "torch")),
    "grain": Entry("grain", "grain_dataset:Grain", ("grain", "array-record", "pillow")),
    "tf_data": Entry("tf.data", "tf_data:TFData", ("tensorflow-cpu",)),
}  # fmt: skip


def entry(name: str) -> Entry:
    """Look a peer up.

    Raises:
        FeedlineError: no such peer.
    """
    if name not in PEERS:
        raise FeedlineError(f"there is no peer {name!r}; choose out of {', '.join(PEERS)}")
    return PEERS[name]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
