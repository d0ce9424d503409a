"""Multi-label datasets: packed from lists and Parquet, and what other commands do with them."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.__main__ import main
from shard.dataset import Dataset, read_sources
from shard.errors import FeedlineError
from shard.labels import LISTS, LabelLists, cls_text, parse_cls
from shard.sources import open_source
from shard.sources.parquet import columns
from shard.synth import render
from tests.shard.test_build import digests

# Classes are numbered in sorted order: blue, left, red.
LABELS = {"a": ["red", "left"], "b": [], "c": ["blue"], "d": ["left"], "e": ["left", "red"], "f": ["red"]}
NUMBERS = {"a": [1, 2], "b": [], "c": [0], "d": [1], "e": [1, 2], "f": [2]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images, and the same labels as CSV and as JSON lines."""
    root = tmp_path_factory.mktemp("source")
    rows = ["path,label"]
    objects = []
    for i, (name, labels) in enumerate(LABELS.items()):
        (root / f"{name}.jpg").write_bytes(render(0, i, 0, 16, 16, 2.0))
        rows.append(f"{name}.jpg,{' | '.join(labels)}")
        objects.append(json.dumps({"path": f"{name}.jpg", "label": labels}))
    (root / "list.csv").write_text("\n".join(rows))
    (root / "list.jsonl").write_text("\n".join(objects))
    return root


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    out = source / "packed"
    assert main(["build", str(source / "list.csv"), str(out), "--multi-label", "--workers", "1"]) == 0
    return out


def labels(root: Path, split: str = "train") -> dict[str, list[int]]:
    found = Dataset.open(root).split(split)
    assert found.lists is not None
    names = [Path(name).stem for name in read_sources(found.root).to_pylist()]
    return {name: found.lists[i] for i, name in enumerate(names)}


def test_a_list_gives_every_sample_all_its_classes(packed: Path) -> None:
    dataset = Dataset.open(packed)
    assert dataset.multi_label
    assert dataset.classes == ("blue", "left", "red")
    assert labels(packed) == NUMBERS
    manifest = json.loads((packed / "dataset.json").read_text())
    assert (manifest["format_version"], manifest["multi_label"]) == (3, True)
    index = pq.read_table(packed / "train" / "index.parquet")
    assert index.schema.field("labels").type == LISTS
    assert "label" not in index.column_names
    split = dataset.split("train")
    assert split.class_counts(3).tolist() == [1, 3, 3]
    assert [len(samples) for samples in split.by_class(np.arange(6), 3)] == [1, 3, 3]


def test_shards_hold_numbers_and_names(packed: Path) -> None:
    found = {}
    with tarfile.open(packed / "train" / "shard-000000.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    about = {key: json.loads(data) for key, data in found.items() if key.endswith(".json")}
    by_source = {
        Path(one["source"]).stem: (found[key.replace("json", "cls")], one["classes"])
        for key, one in about.items()
    }
    assert by_source["a"] == (b"1,2", ["left", "red"])
    assert by_source["b"] == (b"", [])
    with pytest.raises(ValueError, match="invalid literal"):
        int(by_source["a"][0])  # a reader that knows of one label only


def test_json_lines_and_parquet_give_the_same(source: Path, packed: Path, tmp_path: Path) -> None:
    flags = ["--multi-label", "--workers", "1"]
    assert main(["build", str(source / "list.jsonl"), str(tmp_path / "json"), *flags]) == 0
    names = ("dataset.json", "SHA256SUMS")  # they name the source
    same, there = (
        {k: v for k, v in digests(root).items() if k not in names} for root in (tmp_path / "json", packed)
    )
    assert same == there
    images = [{"bytes": (source / f"{name}.jpg").read_bytes(), "path": f"{name}.jpg"} for name in LABELS]
    info = {"label": {"feature": {"names": ["blue", "left", "red"], "_type": "ClassLabel"}, "_type": "List"}}
    table = pa.table({"image": images, "label": pa.array(list(NUMBERS.values()), pa.list_(pa.int64()))})
    metadata = {"huggingface": json.dumps({"info": {"features": info}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    assert main(["build", str(tmp_path / "train.parquet"), str(tmp_path / "parquet"), *flags]) == 0
    assert Dataset.open(tmp_path / "parquet").classes == ("blue", "left", "red")
    assert {k.split("-")[-1]: v for k, v in labels(tmp_path / "parquet").items()} == NUMBERS


@pytest.mark.parametrize("kind", [pa.large_list(pa.int32()), pa.list_(pa.int64(), 2)], ids=str)
def test_lists_of_every_kind_are_labels(kind: pa.DataType) -> None:
    """Polars writes large ones."""
    schema = pa.schema([("image", pa.binary()), ("label", kind)])
    assert columns(schema, "x.parquet", multi_label=True).label == "label"


def test_a_share_of_all_images_is_held_out(source: Path, tmp_path: Path) -> None:
    command = ["build", str(source / "list.csv"), str(tmp_path / "data"), "--multi-label", "--workers", "1"]
    assert main([*command, "--val", "34%"]) == 0
    train, val = (labels(tmp_path / "data", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert train | val == NUMBERS


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("red||left", "an empty name"),
        ("red|red", "there twice"),
        ("red|green", "lacks"),
    ],
)
def test_cells_that_cannot_be_read(source: Path, tmp_path: Path, cell: str, message: str) -> None:
    (tmp_path / "names.txt").write_text("blue\nleft\nred")
    (tmp_path / "list.csv").write_text(f"path,label\n{source / 'a.jpg'},{cell}\n")
    with pytest.raises(FeedlineError, match=message):
        open_source(str(tmp_path / "list.csv"), classes=tmp_path / "names.txt", multi_label=True)


@pytest.mark.parametrize("label", [[["red"]], {"red": 1}, ["red", None]])
def test_names_of_a_list_are_texts(source: Path, tmp_path: Path, label: object) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": str(source / "a.jpg"), "label": label}))
    with pytest.raises(FeedlineError, match="what is no name;"):
        open_source(str(tmp_path / "list.jsonl"), multi_label=True)


def test_a_list_of_labels_needs_the_flag(source: Path) -> None:
    with pytest.raises(FeedlineError, match=r"line 1: label is a list, .*--multi-label"):
        open_source(str(source / "list.jsonl"))


def test_names_that_look_like_several_are_told(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = (source / "list.csv").read_text().splitlines()
    rows = [row if row.split(",")[1] else f"{row.split(',')[0]},other" for row in listed]
    (source / "one.csv").write_text("\n".join(rows))
    assert main(["build", str(source / "one.csv"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "is taken for the name of one class" in capsys.readouterr().err


def test_verify_finds_another_label(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(packed), "--decode"]) == 0
    other = shutil.copytree(packed, tmp_path / "other")
    tar = other / "train" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"1,2", b"0,2"))
    capsys.readouterr()
    assert main(["verify", str(other)]) == 1
    assert "its label in the tar is [0, 2], index.parquet says [1, 2]" in capsys.readouterr().out


def test_info_diff_and_the_page_know_several_labels(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(packed), "--json", "--out", str(tmp_path / "info")]) == 0
    figures = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert figures["labels_mean"] == pytest.approx(7 / 6)
    assert figures["class_samples_max"] == 3
    assert main(["info", str(packed)]) == 0
    assert "classes per sample, mean" in capsys.readouterr().out
    assert main(["diff", str(packed), str(packed)]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["unpack", "PACKED", "OUT"], "unpack is not available for multi-label"),
        (["build", "PACKED", "OUT"], "anew is not available for multi-label"),
        (["index", "PACKED/train", "--out", "OUT"], "anew is not available for multi-label"),
        (["build", "LIST", "OUT", "--multi-label", "--subset", "classes=1"], "--subset is not available"),
        (["build", "PACKED", "OUT", "--multi-label"], "--multi-label is for lists and Parquet"),
    ],
)
def test_what_needs_one_class_a_sample_refuses(
    source: Path,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    places = {"PACKED": packed, "OUT": tmp_path / "out", "LIST": source / "list.csv"}
    for name, path in places.items():
        command = [word.replace(name, str(path)) for word in command]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_labels_that_are_no_single_ones_are_not_given_as_such(packed: Path) -> None:
    with pytest.raises(FeedlineError, match="multi-label"):
        _ = Dataset.open(packed).split("train").label


def test_multi_hot_follows_the_ids() -> None:
    lists = LabelLists.of(pa.chunked_array([[[2, 0], []], [[1]]], LISTS), 3)
    found = lists.multi_hot(np.array([2, 0, 1, 0]))
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert found.dtype == np.float32
    again = lists.repeated(2)
    assert [again[i] for i in range(len(again))] == [[2, 0], [], [1]] * 2
    with pytest.raises(ValueError, match="outside"):
        LabelLists.of(pa.chunked_array([[[3]]], LISTS), 3)


@pytest.mark.parametrize("label", [[], [0], [2, 10]])
def test_cls_reads_back(label: list[int]) -> None:
    assert parse_cls(cls_text(label)) == label


@pytest.mark.parametrize("text", ["1,", "a", "-1", "1 2"])
def test_what_is_no_list_of_numbers_is_none(text: str) -> None:
    assert parse_cls(text) is None
