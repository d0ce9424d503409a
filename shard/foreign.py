"""Make a dataset of WebDataset shards that somebody else wrote, without touching or copying them."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shard.dataset import INDEX, MANIFEST
from shard.errors import FeedlineError
from shard.execute import start_workers
from shard.index import REJECTED, IndexWriter, SplitSummary, write_lines, write_manifest
from shard.items import read_classes
from shard.jpeg import MarkerError, parse
from shard.labels import numbers
from shard.names import readable
from shard.pack import IDX_VERSION, Row
from shard.sources.inputs import Input, find_inputs
from shard.sources.own import agree, numbered
from shard.sources.webdataset import Sample, samples
from shard.storage import file_sha256, local_copy, location, storage_errors, write_whole
from shard.verify import Progress, idx_line


class Indexed(NamedTuple):
    """What is known of one shard after reading it."""

    size_bytes: int
    sha256: str
    rows: list[Row]
    idx: str
    unusable: list[dict[str, str]]
    named: set[tuple[int, str]]


def index_shards(
    urls: list[str],
    destination: str | Path,
    *,
    classes: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Write dataset.json, index.parquet and DALI indexes for existing shards into `destination`.

    The label of a sample is its `.cls`, or `label` of its `.json`; its split is what the shard's path names,
    else "train". Samples without a JPEG or a label are left out and named in rejected.jsonl.

    Args:
        urls: tars, folders of tars, globs, brace patterns; on a disk or behind fsspec URLs.
        destination: folder for the indexes, new or without a dataset.
        classes: file with the class list; None: names are what shards of ours say in their samples, else the numbers.
        jobs: processes; None: one more than cores.
        progress: called as the work goes on.

    Returns:
        The number of samples.

    Raises:
        FeedlineError: no shards, a damaged one, a label out of range, or one that shards of ours name differently.
    """
    target = location(destination)
    if (target / MANIFEST).exists():
        raise FeedlineError(f"{target} already holds a dataset; choose another folder with --out")
    names = read_classes(Path(classes)) if classes is not None else None
    inputs = [one for url in urls for one in find_inputs(url, (".tar",))]
    splits: dict[str, list[Input]] = defaultdict(list)
    for one in inputs:
        splits[one.split].append(one)
    _require_distinct(inputs)
    with storage_errors("make", target):
        target.mkdir(parents=True, exist_ok=True)
    summaries, highest, named = _write_indexes(target, splits, jobs, progress, agreed=names is None)
    known = names or numbered(named, highest + 1)
    if highest >= len(known):
        raise FeedlineError(
            f"a shard has the label {highest}, --classes {len(known)} classes; give the right list"
        )
    about = {
        "source": "",
        "source_kind": "index",
        "settings": {},
        "classes": list(known),
        "class_names": list(readable(known)),
    }
    with tempfile.TemporaryDirectory(dir=target) as staging_name:
        write_manifest(target, Path(staging_name), about, summaries)
    return sum(one.samples for one in summaries.values())


def _write_indexes(
    target: Path, splits: Mapping[str, list[Input]], jobs: int | None, progress: Progress, *, agreed: bool
) -> tuple[dict[str, SplitSummary], int, dict[int, str]]:
    """Index every shard; what the splits have become, the highest label, and names, which have to be `agreed`."""
    summaries: dict[str, SplitSummary] = {}
    names: dict[int, str] = {}
    highest, done, total = -1, 0, sum(map(len, splits.values()))
    with ExitStack() as stack:
        pool = stack.enter_context(start_workers(jobs))
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=target)))
        rejected = stack.enter_context(write_whole(target / REJECTED, staging))
        for split, shards in sorted(splits.items()):
            summary, folder = SplitSummary(), target / split
            folder.mkdir(exist_ok=True)
            with IndexWriter(folder / INDEX, staging) as index:
                for one, found in zip(shards, pool.ordered(index_shard, shards), strict=True):
                    write_lines(rejected, found.unusable)
                    summary.rejected += len(found.unusable)
                    _add(summary, one, found, folder, index, staging)
                    if agreed:
                        agree(names, one.url, found.named, None)
                    highest = max([highest, *(label for row in found.rows for label in numbers(row.label))])
                    done += 1
                    progress("reading shards", done, total)
            summary.sums[f"{split}/{INDEX}"] = file_sha256(folder / INDEX)
            summaries[split] = summary
    return summaries, highest, names


def _require_distinct(inputs: list[Input]) -> None:
    seen: set[tuple[str, str]] = set()
    for one in inputs:
        if (place := (one.split, Path(one.url).stem)) in seen:
            raise FeedlineError(f"two shards of split {place[0]} are named {place[1]}.tar; index them apart")
        seen.add(place)


def _add(
    summary: SplitSummary, one: Input, found: Indexed, folder: Path, index: IndexWriter, staging: Path
) -> None:
    if not found.rows:
        raise FeedlineError(f"{one.url} has no sample with a JPEG and a label; leave it out")
    index.add(found.rows)
    idx = folder / f"{Path(one.url).stem}.idx"
    with write_whole(idx, staging) as file:
        file.write(found.idx.encode())
    name = one.url if one.is_remote else _relative(Path(one.url), folder)
    about = {"name": name, "samples": len(found.rows), "bytes": found.size_bytes, "sha256": found.sha256}
    summary.shards.append({**about, "foreign": True})
    summary.samples += len(found.rows)
    summary.bytes += found.size_bytes
    if not one.is_remote:
        summary.sums[f"{folder.name}/{name}" if "/" not in name else name] = found.sha256
    summary.sums[f"{folder.name}/{idx.name}"] = hashlib.sha256(found.idx.encode()).hexdigest()


def _relative(path: Path, folder: Path) -> str:
    """Name of a shard in its split's folder if it lies there, else its absolute path."""
    absolute = path.resolve()
    return absolute.name if absolute.parent == folder.resolve() else str(absolute)


def index_shard(source: Input) -> Indexed:
    """Read one shard; runs in a worker process."""
    rows: list[Row] = []
    lines: list[str] = []
    unusable: list[dict[str, str]] = []
    named: set[tuple[int, str]] = set()
    with local_copy(location(source.url)) as path:
        with path.open("rb") as file:
            for sample in samples(file, source.url):
                row = (
                    _row(sample, file, f"{source.name}/{sample.key}")
                    if isinstance(sample, Sample)
                    else sample.reason
                )
                if isinstance(row, Row) and isinstance(sample, Sample):
                    rows.append(row)
                    lines.append(idx_line(sample))
                    named |= sample.named
                else:
                    name = f"{source.name}/{sample.key}"
                    unusable.append({"source": name, "split": source.split, "reason": str(row)})
        idx = "\n".join([f"{IDX_VERSION} {len(rows)}", *lines]) + "\n"
        return Indexed(path.stat().st_size, file_sha256(path), rows, idx, unusable, named)


def _row(sample: Sample, file: BinaryIO, name: str) -> Row | str:
    """Row of the index, or why there is none."""
    file.seek(sample.image.offset)
    data = file.read(sample.image.size)
    try:
        layout = parse(data)
    except MarkerError as error:
        return (
            f"{sample.image.name} is no JPEG that the loader can decode ({error}); pack it anew with `build`"
        )
    if layout.precision != 8 or layout.components not in (1, 3):
        return (
            f"{sample.image.name} has {layout.components} components of {layout.precision} bits; use `build`"
        )
    source = sample.source or name
    size, crc = len(data), zlib.crc32(data)
    return Row(sample.image.offset, size, sample.label, layout.width, layout.height, sample.key, crc, source)
