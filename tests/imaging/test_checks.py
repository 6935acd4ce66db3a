import numpy as np
import pytest

from cardiodit.imaging.checks import check_cine, check_ct, check_mask, content_of, time_score
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.phantom import GROUPS, Phantom, draw_heart, render
from cardiodit.imaging.volume import Volume

GEOMETRY = Geometry((2.0, 2.0, 10.0), 0.05)


@pytest.fixture(scope="module", params=list(GROUPS))
def phantom(request: pytest.FixtureRequest) -> Phantom:
    random = np.random.default_rng(7)
    return render(draw_heart(request.param, random), (48, 48, 6, 12), random)


def problems(voxels: np.ndarray, geometry: Geometry = GEOMETRY) -> str:
    return "; ".join(check_cine(Volume(voxels, geometry)).problems)


def test_a_good_heart_has_no_problem(phantom: Phantom) -> None:
    findings = check_cine(Volume(phantom.image, phantom.geometry))
    assert findings.problems == [] and findings.notes == []


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1, 3, 2), "time and slice axes swapped"),
        ((2, 0, 1, 3), "largest axes are 2 and 3"),
        ((3, 2, 0, 1), "largest axes are 3 and 4"),
        ((0, 2, 1, 3), "largest axes are 1 and 3"),
    ],
)
def test_other_axis_orders_are_reported(phantom: Phantom, order: tuple, message: str) -> None:
    unknown = Geometry((1.0, 1.0, 1.0), 0.05)
    assert message in problems(np.ascontiguousarray(phantom.image.transpose(order)), unknown)


def test_slices_along_another_axis_are_recognized_by_their_distance(phantom: Phantom) -> None:
    assert "slices along axis 1 (10 mm apart" in problems(phantom.image, Geometry((10.0, 2.0, 2.0), 0.05))


def test_noise_and_constants_have_no_time_axis() -> None:
    assert abs(time_score(np.random.default_rng(0).standard_normal((32, 32, 8, 8)))) < 0.5
    assert time_score(np.ones((8, 8, 4, 4))) == 0
    assert time_score(np.ones((8, 8, 2, 4))) == 0  # too few slices to tell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[..., 0], "is 3D with the shape"),
        (lambda v: np.where(v == v.max(), np.nan, v.astype(float)), "not numbers (NaN or infinite)"),
        (lambda v: np.full_like(v, 7), "is constant: every voxel is 7"),
        (lambda v: (v > 300).astype(np.uint8), "looks like a mask: it holds only the values 0, 1"),
    ],
)
def test_bad_voxels_are_reported(phantom: Phantom, change, message: str) -> None:
    assert message in problems(change(phantom.image))


def test_bad_geometry_is_reported(phantom: Phantom) -> None:
    assert "how large its voxels are" in problems(phantom.image, Geometry(None, 0.05))
    for degrees, refused in ((5, True), (1, False)):
        sheared = np.diag([2.0, 2.0, 10.0, 1.0])
        sheared[0, 1] = 2 * np.tan(np.deg2rad(degrees))
        findings = check_cine(Volume(phantom.image, Geometry.of_affine(sheared, 0.05)))
        assert any("perpendicular" in text for text in (findings.problems if refused else findings.notes))
        assert refused == bool(findings.problems)


def test_unusual_properties_are_noted(phantom: Phantom) -> None:
    emptied = phantom.image.copy()
    emptied[:, :, 5] = 0
    findings = check_cine(Volume(emptied[..., :6], Geometry((2.0, 2.0, 40.0))))
    assert not findings.problems
    notes = "; ".join(findings.notes)
    for text in ("empty slices: 5", "6 frames", "how long a frame lasts", "2 × 2 × 40 mm"):
        assert text in notes


def test_masks_on_another_grid_are_reported(phantom: Phantom) -> None:
    image, labels = Volume(phantom.image, GEOMETRY), phantom.labels
    assert check_mask(Volume(labels, GEOMETRY), image).problems == []
    assert check_mask(Volume(labels[..., 0], Geometry(GEOMETRY.spacing)), image).problems == []
    wrong = {
        "has the shape": Volume(labels[:-1], GEOMETRY),
        "lies elsewhere": Volume(labels, Geometry((1.0, 1.0, 10.0))),
        "not whole numbers": Volume(labels * 0.5, GEOMETRY),
        "is empty": Volume(np.zeros_like(labels), GEOMETRY),
    }
    for message, mask in wrong.items():
        assert message in "; ".join(check_mask(mask, image).problems)


def test_a_ct_has_hounsfield_units() -> None:
    ct = np.random.default_rng(0).integers(-1000, 400, (20, 20, 10)).astype(np.int16)
    assert check_ct(Volume(ct, GEOMETRY)).problems == check_ct(Volume(ct, GEOMETRY)).notes == []
    assert "Hounsfield" in check_ct(Volume(ct + 1000, GEOMETRY)).notes[0]
    assert "four axes" in check_ct(Volume(ct[..., None].repeat(2, 3), GEOMETRY)).problems[0]


def test_content_is_the_same_whatever_the_layout_in_memory(phantom: Phantom) -> None:
    assert content_of(phantom.image) == content_of(np.asfortranarray(phantom.image))
    changed = phantom.image.copy()
    changed[3, 3, 3, 3] += 1
    assert content_of(changed) != content_of(phantom.image)
    assert content_of(phantom.image) != content_of(phantom.image.reshape(48, 48, 12, 6))
