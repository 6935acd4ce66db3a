import numpy as np
import pytest

from cardiodit.imaging.phantom import GROUPS, draw_heart
from cardiodit.imaging.phantom.heart import ML, THETA, Heart, ejection

PHASES = np.arange(20) / 20


@pytest.fixture(params=GROUPS)
def heart(request) -> Heart:
    return draw_heart(request.param, np.random.default_rng(4))


def test_a_beat_starts_and_ends_full_and_empties_once() -> None:
    curve = ejection(np.linspace(0, 1, 200))
    assert np.abs(curve[[0, -1]]).max() < 1e-12 and curve.max() == pytest.approx(1, abs=1e-3)
    assert (np.diff(curve[:65]) > 0).all() and curve.argmax() / 200 == pytest.approx(0.35, abs=0.02)


def test_shapes_have_the_volumes_they_were_made_for(heart: Heart) -> None:
    """The integral over the radii gives the requested volumes."""
    for phase in PHASES:
        shape = heart.at(phase)
        left, right, _ = shape.volumes_between(0, 1000)
        expected = heart.volumes(phase)
        assert left == pytest.approx(expected[0], rel=1e-6)
        assert right == pytest.approx(expected[1], rel=1e-6)
    assert heart.volumes(0)[0] == heart.lv_edv
    assert 1 - heart.volumes(0.35)[0] / heart.lv_edv == pytest.approx(heart.lv_ef, abs=1e-6)


def test_the_cavity_at_rest_is_half_an_ellipsoid(heart: Heart) -> None:
    radius = heart.endo_at_rest[0]
    assert 2 / 3 * np.pi * radius**2 * heart.length == pytest.approx(heart.lv_edv, rel=0.01)


def test_muscle_keeps_its_volume_while_it_thickens(heart: Heart) -> None:
    muscle = [heart.at(phase).volumes_between(0, 1000)[2] for phase in PHASES]
    assert np.ptp(muscle) < 1e-9 * muscle[0]
    thickness = [(s.epi - s.endo)[60] for s in (heart.at(0), heart.at(0.35))]
    assert (thickness[1] >= thickness[0] * 0.99).all() and thickness[1].mean() > 1.03 * thickness[0].mean()


def test_walls_do_not_cross_and_the_apex_comes_up(heart: Heart) -> None:
    for phase in PHASES:
        shape = heart.at(phase)
        assert (shape.epi >= shape.endo).all() and (shape.endo >= 0).all() and (shape.right >= 0).all()
    assert heart.at(0.35).z[-1] == pytest.approx(heart.z[-1] * (1 - heart.shortening))
    assert np.abs(heart.at(0.35).twist).max() > 0


def test_a_scar_hardly_moves() -> None:
    heart = draw_heart("infarct", np.random.default_rng(0))
    inward = heart.at(0).endo[40] - heart.at(0.35).endo[40]
    at_scar = inward[np.abs(THETA - heart.scar_direction).argmin()]
    opposite = inward[np.abs((THETA - heart.scar_direction) % (2 * np.pi) - np.pi).argmin()]
    assert at_scar < 0.25 * opposite


def test_groups_differ_as_in_patients() -> None:
    random = np.random.default_rng(0)
    hearts = {group: [draw_heart(group, random) for _ in range(60)] for group in GROUPS}
    ef = {group: np.mean([h.lv_ef for h in some]) for group, some in hearts.items()}
    assert ef["dilated"] < ef["infarct"] < ef["normal"] < ef["hypertrophic"]
    assert np.mean([h.lv_edv for h in hearts["dilated"]]) / ML > 200
    assert np.mean([h.wall for h in hearts["hypertrophic"]]) > 12 > np.mean([h.wall for h in hearts["normal"]])
    mass = [1.05 * h.at(0).volumes_between(0, 1000)[2] / ML for h in hearts["normal"]]
    assert 70 < np.mean(mass) < 150  # grams
