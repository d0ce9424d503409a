"""Judging a network on a multi-label dataset: results per sample, and every figure as a function of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from loader import Loader
from shard.dataset import Split
from train.assess.figures import RESAMPLES
from train.assess.files import PREDICTIONS, REPORT, write_files, write_parquet
from train.assess.per_class import Scores, scores_of
from train.assess.report import HEAD, align, numbers, shown_classes
from train.assess.samples import gathered, require_finite
from train.distributed import World
from train.multi_label import THRESHOLD, average_precisions, binary_losses

Bools = npt.NDArray[np.bool_]
_AVERAGES = ("micro", "macro", "weighted", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelSamples:
    """What a network said to N samples, in the order of their ids.

    Attributes:
        ids: int64 [N], row numbers in the split's index; strictly rising.
        targets: bool [N, C], whether a sample is of a class, as the network numbers its classes.
        logits: float32 [N, C], of the classes.
        losses: float32 [N], mean binary cross-entropy over the classes.
    """

    ids: npt.NDArray[np.int64]
    targets: Bools
    logits: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Of the classes: float32 [N, C]."""
        found: npt.NDArray[np.float32] = torch.from_numpy(self.logits).sigmoid().numpy()
        return found

    @property
    def predicted(self) -> Bools:
        """Classes whose probability reaches `THRESHOLD`: bool [N, C]."""
        return self.probabilities >= THRESHOLD


def collect(
    logits: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    world: World,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> MultiLabelSamples:
    """Run a network over a split of a multi-label dataset; see `train.assess.samples.collect`."""
    parts: list[tuple[torch.Tensor, ...]] = []
    ids: list[torch.Tensor] = []
    order = None if labels is None else torch.from_numpy(np.argsort(labels)).to(world.device)
    loader.rewind()
    for step, batch in enumerate(loader, start=1):
        targets = batch.labels if order is None else batch.labels[:, order]
        output = logits(batch.images)
        parts.append((targets > 0, output, binary_losses(output, targets)))
        ids.append(batch.ids)
        progress(min(step * loader.batch_size * world.size, loader.num_samples))
    in_order, columns = gathered(ids, parts, world)
    found = MultiLabelSamples(ids=in_order, targets=columns[0], logits=columns[1], losses=columns[2])
    require_finite(found.ids, found.losses, found.logits, loader)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelEvaluation:
    """The figures of one evaluation.

    Attributes:
        classes: class names by label.
        samples: how many were counted.
        undecoded: samples of the split that were not, because they do not decode.
        map: mean over the classes of average precision, percent.
        precisions: average precision by label, 0 … 1.
        micro_f1: percent, at `THRESHOLD`.
        micro_f1_interval: bootstrap interval at 95 %, percent.
        loss: mean binary cross-entropy.
        scores: by label, at `THRESHOLD`.
        averages: micro, macro, weighted and samples.
    """

    classes: tuple[str, ...]
    samples: int
    undecoded: int
    map: float
    precisions: list[float]
    micro_f1: float
    micro_f1_interval: tuple[float, float]
    loss: float
    scores: list[Scores]
    averages: dict[str, Scores]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: classes by name, with their average precision."""
        names = ("samples", "undecoded", "map", "micro_f1", "micro_f1_interval", "loss")
        rows = zip(self.classes, self.precisions, self.scores, strict=True)
        return {
            "multi_label": True,
            "threshold": THRESHOLD,
            **{name: getattr(self, name) for name in names},
            "averages": {name: asdict(one) for name, one in self.averages.items()},
            "classes": {name: {"average_precision": ap, **asdict(one)} for name, ap, one in rows},
        }


def summarize(
    samples: MultiLabelSamples, classes: Sequence[str], *, undecoded: int = 0, seed: int = 0
) -> MultiLabelEvaluation:
    """Compute every figure.

    Args:
        samples: N results.
        classes: class names by label.
        undecoded: samples that are missing.
        seed: of the bootstrap.
    """
    targets, predicted = samples.targets, samples.predicted
    precisions = average_precisions(targets, samples.logits)
    each = scores_of((targets & predicted).sum(0), predicted.sum(0), targets.sum(0))
    means = averages(targets, predicted)
    return MultiLabelEvaluation(
        classes=tuple(classes),
        samples=len(samples),
        undecoded=undecoded,
        map=100 * float(precisions.mean()),
        precisions=precisions.tolist(),
        micro_f1=100 * means["micro"].f1,
        micro_f1_interval=micro_f1_interval(targets, predicted, seed=seed),
        loss=float(samples.losses.astype(np.float64).mean()),
        scores=each,
        averages=means,
    )


def averages(targets: Bools, predicted: Bools) -> dict[str, Scores]:
    """Averages by name, as in scikit-learn's report of several labels; 0 where there is nothing to divide by.

    micro: of all decisions together; macro: every class counts the same; weighted: every class counts by its support;
    samples: every sample counts the same.

    Args:
        targets: bool [N, C].
        predicted: bool [N, C].
    """
    hits = targets & predicted
    by_class, by_sample = (
        scores_of(hits.sum(axis), predicted.sum(axis), targets.sum(axis)) for axis in (0, 1)
    )
    micro = scores_of(*(np.array([part.sum()]) for part in (hits, predicted, targets)))
    support = targets.sum(axis=0)
    total = int(support.sum())
    weights = {"micro": None, "macro": None, "weighted": support if total else None, "samples": None}
    found = {}
    for name, scores in zip(_AVERAGES, (micro, by_class, by_class, by_sample), strict=True):
        table = np.array([(s.precision, s.recall, s.f1) for s in scores])
        p, r, f = np.average(table, axis=0, weights=weights[name])
        found[name] = Scores(precision=float(p), recall=float(r), f1=float(f), support=total)
    return found


def micro_f1_interval(
    targets: Bools, predicted: Bools, *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of micro-averaged F1, percent; samples are resampled, with all their labels.

    Samples count by how many classes they hit, and how many they were given or are of. How many samples of each such
    kind a resample has is multinomial: these counts are drawn instead of the samples; see `figures.bootstrap_interval`.

    Args:
        targets: bool [N, C].
        predicted: bool [N, C].
        seed: of the resampling.
        level: share of the resamples that lie inside.
    """
    hits = (targets & predicted).sum(axis=1)
    both = targets.sum(axis=1) + predicted.sum(axis=1)
    kinds, counts = np.unique(np.stack([hits, both]), axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(hits), counts / len(hits), RESAMPLES)
    hit, of = (drawn @ kind for kind in kinds)
    tail = 50 * (1 - level)
    low, high = np.percentile(200 * hit / np.maximum(of, 1), [tail, 100 - tail])
    return float(low), float(high)


def report(found: MultiLabelEvaluation, *, whole: bool = False) -> str:
    """The figures and the table by class.

    Args:
        found: the evaluation.
        whole: all classes, even if there are more than a terminal shows.
    """
    low, high = found.micro_f1_interval
    lines = [
        f"mAP {found.map:.2f} %, micro-F1 {found.micro_f1:.2f} % ({low:.2f} – {high:.2f}) at a probability of "
        f"{THRESHOLD}",
        f"loss {found.loss:.4f}, {found.samples:,} samples",
    ]
    if empty := sum(one.support == 0 for one in found.scores):
        lines.append(
            f"without a sample: {empty} of {len(found.classes)} classes; each counts as 0 in mAP and macro averages"
        )
    if found.undecoded:
        lines.append(f"left out: {found.undecoded:,} samples that do not decode (see the warnings)")
    return "\n".join(lines) + f"\n\n{_classes(found, whole=whole)}\n"


def _classes(found: MultiLabelEvaluation, *, whole: bool) -> str:
    title, shown = shown_classes(found.scores, found.precisions, whole=whole)
    given = zip(found.classes, found.precisions, found.scores, strict=True)
    rows = [(name, f"{ap:.4f}", *numbers(scores)) for name, ap, scores in given]
    cells = [rows[i] for i in shown]
    cells += [(f"{name} average", "", *numbers(scores)) for name, scores in found.averages.items()]
    return align([(title, "AP", *HEAD), *cells])


def write(
    folder: Path,
    found: MultiLabelEvaluation,
    about: dict[str, Any],
    samples: MultiLabelSamples,
    split: Split,
    sources: Sequence[str],
) -> list[Path]:
    """Write all files of an evaluation; see `train.assess.files.write`. There is no confusion matrix."""
    writers: dict[str, Callable[[Path], object]] = {
        REPORT: lambda path: path.write_text(report(found, whole=True), encoding="utf-8"),
        PREDICTIONS: lambda path: write_parquet(predictions(found.classes, samples, split, sources), path),
    }
    return write_files(folder, writers, about | found.as_dict())


def predictions(
    classes: Sequence[str], samples: MultiLabelSamples, split: Split, sources: Sequence[str]
) -> pa.Table:
    """Results per sample, in order of the ids.

    Columns: id, key, source, classes and predicted (lists of class names), loss, width and height (of the stored image,
    pixels), probabilities (list of all classes', in the order of evaluation.json).
    """
    ids = samples.ids

    def names(of: Bools) -> pa.Array:
        rows = ([classes[i] for i in np.flatnonzero(row).tolist()] for row in of)
        return pa.array(rows, pa.list_(pa.string()))

    values = pa.array(samples.probabilities.ravel())
    return pa.table(
        {
            "id": ids,
            "key": split.keys.take(pa.array(ids)),
            "source": pa.array([sources[i] for i in ids.tolist()], pa.string()),
            "classes": names(samples.targets),
            "predicted": names(samples.predicted),
            "loss": samples.losses,
            "width": split.width[ids],
            "height": split.height[ids],
            "probabilities": pa.FixedSizeListArray.from_arrays(values, len(classes)),
        }
    )
