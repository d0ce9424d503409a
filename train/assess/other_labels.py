"""Other labels than the dataset's: ImageNet ReaL, ImageNetV2, or one's own, several a sample where that is right.

Three JSON files are understood:

- ReaL's `real.json` (Beyer et al., "Are we done with ImageNet?", 2020): a list of 50,000 lists of class numbers, by the
  number in the file name ILSVRC2012_val_00000001.JPEG. An empty list: experts agreed on nothing, the image is left out.
- ImageNetV2's `imagenetv2-b-33.json` (Recht et al., "Do ImageNet classifiers generalize to ImageNet?", 2019): under
  "image_filenames" pairs of a file name, with or without suffix, and a class name.
- `{"name.jpg": label or list of labels}` with class numbers or names. Where images of several folders have the same
  name: `{"folder/name.jpg": …}`, as the dataset's sources are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from timm.data import ImageNetInfo

from shard.errors import FeedlineError
from train.assess.samples import Samples

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Accuracy against other labels.

    Attributes:
        file: where they are from.
        samples: how many have a label there.
        left_out: samples of the split that have none.
        top1: percent of `samples` whose likeliest class is among their labels.
        top5: percent with one of their labels among the five likeliest.
    """

    file: str
    samples: int
    left_out: int
    top1: float
    top5: float


class OtherLabels:
    """Sets of labels by the name of the image.

    Args:
        path: one of the files above.
        classes: the network's class names. Where all are ImageNet's synsets, numbers mean ImageNet's 1,000 in their
            order; where they are numbers themselves, the class of that name; else the network's own labels.

    Raises:
        FeedlineError: unreadable, of another form, or with classes that there are not.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FeedlineError(f"cannot read the labels {path}: {error}") from error
        self._by_number = isinstance(content, list)
        entries = dict(_entries(content, path))
        self._numbering = _Numbering(path, classes)
        self._labels: dict[int | str, frozenset[int]] = {
            name: frozenset(self._numbering.labels(given, name)) for name, given in entries.items()
        }

    def match(self, sources: Sequence[str]) -> list[frozenset[int] | None]:
        """Labels of each image of a split; None where the file does not have it.

        Args:
            sources: names of the images.

        Raises:
            FeedlineError: the file has none of them, or one label for several.
        """
        keys = [self._key(source) for source in sources]
        seen: dict[int | str, str] = {}
        for key, source in zip(keys, sources, strict=True):
            if key is not None and (other := seen.setdefault(key, source)) != source:
                raise FeedlineError(
                    f"{self.path} has one label for {key!r}, the name of several images of the split ({other}, "
                    f"{source}); name them in this form, with the folder"
                )
        if not seen:
            wanted = (
                "ILSVRC2012_val_00000001.JPEG"
                if self._by_number
                else str(next(iter(self._labels), "nothing"))
            )
            raise FeedlineError(
                f"{self.path} has labels of images such as {wanted}, and none of the split's (such as {sources[0]}); "
                "is it the file of this split?"
            )
        return [None if key is None else self._labels[key] for key in keys]

    def _key(self, source: str) -> int | str | None:
        """What the file calls the image; None where it does not have it."""
        path = PurePosixPath(source)
        names: tuple[int | str, ...] = (source, path.name, path.stem)
        if self._by_number:
            found = _VALIDATION.search(path.name)
            names = () if found is None else (int(found[1]) - 1,)
        return next((name for name in names if name in self._labels), None)

    def compare(self, samples: Samples, sources: Sequence[str]) -> Against:
        """Accuracy of the samples that have a label here.

        Args:
            samples: results.
            sources: names of the split's images, by sample id.

        Raises:
            FeedlineError: from `match`, or the file says of all of them that they have no label.
        """
        every = self.match(sources)
        known = hits1 = hits5 = 0
        for sample, top in zip(samples.ids.tolist(), samples.top.tolist(), strict=True):
            if labels := every[sample]:
                known += 1
                hits1 += top[0] in labels
                hits5 += not labels.isdisjoint(top)
        if not known:
            raise FeedlineError(
                f"{self.path} has an empty list for every image of the split: nothing to compare"
            )
        return Against(
            file=str(self.path),
            samples=known,
            left_out=len(samples) - known,
            top1=100 * hits1 / known,
            top5=100 * hits5 / known,
        )


class _Numbering:
    """From a file's class numbers and names to the network's labels."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path = path
        self._names = {name: label for label, name in enumerate(classes)}
        synsets = ImageNetInfo("imagenet-1k").label_names()
        self._numbered = dict(enumerate(classes))
        if set(classes) <= set(synsets):
            self._numbered = dict(enumerate(synsets))
        elif all(name.isdecimal() and name == str(int(name)) for name in classes):
            self._numbered = {int(name): name for name in classes}  # folders sort as text: 0, 1, 10, 11, 2
        self._known = self._names.keys() | set(self._numbered.values())

    def labels(self, given: Any, name: int | str) -> Iterable[int]:
        """Labels of one entry; a class of ImageNet that the network does not have is never right.

        Raises:
            FeedlineError: no class.
        """
        for one in given if isinstance(given, list) else [given]:
            if isinstance(one, int) and not isinstance(one, bool):
                one = self._numbered.get(one, one)
            if not isinstance(one, str) or one not in self._known:
                raise FeedlineError(
                    f"{self._path}: the label of {name!r} is {one!r}, neither a class name nor a class's number "
                    f"({min(self._numbered)} … {max(self._numbered)})"
                )
            yield self._names.get(one, -1)


def _entries(content: Any, path: Path) -> Iterable[tuple[int | str, Any]]:
    """Image, by number or name, and its label or labels."""
    if isinstance(content, list) and all(isinstance(one, list) for one in content):
        return enumerate(content)
    if isinstance(content, Mapping) and isinstance(content.get("image_filenames"), list):
        pairs = content["image_filenames"]
        if all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs):
            return [(name, label) for name, label in pairs]
    elif isinstance(content, Mapping):
        return content.items()
    raise FeedlineError(
        f"{path} holds no labels in a form that is known: ReaL's list of lists, ImageNetV2's image_filenames, or an "
        "object of names with labels"
    )
