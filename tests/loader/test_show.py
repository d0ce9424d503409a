"""`python -m loader show` and `replay`: the pixels of any past batch again, alone."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from loader import (
    Compose,
    Loader,
    Order,
    PadCrop,
    RandomErasing,
    RandomResizedCrop,
    fonts,
    parse_policy,
    replay,
)
from loader.__main__ import main
from loader.show import RECIPES, make_sheet, recipe_transform, spread
from shard.dataset import Dataset
from shard.errors import FeedlineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
FULL = Compose(RandomResizedCrop(size=96), (parse_policy("rand-m9-mstd0.5-inc1"),), RandomErasing())


def install(entry_points: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let feedline look installed with these entry points, whatever its real metadata has."""
    about = folder / "feedline-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: feedline\nVersion: 0\n")
    (about / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def recipes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that pyproject.toml declares."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][RECIPES]
    lines = [f"[{RECIPES}]", *(f"{name} = {value}" for name, value in declared.items())]
    install("\n".join(lines), tmp_path_factory.mktemp("installed"), monkeypatch)


def batches(dataset: Dataset, epoch: int, **settings: Any) -> dict[int, np.ndarray]:
    """Images by sample id, of a run with other batches and ranks."""
    found = {}
    for rank in range(2):
        with Loader(dataset, "train", batch_size=5, seed=7, rank=rank, world_size=2, **settings) as loader:
            loader.set_epoch(epoch)
            for batch in loader:
                for row in range(batch.num_valid):
                    found[int(batch.ids[row])] = batch.images[row].numpy().copy()
    return found


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_replayed_images_are_those_of_the_run(dataset: Dataset, backend: str) -> None:
    transform = Compose(RandomResizedCrop(size=24), (parse_policy("3a"),), RandomErasing(probability=1.0))
    again = replay(dataset, "train", transform, [40, 3], [2, 5], seed=7, backend=backend)
    assert again.images.shape == (2, 2, 24, 24, 3)
    assert again.bad == {}
    for images, epoch in zip(again.images, (2, 5), strict=True):
        run = batches(dataset, epoch, transform=transform, shuffle=True, backend=backend)
        assert np.array_equal(images, np.stack([run[40], run[3]]))


def test_a_repetition_is_replayed(dataset: Dataset) -> None:
    crop = RandomResizedCrop(size=24)
    with Loader(
        dataset, "train", crop, batch_size=8, seed=7, shuffle=Order(shuffle="global", repeats=2)
    ) as loader:
        batch = next(iter(loader))
    assert int(batch.ids[0]) == int(batch.ids[1])
    for repetition in (0, 1):
        again = replay(dataset, "train", crop, [int(batch.ids[0])], seed=7, repetition=repetition)
        assert np.array_equal(again.images[0, 0], batch.images[repetition].numpy())


@pytest.mark.parametrize("transform", [FULL, PadCrop(size=32)])
def test_tiles_of_the_picture_are_the_images_of_the_run(dataset: Dataset, transform: Any) -> None:
    sheet = make_sheet(dataset, "train", transform, [17, 3, 60], [4, 5], seed=7)
    picture = sheet.picture()
    for column, epoch in ((1, 4), (2, 5)):
        run = batches(dataset, epoch, transform=transform)
        for row, sample in enumerate((17, 3, 60)):
            left, top = sheet.place(row, column)
            tile = np.asarray(picture.crop((left, top, left + sheet.side, top + sheet.side)))
            assert sheet.side == 96
            assert np.array_equal(tile[:: sheet.scale, :: sheet.scale], run[sample])
    assert replace(sheet, rows=("a\nb", "$x$ $y", "L" * 150)).picture().size == picture.size
    split = dataset.split("train")
    assert sheet.rows[0].startswith(f"id 17 · {dataset.classes[split.label[17]]} · {split.width[17]} x ")
    assert sheet.columns == ("epoch 4", "epoch 5")


def test_default_samples_are_spread_and_keyed(dataset: Dataset) -> None:
    split = dataset.split("train")
    chosen = spread(split, 9, seed=1)
    assert [sample // 7 for sample in chosen] == list(range(9))
    assert chosen == spread(split, 9, seed=1) != spread(split, 9, seed=2)
    assert spread(split, 1000, seed=0) == list(range(63))


def test_the_command_writes_a_png(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["--split", "val", "--epochs", "2", "--epoch", "3", "--augment", "ta_wide", "--erase", "0.5"]
    assert (
        main(["show", str(dataset.root), *arguments, "--ids", "4,9", "--size", "100", "--out", str(out)]) == 0
    )
    assert capsys.readouterr().out == f"{out}: samples 4, 9 in 2 epochs\n"
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 100
        about = sheet.text["Description"]  # type: ignore[attr-defined]
    assert "samples [4, 9], epochs [3, 4]" in about
    assert "TrivialAugmentWide" in about


def test_a_recipe_is_found_by_its_entry_point(dataset: Dataset, tmp_path: Path, recipes: None) -> None:
    out = tmp_path / "sheet.png"
    assert main(["show", str(dataset.root), "--recipe", "digits", "--rows", "2", "--out", str(out)]) == 0
    with Image.open(out) as sheet:
        assert "PadCrop(size=" in sheet.text["Description"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "63"], "there is no sample 63; split 'train' has the ids 0 … 62"),
        (["--ids=-1"], "there is no sample -1"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--recipe", "digitz"], "there is no recipe 'digitz'; did you mean 'digits'?"),
        (["--recipe", "digits", "--augment", "3a"], "--augment and --recipe exclude each other"),
        (["--augment", "4a"], "augmentation policy is '4a'"),
        (["--erase", "2"], "RandomErasing probability is 2.0"),
        (["--erase-mode", "rand"], "--erase-mode is given without --erase"),
        (["--epochs", "99999"], "show fewer samples or epochs"),
        (["--device", "meta"], "device is 'meta'"),
        (["--out", "/nowhere/show.png"], "cannot write the contact sheet /nowhere/show.png: No such file"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, recipes: None, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(dataset.root), "--size", "16", "--rows", "2", "--epochs", "1", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--out", "show.jpg"], ["--ids", "3,x"], ["--epoch", "-1"], ["--rows", "0"]]
)
def test_wrong_usage_has_status_2(dataset: Dataset, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", str(dataset.root), *arguments])
    assert caught.value.code == 2


def test_recipes_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install("", tmp_path, monkeypatch)
    with pytest.raises(FeedlineError, match="no installed package knows recipes"):
        recipe_transform("digits")


def test_a_bad_sample_is_black_and_named(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset.root, tmp_path / "copy")
    split = Dataset.open(tmp_path / "copy").split("val")
    path = split.shard_path(int(split.shard[5]))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(int(split.offset[5]))
        file.write(b"nothing")
    out = tmp_path / "sheet.png"
    assert (
        main(
            [
                "show",
                str(tmp_path / "copy"),
                "--split",
                "val",
                "--ids",
                "5,6",
                "--size",
                "16",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert "warning: sample 5 is black: its bytes have the crc32" in capsys.readouterr().err
    again = replay(tmp_path / "copy", "val", RandomResizedCrop(size=16), [5, 6])
    assert again.images[0, 0].max() == 0 < again.images[0, 1].max()


def test_captions_have_a_font_with_their_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    dejavu = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(fonts, "_FILES", ("no such file.ttf", str(dejavu)))
    own = fonts.font_for("dog", 12)
    assert own.getname() != ("DejaVu Sans", "Book")
    assert fonts.font_for("кошка", 12).getname() == ("DejaVu Sans", "Book")
    assert fonts.font_for("кошка 日本", 12).getname() == ("DejaVu Sans", "Book")  # most of it
    assert fonts.font_for("日本", 12) is own  # nobody has it
