"""Images from outside of a dataset: how they are found, read, and treated."""

from __future__ import annotations

import json
import re
import tarfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from bench.slow_server import SlowServer
from shard.dataset import Dataset, read_image
from shard.image import Checked, Policy
from tests.train.outside import pixels_of
from tests.train.runs import make_run
from train import checkpoint
from train.__main__ import main
from train.inference import Network
from train.predict import Bad, Given, find_images, load_image
from train.trained import load_trained


@pytest.fixture(scope="module")
def run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = Dataset.open(dataset_dir).classes
    return make_run(
        tmp_path_factory.mktemp("run") / "mine", "test_efficientnet", classes, 24, data=dataset_dir
    )


def every(*names: str | Path) -> list[str | Given | Bad]:
    return list(find_images([str(name) for name in names], ()))


def test_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", ".hidden.jpg", "notes.txt", "sub/c.jpeg", "sub/[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()

    def found(*arguments: str, listed: tuple[str, ...] = ()) -> list[str | Bad]:
        prefix = f"{tmp_path}/"
        given = find_images([a if a == "-" else prefix + a for a in arguments], [prefix + x for x in listed])
        names: list[str | Bad] = []
        for one in given:
            assert not isinstance(one, Given)
            if isinstance(one, Bad):
                names.append(Bad(one.name.removeprefix(prefix), one.reason))
            else:
                names.append(one.removeprefix(prefix))
        return names

    assert found("") == ["a.PNG", "b.jpg", "sub/[1].jpg", "sub/c.jpeg"]
    assert found("b.jpg", "notes.txt", "b.jpg") == ["b.jpg", "notes.txt", "b.jpg"]
    assert found("**/*.jp*g") == ["b.jpg", "sub/[1].jpg", "sub/c.jpeg"]
    assert found("sub/[1].jpg") == ["sub/[1].jpg"]  # a file of that name comes before the pattern
    assert found("*.gif") == [Bad("*.gif", "no file matches this pattern")]
    assert found("empty") == [Bad("empty", "no image files in this folder")]
    assert found("-", "b.jpg", listed=("sub\n", "*.jpg\r\n")) == [
        "sub/[1].jpg",
        "sub/c.jpeg",
        "*.jpg",
        "b.jpg",
    ]
    assert list(find_images(["-"], ["\n", ""])) == []


def test_links_in_a_folder_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "a")
    assert every(tmp_path / "a") == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/a/linked/2.jpg"]


@pytest.fixture
def sideways(tmp_path: Path) -> Path:
    """A photo of 40 × 20 pixels, white on its left, which is to be turned: what is on the left goes to the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=100, exif=exif)
    return tmp_path / "p.jpg"


@pytest.mark.parametrize(
    ("built", "upright"),
    [
        (Policy(exif="apply"), True),
        (Policy(exif="strip"), False),
        (Policy(exif="keep"), False),
        (None, False),
    ],
)
def test_images_are_treated_as_those_of_the_dataset(
    built: Policy | None, upright: bool, run: Path, sideways: Path, tmp_path: Path
) -> None:
    content = checkpoint.load(run / "checkpoints" / "best.pt")
    content.pop("format")
    if built is not None:
        content["images"] = asdict(replace(built, short_side=10, quality=100))
    checkpoint.save(tmp_path / "other.pt", content)
    trained = load_trained(run, str(tmp_path / "other.pt"))
    (pixels,) = pixels_of(trained, sideways).float()  # the middle of the longer side
    if upright:
        assert pixels[:8].mean() > 230
        assert pixels[-8:].mean() < 25
    else:
        assert pixels[:, :8].mean() > 230
        assert pixels[:, -8:].mean() < 25
    image = load_image(str(sideways), trained.images)
    assert isinstance(image, Checked)
    assert min(image.width, image.height) == (20 if built is None else 10)


def test_what_is_not_turned_is_told_once(
    run: Path, sideways: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(sideways).save(sideways.with_name("q.webp"), exif=Image.open(sideways).getexif())
    flags = ["predict", str(run), str(sideways.parent), "--device", "cpu"]
    for more, said in (
        ([], rf"note: 2 images are not upright \({sideways} …\), .*; --exif apply turns them\n"),
        (["--exif", "strip"], ""),
        (["--exif", "apply"], ""),
    ):
        assert main([*flags, *more]) == 0
        assert re.fullmatch(said, capsys.readouterr().err)


def packed(dataset: Dataset, root: str | Path) -> list[Given]:
    """What is to be found in a dataset that is reached at `root`."""
    found = []
    for name in dataset.split_names:
        split = dataset.split(name)
        for i in range(len(split)):
            shard = f"{root}/{name}/{split.shards[split.shard[i]]}"
            found.append(Given(f"{shard}/{split.key(i)}", read_image(split, i)))
    return found


def test_datasets_and_shards_hold_images(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = Dataset.open(dataset_dir)
    expected = packed(dataset, dataset_dir)
    assert len(expected) == 162
    assert every(dataset_dir) == expected
    assert (
        every(dataset_dir / "train" / "*.tar", dataset_dir / "val" / "shard-{000000..000000}.tar") == expected
    )
    with SlowServer(dataset_dir) as server:
        far = packed(dataset, server.url)
        assert every(server.url) == far
        assert every(f"{server.url}/{{train,val}}/shard-000000.tar") == far
        some = every(f"{server.url}/val/shard-00000{{1,0}}.tar", f"{server.url}/none.jpg")
    assert [one for one in some if isinstance(one, Given)] == [one for one in far if "/val/" in one.name]
    assert isinstance(some[0], Bad)
    assert (some[0].name, "not found" in some[0].reason) == (f"{server.url}/val/shard-000001.tar", True)
    assert isinstance(load_image(f"{server.url}/none.jpg", Policy()), Bad)


def test_links_with_a_query(dataset_dir: Path, tmp_path: Path, photos: list[bytes]) -> None:
    """As of a picture that somebody shared, with a signature behind its name."""
    (tmp_path / "a.jpg").write_bytes(photos[0])
    with SlowServer(tmp_path) as server:
        name = f"{server.url}/a.jpg?key=1"
        assert every(name) == [name]
        assert isinstance(load_image(name, Policy()), Checked)
        missing = load_image(f"{server.url}/b.jpg?key=1", Policy())
        (other,) = every(f"{server.url}/photo")
    assert isinstance(missing, Bad)
    assert missing.reason.startswith("not found (404")
    assert isinstance(other, Bad)
    assert other.reason.endswith("; an image's URL ends in .jpg or the like")


def test_shards_with_a_query(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", [("a.jpg", b"0")])
    make_tar(tmp_path / "1.TAR.GZ", [("b.jpg", b"1")], "w:gz")
    query = "?X-Amz-Date=20261129&X-Amz-Signature=0a1b"
    with SlowServer(tmp_path) as server:
        *found, missing = every(f"{server.url}/1.TAR.GZ{query}", f"{server.url}/{{0,2}}.tar{query}")
        assert found == [
            Given(f"{server.url}/1.TAR.GZ{query}/b", b"1"),
            Given(f"{server.url}/0.tar{query}/a", b"0"),
        ]
        for shard, script in (("0.tar", "get?file=0.tar"), ("1.TAR.GZ", "get?file=1.tar.gz")):
            (tmp_path / "get").write_bytes((tmp_path / shard).read_bytes())
            (image,) = every(f"{server.url}/{script}")
            assert isinstance(image, Given)
        # The path decides, where it can.
        assert every(f"{server.url}/0.tar?n=t.tar.gz") == [Given(f"{server.url}/0.tar?n=t.tar.gz/a", b"0")]
        assert every(f"{server.url}/a.jpg?from=0.tar") == [f"{server.url}/a.jpg?from=0.tar"]
        assert isinstance(missing, Bad)
        assert (missing.name, missing.reason[:14]) == (f"{server.url}/2.tar{query}", "not found (404")


def test_braces_that_do_not_match(tmp_path: Path) -> None:
    name = f"{tmp_path}/a-{{0..3.tar"
    assert every(name) == [Bad(name, "its braces { } do not match")]


def test_patterns_of_shards_in_a_bucket(
    dataset_dir: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{s3}/{uuid.uuid4().hex}"
    fs, inside = fsspec.core.url_to_fs(url)
    fs.put(str(dataset_dir), inside, recursive=True)
    far = packed(Dataset.open(dataset_dir), url)
    assert every(url) == far
    assert every(f"{url}/val/*.tar") == [one for one in far if "/val/" in one.name]
    assert every(f"{url}/none/*.tar") == [Bad(f"{url}/none/*.tar", "no shard matches this pattern")]


def test_output_that_is_not_finite_is_of_one_image(
    run: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = Network.logits

    def broken(self: Network, images: torch.Tensor) -> torch.Tensor:
        found = logits(self, images)
        found[2] = torch.nan
        return found

    monkeypatch.setattr(Network, "logits", broken)
    folder = dataset_dir.parent / "images" / "val" / "class0"
    assert main(["predict", str(run), str(folder), "--device", "cpu", "--format", "jsonl"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["image"][-5:] for line in said.out.splitlines()] == [
        f"{i}.jpg" for i in "013456"
    ]
    assert said.err.startswith(f"{folder}/2.jpg: the network's output is not finite; try --precision fp32")


def make_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, BytesIO(content))


def test_shards_of_others(tmp_path: Path) -> None:
    members = [
        *(("a/1.left.jpg", b"1"), ("a/1.right.PNG", b"2"), ("a/1.json", b"{}")),
        *(("b.jpg", b"3"), ("b.cls", b"7"), ("._b.jpg", b"4"), ("c.txt", b"5")),
    ]
    make_tar(tmp_path / "plain.tar", members)
    make_tar(tmp_path / "packed.tar.gz", members, "w:gz")
    make_tar(tmp_path / "packed.tgz", members, "w:gz")
    make_tar(tmp_path / "texts.tar", members[-1:])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "plain.tar").read_bytes()[:3000])
    (tmp_path / "text.tar").write_text("no tar")
    names = ["a/1.left.jpg", "a/1.right.PNG", "b"]
    for shard in ("plain.tar", "packed.tar.gz", "packed.tgz"):
        wanted = [Given(f"{tmp_path}/{shard}/{name}", b"%d" % i) for i, name in enumerate(names, start=1)]
        assert every(tmp_path / shard) == wanted
    assert every(tmp_path / "pl*") == every(tmp_path / "plain.tar")
    (none,) = every(tmp_path / "texts.tar")
    assert none == Bad(f"{tmp_path}/texts.tar", "no images in this shard")
    *before, last = every(tmp_path / "cut.tar")
    assert [one for one in before if isinstance(one, Given)] == before
    assert isinstance(last, Bad)
    assert "is no complete tar" in last.reason
    for name, reason in (("text.tar", "is no complete tar"), ("none.tar", "No such file or directory")):
        (bad,) = every(tmp_path / name)
        assert isinstance(bad, Bad)
        assert reason in bad.reason
    (hint,) = every(tmp_path)
    assert hint == Bad(
        str(tmp_path), f"no image files in this folder; for its shards give '{tmp_path}/**/*.tar'"
    )


def test_predictions_of_shards_go_on_behind_a_broken_one(
    run: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes((dataset_dir / "val" / "shard-000000.tar").read_bytes()[:20_000])
    flags = ["--device", "cpu", "--format", "jsonl", "--batch-size", "16"]
    assert main(["predict", str(run), str(broken), f"{dataset_dir}/val/*.tar", *flags]) == 1
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    near, first = ([x for x in lines if (str(broken) in x["image"]) == here] for here in (False, True))
    assert len(near) == 42
    assert 0 < len(first) < 42
    assert [x["predictions"][0]["class"] for x in first] == [
        x["predictions"][0]["class"] for x in near[: len(first)]
    ]
    assert re.match(rf"{broken}: .* is no complete tar: .*\n1 could not be predicted\n", said.err)
