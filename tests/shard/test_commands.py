"""index, unpack, synth, diff and info, as a user calls them; and readers of the format that are not ours."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from timm.data import create_dataset

from loader import Loader, ResizeCenterCrop
from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset, read_image
from shard.plan import Settings
from shard.synth import shapes
from shard.verify import verify
from tests.conftest import write_images
from tests.shard.hostile import corpus
from tests.shard.test_build import digests
from tests.shard.test_sources import add


def out(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_unpack_gives_the_source_back(images: Path, dataset: Dataset, tmp_path: Path) -> None:
    assert main(["unpack", str(dataset.root), str(tmp_path / "all")]) == 0
    assert digests(tmp_path / "all") == digests(images)
    assert main(["unpack", str(dataset.root), str(tmp_path / "one"), "--splits", "val"]) == 0
    assert digests(tmp_path / "one" / "val") == digests(images / "val")
    assert not (tmp_path / "one" / "train").exists()


def test_unpack_loses_no_file_of_the_same_name_and_writes_into_no_used_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        write_images(tmp_path / "in" / "cat" / folder, 2, (".",), seed=ord(folder))
    (tmp_path / "in" / "cat" / "x.png").write_bytes(corpus()["alpha.png"].data)
    build(tmp_path / "in", tmp_path / "data", workers=1)
    assert main(["unpack", str(tmp_path / "data"), str(tmp_path / "back")]) == 0
    names = sorted(path.name for path in (tmp_path / "back" / "train" / "cat").iterdir())
    assert len(names) == 5
    assert "x.png.jpg" in names
    capsys.readouterr()
    assert main(["unpack", str(tmp_path / "data"), str(tmp_path / "back")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["cut short", "zeros"])
def test_pictures_are_not_taken_out_of_a_damaged_shard(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    shutil.copytree(dataset.root, tmp_path / "data")
    split = Dataset.open(tmp_path / "data").split("train")
    shard, first = split.shard_path(0), int(split.offset[0])
    data = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(data[: first + 10] + bytes(0 if how == "cut short" else len(data) - first - 10))
    for command in (["unpack", str(tmp_path / "data")], ["info", str(tmp_path / "data"), "--out"]):
        assert main([*command, str(tmp_path / command[0])]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{shard} does not hold the bytes of sample" in line
    assert not [path for path in (tmp_path / "unpack").rglob("*") if path.is_file()]


def test_diff(images: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(dataset.root), str(dataset.root)]) == 0
    assert "hold the same samples" in out(capsys)
    build(images, tmp_path / "seeded", Settings(seed=3), workers=1)
    assert main(["diff", str(dataset.root), str(tmp_path / "seeded")]) == 0
    assert "in another order" in out(capsys)
    changed = tmp_path / "changed"
    shutil.copytree(images, changed)
    (changed / "val" / "ant" / "000.jpg").unlink()
    (changed / "train" / "ant" / "001.jpg").rename(changed / "train" / "ant" / "new.jpg")
    (changed / "train" / "bee" / "002.jpg").write_bytes((changed / "train" / "bee" / "003.jpg").read_bytes())
    build(changed, tmp_path / "other", workers=1)
    assert main(["diff", str(dataset.root), str(tmp_path / "other"), "--json"]) == 1
    found = json.loads(out(capsys))
    assert not found["equal"]
    train, val = found["splits"]["train"], found["splits"]["val"]
    assert (train["only_a"], train["only_b"], train["bytes"], train["label"]) == (1, 1, 1, 0)
    assert train["examples"] == {
        "only_a": ["train/ant/001.jpg"],
        "only_b": ["train/ant/new.jpg"],
        "bytes": ["train/bee/002.jpg"],
    }
    assert (val["only_a"], val["only_b"]) == (1, 0)
    assert main(["diff", str(dataset.root), str(tmp_path / "other")]) == 1
    assert "val: 1 only in" in out(capsys)


def test_diff_where_names_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "in", 6)
    photos = [path for name in ("ant", "bee") for path in sorted((tmp_path / "in" / name).iterdir())]

    def merged(name: str, images: list[bytes], labels: list[int], order: str = "t0,t6") -> str:
        """Two tars with the same names, as those of our packer are that had the same folders; packed together."""
        for half in (0, 6):
            (tmp_path / name / f"t{half}").mkdir(parents=True)
            with tarfile.open(tmp_path / name / f"t{half}" / "x.tar", "w") as tar:
                for i in range(6):
                    about = {"label": labels[half + i], "source": f"{i % 3}.jpg"}
                    add(tar, f"{i}.jpg", images[half + i])
                    add(tar, f"{i}.json", json.dumps(about).encode())
        build(f"{tmp_path / name}/{{{order}}}/x.tar", tmp_path / f"{name}-packed", workers=1)
        return str(tmp_path / f"{name}-packed")

    images, labels = [path.read_bytes() for path in photos], [0] * 6 + [1] * 6
    first = merged("first", images, labels)
    for other in (first, merged("turned", images, labels, "t6,t0")):
        assert main(["diff", first, other]) == 0
        assert "hold the same samples" in out(capsys)
    changed = [*images[:4], photos[4].with_name("005.jpg").read_bytes(), *images[5:]]
    relabelled = [*labels[:8], 0, *labels[9:]]
    for other, key, name in (
        (merged("changed", changed, labels), "bytes", "1.jpg"),
        (merged("relabelled", images, relabelled), "label", "2.jpg"),
    ):
        assert main(["diff", first, other, "--json"]) == 1
        train = json.loads(out(capsys))["splits"]["train"]
        expected = dict.fromkeys(("only_a", "only_b", "label", "bytes"), 0)
        assert train == {**expected, key: 1, "examples": {key: [name]}}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Shards as somebody else writes them."""
    root = tmp_path / "foreign"
    write_images(tmp_path / "in", 5)
    root.mkdir()
    for number, (label, folder) in enumerate(
        (i, f) for i, f in enumerate(("ant", "bee", "cat")) for _ in "x"
    ):
        with tarfile.open(root / f"web-train-{number:03d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted((tmp_path / "in" / folder).iterdir()):
                key = f"{folder}/{path.stem}"
                add(tar, f"{key}.jpg", path.read_bytes())
                add(tar, f"{key}.cls", str(label).encode())
            add(tar, "bare/text.txt", b"no image")
            add(tar, "bare/png.png", corpus()["alpha.png"].data)
            add(tar, "bare/png.cls", b"0")
    return root


def test_index_uses_shards_unchanged(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(foreign)
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")
    arguments = ["index", str(foreign / "*.tar"), "--out", str(tmp_path / "data"), "--classes", str(names)]
    assert main([*arguments, "--jobs", "2"]) == 0
    assert "15 samples indexed" in out(capsys)
    assert digests(foreign) == before
    assert verify(tmp_path / "data", decode=True) == []
    rejected = (tmp_path / "data" / "rejected.jsonl").read_text()
    assert rejected.count("no image") == 3
    assert rejected.count("png.png is no JPEG that the loader can decode") == 3
    with Loader(tmp_path / "data", "train", ResizeCenterCrop(size=32, resize=32), batch_size=15) as loader:
        (batch,) = list(loader)
    # write_images puts the class into the colour
    assert (batch.images.float().mean(dim=(1, 2)).argmax(dim=1) == batch.labels).all()
    tar = foreign / "web-train-001.tar"
    data = bytearray(tar.read_bytes())
    data[9000] ^= 1
    tar.write_bytes(data)
    assert any(str(tar) in problem for problem in verify(tmp_path / "data"))
    assert main(arguments) == 1
    assert "already holds a dataset" in capsys.readouterr().err


def test_index_in_place(foreign: Path, tmp_path: Path) -> None:
    root = tmp_path / "place"
    (root / "train").mkdir(parents=True)
    for path in foreign.iterdir():
        shutil.copy(path, root / "train" / path.name)
    assert main(["index", str(root), "--out", str(root), "--jobs", "1"]) == 0
    root = root.rename(tmp_path / "moved")
    assert verify(root) == []
    assert Dataset.open(root).classes == ("0", "1", "2")


def test_synth_is_deterministic_learnable_and_of_imagenets_sizes(tmp_path: Path) -> None:
    arguments = ["--samples", "40", "--classes", "4", "--val-samples", "8"]
    for name, workers in (("one", "1"), ("two", "2")):
        assert main(["synth", str(tmp_path / name), *arguments, "--workers", workers]) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert verify(tmp_path / "one", decode=True) == []
    assert main(["synth", str(tmp_path / "tiny"), "--samples", "30", "--classes", "3", "--size", "24"]) == 0
    tiny = Dataset.open(tmp_path / "tiny").split("train")
    assert set(tiny.width.tolist()) == set(tiny.height.tolist()) == {24}
    assert np.bincount(tiny.label).tolist() == [10, 10, 10]
    # Means of colours tell the classes apart: the nearest class mean is right for most of the other split.
    dataset = Dataset.open(tmp_path / "one")
    means = {}
    for name in ("train", "val"):
        split = dataset.split(name)
        colours = [
            np.asarray(Image.open(io.BytesIO(read_image(split, i)))).mean((0, 1)) for i in range(len(split))
        ]
        means[name] = np.array(colours), split.label
    centres = np.stack([means["train"][0][means["train"][1] == c].mean(0) for c in range(4)])
    distance = np.linalg.norm(means["val"][0][:, None] - centres, axis=2)
    assert (distance.argmin(1) == means["val"][1]).mean() >= 0.75


def test_synthetic_sizes_are_distributed_as_imagenets() -> None:
    width, height, bits = shapes(0, np.arange(20_000), None)
    size_bytes = width * height * bits / 8
    # Of the 500 images measured: 110,078 bytes in the mean, 107,816 in the median, 21 % of 500 x 375.
    assert 100_000 < size_bytes.mean() < 121_000
    assert 97_000 < np.median(size_bytes) < 119_000
    assert 0.19 < ((width == 500) & (height == 375)).mean() < 0.23


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "3", "--classes", "4"], "samples is 3; it must be at least 4"),
        (["--samples", "9", "--classes", "0"], "classes is 0"),
        (["--samples", "9", "--classes", "3", "--size", "4"], "size is 4; it must be at least 8"),
        (["--samples", "9", "--classes", "3", "--val-samples", "2"], "val_samples is 2"),
    ],
)
def test_synth_out_of_range(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synth", str(tmp_path / "x"), *flags]) == 1
    assert message in capsys.readouterr().err


def test_info_writes_a_self_contained_page(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(dataset.root), "--out", str(tmp_path / "info"), "--json"]) == 0
    figures = json.loads(out(capsys))
    assert {Path(path).name for path in figures["files"]} == {
        "classes.png",
        "sizes.png",
        "bytes.png",
        "info.html",
    }
    for name in ("classes", "sizes", "bytes"):
        picture = np.asarray(Image.open(tmp_path / "info" / f"{name}.png").convert("L"))
        assert picture.std() > 10
    page = (tmp_path / "info" / "info.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/jpeg") == 3 * 6
    assert page.count("data:image/png") == 3
    for name in dataset.classes:
        assert f"<b>{name}<br>" in page


def test_hugging_face_reads_the_shards(dataset: Dataset, tmp_path: Path) -> None:
    files = [str(path) for path in sorted((dataset.root / "train").glob("*.tar"))]
    read = load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path), streaming=False
    )
    split = dataset.split("train")
    assert read["cls"] == split.label.tolist()
    assert [row["source"] for row in read["json"]] == [
        json.loads(line)["source"] for line in sources_of(dataset, "train")
    ]
    assert [image.size for image in read["jpg"]] == list(
        zip(split.width.tolist(), split.height.tolist(), strict=True)
    )


def sources_of(dataset: Dataset, split: str) -> list[str]:
    lines = []
    for path in sorted((dataset.root / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            lines += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".json")]  # type: ignore[union-attr]
    return lines


def test_timm_reads_the_shards(dataset: Dataset) -> None:
    split = dataset.split("val")
    last = len(split.shards) - 1
    read = create_dataset(
        "wds/",
        root=str(dataset.root / "val"),
        split=f"shard-{{000000..{last:06d}}}.tar|{len(split)}",
        is_training=False,
    )
    found = sorted((image.size, label) for image, label in read)
    expected = zip(split.width.tolist(), split.height.tolist(), split.label.tolist(), strict=True)
    assert found == sorted(((width, height), label) for width, height, label in expected)


def test_a_class_that_is_no_folder_name_is_told(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset.root, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    manifest["classes"][0] = "../ant"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(manifest))
    assert main(["unpack", str(tmp_path / "data"), str(tmp_path / "back")]) == 1
    assert "class '../ant' cannot be the name of a folder" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
