"""Hearts that can be keep every rule; each way of being impossible breaks its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import LV, MYO, RV
from cardiodit.evaluation.metrics.plausibility import RULES, cycle_gap, is_plausible, plausibility, plausible_shares
from cardiodit.evaluation.metrics.registry import Result, choose_metrics
from cardiodit.evaluation.report.summary import verdict
from cardiodit.imaging import Geometry
from cardiodit.imaging.phantom.heart import GROUPS, draw_heart
from cardiodit.imaging.phantom.scene import render
from cardiodit.imaging.resampling import repeat_beat

SIZE = (64, 64, 8, 12)


def phantom(group: str, index: int = 0) -> tuple[np.ndarray, Geometry]:
    random = np.random.default_rng([3, index])
    drawn = render(draw_heart(group, random), SIZE, random)
    return drawn.labels, drawn.geometry


def broken(labels: np.ndarray, geometry: Geometry) -> set[str]:
    return {finding.name for finding in plausibility(labels, geometry) if not finding.is_plausible}


@pytest.fixture(scope="module")
def normal() -> tuple[np.ndarray, Geometry]:
    return phantom("normal")


@pytest.mark.parametrize("group", GROUPS)
def test_ill_hearts_are_plausible_too(group: str) -> None:
    findings = [plausibility(*phantom(group, index)) for index in range(2)]
    assert all(map(is_plausible, findings)), [f for heart in findings for f in heart if not f.is_plausible]
    assert plausible_shares(findings) == {**dict.fromkeys(RULES, 1.0), "all": 1.0}


def test_a_heart_that_stands_still_does_not_eject(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = normal
    still = np.repeat(labels[..., :1], SIZE[3], axis=3)
    assert broken(still, geometry) == {"lv_ef_percent", "rv_ef_percent", "stroke_volume_ratio"}


def test_a_beat_cut_in_half_does_not_close(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = normal
    assert broken(labels[..., :6], geometry) == {"cycle_gap"}


def test_a_repeated_beat_is_not_asked_to_close(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = repeat_beat(normal[0], 16), normal[1]
    assert broken(labels, geometry) == {"cycle_gap"}
    findings = plausibility(labels, geometry, closes=False)
    assert [finding.name for finding in findings] == [name for name in RULES if name != "cycle_gap"]
    assert is_plausible(findings) and plausible_shares([findings])["all"] == 1
    assert "cycle_gap" not in plausible_shares([findings])


def test_a_right_ventricle_that_only_fills_one_side(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = (normal[0].copy(), normal[1])
    first = labels[..., :1] == RV
    weak = (labels != RV) & first & (labels == 0)  # stays where it was at end-diastole
    weak[: SIZE[0] // 5] = False
    labels[weak] = RV
    assert "stroke_volume_ratio" in broken(labels, geometry)
    assert not {"lv_ef_percent", "cycle_gap", "lv_body_share", "ring_leak_share"} & broken(labels, geometry)


def test_a_wall_that_thins_in_systole(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = (normal[0].copy(), normal[1])
    for t in range(1, SIZE[3]):  # the outer border shrinks with the inner one: a voxel of wall is left
        pool = labels[..., t] == LV
        around = np.zeros_like(pool)
        for axis in (0, 1):
            for way in (-1, 1):
                around |= np.roll(pool, way, axis=axis)
        labels[..., t][(labels[..., t] == MYO) & ~around] = 0
    assert broken(labels, geometry) == {"wall_thickening_percent"}


def test_a_second_left_ventricle(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = (normal[0].copy(), normal[1])
    labels[2:10, 2:10, 3] = LV
    labels[[1, 10], 1:11, 3] = labels[1:11, [1, 10], 3] = MYO  # in a ring of its own
    assert broken(labels, geometry) == {"lv_body_share"}


def test_a_ring_with_a_gap(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = (normal[0].copy(), normal[1])
    centre = int(np.argwhere(labels[:, :, 2, 0] == LV)[:, 1].mean())
    gap = labels[:, centre - 3 : centre + 4]
    gap[gap == MYO] = 0
    assert "ring_leak_share" in broken(labels, geometry)


def test_no_heart_is_no_plausible_one() -> None:
    findings = plausibility(np.zeros(SIZE, np.uint8), Geometry((2.0, 2.0, 10.0)))
    assert {f.name for f in findings if f.is_plausible} == {"cycle_gap"}
    assert plausible_shares([findings])["all"] == 0


def test_shares_count_hearts(normal: tuple[np.ndarray, Geometry]) -> None:
    labels, geometry = normal
    shares = plausible_shares([plausibility(labels, geometry), plausibility(labels[..., :6], geometry)])
    assert shares == {**dict.fromkeys(RULES, 1.0), "cycle_gap": 0.5, "all": 0.5}


def test_the_gap_of_a_known_beat() -> None:
    line = np.array([0, 2, 5, 6])  # voxels of the cavity: steps of 2, 3 and 1, and 6 back to the first frame
    labels = np.where(np.arange(8)[:, None] < line, LV, 0).reshape(8, 1, 1, 4)
    assert cycle_gap(labels) == pytest.approx(6 / 3)
    assert cycle_gap(np.repeat(labels[..., :1], 4, axis=3)) == 0


def test_rules_need_a_voxel_size(normal: tuple[np.ndarray, Geometry]) -> None:
    with pytest.raises(CardioDiTError, match="voxel size"):
        plausibility(normal[0], Geometry())


def shares(real: int, synthetic: int, count: int = 20) -> Result:
    """The metric of one rule, of so many hearts in `count` that keep it."""
    sides = [
        SimpleNamespace(measured=[SimpleNamespace(plausible={"lv_ef_percent": i < kept}) for i in range(count)])
        for kept in (real, synthetic)
    ]
    (rule,) = [each for each in choose_metrics() if each.name == "plausible_lv_ef_percent"]
    return rule.compute(SimpleNamespace(sets=sides))


@pytest.mark.parametrize(("kept", "expected"), [(20, "within"), (16, "within"), (14, "worse"), (2, "worse")])
def test_a_share_is_worse_only_if_fishers_test_agrees(kept: int, expected: str) -> None:
    """The interval of 20 of 20 real hearts ends at 83%, which both samples of 20 miss by chance too often."""
    result = shares(20, kept)
    floor = result.floor
    assert floor is not None and result.p_value == pytest.approx(fisher_exact([[20, 0], [kept, 20 - kept]]).pvalue)
    line = {"better": "higher", "floor": vars(floor), "p_value": result.p_value}
    assert verdict(line) == expected and (kept > 16 or floor.matched < floor.low)
