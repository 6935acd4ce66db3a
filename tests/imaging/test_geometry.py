import json

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry, mm_of, spacing_for

OBLIQUE = np.array([[-1.2, -0.5, -6.0, 40], [-0.7, 1.0, 5.0, -20], [0.4, 1.1, -6.0, 7], [0, 0, 0, 1.0]])


def test_an_affine_is_preserved() -> None:
    geometry = Geometry.of_affine(OBLIQUE, 0.03)
    assert np.allclose(geometry.affine, OBLIQUE, atol=1e-9)
    assert geometry.spacing == pytest.approx(np.linalg.norm(OBLIQUE[:3, :3], axis=0), abs=1e-6)
    assert geometry.in_scanner and geometry.frame_time == 0.03


def test_a_geometry_survives_json() -> None:
    for geometry in (Geometry.of_affine(OBLIQUE, 0.03), Geometry()):
        assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_one_spacing_is_recommended_for_volumes_that_differ() -> None:
    sizes = [(1.4, 1.4, 8.0), (1.25, 1.25, 8.0), (1.8, 1.8, 8.0)]
    mixed = [Geometry(size) for size in sizes]
    assert spacing_for(mixed) == (1.4, 1.4, 8.0) and mm_of(mixed) == "1.25 to 1.8 × 1.25 to 1.8 × 8 mm"
    assert spacing_for([Geometry((1.40625, 1.40625, d)) for d in (8.0, 9.0, 10.0)]) == (1.40625, 1.40625, 9.0)
    assert spacing_for([*mixed[:1], Geometry((1.405, 1.4, 8.0)), Geometry()]) is None and spacing_for([]) is None


def test_shear_is_measured() -> None:
    assert Geometry((1.0, 1.0, 8.0)).shear_degrees == pytest.approx(0)
    sheared = np.eye(4)
    sheared[0, 1] = np.tan(np.deg2rad(5))
    assert Geometry.of_affine(sheared).shear_degrees == pytest.approx(5)


def test_a_voxel_has_a_volume_if_its_size_is_known() -> None:
    assert Geometry((1.5, 1.5, 10.0)).voxel_ml == pytest.approx(0.0225)
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 1.0  # a sheared box has the same volume
    assert Geometry.of_affine(sheared).voxel_ml == pytest.approx(0.008)
    with pytest.raises(CardioDiTError, match="voxel size is unknown"):
        _ = Geometry().voxel_ml


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1, 1, np.nan, 1]), np.ones((4, 4))])
def test_an_affine_must_span_space(affine: np.ndarray) -> None:
    with pytest.raises(CardioDiTError, match="does not span space"):
        Geometry.of_affine(affine)


def test_grids_are_compared_in_mm() -> None:
    geometry = Geometry.of_affine(OBLIQUE)
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.05
    assert geometry.is_close(Geometry.of_affine(moved))
    moved[0, 3] += 1
    assert not geometry.is_close(Geometry.of_affine(moved))
    assert not geometry.is_close(Geometry())
