"""Charts show every count and every end in the right place."""

import re
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.report.charts import (
    CURVES_LEFT,
    CURVES_RIGHT,
    MIRROR,
    TALLEST,
    Axis,
    axis_over,
    bin_edges,
    curve_figure,
    histogram_figure,
    metric_chart,
)


def path(drawing: str, name: str) -> str:
    match = re.search(rf'<path class="{name}" d="([^"]*)"', drawing)
    assert match, name
    return match[1]


def attributes(drawing: str, name: str) -> dict[str, str]:
    match = re.search(rf'<\w+ class="{name}"([^>]*)>', drawing)
    assert match, name
    return dict(re.findall(r'([\w-]+)="([^"]*)"', match[1]))


@pytest.mark.parametrize(
    "ends, texts",
    [
        ((0, 1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ((-7, 260), ["0", "100", "200"]),
        ((100, 220), ["100", "125", "150", "175", "200"]),
        ((0.031, 0.0421), ["0.0325", "0.0350", "0.0375", "0.0400"]),
        ((-1.2, 1.2), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        ((2e9, 9e9), ["2.0e+09", "4.0e+09", "6.0e+09", "8.0e+09"]),
    ],
)
def test_ticks_are_round_numbers(ends: tuple[float, float], texts: list[str]) -> None:
    axis = Axis(*ends, 0, 100)
    assert [text for _, text in axis.ticks()] == texts
    places = [axis.at(value) for value, _ in axis.ticks()]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 100


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [-1e-12, 1e-12], [1e9, 1e9 + 1e-3], [-5.0, -5.0]])
def test_an_axis_is_never_empty(values: list[float]) -> None:
    for with_zero in (False, True):
        axis = axis_over(values, 10, 90, with_zero=with_zero, margin=0.1)
        assert axis.low < axis.high and len(axis.ticks()) >= 1
        assert all(10 <= axis.at(value) <= 90 for value in values)


def distribution(real: list[Any], synthetic: list[Any], comparison: dict[str, Any] | None = None) -> dict[str, Any]:
    entry = {"name": "n", "title": "EF", "unit": "%", "group": "function"}
    return {**entry, "real": real, "synthetic": synthetic, "comparison": comparison}


def test_the_heights_of_bars_are_shares_of_each_set() -> None:
    random = np.random.default_rng([0])
    real, synthetic = random.normal(50, 8, 40), random.normal(60, 4, 80)
    drawing = histogram_figure(distribution(real.tolist(), synthetic.tolist()))
    edges = bin_edges(np.concatenate([real, synthetic]))
    counts = {"real": np.histogram(real, edges)[0] / 40, "synthetic": np.histogram(synthetic, edges)[0] / 80}
    tallest = max(shares.max() for shares in counts.values())
    for kind, up in (("real", -1), ("synthetic", 1)):
        heights = [float(y) for y in re.findall(r"V([\d.]+)H", path(drawing, f"{kind} bars"))]
        expected = [MIRROR + up * share / tallest * TALLEST for share in counts[kind] if share]
        assert heights == pytest.approx(expected, abs=0.051)
        assert path(drawing, f"{kind} rug").count("M") == len({"real": real, "synthetic": synthetic}[kind])


def test_many_volumes_are_bars_alone_and_gaps_are_left_out() -> None:
    values = np.random.default_rng([1]).normal(size=1000).tolist()
    drawing = histogram_figure(distribution(values, [1.0, None, float("nan"), 2.0]))
    assert "real rug" not in drawing and path(drawing, "synthetic rug").count("M") == 2
    assert "1000)" in drawing and len(drawing) < 10_000


@pytest.mark.parametrize("real, synthetic", [([], []), ([1.0], []), ([2.0, 2.0], [2.0]), ([0.0], [1e9]), ([None], [3])])
def test_poor_distributions_are_drawn_too(real: list[Any], synthetic: list[Any]) -> None:
    drawing = histogram_figure(distribution(real, synthetic))
    assert "nan" not in drawing.lower() and "inf" not in drawing and "Not compared." in drawing


def test_a_distributions_numbers_are_its_captions() -> None:
    comparison = {
        "difference": -4.0,
        "interval": [-9.13, 1.2],
        "wasserstein": 4.123,
        "floor": 2.04,
        "floor_high": 4.47,
        "p_value": 0.0005,
    }
    text = histogram_figure(distribution([50.0, 60.0], [46.0, 56.0], comparison)).replace("\N{NO-BREAK SPACE}", " ")
    assert "Real 55.0 ± 7.1% (n = 2); synthetic 51.0 ± 7.1% (n = 2)." in text
    assert "Difference −4.0% (95%: −9.1 to 1.2)." in text
    assert "Wasserstein 4.1%, floor 2.0 (95th percentile 4.5); p &lt; 0.001." in text


def curves(real: list[list[Any]], synthetic: list[list[Any]], is_one_beat: bool = True) -> dict[str, Any]:
    entry = {"name": "c", "title": "LV volume", "unit": "mL", "is_one_beat": is_one_beat}
    return {**entry, "real": real, "synthetic": synthetic}


def test_each_curve_is_a_line_and_the_median_is_the_median() -> None:
    rows = [[100.0, 60.0, 40.0, 80.0], [120.0, 70.0, 50.0, 100.0], [90.0, 50.0, 30.0, 70.0]]
    drawing = curve_figure(curves(rows, rows[:1]))
    assert path(drawing, "real thin").count("M") == 3 and path(drawing, "synthetic thin").count("M") == 1
    assert path(drawing, "real median") in path(drawing, "real thin")  # the first row is the median
    assert path(drawing, "real median") == path(drawing, "synthetic median")  # one scale for both
    ends = "highest value, 100\N{NO-BREAK SPACE}mL, at 0% of the beat and its lowest, 40.0\N{NO-BREAK SPACE}mL, at 50%."
    assert ends in drawing and "Horizontal axis: % of the beat. " in drawing and ">100<" in drawing


def test_a_frame_lies_at_its_share_of_the_beat_whatever_their_number_and_time() -> None:
    """Four frames and eight of the same beat are one line, and the last frame is not its end."""
    beat = [100.0, 85.0, 70.0, 55.0, 40.0, 55.0, 70.0, 85.0]
    drawing = curve_figure(curves([beat], [beat[::2]]))
    lines = [
        [tuple(map(float, point.split())) for point in re.split("[ML]", path(drawing, f"{kind} median"))[1:]]
        for kind in ("real", "synthetic")
    ]
    assert lines[0][::2] == lines[1]
    assert [x for x, _ in lines[1]] == pytest.approx(
        [CURVES_LEFT + share * (CURVES_RIGHT - CURVES_LEFT) for share in (0, 0.25, 0.5, 0.75)]
    )


def test_a_repeated_beat_is_not_called_one() -> None:
    drawing = curve_figure(curves([[1.0, 2.0]], [[1.0, 3.0]], is_one_beat=False))
    assert "Horizontal axis: % of the cine, whose beat is repeated to fill the frames." in drawing
    assert "% of the beat" not in drawing


def test_many_curves_are_a_band() -> None:
    rows = np.random.default_rng([2]).normal(100, 10, (1000, 30))
    drawing = curve_figure(curves(rows.tolist(), rows[:3].tolist()))
    assert "real thin" not in drawing and len(drawing) < 20_000 and "middle 80%" in drawing
    assert path(drawing, "real band").count("L") == 2 * 30 - 1
    assert path(drawing, "synthetic thin").count("M") == 3


@pytest.mark.parametrize(
    "real, synthetic", [([], []), ([[1.0]], []), ([[0.0, 0.0]], [[None, 1.0]]), ([[1.0, 2.0]], [[3.0] * 5])]
)
def test_poor_curves_are_drawn_too(real: list[list[Any]], synthetic: list[list[Any]]) -> None:
    drawing = curve_figure(curves(real, synthetic))
    assert "nan" not in drawing.lower() and "LV volume" in drawing


def test_a_metrics_marks_lie_on_one_axis() -> None:
    floor = {"value": 20.0, "low": 10.0, "high": 30.0, "matched": 50.0, "volumes": 8}
    metric = {"title": "FD", "better": "lower", "value": 40.0, "low": 30.0, "high": 60.0, "floor": floor}
    drawing = metric_chart(metric)
    axis = axis_over([60.0], 8, 222, with_zero=True, margin=0.06)
    assert float(attributes(drawing, "synthetic dot")["cx"]) == pytest.approx(axis.at(40), abs=0.06)
    assert float(attributes(drawing, "synthetic ring")["cx"]) == pytest.approx(axis.at(50), abs=0.06)
    assert float(attributes(drawing, "real mark")["x1"]) == pytest.approx(axis.at(20), abs=0.06)
    band = attributes(drawing, "real band")
    assert float(band["x"]) == pytest.approx(axis.at(10), abs=0.06)
    assert float(band["width"]) == pytest.approx(axis.at(30) - axis.at(10), abs=0.06)
    assert "FD: 40.0, interval 30.0 to 60.0, floor 20.0, at the floor&#39;s sample size 50.0" in drawing


def test_a_metric_without_interval_floor_or_value() -> None:
    metric = {"title": "Recall", "better": "higher", "value": 0.25, "low": None, "high": None, "floor": None}
    drawing = metric_chart(metric)
    assert float(attributes(drawing, "synthetic dot")["cx"]) == pytest.approx(8 + 0.25 * 214, abs=0.06)  # of 0 to 1
    assert "whisker" not in drawing and "band" not in drawing
    assert metric_chart({**metric, "value": None}) == ""
    one_sided = {"value": 0.2, "low": None, "high": 0.4, "matched": 0.3, "volumes": 4}
    band = attributes(metric_chart({**metric, "better": "lower", "floor": one_sided}), "real band")
    assert float(band["x"]) == 8


def test_an_axis_holds_the_standard_deviations_too() -> None:
    skewed = [1.0] * 9 + [0.0]
    drawing = histogram_figure(distribution(skewed, [0.5, 0.5]))
    line = attributes(drawing, "real mark")
    assert float(line["x2"]) == pytest.approx(308)  # 0.9 + 0.32 is the axis's end
    assert float(line["x1"]) < float(attributes(drawing, "real dot")["cx"]) < float(line["x2"])
