"""Whether a configuration, a network and a dataset agree on what a sample's label is: one class, or several."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.labels import require_single
from train.config import Config


def fitted(config: Config, dataset: Dataset, given: Collection[str]) -> Config:
    """The configuration as the dataset's labels want it: of a multi-label one `loss` is bce and `stop_metric` map.

    Args:
        config: of the run.
        dataset: that it is for.
        given: keys that the command line or a configuration file gives; these are not changed but refused.

    Raises:
        FeedlineError: a value that the dataset's labels have no use for.
    """
    loss, stop = config.loss, config.stop
    if not dataset.multi_label:
        if stop.stop_metric == "map":
            raise FeedlineError(
                f"stop_metric is 'map', but {dataset.root} is not multi-label; use top1, top5 or loss"
            )
        return config
    require_single(config.input.balance > 0, f"balance {config.input.balance}", "leave it out")
    require_single(loss.class_weights != "none", f"class_weights {loss.class_weights!r}", "leave it out")
    require_single(config.evaluation.before == "knn", "before 'knn'", "use probe, auto or none")
    require_single(loss.loss == "ce" and "loss" in given, "loss 'ce'", "use bce, or leave it out")
    of_one = stop.stop_metric in ("top1", "top5")
    require_single(
        of_one and "stop_metric" in given,
        f"stop_metric {stop.stop_metric!r}",
        "use map or loss, or leave it out",
    )
    return replace(
        config, loss=replace(loss, loss="bce"), stop=replace(stop, stop_metric="map") if of_one else stop
    )


def require_alike(multi_label: bool, dataset: Dataset, checkpoint: object) -> None:
    """Refuse to judge a network on a dataset with labels of the other kind.

    Raises:
        FeedlineError: names both.
    """
    if multi_label != dataset.multi_label:
        kinds = ("multi-label", "of one class a sample")
        network, data = kinds if multi_label else kinds[::-1]
        raise FeedlineError(
            f"{checkpoint} was trained on a dataset that is {network}, {dataset.root} is {data}; give another --data"
        )
