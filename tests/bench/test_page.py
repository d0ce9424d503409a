"""`bench report`: what it shows of any record, that it escapes everything, and its script, run in V8 on its markup."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.page import page, read_records
from bench.page_tables import charts, tables
from tests.browser import V8, parse, require_harmless
from train.page import cell, number_text

RECORDS = Path(__file__).parents[2] / "bench" / "records"
HOSTILE = "<script>alert('x')</script>\"'&"


def record(**results: Any) -> dict[str, Any]:
    environment = {
        "date": "2026-11-25T01:02:03+00:00",
        "commit": "abc",
        "cpu": "some CPU",
        "cores": 2,
        "gpu": None,
    }
    return {"benchmark": "unheard-of", "environment": environment, "settings": {"batch": 64}, **results}


STAGES = [
    {"name": "b", "title": "Beta", "images_per_s": [90.0, 100.0, 110.0], "note": "x"},
    {"name": "a", "title": "Alpha", "images_per_s": [900.0, 1000.0, 1100.0], "note": "z"},
    {"name": "c", "title": "gamma", "images_per_s": [20.0, 20.0, 20.0], "note": None},
]


@pytest.fixture
def browser() -> V8:
    """V8 with the page of one record, its script run."""
    return V8(page({"one.json": record(stages=STAGES)}))


def test_a_click_sorts_and_another_turns_the_order(browser: V8) -> None:
    assert browser.run("column(1, 0)") == ["Beta", "Alpha", "gamma"]
    assert browser.run("click(1, 1)") == [None, "descending", None]  # numbers: largest first
    assert browser.run("column(1, 0)") == ["Alpha", "Beta", "gamma"]
    assert browser.run("click(1, 1)") == [None, "ascending", None]
    assert browser.run("column(1, 0)") == ["gamma", "Beta", "Alpha"]
    assert browser.run("click(1, 0)") == ["ascending", None, None]  # text: from A, whatever its case
    assert browser.run("column(1, 0)") == ["Alpha", "Beta", "gamma"]


def test_what_is_empty_comes_last_both_ways(browser: V8) -> None:
    browser.run("click(1, 2)")
    assert browser.run("column(1, 2)") == ["x", "z", ""]
    browser.run("click(1, 2)")
    assert browser.run("column(1, 2)") == ["z", "x", ""]


def test_tooltips_follow_pointer_and_focus_and_stay_inside(browser: V8) -> None:
    tip = "[document.getElementById('tip').hidden, document.getElementById('tip').textContent]"
    assert browser.run(tip)[0] is True
    browser.run("document.querySelectorAll('.bar')[1].dispatch('pointermove', {clientX: 380, clientY: 790})")
    assert browser.run(tip) == [False, "Alpha\nimages/s: 1,000\nleast – greatest: 900 – 1,100 (3 repeats)"]
    place = browser.run("document.getElementById('tip').style")
    assert place == {"left": f"{390 - 100 - 4}px", "top": f"{790 - 30 - 8}px"}
    browser.run("document.querySelectorAll('.bar')[1].dispatch('pointerleave')")
    assert browser.run(tip)[0] is True
    browser.run("document.querySelectorAll('.bar')[0].dispatch('focus')")
    assert browser.run(tip)[1].startswith("Beta\n")
    browser.run("document.querySelectorAll('.bar')[0].dispatch('blur')")
    assert browser.run(tip)[0] is True


def test_lists_further_in_are_no_repeats() -> None:
    (table,) = tables(
        {"peers": [{"name": "a", "images_per_s": [1.0, 3.0], "parity": {"shape": [64, 3, 224, 224]}}]}
    )
    assert [one.text for one in table.rows[0]] == ["a", "2", "64, 3, 224, 224"]
    html = page({"one.json": record() | {"settings": {"config": {"optim": {"betas": [0.9, 0.999]}}}}})
    assert ">0.9, 0.999</td>" in html


def test_a_date_stays_on_one_line() -> None:
    html = page({"one.json": record()})
    assert '<td class="short">2026-11-25</td>' in html
    assert "td.short { white-space: nowrap; }" in html.replace("td[data-sort], ", "")


def test_the_committed_records_are_all_on_the_page(tmp_path: Path) -> None:
    assert main(["report", "--records", str(RECORDS), "--out", str(tmp_path / "deep" / "report.html")]) == 0
    html = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    parse(html)
    for file, one in read_records(RECORDS).items():
        assert file in html
        assert one["environment"]["commit"] in html
    assert "prefers-color-scheme: dark" in html
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in html, outside


def test_everything_is_escaped() -> None:
    hostile = record(
        rows=[{"name": HOSTILE, HOSTILE: 1.0, "text": HOSTILE}, {"name": "b", HOSTILE: 2.0}], verdict=HOSTILE
    )
    hostile["environment"] |= {"cpu": HOSTILE, "commit": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    hostile |= {"benchmark": HOSTILE, "settings": {HOSTILE: [HOSTILE]}}
    html = page({f"{HOSTILE}.json": hostile}, title=HOSTILE)
    assert "alert(" in html
    require_harmless(html)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_record_becomes_a_page_whose_tables_are_whole(results: dict[str, Any]) -> None:
    for table in tables(results):
        assert all(len(row) == len(table.columns) for row in table.rows)
        for chart in charts(table):
            assert all(0 <= bar.width <= 100 for bar in chart.bars)
    parse(page({"a.json": {**results, "benchmark": "x"}}))


def test_one_giant_does_not_hide_the_others() -> None:
    rows = [
        {"name": str(i), "images_per_s": [v, v * 1.1]} for i, v in enumerate((100_000.0, 1000.0, 900.0, 50.0))
    ]
    (chart,) = charts(tables({"stages": rows})[0])
    assert [bar.clipped for bar in chart.bars] == [True, False, False, False]
    assert chart.bars[1].width > 85
    assert chart.note


def test_figures_of_different_units_are_not_charted() -> None:
    assert not charts(tables({"counters": {"batches": 3, "seconds": 4.5}})[0])
    assert charts(tables({"ratios": {"a / b": 0.5, "b / c": 1.5}})[0])


def test_rows_that_are_numbered_are_charted_by_their_number() -> None:
    points = [{"accelerators": n, "demand": 7.0 * n, "au": [0.9, 1.0, 0.95], "note": "x"} for n in (1, 2)]
    (table,) = tables({"points": points})
    assert [one.label for one in table.columns] == [
        "accelerators",
        "accelerator utilisation",
        "demand",
        "note",
    ]
    (chart,) = charts(table)
    assert [bar.label for bar in chart.bars] == ["accelerators 1", "accelerators 2"]
    measured = [{"kind": "measured", "count": n, "images_per_s": [5.0 * n, 6.0 * n]} for n in (1, 2)]
    (chart,) = charts(tables({"points": measured})[0])
    assert [bar.label for bar in chart.bars] == ["measured, count 1", "measured, count 2"]
    assert not charts(tables({"points": [{"kind": "assumed", "count": n} for n in (4, 8)]})[0])
    assert not charts(tables({"repeats": [{"x_s": 1.0, "y_s": 2.0}, {"x_s": 2.0, "y_s": 3.0}]})[0])


def test_numbers() -> None:
    assert [number_text(x) for x in (1234.5, 12.0, 0.012345, 4080157.0)] == [
        "1,234",
        "12",
        "0.01235",
        "4,080,157",
    ]
    assert cell([3.0, 1.0, 2.0]).text == "2"
    assert cell([3.0, 1.0, 2.0]).spread == "1 – 3"
    assert cell(True).number is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "holds a list, not a record"), ("{", "cannot be read as a record"), (None, "holds no records")],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    assert main(["report", "--records", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "r.html").exists()
