"""`python -m train report`: a page of a tiny run, opened in a browser; what is missing is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard.dataset import Dataset
from tests.browser import Browser, chromium, opened, parse
from train.__main__ import main
from train.config import save
from train.report.judged import find_judged
from train.report.page import page
from train.report.record import read_record


@pytest.fixture(scope="module")
def html(reported: Path) -> str:
    return (reported / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evaluation(reported: Path) -> dict[str, Any]:
    (file,) = reported.glob("eval/*/evaluation.json")  # the report has made it
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


def test_the_page_says_how_good_the_run_is(html: str, evaluation: dict[str, Any], reported: Path) -> None:
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
    assert str(read_record(reported).history[0]["environment"]["packages"]["torch"]) in html


def test_the_page_loads_nothing_and_is_well_formed(html: str) -> None:
    parse(html)
    for outside in ("http://", "https://", "@import", "url(", "<link"):
        assert outside not in html, outside
    assert html.count("src=") == html.count('src="data:')
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_it_is_not_evaluated_twice_and_goes_where_it_is_told(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(reported), "--out", str(tmp_path / "deep" / "r.html")]) == 0
    assert capsys.readouterr() == (f"page: {tmp_path}/deep/r.html\n", "")


def test_without_the_dataset_there_are_no_images_and_the_page_says_so(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(reported, tmp_path / "run")
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


def test_a_dataset_that_is_not_what_it_was_is_told_and_not_evaluated(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, data = shutil.copytree(reported, tmp_path / "run"), tmp_path / "rebuilt"
    shutil.rmtree(root / "eval")
    record = read_record(root)
    assert record.config.data
    shutil.copytree(record.config.data, data)
    manifest = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(manifest | {"fingerprint": "another"}))
    for given, reason in (
        (["--data", str(data)], f"because {data} is another dataset than the run's."),
        ([], f"because {data} is no longer what the run was trained on: give --data"),
    ):
        if not given:
            save(replace(record.config, data=str(data)), root / "config.yaml")
        capsys.readouterr()
        assert main(["report", str(root), *given]) == 0
        error = capsys.readouterr().err
        assert error.startswith("warning: ")
        assert reason in error
        assert error.count("\n") == 1
        html = (root / "report.html").read_text()
        assert reason.replace("'", "&#39;") in html
        assert "120 images" not in html
        assert not (root / "eval").exists()


def test_of_a_dataset_built_anew_since_the_evaluation_no_number_of_images_is_told(
    reported: Path, tmp_path: Path
) -> None:
    record = read_record(reported)
    assert record.config.data
    judged, dataset = find_judged(record, 3), Dataset.open(record.config.data)
    assert "120 images" in page(record, judged, dataset, [])
    rebuilt = shutil.copytree(record.config.data, tmp_path / "rebuilt")
    manifest = json.loads((rebuilt / "dataset.json").read_text())
    (rebuilt / "dataset.json").write_text(json.dumps(manifest | {"fingerprint": "another"}))
    html = page(record, judged, Dataset.open(rebuilt), [])
    assert "120 images" not in html
    assert "was trained" in html
    run = shutil.copytree(reported, tmp_path / "run")
    shutil.rmtree(run / "eval")
    (run / "checkpoints" / "best.pt").unlink()
    for _ in range(2):  # then as a run that has not come to an evaluation
        assert main(["report", str(run), "--data", str(rebuilt)]) == 0
        assert "120 images" not in (run / "report.html").read_text()
        (run / "metrics.jsonl").unlink(missing_ok=True)
    (run / "checkpoints" / "last.pt").write_text("damaged")
    assert main(["report", str(run), "--data", str(rebuilt)]) == 0


def test_an_evaluation_of_another_checkpoint_or_another_split_does_not_count(
    reported: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(reported, tmp_path / "run")
    (file,) = root.glob("eval/*/evaluation.json")
    found = json.loads(file.read_text())
    assert find_judged(read_record(root), 3) is not None
    for change in (
        {"epoch": 7}, {"split": "train"}, {"checkpoint": "x/last.pt"}, {"fingerprint": "other"}, {"flip_tta": True},
        {"averaged": not found["averaged"]}, {"own_checkpoint": False},
    ):  # fmt: skip
        file.write_text(json.dumps(found | change))
        assert find_judged(read_record(root), 3) is None
    del found["own_checkpoint"]  # as older versions wrote it
    file.write_text(json.dumps(found))
    assert find_judged(read_record(root), 3) is not None
    file.write_text(json.dumps(found | {"epoch": 7}))
    shutil.rmtree(root / "checkpoints")  # it cannot be made again
    assert find_judged(read_record(root), 3) is not None


def test_a_run_that_has_just_begun(reported: Path, tmp_path: Path) -> None:
    root = tmp_path / "young"
    root.mkdir()
    shutil.copy(reported / "config.yaml", root)
    assert main(["report", str(root)]) == 0
    assert "It has not been evaluated yet." in (root / "report.html").read_text()
    first = (reported / "metrics.jsonl").read_text().splitlines()[0]
    (root / "metrics.jsonl").write_text(f'{first}\n{{"kind": "tra')  # being written
    assert main(["report", str(root)]) == 0
    assert '<p class="axis">step</p>' in (root / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", None, "is no run folder"),
        ("metrics.jsonl", "[1]\n", "line 1 of"),
        ("checkpoints/best.pt", "x", "put a whole copy in its place, or remove it: it is then left out"),
        ("summary.json", "{", "summary.json cannot be read"),
        ("summary.json", "[1]", "summary.json cannot be read"),
        ("eval/dataset-val-best/evaluation.json", "[]", "it holds a list; remove its folder"),
        ("eval/dataset-val-best/predictions.parquet", "x", "remove the folder, and it is made again"),
    ],
)
def test_damage_is_one_line(
    reported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str | None,
    reason: str,
) -> None:
    root = shutil.copytree(reported, tmp_path / "run")
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


def test_wrong_usage(reported: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main(["report", str(reported), "--out", "report.pdf"])
    assert error.value.code == 2
