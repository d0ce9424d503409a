"""What pretrained weights are worth on a dataset before they are trained on it.

Where the head came with the weights, it is evaluated as it is. Where the labels differ, frozen features of the training
split classify the evaluation split: by their nearest neighbours (`train.knn`), and by a linear probe. With many
samples a part of each split has to do: the first of a keyed permutation, the same on any number of ranks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config
from train.distributed import World
from train.evaluate import METRICS, AnyResult, metric_of
from train.features import Extractor, Features
from train.inputs import rank_loader
from train.knn import NEIGHBOURS, Bank, KnnAccuracy
from train.probe import HEAD_C, fit, start_head
from train.step import TrainStep

MOST_TRAIN, MOST_EVAL = 10_000, 5_000  # samples
NAMES = {"head": "head as it came", "knn": "kNN", "probe": "linear probe"}
_BATCH = 64


def methods(wanted: str, own_head: bool, *, multi_label: bool = False) -> list[str]:
    """How it is measured: keys of `NAMES`.

    Args:
        wanted: `EvalConfig.before`.
        own_head: whether the weights brought a head for the dataset's classes.
        multi_label: whether the dataset is; neighbours then have no single class to vote for.
    """
    if wanted == "auto":
        return ["head"] if own_head else ["probe"] if multi_label else ["knn", "probe"]
    return [] if wanted == "none" else [wanted]


def measure(
    step: TrainStep,
    config: Config,
    dataset: Dataset,
    world: World,
    own_head: bool,
    evaluate: Callable[[], AnyResult | None],
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Measure it, and let the head start as the linear probe. Collective; no other weight changes.

    Args:
        step: of the network.
        config: of the run.
        dataset: of the run.
        world: the ranks that share the work.
        own_head: whether the weights brought a head for the dataset's classes.
        evaluate: evaluates the network with its head.
        stopping: asked after each batch whether to give up; ranks must agree.

    Returns:
        top1 (percent, by method; map of a multi-label dataset), samples (of the evaluation split), train_samples (whose
        features were used; 0 with the head alone), head (probe, if it started as such, else random; absent if it is not
        new), took_s; {} if given up or there is nothing to do.

    Raises:
        FeedlineError: the network gives no features; or a split has no sample that can be decoded.
    """
    began = time.perf_counter()
    model = config.model
    how = methods(config.evaluation.before, own_head, multi_label=dataset.multi_label)
    starts_head = model.head_init == "probe" and model.head == "linear" and not own_head
    if "head" in how:
        result = evaluate()
        if result is None:
            return {}
        found = {
            _metric(dataset): {"head": result.score},
            "samples": result.samples,
            "train_samples": 0,
        }
    elif how or starts_head:
        parts = _parts(step, config, dataset, world, bool(how), stopping)
        if not parts:
            return {}
        found = _by_features(parts, config, dataset, how)
        if starts_head and _head_started(step, config, dataset, world, parts[0]):
            found["head"] = "probe"
        elif not how:
            return {}
    else:
        return {}
    return found | {"took_s": round(time.perf_counter() - began, 1)}


def _head_started(step: TrainStep, config: Config, dataset: Dataset, world: World, train: Features) -> bool:
    """Let the head start as the probe of these features; whether it could, the same on every rank."""
    started = start_head(step.net, fit(train, len(dataset.classes), HEAD_C), config.input.eval_size)
    # Ranks may round differently, and so find otherwise whether it worked: the first one's holds.
    world.broadcast_(step.net.parameters())
    if not world.gather(started)[0]:
        _tell_random(config, world)
        return False
    return True


def _metric(dataset: Dataset) -> str:
    return "map" if dataset.multi_label else "top1"


def _by_features(parts: list[Features], config: Config, dataset: Dataset, how: list[str]) -> dict[str, Any]:
    """What `measure` returns, of features of the training split, and of the evaluation split where it is judged."""
    train, held_out = parts[0], parts[-1]
    classes = len(dataset.classes)
    score = {}
    if "knn" in how:
        same = config.input.train_split == config.input.eval_split
        score["knn"] = knn_top1(train, held_out, classes, same_split=same)
    if "probe" in how:
        score["probe"] = fit(train, classes).score(held_out)
    return {
        _metric(dataset): score,
        "samples": len(held_out.labels) if how else 0,
        "train_samples": len(train.labels),
        "head": "random",
    }


def _parts(
    step: TrainStep,
    config: Config,
    dataset: Dataset,
    world: World,
    judged: bool,
    stopping: Callable[[], bool],
) -> list[Features]:
    """Features of the training split, and where it is judged of the evaluation split; none if given up or out of reach.

    Raises:
        FeedlineError: as `measure`.
    """
    if not hasattr(step.net.model, "forward_head"):
        if not judged:
            _tell_random(config, world)
            return []
        raise FeedlineError(
            f"before is {config.evaluation.before!r}, but {config.model.arch!r} has no forward_head that would "
            "give features; use --before none"
        )
    step.net.eval()
    parts = []
    splits = ((config.input.train_split, MOST_TRAIN), (config.input.eval_split, MOST_EVAL))
    for split, most in splits if judged else splits[:1]:
        part = _features(step, config, dataset, split, most, world, stopping)
        if part is None:
            return []
        parts.append(part)
    return parts


def _tell_random(config: Config, world: World) -> None:
    if world.is_main:
        print(
            f"head_init is 'probe', but the classifier of {config.model.arch!r} is not one linear layer with a bias on "
            "its features: it starts at random",
            file=sys.stderr,
        )


def _features(
    step: TrainStep,
    config: Config,
    dataset: Dataset,
    split: str,
    most: int,
    world: World,
    stopping: Callable[[], bool],
) -> Features | None:
    """Features of the first `most` samples of a permutation, the same on every rank; None if given up."""
    given, count = config.input, min(most, len(dataset.split(split)))
    extractor = Extractor(step.net)
    size = max(1, min(_BATCH, -(-count // world.size)))
    loader = rank_loader(
        given, dataset, split, given.eval_transform(), world, batch_size=size, shuffle=True, seed=config.seed
    )
    steps = -(-count // (loader.batch_size * world.size))
    rows: torch.Tensor | None = None
    with loader:
        for number, batch in zip(range(steps), loader, strict=False):
            with step.autocast():
                values = extractor(batch.images)
            labels = batch.labels.double().reshape(len(values), -1)
            if rows is None:  # features, id, label (or multi-hot), and whether there is such a sample
                dim, wide = values.shape[1], values.shape[1] + labels.shape[1] + 2
                rows = torch.zeros(count, wide, device=world.device, dtype=torch.float64)
            first = number * loader.batch_size * world.size
            place = first + world.rank + world.size * torch.arange(len(values), device=world.device)
            mine = (place < count) & batch.valid
            ids = batch.ids.to(world.device, torch.float64)[:, None]
            rows[place[mine]] = torch.cat([values.double(), ids, labels, torch.ones_like(ids)], dim=1)[mine]
            if stopping():
                return None
    assert rows is not None
    world.sum_(rows)  # each row is one rank's, and 0 at the others
    rows = rows[rows[:, -1] > 0]
    if not len(rows):
        raise FeedlineError(
            f"no sample of {split!r} in {dataset.root} can be decoded; run `python -m shard verify`"
        )
    given_labels = rows[:, dim + 1 : -1].cpu()
    labels = given_labels.float() if dataset.multi_label else given_labels[:, 0].long()
    return Features(rows[:, dim].long().cpu(), labels, rows[:, :dim].float())


def knn_top1(train: Features, held_out: Features, classes: int, *, same_split: bool = False) -> float:
    """Top-1 in percent by the neighbours among `train`, whose first ones `held_out` are if the split is the same."""
    bank = Bank.of([train])
    judge = KnnAccuracy(bank, classes, k=min(NEIGHBOURS, len(bank.ids) - same_split), same_split=same_split)
    for part in torch.arange(len(held_out.ids)).chunk(-(-len(held_out.ids) // 1024)):
        judge.add(Features(held_out.ids[part], held_out.labels[part], held_out.values[part]))
    return judge.result().top1


def before_line(found: dict[str, Any]) -> str:
    """Line of progress about it."""
    metric = metric_of(found)
    figures = ", ".join(f"{NAMES[name]} {value:.2f} %" for name, value in found[metric].items())
    features = f"features of {found['train_samples']} training samples"
    measured = f"before: {METRICS[metric]} by {figures}  {_of(found)}" if figures else f"before: {features}"
    head = "; the head starts as the linear probe" if found.get("head") == "probe" else ""
    return f"{measured} in {found['took_s']:.1f} s{head}"


def table(found: dict[str, Any], after: float, epoch: int, samples: int) -> str:
    """Before and after side by side, a line each.

    Args:
        found: what `measure` gave.
        after: top-1, or mAP, of the best evaluation, percent.
        epoch: when that was.
        samples: that it counted.
    """
    figures = found[metric_of(found)]
    rows = [(f"before, {NAMES[name]}", value, _of(found)) for name, value in figures.items()]
    rows.append(("after, best", after, f"epoch {epoch}, {samples} samples"))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {value:6.2f} %  {about}" for name, value, about in rows]
    if after < max(figures.values(), default=0.0):
        lines.append(
            "the training took something away: try --freeze all-but-head, a smaller --lr, or less of "
            "--augment and --erase"
        )
    return "\n".join(lines)


def _of(found: dict[str, Any]) -> str:
    by = f", by features of {found['train_samples']} training samples" if found["train_samples"] else ""
    return f"{found['samples']} samples{by}"
