"""The same images from any source give the same samples and labels."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.build import Result, build
from shard.dataset import Dataset, read_image, read_sources
from shard.errors import FeedlineError
from shard.image import Policy
from shard.plan import Settings, Subset
from shard.sources import detect, open_source
from tests.shard.conftest import SMALL, WNIDS, add
from tests.shard.test_build import digests


def samples(root: Path) -> dict[str, set[tuple[str, bytes]]]:
    """Class name and bytes of every sample, by split."""
    dataset = Dataset.open(root)
    found = {}
    for name in dataset.split_names:
        split = dataset.split(name)
        found[name] = {(dataset.classes[split.label[i]], read_image(split, i)) for i in range(len(split))}
    return found


def write_parquet(imagenet: Path, root: Path, *, metadata: bool = True) -> None:
    root.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(WNIDS), "_type": "ClassLabel"}}
    for split, name in (("train", "train"), ("val", "validation")):
        paths = sorted((imagenet / split).rglob("*.JPEG"))
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        labels = [WNIDS.index(path.parent.name) for path in paths]
        columns = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
        if metadata:
            info = json.dumps({"info": {"features": features}})
            columns = columns.replace_schema_metadata({"huggingface": info})
        half = len(paths) // 2
        for i, part in enumerate((columns[:half], columns[half:])):
            pq.write_table(part, root / f"{name}-{i:05d}-of-00002.parquet", row_group_size=5)


def test_parquet_of_the_hub(imagenet: Path, packed: Path, tmp_path: Path) -> None:
    write_parquet(imagenet, tmp_path / "hub" / "data")
    assert detect(str(tmp_path / "hub")) == "parquet"
    build(tmp_path / "hub", tmp_path / "one", SMALL, workers=1)
    build(tmp_path / "hub", tmp_path / "two", SMALL, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    expected = samples(packed)
    assert samples(tmp_path / "one") == {"train": expected["train"], "validation": expected["val"]}


def test_parquet_without_names_or_bytes(imagenet: Path, tmp_path: Path) -> None:
    write_parquet(imagenet, tmp_path / "hub", metadata=False)
    build(tmp_path / "hub", tmp_path / "data", SMALL, workers=1)
    assert Dataset.open(tmp_path / "data").classes == ("0", "1", "2", "3")
    bare = pa.table({"image": [{"bytes": None, "path": "x.jpg"}], "label": [0]})
    bare = bare.cast(
        pa.schema(
            [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
        )
    )
    pq.write_table(bare, tmp_path / "bare.parquet")
    with pytest.raises(FeedlineError, match=r"bare\.parquet, row 0: no image bytes"):
        build(tmp_path / "bare.parquet", tmp_path / "none", SMALL, workers=1)
    pq.write_table(pa.table({"text": ["x"], "label": [0]}), tmp_path / "text.parquet")
    with pytest.raises(FeedlineError, match=r"has no image columns \(text, label\)"):
        build(tmp_path / "text.parquet", tmp_path / "none", SMALL, workers=1)


def test_a_damaged_parquet_file_is_named_and_not_what_was_being_written(
    imagenet: Path, tmp_path: Path
) -> None:
    write_parquet(imagenet, tmp_path / "hub")
    path = tmp_path / "hub" / "train-00000-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(FeedlineError, match=rf"^cannot read {path} as Parquet: .*; download it again$"):
        build(tmp_path / "hub", tmp_path / "data", SMALL, workers=1)


def test_a_split_without_labels_can_be_left_out(imagenet: Path, tmp_path: Path) -> None:
    write_parquet(imagenet, tmp_path / "hub")
    hidden = pq.read_table(tmp_path / "hub" / "validation-00000-of-00002.parquet")
    hidden = hidden.set_column(1, "label", pa.array([-1] * len(hidden), pa.int64()))
    pq.write_table(hidden, tmp_path / "hub" / "test-00000-of-00001.parquet")
    with pytest.raises(FeedlineError, match=r"has the label -1.*--splits \(it has test, train, validation\)"):
        build(tmp_path / "hub", tmp_path / "data", SMALL, workers=1)
    source = open_source(str(tmp_path / "hub"), splits=["train", "validation"])
    build(source, tmp_path / "data", SMALL, workers=1)
    assert Dataset.open(tmp_path / "data").split_names == ("train", "validation")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_lists(imagenet: Path, packed: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {"path": path.relative_to(imagenet).as_posix(), "label": path.parent.name, "split": split}
        for split in ("train", "val")
        for path in sorted((imagenet / split).rglob("*.JPEG"))
    ]
    listing = imagenet / f"list.{kind}"
    if kind == "jsonl":
        text = "\n".join(map(json.dumps, rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        text = "\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)])
    listing.write_text(text + "\n")
    try:
        build(listing, tmp_path / "data", SMALL, workers=1)
    finally:
        listing.unlink()
    assert samples(tmp_path / "data") == samples(packed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "lists no images"),
        ("file,label\na.jpg,1\n", r"line 2: needs path and label, has file, label"),
        ("path,label\na.jpg,\n", "line 2: needs path and label"),
        ("path,label\nnowhere.jpg,1\n", "line 2: cannot read nowhere.jpg"),
        ("path,label\na.jpg,cat\na.jpg,cat\n", "line 3: a.jpg is listed twice"),
        (
            "path,label,split\na.jpg,cat,train\nb.jpg,dog,val\n",
            "split val differ .* lacks cat and has besides dog",
        ),
    ],
)
def test_lists_that_cannot_be_packed(tmp_path: Path, text: str, message: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(FeedlineError, match=message):
        open_source(str(tmp_path / "list.csv"))


def test_numbers_in_a_list_are_labels_and_a_class_list_names_them(imagenet: Path, tmp_path: Path) -> None:
    paths = [sorted((imagenet / "train" / wnid).iterdir())[0] for wnid in WNIDS]
    lines = [f"{path},{label}" for path, label in zip(paths, (3, 1, 0, 2), strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    (tmp_path / "names.txt").write_text("zero\none\ntwo\nthree\nfour\n")
    source = open_source(str(tmp_path / "list.csv"), classes=tmp_path / "names.txt")
    build(source, tmp_path / "data", SMALL, workers=1)
    assert {(name, data) for name, data in samples(tmp_path / "data")["train"]} == {
        (name, path.read_bytes()) for name, path in zip(("three", "one", "zero", "two"), paths, strict=True)
    }
    (tmp_path / "names.txt").write_text("zero\none\n")
    with pytest.raises(
        FeedlineError, match=r"line 2: .* has the label '3', which --classes \(2 classes\) lacks"
    ):
        open_source(str(tmp_path / "list.csv"), classes=tmp_path / "names.txt")


def test_our_own_shards_packed_anew_are_the_same(packed: Path, tmp_path: Path) -> None:
    assert detect(str(packed)) == "webdataset"
    build(packed, tmp_path / "data", SMALL, workers=2)
    again, before = Dataset.open(tmp_path / "data"), Dataset.open(packed)
    assert again.fingerprint == before.fingerprint
    build(packed, tmp_path / "other", Settings(seed=4, shard_bytes=30_000), workers=1)
    assert samples(tmp_path / "other") == samples(packed)


def test_foreign_shards(imagenet: Path, packed: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for split in ("train", "val"):
        paths = sorted((imagenet / split).rglob("*.JPEG"))
        for i, part in enumerate((paths[::2], paths[1::2])):
            with tarfile.open(shards / f"in1k-{split}-{i:04d}.tar.gz", "w:gz") as tar:
                for path in part:
                    label = WNIDS.index(path.parent.name)
                    add(tar, f"some/{path.stem}.jpeg", path.read_bytes())
                    if i:
                        add(tar, f"some/{path.stem}.cls", str(label).encode())
                    else:
                        add(tar, f"some/{path.stem}.json", json.dumps({"label": label}).encode())
                add(tar, "some/lost.jpg", b"an image without a label")
                add(tar, "some/empty.cls", b"1")
                add(tar, "README.md", b"meant as no sample")
    (tmp_path / "names.txt").write_text("\n".join(WNIDS) + "\n")
    source = open_source(str(shards), classes=tmp_path / "names.txt")
    with pytest.raises(FeedlineError, match=r"8 images rejected, more than the 0 .*/some/(lost|empty): no "):
        build(source, tmp_path / "data", SMALL, workers=1)
    result = build(source, tmp_path / "data", SMALL, workers=2, max_bad="8")
    assert samples(tmp_path / "data") == samples(packed)
    rows = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert result.rejected == len(rows) == 12
    assert {row["source"].rsplit("/", 1)[1] for row in rows} == {"lost", "empty", "README"}
    assert not list((tmp_path / "data").glob(".build*"))
    glob = open_source(str(shards / "*-val-*.tar.gz"), classes=tmp_path / "names.txt")
    build(glob, tmp_path / "glob", SMALL, workers=1, max_bad="30%")  # 4 of 12 + 4 = 25 %
    assert samples(tmp_path / "glob") == {"val": samples(packed)["val"]}


def test_a_class_list_fixes_labels_and_order(imagenet: Path, tmp_path: Path) -> None:
    order = (WNIDS[2], WNIDS[0], "n09999999", WNIDS[3], WNIDS[1])
    (tmp_path / "names.txt").write_text("\n".join(order) + "\n")
    build(open_source(str(imagenet), classes=tmp_path / "names.txt"), tmp_path / "data", SMALL, workers=1)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.classes == order
    split = dataset.split("train")
    for i, source in enumerate(read_sources(split.root).to_pylist()):
        assert order[split.label[i]] == source.split("/")[1]
    (tmp_path / "names.txt").write_text(f"{WNIDS[0]}\n{WNIDS[0]}\n")
    with pytest.raises(FeedlineError, match=r"line 2: .* there twice"):
        open_source(str(imagenet), classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n".join(WNIDS[:3]) + "\n")
    with pytest.raises(FeedlineError, match=f"--classes does not list: {WNIDS[3]}"):
        open_source(str(imagenet), classes=tmp_path / "names.txt")


def test_a_subset(imagenet: Path, tmp_path: Path) -> None:
    settings = Settings(shard_bytes=60_000, subset=Subset(classes=2, per_class=3))
    build(imagenet, tmp_path / "data", settings, workers=1)
    dataset = Dataset.open(tmp_path / "data")
    assert len(dataset.classes) == 2
    for name, count in (("train", [3, 3]), ("val", [3, 3])):
        split = dataset.split(name)
        assert np.bincount(split.label).tolist() == count
        for i, source in enumerate(read_sources(split.root).to_pylist()):
            assert dataset.classes[split.label[i]] == source.split("/")[1]


def test_duplicates_and_leaks_are_reported(imagenet: Path, tmp_path: Path) -> None:
    shutil.copytree(imagenet, tmp_path / "in")
    first, second, third = sorted((tmp_path / "in" / "train" / WNIDS[0]).iterdir())[:3]
    (tmp_path / "in" / "train" / WNIDS[1] / "copy.jpg").write_bytes(first.read_bytes())
    (tmp_path / "in" / "val" / WNIDS[0] / "leak.jpg").write_bytes(second.read_bytes())
    third.with_name("again.jpg").write_bytes(third.read_bytes())
    result: Result = build(tmp_path / "in", tmp_path / "data", SMALL, workers=1)
    assert (result.duplicates, result.leaks) == (3, 1)
    rows = [json.loads(line) for line in (tmp_path / "data" / "duplicates.jsonl").read_text().splitlines()]
    found = {
        (row["across_splits"], row["labels_differ"]): {s["source"] for s in row["samples"]} for row in rows
    }
    assert found == {
        (False, True): {f"train/{WNIDS[0]}/{first.name}", f"train/{WNIDS[1]}/copy.jpg"},
        (True, False): {f"train/{WNIDS[0]}/{second.name}", f"val/{WNIDS[0]}/leak.jpg"},
        (False, False): {f"train/{WNIDS[0]}/{third.name}", f"train/{WNIDS[0]}/again.jpg"},
    }
    assert Dataset.open(tmp_path / "data").manifest["duplicates"] == {
        "groups": 3,
        "across_splits": 1,
        "labels_differ": 1,
    }


def test_on_bad_fail_names_the_file(imagenet: Path, tmp_path: Path) -> None:
    shutil.copytree(imagenet, tmp_path / "in")
    (tmp_path / "in" / "train" / WNIDS[0] / "broken.jpg").write_bytes(b"")
    settings = Settings(images=Policy(on_bad="fail"))
    with pytest.raises(FeedlineError, match=f"train/{WNIDS[0]}/broken.jpg: empty file; mend or remove it"):
        build(tmp_path / "in", tmp_path / "data", settings, workers=2)
