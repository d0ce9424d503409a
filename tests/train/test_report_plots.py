"""Plots and the heat map of `python -m train report`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.report.confusion import MOST, heat_map
from train.report.plots import Series, plot, round_numbers, thinned


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_rows_of_the_heat_map_are_whole(classes: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).poisson(0.3, (classes, classes))
    names = [str(i) for i in range(len(matrix))]
    heat = heat_map(matrix, names)
    assert len(heat.rows) == len(heat.classes) == min(len(matrix), MOST) or len(heat.classes) >= 2
    assert len(heat.classes) <= MOST
    for name, row in zip(heat.classes, heat.rows, strict=True):
        support = int(matrix[int(name)].sum())
        assert len(row) == len(heat.heads)
        assert sum(square.alpha**2 for square in row) == pytest.approx(min(support, 1), abs=0.2)
        assert [square.right for square in row] == [head == name for head in heat.heads]
    if len(matrix) <= MOST:
        assert heat.heads == names


def test_the_most_confused_classes_are_shown() -> None:
    matrix = np.diag(np.full(50, 10))
    matrix[40, 41] = 5
    heat = heat_map(matrix, [str(i) for i in range(50)])
    assert heat.classes == ["40", "41"]
    assert heat.heads == ["40", "41", "any other"]
    assert heat.rows[0][1].tip == "40, taken for 41\n5 of 15 images (33.3 %)"
    assert len(heat_map(np.diag(np.full(50, 10)), [str(i) for i in range(50)]).classes) == MOST


FINITE = st.floats(-1e6, 1e6)


@settings(max_examples=100)
@given(FINITE, st.floats(0, 1e6), st.booleans())
def test_round_numbers_span_what_they_are_for(low: float, span: float, whole: bool) -> None:
    marks = round_numbers(low, low + span, whole=whole)
    width = marks[1] - marks[0]
    assert width > 0
    assert marks[0] <= low + 1e-6 * width
    assert marks[-1] >= low + span - 1e-6 * width
    assert len(marks) <= 8


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=1, max_size=400), st.booleans())
def test_curves_stay_in_their_plot(ys: list[float], zero: bool) -> None:
    drawn = plot(
        "x",
        [Series("a", [(float(i), y) for i, y in enumerate(ys)]), Series("b", [])],
        x_label="step",
        zero=zero,
    )
    assert drawn is not None
    (curve,) = drawn.curves
    numbers = [float(part) for part in curve.path.replace("M", " ").replace("L", " ").split()]
    assert all(-0.1 <= number <= 1000.1 for number in numbers)
    assert len(numbers) // 2 == len(thinned([(0.0, y) for y in ys])) <= 300
    assert all(-0.1 <= tick.at <= 100.1 for tick in [*drawn.x_ticks, *drawn.y_ticks])
    assert plot("x", [Series("b", [])], x_label="step") is None
