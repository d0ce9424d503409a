"""Which cores a rank's threads run on: those of the NUMA node that its GPU, or its share of the machine, belongs to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

NODES = Path("/sys/devices/system/node")
_WORD = 64
_log = logging.getLogger("feedline.loader")


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of one rank.

    Attributes:
        ids: where its threads may run; empty where the system does not let one choose.
        share: how many of them are its own, when the ranks of the machine divide them.
    """

    ids: frozenset[int]
    share: int


def usable_ids() -> frozenset[int]:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return frozenset(affinity(0)) if affinity else frozenset(range(os.cpu_count() or 1))


def rank_cores(device: torch.device, local_rank: int, local_world_size: int, nodes: Path = NODES) -> Cores:
    """Cores for the threads of a rank, one of `local_world_size` on this machine.

    Args:
        device: of the rank; a GPU tells which NUMA node it is at.
        local_rank: number of the rank on this machine.
        local_world_size: ranks on this machine.
        nodes: where Linux describes its NUMA nodes.
    """
    usable = usable_ids()
    known = [cores for path in sorted(nodes.glob("node[0-9]*")) if (cores := _listed(path) & usable)]
    known = known or [usable]
    mine = _at_gpu(device) & usable if device.type == "cuda" else frozenset[int]()
    if not mine or len(known) == 1:
        mine = known[local_rank * len(known) // local_world_size]
    # Ranks are taken to be spread evenly over the nodes, as GPUs are.
    ranks = max(1, round(local_world_size * len(mine) / len(usable)))
    return Cores(mine, max(1, len(mine) // ranks))


@contextmanager
def pinned(cores: Cores | None) -> Iterator[None]:
    """Let the threads that are started meanwhile run on these cores: a thread inherits its maker's."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.ids)  # of this thread alone
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _listed(node: Path) -> frozenset[int]:
    """Cores of a node: the kernel's "0-3,8-11"."""
    cores: set[int] = set()
    for part in (node / "cpulist").read_text().strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def _at_gpu(device: torch.device) -> frozenset[int]:
    """Cores at the NUMA node of a GPU, as NVML knows them; none if it does not."""
    import pynvml  # only here: a machine without a GPU has no NVML

    words = -(-(os.cpu_count() or 1) // _WORD)
    try:
        pynvml.nvmlInit()
        try:
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            mask = pynvml.nvmlDeviceGetCpuAffinityWithinScope(handle, words, pynvml.NVML_AFFINITY_SCOPE_NODE)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:  # in some containers, on parts of a GPU (MIG), without NVIDIA's driver
        _log.info("threads are not bound to the GPU's NUMA node: NVML says %s", error)
        return frozenset()
    return frozenset(
        word * _WORD + bit for word, bits in enumerate(mask) for bit in range(_WORD) if bits >> bit & 1
    )
