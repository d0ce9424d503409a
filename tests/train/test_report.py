"""`python -m train report`: a page of a tiny run, opened in a browser; what is missing is told; all text is escaped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.bad import BadSample
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.browser import Browser, chromium, opened, parse
from train.__main__ import main
from train.assess.per_class import averages, scores_by_class
from train.distributed import World
from train.history import History
from train.report import figures
from train.report.confusion import MOST
from train.report.headline import headline
from train.report.judged import Judged, Mistake, class_names, find_judged
from train.report.page import page
from train.report.pictures import thumbnails
from train.report.record import Record, read_record

HOSTILE = "<script>alert('x')</script>\"'&"


@pytest.fixture(scope="module")
def run(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with its report."""
    root = tmp_path_factory.mktemp("run") / "mine"
    assert main([*flags, "--epochs", "2", "--lr", "1e-4", "--run-dir", str(root)]) == 0
    assert main(["report", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evaluation(run: Path) -> dict[str, Any]:
    (file,) = run.glob("eval/*/evaluation.json")  # the report has made it
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module", params=dict.fromkeys([None, chromium()]))
def browser(html: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The page in V8, and in the machine's Chromium if it has one."""
    with opened(html, request.param) as found:
        yield found


def test_a_click_sorts_the_classes_and_a_value_is_read(browser: Browser, evaluation: dict[str, Any]) -> None:
    f1 = {name: scores["f1"] for name, scores in evaluation["classes"].items()}
    assert browser.run("column(0, 0)") == list(f1)
    assert browser.run("click(0, 3)")[3] == "descending"
    assert browser.run("column(0, 0)")[0] == max(f1, key=lambda name: f1[name])
    assert browser.run("column(0, 3)") == [f"{100 * x:.1f} %" for x in sorted(f1.values(), reverse=True)]
    assert browser.run("click(0, 3)")[3] == "ascending"
    assert browser.run("column(0, 3)") == [f"{100 * x:.1f} %" for x in sorted(f1.values())]


def test_arrow_keys_move_over_the_confusion_matrix(browser: Browser) -> None:
    rows = "[...document.querySelector('.heat').querySelector('tbody').children]"
    cells = f"{rows}.map((row) => [...row.querySelectorAll('td')])"
    every = f"{cells}.flatMap((row, i) => row.map((cell, j) => [cell.getAttribute('tabindex'), i, j]))"
    stops = f"{every}.filter((cell) => cell[0] === '0')"
    tip = "[document.getElementById('tip').hidden, document.getElementById('tip').textContent]"
    assert browser.run(stops) == [["0", 0, 0]]  # one stop of the tab key, however many cells
    browser.run(f"(press({cells}[0][0], 'ArrowUp'), 0)")
    browser.run(f"(press({cells}[0][0], 'ArrowDown'), 0)")
    browser.run(f"(press({cells}[1][0], 'ArrowRight'), press({cells}[1][1], 'Tab'), 0)")
    assert browser.run(stops) == [["0", 1, 1]]
    hidden, text = browser.run(tip)
    assert not hidden
    assert text.startswith("class1: right\n")
    assert text.endswith("%)")


def test_the_page_says_how_good_the_run_is(html: str, evaluation: dict[str, Any], run: Path) -> None:
    low, high = evaluation["top1_interval"]
    assert "test_efficientnet was trained on 120 images of 6 classes (dataset)" in html
    assert (
        f"right class for {evaluation['top1']:.1f} % (95 % interval: {low:.1f} – {high:.1f} %) of 42 images"
        in html
    )
    for part in (
        "Loss",
        "Accuracy",
        "Learning rate",
        "Speed",
        "Waiting for data",
        "Where the time went",
        "Calibration",
    ):
        assert f"<figcaption>{part}</figcaption>" in html
    wrong = round(42 * (1 - evaluation["top1"] / 100))
    assert html.count("src=") == html.count("data:image/jpeg;base64,") == min(24, wrong) > 0
    assert "finished at step 30" in html
    assert "loader_threads" in html
    assert str(read_record(run).history[0]["environment"]["packages"]["torch"]) in html


def test_the_page_loads_nothing_and_is_well_formed(html: str) -> None:
    parse(html)
    for outside in ("http://", "https://", "@import", "url(", "<link"):
        assert outside not in html, outside
    assert html.count("src=") == html.count('src="data:')
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_it_is_not_evaluated_twice_and_goes_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "deep" / "r.html")]) == 0
    assert capsys.readouterr() == (f"page: {tmp_path}/deep/r.html\n", "")


def test_without_the_dataset_there_are_no_images_and_the_page_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    (file,) = root.glob("eval/*/evaluation.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "/nowhere"}))
    assert main(["report", str(root)]) == 0
    html = (root / "report.html").read_text()
    assert "data:image" not in html
    assert "without their images, because the dataset is gone: /nowhere is no dataset" in html
    assert "taken for" in html
    assert capsys.readouterr().err.count("warning: ") == 1
    shutil.rmtree(root / "eval")
    assert main(["report", str(root), "--data", "/nowhere"]) == 0
    assert "could not be evaluated: /nowhere is no dataset" in (root / "report.html").read_text()


def test_an_evaluation_of_an_earlier_checkpoint_or_another_split_does_not_count(
    run: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    (file,) = root.glob("eval/*/evaluation.json")
    found = json.loads(file.read_text())
    assert find_judged(read_record(root), 3) is not None
    for change in (
        {"epoch": 7}, {"split": "train"}, {"checkpoint": "x/last.pt"}, {"fingerprint": "other"}, {"flip_tta": True},
        {"averaged": not found["averaged"]},
    ):  # fmt: skip
        file.write_text(json.dumps(found | change))
        assert find_judged(read_record(root), 3) is None
    file.write_text(json.dumps(found | {"epoch": 7}))
    shutil.rmtree(root / "checkpoints")  # it cannot be made again
    assert find_judged(read_record(root), 3) is not None


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "young"
    root.mkdir()
    shutil.copy(run / "config.yaml", root)
    assert main(["report", str(root)]) == 0
    assert "It has not been evaluated yet." in (root / "report.html").read_text()
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (root / "metrics.jsonl").write_text(f'{first}\n{{"kind": "tra')  # being written
    assert main(["report", str(root)]) == 0
    assert '<p class="axis">step</p>' in (root / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", None, "is no run folder"),
        ("metrics.jsonl", "[1]\n", "line 1 of"),
        ("summary.json", "{", "summary.json cannot be read"),
        ("summary.json", "[1]", "summary.json cannot be read"),
        ("eval/dataset-val-best/evaluation.json", "[]", "it holds a list; remove its folder"),
        ("eval/dataset-val-best/predictions.parquet", "x", "remove the folder, and it is made again"),
    ],
)
def test_damage_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, reason: str
) -> None:
    root = shutil.copytree(run, tmp_path / "run")
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_text(content)
    assert main(["report", str(root), "--out", str(tmp_path / "r.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_wrong_usage(run: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main(["report", str(run), "--out", "report.pdf"])
    assert error.value.code == 2


def made_up(record: Record, classes: list[str], matrix: np.ndarray[Any, Any]) -> Judged:
    """An evaluation with this confusion matrix."""
    scores = {
        name: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
        for name, s in zip(classes, scores_by_class(matrix), strict=True)
    }
    mean = {
        name: {"precision": s.precision, "recall": s.recall, "f1": s.f1}
        for name, s in averages(matrix).items()
    }
    bins: list[dict[str, Any]] = [{"low": 0.4, "high": 0.6, "samples": 5, "confidence": 0.5, "accuracy": 0.2}]
    bins.append({"low": 0.6, "high": 0.8, "samples": 0, "confidence": None, "accuracy": None})
    sides = [
        {"shorter_side": [n, n + 9], "samples": 5, "top1": 50.0, "interval": [40.0, 60.0]} for n in (10, 20)
    ]
    about = {
        "top1": 50.0, "top1_interval": [40.0, 60.0], "top5": 80.0, "loss": 1.0, "samples": 10, "averaged": False,
        "ece": 0.3, "classes": scores, "averages": mean, "calibration": bins, "size_slices": sides,
        "split": "val", "fingerprint": "x",
    }  # fmt: skip
    wrong = Mistake(id=0, source=HOSTILE, true=0, predicted=1, probability=0.9, true_probability=0.01)
    return Judged(folder=record.root, figures=about, classes=classes, matrix=matrix, mistakes=[wrong])


def test_everything_is_escaped(run: Path) -> None:
    record = read_record(run)
    event = {
        "event": "bad",
        "date": HOSTILE,
        "step": 1,
        "sample": {"id": 1, "key": HOSTILE, "shard": "", "reason": ""},
    }
    record = replace(
        record, root=Path(f"/{HOSTILE}"), history=[event], summary=record.summary | {"ended": HOSTILE}
    )
    judged = made_up(record, [HOSTILE, "b"], np.array([[1, 2], [3, 4]]))
    html = page(record, judged, None, [HOSTILE])
    assert html.count("alert(") > 10
    assert "<script>alert" not in html
    assert html.count("<script>") == 1

    def attributes(node: Any) -> set[str]:
        if isinstance(node, str):
            return set()
        return set(node["attributes"]) | {name for child in node["children"] for name in attributes(child)}

    assert not [name for name in attributes(parse(html)) if name.startswith("on") or "alert" in name]


def test_a_thousand_classes_stay_usable(run: Path) -> None:
    record = read_record(run)
    matrix = np.random.default_rng(0).poisson(0.05, (1000, 1000)) + np.diag(np.full(1000, 30))
    judged = made_up(record, [f"a class with a long name, number {i}" for i in range(1000)], matrix)
    html = page(record, judged, None, [])
    assert html.count('<th scope="row">') == MOST
    assert html.count("<tr>") > 1000
    assert len(html.encode()) < 2_000_000
    assert "Of 1,000 classes, these 20" in html
    assert "too sure of itself on the whole" in html


def test_names_for_people() -> None:
    assert class_names(["n02012849", "n03126707", "n01443537"], None) == [
        "crane (n02012849)",
        "crane (n03126707)",
        "goldfish",
    ]
    dataset = Dataset(Path("/x"), ("b", "a"), "", {"class_names": ["Berta, the second", ""]})
    assert class_names(["a", "b"], dataset) == ["a", "Berta"]


def test_before_and_after_and_doubt(run: Path) -> None:
    record = read_record(run)
    before = {"kind": "before", "top1": {"knn": 30.0, "probe": 40.0}, "samples": 42, "train_samples": 120}
    judged = made_up(record, ["a", "b"], np.array([[1, 2], [3, 4]]))
    lines = headline(replace(record, before=before), judged, None)
    guess = "Guessing among 2 classes would be right 50 % of the time"
    assert lines[1] == f"{guess}, and naming the largest class every time 70.0 %."
    alike = made_up(record, ["a", "b"], np.array([[1, 4], [3, 2]]))
    assert headline(record, alike, None)[1] == f"{guess}."
    assert "30.0 % by their nearest neighbours" in lines[2]
    assert lines[2].endswith("after it 50.0 %: 10.0 points more.")
    few = headline(replace(record, before=before | {"samples": 4}), judged, None)[2]
    assert "on their features (judged on 4 of these images); after it 50.0 %" in few
    config = record.config
    same = replace(
        record, config=replace(config, input=replace(config.input, eval_split=config.input.train_split))
    )
    assert "says little about others" in headline(same, judged, None)[0]
    assert "(95 % interval: " in headline(record, None, None)[0]  # by the training's own evaluation


def test_a_loss_that_is_not_finite_is_no_point_of_a_curve(run: Path) -> None:
    record = read_record(run)
    first, last = record.evaluations
    broken = replace(record, evaluations=[first, last | {"loss": float("inf"), "ema_loss": float("nan")}])
    assert [one.caption for one in figures.curves(broken)] == ["Loss", "Accuracy", "Learning rate"]
    assert f"validation from {first['loss']:.4g} to {first['loss']:.4g}" in figures.curves(broken)[0].label


def test_images_of_another_dataset_are_refused(dataset_dir: Path) -> None:
    dataset = Dataset.open(dataset_dir)
    assert len(thumbnails(dataset, "val", dataset.fingerprint, [0, 41])) == 2
    with pytest.raises(FeedlineError, match="is not what it was"):
        thumbnails(dataset, "val", "other", [0])


def test_history_tells_of_starts_ends_and_bad_samples(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    bad = BadSample(3, "s.tar", "0003", 512, "no JPEG")
    for step in (0, 7):  # the first is killed
        history = History(path, step, World())
        history.log({}, step + 2)
        history.bad([bad, bad])
    history.close("stopped")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "bad", "start", "bad", "end"]
    record = replace(read_record(run), history=lines)
    table = figures.history(record)
    assert table is not None
    assert [row[1].text for row in table.rows] == [
        "started, 1 process",
        "went on after step 7, 1 process (the start before was killed, or its machine went down)",
        "stopped by a signal, with a checkpoint at step 9",
    ]
    masked = figures.bad_samples(record)
    assert masked is not None
    assert [cell.text for cell in masked.rows[0]] == ["3", "0003", "s.tar", "no JPEG"]
    assert len(masked.rows) == 1
