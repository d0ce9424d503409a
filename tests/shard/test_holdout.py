"""Laws of `--val`: what is held out, and what is said of classes that are on one side only."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.__main__ import main
from shard.dataset import Dataset, read_sources
from shard.errors import FeedlineError
from shard.holdout import hold_out
from shard.items import FileReader, Listing, table
from shard.labels import flat_numbers
from shard.plan import hash_order_of
from shard.synth import render
from tests.conftest import write_images
from tests.shard.test_plan import listing

CLASSES = 6
LABELS = st.lists(st.sets(st.integers(0, CLASSES - 1), max_size=3), min_size=2, max_size=60)


def several(labels: list[set[int]], order: list[int] | None = None) -> Listing:
    order = list(range(len(labels))) if order is None else order
    rows = table(
        [f"{i}.jpg".encode() for i in order], [sorted(labels[i]) for i in order], 5, multi_label=True
    )
    classes = tuple("abcdef")
    return Listing(kind="list", classes=classes, splits={"train": rows}, reader=FileReader("x"))


def names(listed: Listing, split: str) -> set[bytes]:
    return set(listed.splits[split]["source"].to_pylist())


def counts(listed: Listing, split: str) -> np.ndarray:
    return np.bincount(flat_numbers(listed.splits[split]), minlength=CLASSES)


@given(count=st.integers(4, 90), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_of_each_class_the_share_is_held_out_once_and_never_all(count: int, share: float, seed: int) -> None:
    listed = listing([5] * count)
    before = listed.splits["train"]["source"].to_pylist()
    hold_out(listed, share, seed)
    parts = {name: table["source"].to_pylist() for name, table in listed.splits.items()}
    assert sorted(parts["train"] + parts["val"]) == sorted(before)
    for label in range(3):
        images = len(range(label, count, 3))
        held_out = listed.splits["val"]["label"].to_pylist().count(label)
        assert held_out == (0 if images == 1 else min(max(round(share * images), 1), images - 1))
    again = listing([5] * count, list(reversed(range(count))))
    hold_out(again, share, seed)
    assert sorted(again.splits["val"]["source"].to_pylist()) == sorted(parts["val"])


def test_what_cannot_be_held_out() -> None:
    with pytest.raises(FeedlineError, match="nothing to hold out"):
        hold_out(listing([5] * 3), 0.2, 0)
    listed = listing([5] * 9)
    hold_out(listed, 0.2, 0)
    with pytest.raises(FeedlineError, match="source has train, val; leave it out"):
        hold_out(listed, 0.2, 0)
    listed = listing([5] * 9)
    listed.splits["validation"] = listed.splits["train"]
    with pytest.raises(FeedlineError, match="source has train, validation; leave it out"):
        hold_out(listed, 0.2, 0)
    with pytest.raises(FeedlineError, match=r"val is 1\.5; it must lie between 0 and 1"):
        hold_out(listing([5] * 9), 1.5, 0)


@given(labels=LABELS, share=st.floats(0.05, 0.6), seed=st.integers(0, 5))
def test_no_class_of_several_loses_its_last_image_for_training(
    labels: list[set[int]], share: float, seed: int
) -> None:
    listed = several(labels)
    total = counts(listed, "train")
    try:
        hold_out(listed, share, seed)
    except FeedlineError:
        of_each = [min(total[list(one)], default=2) for one in labels]
        assert max(of_each) == 1  # every image is the last of a class, of which none can be spared
        return
    train, val = (counts(listed, split) for split in ("train", "val"))
    np.testing.assert_array_equal(train + val, total)
    assert np.all(train[total > 0] > 0)
    for c in np.flatnonzero((total > 1) & (val == 0)):  # nothing to spare: each is the last of another class
        assert all(
            np.any(train[row] == 1) for row in listed.splits["train"]["labels"].to_pylist() if c in row
        )
    again = several(labels, list(reversed(range(len(labels)))))
    hold_out(again, share, seed)
    assert names(again, "val") == names(listed, "val")


def test_where_each_class_has_enough_the_choice_is_that_of_the_names_alone() -> None:
    labels = [{i % 3, 3 + i % 2} for i in range(100)]
    listed = several(labels)
    of_names = listed.splits["train"]["source"]
    first = hash_order_of(of_names, "7\0val\0")[:20]
    hold_out(listed, 0.2, 7)
    assert names(listed, "val") == {of_names[i].as_py() for i in first.tolist()}


def test_a_rare_class_of_several_is_in_both_splits() -> None:
    """With 3 of 200 images, one in two seeds of the plain share would hold out none."""
    for seed in range(20):
        listed = several(
            [{0} | ({1, 3} if i < 3 else set()) | ({2} if i == 9 else set()) for i in range(200)]
        )
        hold_out(listed, 0.2, seed)
        val = counts(listed, "val")
        assert val[1] in (1, 2)
        assert val[2] == 0  # the only one stays for training
        assert val[3] == val[1]
        assert val[0] - 40 in (0, 1)  # one image more is enough for both classes


def build_with_val(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Gives the warnings, and what JSON says is lacking."""
    command = ["build", str(source), str(out), "--workers", "1", "--max-bad", "9", "--json", *flags]
    assert main(command) == 0
    said = capsys.readouterr()
    found: dict[str, list[str]] = json.loads(said.out)["lacking"]
    return [line for line in said.err.splitlines() if line.startswith("warning")], found


def test_classes_that_are_in_one_split_only_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 4, ("ant", "bee"))
    write_images(tmp_path / "in", 1, ("cow", "dog"))
    wanted = [
        "warning: split val has no image of 2 classes (cow, dog): no accuracy is measured for them; add images, or "
        "mend those in rejected.jsonl, and build again with --overwrite"
    ]
    for _ in range(2):  # and again where it is complete
        assert build_with_val(tmp_path / "in", tmp_path / "out", capsys, "--val", "25%") == (
            wanted, {"val": ["cow", "dog"]},
        )  # fmt: skip
    assert build_with_val(tmp_path / "in", tmp_path / "whole", capsys) == ([], {})


def test_a_class_whose_training_images_do_not_decode_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 4, ("ant", "bee"))
    build_with_val(tmp_path / "in", tmp_path / "sound", capsys, "--val", "25%")
    assert Dataset.open(tmp_path / "sound").split("val").class_counts(2).tolist() == [1, 1]
    held_out = read_sources(tmp_path / "sound" / "val").to_pylist()
    for path in (tmp_path / "in" / "bee").iterdir():
        if f"bee/{path.name}" not in held_out:
            path.write_bytes(b"no image")
    warnings, lacking = build_with_val(tmp_path / "in", tmp_path / "out", capsys, "--val", "25%")
    assert lacking == {"train": ["bee"]}
    assert warnings[0].startswith(
        "warning: split train has no image of 1 class (bee): nothing can learn it; add"
    )


def test_a_class_that_no_other_split_has_either_is_not_lacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 4, ("ant", "bee"))
    (tmp_path / "names.txt").write_text("ant\nbee\ncow")
    flags = ("--classes", str(tmp_path / "names.txt"), "--val", "25%")
    assert build_with_val(tmp_path / "in", tmp_path / "out", capsys, *flags) == ([], {})


def test_many_classes_are_one_line_and_labels_count_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,label"]
    for i in range(14):
        (tmp_path / f"{i}.jpg").write_bytes(render(0, i, 0, 16, 16, 2.0))
        rows.append(f"{i}.jpg,all" + (f"|tag{i}" if i < 7 else ""))
    (tmp_path / "list.csv").write_text("\n".join(rows))
    flags = ("--multi-label", "--val", "25%")
    warnings, lacking = build_with_val(tmp_path / "list.csv", tmp_path / "out", capsys, *flags)
    assert lacking == {"val": [f"tag{i}" for i in range(7)]}
    assert "no image of 7 classes (tag0, tag1, tag2, tag3, tag4, …): no" in warnings[0]
    assert (
        len(Dataset.open(tmp_path / "out").split("val")) == 4
    )  # the share stays, of the images without a tag
