"""The official ImageNet tars give what the class folders give."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from shard.build import build
from shard.dataset import Dataset, read_image, read_sources
from shard.errors import FeedlineError
from shard.sources import detect, open_source
from tests.shard.conftest import SMALL, WNIDS, add
from tests.shard.test_build import digests


def write_official(imagenet: Path, root: Path) -> None:
    """The official tars and devkit of a miniature ImageNet; ILSVRC ids are not in the order of the wnids."""
    root.mkdir(parents=True, exist_ok=True)
    wnids = sorted(folder.name for folder in (imagenet / "train").iterdir())
    ids = {
        wnid: int(i) + 1
        for wnid, i in zip(wnids, np.random.default_rng(0).permutation(len(wnids)), strict=True)
    }
    assert sorted(ids, key=ids.__getitem__) != wnids
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in reversed(wnids):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path in sorted((imagenet / "train" / wnid).iterdir()):
                    add(inner, path.name, path.read_bytes())
            add(outer, f"{wnid}.tar", buffer.getvalue())
    val = sorted((imagenet / "val").rglob("*.JPEG"), key=lambda path: path.name)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in val:
            add(tar, path.name, path.read_bytes())
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(ids[wnid], wnid, "words", 0) for wnid in wnids] + [(len(wnids) + 1, "n00001740", "entity", 4)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    truth = "".join(f"{ids[path.parent.name]}\n" for path in val)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def test_the_official_tars_give_the_shards_of_the_class_folders(
    imagenet: Path, packed: Path, tmp_path: Path
) -> None:
    write_official(imagenet, tmp_path / "official")
    assert detect(str(tmp_path / "official")) == "ilsvrc"
    build(tmp_path / "official", tmp_path / "data", SMALL, workers=2)
    ours, theirs = digests(tmp_path / "data"), digests(packed)
    for manifest in (ours, theirs):  # they name the kind of source
        del manifest["dataset.json"], manifest["SHA256SUMS"]
    assert ours == theirs
    names = Dataset.open(tmp_path / "data").manifest["class_names"]
    assert names[0] == "tench, Tinca tinca"


def test_labels_are_not_those_of_the_devkits_order(imagenet: Path, tmp_path: Path) -> None:
    """The mistake to catch: ILSVRC ids minus one as labels."""
    write_official(imagenet, tmp_path / "official")
    build(tmp_path / "official", tmp_path / "data", SMALL, workers=1)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.classes == WNIDS
    split = dataset.split("val")
    for i, source in enumerate(read_sources(split.root).to_pylist()):
        assert dataset.classes[split.label[i]] == source.split("/")[1]
        assert read_image(split, i) == (imagenet / source).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
            "has no labels in it; put ILSVRC2012_devkit",
        ),
        (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"?"), "cannot read the devkit"),
        (lambda root: cut(root / "ILSVRC2012_img_train.tar", 0.6), "is no complete tar"),
        (lambda root: cut(root / "ILSVRC2012_img_val.tar", 0.5), "is no complete tar"),
    ],
)
def test_incomplete_downloads_are_told(imagenet: Path, tmp_path: Path, damage: object, message: str) -> None:
    write_official(imagenet, tmp_path / "official")
    damage(tmp_path / "official")  # type: ignore[operator]
    with pytest.raises(FeedlineError, match=message):
        build(tmp_path / "official", tmp_path / "data", SMALL, workers=1)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) // 512 * 512])


def test_a_folder_without_the_official_tars_is_told(tmp_path: Path) -> None:
    with pytest.raises(FeedlineError, match=r"holds neither ILSVRC2012_img_train\.tar nor"):
        open_source(str(tmp_path), "ilsvrc")
    with pytest.raises(FeedlineError, match=r"is no list; give a file that ends in one of \.csv"):
        open_source(str(tmp_path), "list")
