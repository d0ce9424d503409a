"""Features, their file, classification by neighbours and search."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from loader import Loader
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.train.runs import make_run
from train.__main__ import main
from train.features import Extractor, Features, pooled
from train.knn import Bank, KnnAccuracy, nearest, votes
from train.model import Normalized
from train.neighbours import Search
from train.trained import load_trained

CLASSES = tuple(f"class{i}" for i in range(6))


@pytest.fixture(scope="module")
def run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "mine", "test_resnet", CLASSES, 32, data=dataset_dir)


def images_of(run: Path, split: str) -> torch.Tensor:
    trained = load_trained(run)
    transform = trained.config.input.eval_transform()
    with Loader(trained.dataset(), split, transform, batch_size=500, threads=1) as loader:
        batch = next(iter(loader))
    return batch.images[batch.valid]


def test_layers_are_averaged_to_vectors(run: Path) -> None:
    net = load_trained(run).net
    images = images_of(run, "val")[:4]
    pixels = net.normalize(images)
    headless = timm.create_model("test_resnet", num_classes=0).eval()
    headless.load_state_dict(net.model.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(Extractor(net)(images), headless(pixels), rtol=1e-4, atol=1e-4)
        middle = headless.forward_intermediates(pixels, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(Extractor(net, "layer3")(images), middle.mean((2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Extractor(net, "fc")(images), net(images))


def test_tokens_are_averaged_without_the_class_token() -> None:
    vit = timm.create_model("test_vit")
    assert vit.num_prefix_tokens == 1
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(pooled(tokens, vit), tokens[:, 1:].mean(1))
    maps = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(pooled(maps, vit), maps.mean((2, 3)))
    torch.testing.assert_close(pooled(maps.movedim(1, 3), vit), maps.mean((2, 3)))
    torch.testing.assert_close(pooled(maps[:, :, :3, :3], vit), maps[:, :, :3, :3].mean((2, 3)))
    vit.output_fmt = "NHWC"
    torch.testing.assert_close(pooled(maps[:, :, :3, :3], vit), maps[:, :, :3, :3].mean((1, 2)))
    with pytest.raises(FeedlineError, match=r"gives tensors \(2, 2, 101, 32\), of which there is no mean"):
        pooled(torch.zeros(2, 2, 101, 32), vit)  # heads of an attention
    with pytest.raises(FeedlineError, match=r"gives tensors \(2, 1, 1, 1, 1\), of which there is no mean"):
        pooled(torch.zeros(2, 1, 1, 1, 1), vit)


def test_maps_within_a_block_have_the_channels_last() -> None:
    net = Normalized(timm.create_model("test_convnext"), (0.5,) * 3, (0.5,) * 3).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    kept: list[torch.Tensor] = []
    net.model.get_submodule("stages.2.blocks.0.mlp").register_forward_hook(lambda m, x, y: kept.append(y))
    found = Extractor(net, "stages.2.blocks.0.mlp")(images)
    assert kept[0].shape == (2, 4, 4, 48)
    torch.testing.assert_close(found, kept[0].mean((1, 2)))


def test_layers_that_give_other_than_a_row_an_image_are_refused(run: Path) -> None:
    net = load_trained(run).net
    extractor = Extractor(net, "layer3")
    net.model.get_submodule("layer3").register_forward_hook(lambda m, x, y: torch.cat([y, y]))
    assert len(extractor(images_of(run, "val")[:2])) == 2  # hooks see what comes before their own change
    windows = Extractor(net, "layer3")
    with pytest.raises(FeedlineError, match="'layer3' gives 4 tensors for 2 images"):
        windows(images_of(run, "val")[:2])


def test_features_that_are_not_finite_are_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Extractor, "__call__", lambda self, images: torch.full((len(images), 4), torch.nan))
    assert main(["embed", str(run), "--knn", "train"]) == 1
    assert "are not finite; try an earlier --checkpoint" in capsys.readouterr().err


def test_votes_of_two_neighbours_by_hand() -> None:
    """exp((1 - 1) / 0.07) for one, exp((0.93 - 1) / 0.07) = 1 / e for two of the other class."""
    found = votes(torch.tensor([[1.0, 0.93, 0.93]]), torch.tensor([[2, 0, 0]]), 3)
    torch.testing.assert_close(
        found, torch.tensor([[2 / np.e, 0, 1]], dtype=torch.float32), rtol=1e-4, atol=0
    )


def parts(values: torch.Tensor, labels: torch.Tensor, size: int) -> Iterator[Features]:
    for first in range(0, len(labels), size):
        rows = torch.arange(len(labels))[first : first + size]
        yield Features(rows, labels[rows], values[rows])


def test_knn_is_scikit_learns() -> None:
    torch.manual_seed(0)
    labels, others = torch.randint(0, 7, (90,)), torch.randint(0, 7, (41,))
    centres = torch.randn(7, 12)
    values, queries = centres[labels] + torch.randn(90, 12), centres[others] + torch.randn(41, 12)
    judge = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    judge.fit(values.numpy(), labels.numpy())
    meter = KnnAccuracy(Bank.of(parts(values, labels, 32)), 7, k=5)
    for part in parts(queries, others, 9):
        meter.add(part)
    found = meter.result()
    assert found.top1 == pytest.approx(100 * judge.score(queries.numpy(), others.numpy()))
    assert 20 < found.top1 < found.top5 <= 100
    assert found.samples == 41


def test_a_sample_is_not_its_own_neighbour() -> None:
    """Four vectors in two pairs across classes: with itself each would be right, without it wrong."""
    values = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    labels = torch.tensor([0, 1, 0, 1])
    for same, expected in ((False, 100.0), (True, 0.0)):
        meter = KnnAccuracy(Bank.of(parts(values, labels, 4)), 2, k=1, same_split=same)
        for part in parts(values, labels, 3):
            meter.add(part)
        assert meter.result().top1 == expected
    with pytest.raises(FeedlineError, match="4 neighbours are asked for, of 3 samples"):
        nearest(values, Bank.of(parts(values, labels, 4)), 4, leave_out=torch.arange(4))


def test_search_in_parts_is_search_in_all() -> None:
    torch.manual_seed(1)
    values, queries = torch.randn(50, 6), torch.randn(3, 6)
    search = Search(queries, 4)
    for part in parts(values, torch.zeros(50, dtype=torch.int64), 7):
        search.add(part)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], values[None], dim=2)
    wanted = cosines.topk(4, dim=1)
    assert torch.equal(search.result().ids, wanted.indices)
    torch.testing.assert_close(search.result().cosines, wanted.values)


def test_features_go_to_parquet_with_keys_and_labels(
    run: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "features.parquet"
    assert (
        main(["embed", str(run), "--out", str(path), "--batch-size", "16", "--knn", "train", "--k", "5"]) == 0
    )
    said = capsys.readouterr().out
    table, split = pq.read_table(path), Dataset.open(dataset_dir).split("val")
    assert table.column_names == ["id", "key", "label", "class", "feature"]
    assert table["id"].to_pylist() == list(range(len(split)))
    assert table["key"].to_pylist() == split.keys.to_pylist()
    assert table["label"].to_pylist() == split.label.tolist()
    assert table["class"].to_pylist() == [CLASSES[label] for label in split.label]
    column = table["feature"].combine_chunks()
    values = torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy())
    extractor = Extractor(load_trained(run).net)
    torch.testing.assert_close(values, extractor(images_of(run, "val")), rtol=1e-4, atol=1e-4)
    assert table.schema.metadata[b"layer"] == b"penultimate"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    train = Dataset.open(dataset_dir).split("train")
    judge = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    judge.fit(extractor(images_of(run, "train")).numpy(), train.label)
    right = 100 * judge.score(values.numpy(), split.label)
    assert f"kNN accuracy, k = 5: top-1 {right:.2f} %" in said


def test_an_image_of_the_split_finds_itself(
    run: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [dataset_dir.parent / "images" / "train" / f"class{i}" / "3.jpg" for i in (4, 1)]
    sheet = tmp_path / "found.png"
    flags = ["embed", str(run), "--split", "train", "--top", "3", "--batch-size", "1", "--sheet", str(sheet)]
    searches = [word for name in names for word in ("--search", str(name))]  # as well as one flag for both
    assert main([*flags, *searches]) == 0
    said = capsys.readouterr().out
    for name, label in zip(names, (4, 1), strict=True):
        first = re.search(rf"{name}:\n +1  cosine (\S+)  id (\d+)  key (\d+)  (\S+)\n", said)
        assert first is not None
        assert (float(first[1]), first[4]) == (pytest.approx(1, abs=1e-3), f"class{label}")
    with Image.open(sheet) as picture:
        tiles = np.asarray(picture.convert("RGB"))
    images = images_of(run, "train")
    where = [int(i) for i in re.findall(r" 1  cosine \S+  id (\d+)", said)]
    left, top, scale = 6, 6 + 2 * 18 + 18, 3  # of loader.show: 32 px tiles are drawn at 96
    for row, i in enumerate(where):
        for offset in (0, 96 + 2 * 6):  # the image itself, and its nearest neighbour
            y = top + row * (18 + 96 + 6)
            tile = tiles[y : y + 96 : scale, left + offset : left + offset + 96 : scale]
            assert np.array_equal(tile, images[i].numpy())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--knn", "train", "--layer", "layer33"],
            "the model has no layer 'layer33'; did you mean 'layer3'?",
        ),
        (["--knn", "test"], "has no split 'test'; it has"),
        (["--knn", "train", "--device", "gpu"], "--device is 'gpu'; give auto, cpu, cuda"),
        (["--search", "none.jpg"], "cannot search for none.jpg: No such file"),
        (["--search", __file__], ": not an image"),
        (["--knn", "train", "--k", "500"], "500 neighbours are asked for, of 120 samples; ask for fewer"),
    ],
)
def test_mistakes_are_told(
    flags: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(run), *flags]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert said in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there is nothing else to do"),
        (["--out", "features.csv"], "'features.csv' does not end in .parquet"),
        (["--knn", "train", "--k", "0"], "'0' is no whole number from 1 on"),
        (["--knn", "train", "--top", "3"], "--top is for --search, which is not given; leave it out"),
        (["--out", "f.parquet", "--k", "3"], "--k is for --knn, which is not given; leave it out"),
    ],
)
def test_wrong_usage_is_told(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["embed", "RUN", *flags])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
