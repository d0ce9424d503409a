"""timm's weights from the Hugging Face hub: out of its cache, or after a look whether the hub can be reached.

Without that look a machine without network waits for minutes: the hub's client asks six times for each of two files.
"""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn

from shard.errors import FeedlineError
from train.pretrained import known_to_timm, reason

_PATIENCE_S = 5.0
_FILES = ("model.safetensors", "pytorch_model.bin")


def create_from_timm(arch: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    """Make timm's model with its pretrained weights; a head of another size is new.

    Raises:
        FeedlineError: timm has no weights of it, or they cannot be fetched; says how to bring them.
        TypeError: timm's constructor does not take an argument.
    """
    known = known_to_timm(arch)
    where = None if known is None else known.to_dict()
    cached = where and _cached(where)
    # custom_load is about the npz behind `url`, and an older timm would read any file by it.
    overlay = {"pretrained_cfg_overlay": {"file": cached, "custom_load": False}} if cached else {}
    try:
        if where and not cached:
            _require_reachable(where)
        model: nn.Module = timm.create_model(
            arch, pretrained=True, num_classes=num_classes, **overlay, **arguments
        )
    except (OSError, RuntimeError, ValueError) as error:
        # No network, or no such weights; the hub's client raises its own kinds of OSError.
        remedy = _remedy(where or {})
        raise FeedlineError(f"cannot get timm's weights of {arch!r}: {reason(error)}; {remedy}") from error
    return model


def _cached(where: dict[str, Any]) -> str | None:
    """Path of the weights in the hub's cache, from which no network is needed."""
    named = where.get("hf_hub_filename") or ""
    if not where.get("hf_hub_id") or where.get("custom_load") == "hf" or named.endswith(".npz"):
        return None  # none, or in a format of its own, which timm reads from the hub alone
    for name in [named] if named else _FILES:
        found = try_to_load_from_cache(where["hf_hub_id"], name)
        if isinstance(found, str):
            return found
    return None


def _require_reachable(where: dict[str, Any]) -> None:
    """Connect to whoever the weights would come from, and leave.

    Raises:
        OSError: nobody answers in time.
    """
    hub = bool(where.get("hf_hub_id"))
    if hub and constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, and they are not in the cache")
    source = constants.ENDPOINT if hub else where.get("url")
    if not source:
        return  # timm has no weights, and says so
    address = urlsplit(source)
    host = address.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")  # as the hub's client reads it
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise OSError(f"{address.hostname} is not reached ({reason(error)})") from error


def _remedy(where: dict[str, Any]) -> str:
    """How to bring the weights to a machine without network."""
    name = where.get("hf_hub_filename") or _FILES[0]
    if where.get("hf_hub_id"):
        fetch = f"hf download {where['hf_hub_id']} {name} --local-dir weights"
    elif where.get("url"):
        name = os.path.basename(where["url"])
        fetch = f"wget -P weights {where['url']}"
    else:
        return "give --pretrained a file"
    return f"where there is a network, run `{fetch}`, copy weights/{name} here and give --pretrained {name}"
