from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from cardiodit import CardioDiTError
from cardiodit.imaging.phantom.chest import Chest, draw_chest, grow_tree, outside_at
from cardiodit.imaging.phantom.chest_scene import LABELS, ChestPhantom, render_chest

SIZE = (64, 64, 48)
SEED = 2  # a chest with contrast medium and six nodules
TOUCHING = np.ones((3, 3, 3))  # voxels are connected if they share a corner


def chest_of(seed: int = SEED) -> Chest:
    return draw_chest(np.random.default_rng(seed))


def render(chest: Chest, size: tuple = SIZE, spacing: tuple | None = None, seed: int = 0) -> ChestPhantom:
    return render_chest(chest, size, np.random.default_rng(seed), spacing)


@pytest.fixture(scope="module")
def chest() -> Chest:
    return chest_of()


@pytest.fixture(scope="module")
def phantom(chest: Chest) -> ChestPhantom:
    return render(chest)


def millilitres(phantom: ChestPhantom, name: str) -> float:
    return float((phantom.labels == LABELS[name]).sum() * phantom.geometry.voxel_ml)


def centre(phantom: ChestPhantom, name: str) -> np.ndarray:
    """Middle of a label as a share of the picture's axes: to the left, to the front, to the head."""
    return np.argwhere(phantom.labels == LABELS[name]).mean(axis=0) / phantom.labels.shape


def test_it_is_a_ct_volume(phantom: ChestPhantom) -> None:
    assert phantom.image.shape == phantom.labels.shape == SIZE
    assert phantom.image.dtype == np.int16 and phantom.labels.dtype == np.uint8
    assert phantom.image.min() == -1024 and 300 < phantom.image.max() <= 3071
    assert set(np.unique(phantom.labels)) == {0, *LABELS.values()}
    assert phantom.geometry.spacing == pytest.approx((6.0, 6.0, 290 / 48))
    assert phantom.geometry.in_scanner
    to_left, to_front, to_head = np.array(phantom.geometry.direction).T
    assert np.allclose([to_left, to_front, to_head], np.diag([-1, 1, 1]))


def test_a_seed_always_gives_the_same_bytes_and_other_seeds_other_chests(chest: Chest) -> None:
    one, again, other = (render(c, (32, 32, 16), (6.0,) * 3) for c in (chest, chest_of(), chest_of(SEED + 1)))
    assert one.image.tobytes() == again.image.tobytes() and one.labels.tobytes() == again.labels.tobytes()
    assert one.nodules == again.nodules and one.volumes_ml == again.volumes_ml
    assert (one.labels != other.labels).mean() > 0.02


def test_another_noise_leaves_the_anatomy(chest: Chest) -> None:
    one, two = (render(chest, (32, 32, 32), (3.0, 3.0, 3.0), seed) for seed in (0, 1))
    assert np.array_equal(one.labels, two.labels) and one.volumes_ml == two.volumes_ml
    assert 20 < (one.image - two.image).std() < 37  # of two noises of 15 to 25


@pytest.mark.parametrize(
    "name, tolerance",
    [("body", 0.01), ("lungs", 0.01), ("heart", 0.02), ("liver", 0.02), ("spine", 0.05), ("bones", 0.05),
     ("vessels", 0.05), ("airways", 0.10), ("nodules", 0.15)],
)  # fmt: skip
def test_two_sizes_show_the_same_chest(
    chest: Chest, phantom: ChestPhantom, finer: ChestPhantom, name: str, tolerance: float
) -> None:
    assert millilitres(phantom, name) == pytest.approx(millilitres(finer, name), rel=tolerance)
    assert millilitres(finer, name) == pytest.approx(finer.volumes_ml[name], rel=tolerance)
    assert np.abs(centre(phantom, name) - centre(finer, name)).max() < 0.02


@pytest.fixture(scope="module")
def finer(chest: Chest) -> ChestPhantom:
    return render(chest, (96, 80, 72), (4.0, 4.8, 290 / 72))


def test_volumes_are_those_of_an_adult(phantom: ChestPhantom) -> None:
    ranges = {"lungs": (2500, 6500), "heart": (400, 900), "airways": (30, 120), "liver": (700, 2000)}
    for name, (least, most) in ranges.items():
        assert least < phantom.volumes_ml[name] < most
    assert phantom.volumes_ml["nodules"] == pytest.approx(sum(n.volume_ml for n in chest_of().nodules))


def test_nodules_fill_the_volume_of_their_spheres(chest: Chest) -> None:
    alone = replace(chest)
    nodule = replace(chest.nodules[0], centre=(0.0, 0.0, -8.0))  # the middle of the picture
    alone.__dict__.update(nodules=(nodule,), trees=chest.trees)
    fine = render(alone, (40, 40, 40), (2.4 * nodule.radius / 40,) * 3)
    assert millilitres(fine, "nodules") == pytest.approx(nodule.volume_ml, rel=0.01)
    assert fine.volumes_ml["nodules"] == pytest.approx(nodule.volume_ml)


def test_nodules_are_where_they_are_listed(phantom: ChestPhantom, chest: Chest) -> None:
    assert len(phantom.nodules) == len(chest.nodules) == len(chest.nodule_radii)
    for found, nodule in zip(phantom.nodules, chest.nodules):
        voxel = found["centre_voxel"]
        assert np.allclose((phantom.geometry.affine @ [*voxel, 1])[:3], found["centre_mm"])
        assert found["centre_mm"][0] == -nodule.centre[0] and found["radius_mm"] == nodule.radius
        if nodule.radius > 6:
            assert phantom.labels[tuple(np.rint(voxel).astype(int))] == LABELS["nodules"]


@pytest.mark.parametrize("seed", range(2))
def test_nodules_lie_wholly_in_the_lungs_and_apart(seed: int) -> None:
    chest = chest_of(seed)
    ways = np.random.default_rng(0).standard_normal((500, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    assert len(chest.nodules) == len(chest.nodule_radii) >= 2
    for i, nodule in enumerate(chest.nodules):
        assert 4 <= nodule.radius <= 15
        assert outside_at(chest.outside_lungs, nodule.centre + nodule.radius * ways).max() < 0
        for other in chest.nodules[:i]:
            assert np.linalg.norm(np.subtract(nodule.centre, other.centre)) > nodule.radius + other.radius


def test_two_lungs_full_of_air(finer: ChestPhantom) -> None:
    breathing = np.isin(finer.labels, [LABELS[name] for name in ("lungs", "vessels", "nodules")])
    breathing[48 - 3 : 48 + 3] = False  # they all but touch behind the breast bone
    bodies, _ = label(finer.labels * breathing == LABELS["lungs"])
    sizes = np.sort(np.bincount(bodies.ravel())[1:])[::-1] * finer.geometry.voxel_ml
    assert 1000 < sizes[1] <= sizes[0] < 3500 and sizes[2:].sum() < 0.03 * sizes[0]
    assert -900 < finer.image[finer.labels == LABELS["lungs"]].mean() < -700


def test_lungs_are_denser_at_the_back(finer: ChestPhantom) -> None:
    at = np.argwhere(finer.labels == LABELS["lungs"])
    values = finer.image[finer.labels == LABELS["lungs"]]
    air = values < -650
    rear, front = np.percentile(at[:, 1], [30, 70])
    assert values[air & (at[:, 1] < rear)].mean() > values[air & (at[:, 1] > front)].mean() + 15


def test_airways_are_one_body(chest: Chest) -> None:
    close = render(chest, (136, 96, 64), (1.5, 1.5, 1.5))
    bodies, _ = label(close.labels == LABELS["airways"], TOUCHING)
    sizes = np.bincount(bodies.ravel())[1:]
    assert sizes.max() > 0.97 * sizes.sum()


def test_the_windpipe_comes_from_the_neck_in_the_middle(finer: ChestPhantom) -> None:
    top = np.argwhere(finer.labels[:, :, -1] == LABELS["airways"])
    assert len(top) >= 4 and np.abs(top[:, 0] - 47.5).max() * 4.0 < 20
    bodies, _ = label(finer.labels == LABELS["airways"], TOUCHING)
    assert np.bincount(bodies.ravel())[1:].argmax() + 1 == bodies[top[0, 0], top[0, 1], -1]


def test_a_tree_is_connected_and_grows_thinner() -> None:
    ends = np.random.default_rng(0).uniform(-20, 20, (60, 3)) + [40, 0, 0]
    tree = grow_tree(np.zeros(3), ends, 5.0, lambda points: -np.full_like(points[0], 10.0))
    assert len(tree.starts) == 2 * 60 - 1  # a branch for each end and each fork
    assert (tree.end_radii <= tree.start_radii).all() and tree.start_radii[0] == 5.0
    tips = {tuple(tip): radius for tip, radius in zip(tree.ends, tree.end_radii)}
    assert (tree.starts[0] == 0).all()
    for start, radius in zip(tree.starts[1:], tree.start_radii[1:]):
        assert tips[tuple(start)] == radius


def test_a_tree_stays_inside(chest: Chest) -> None:
    """Where the straight way to the middle of its ends leaves the region, it turns to one of them."""
    around = np.deg2rad(np.linspace(0, 330, 100))
    ring = np.stack([30 * np.cos(around), 30 * np.sin(around), np.zeros(100)], axis=1)
    tree = grow_tree(ring[0], ring, 5.0, lambda points: 20 - np.hypot(points[0], points[1]))
    assert (np.hypot(*tree.ends[:, :2].T) >= 22).all()


@pytest.mark.parametrize("seed", range(2))
def test_trees_stay_in_the_lungs_and_the_mediastinum(seed: int) -> None:
    chest = chest_of(seed)
    for tubes in chest.trees:
        middles = (tubes.starts + tubes.ends) / 2
        assert (outside_at(chest.outside_cavity, middles) < 0).mean() > 0.98  # the windpipe begins in the neck
        elsewhere = outside_at(chest.outside_lungs, middles) > 0
        depth = outside_at(chest.outside_mediastinum, middles[elsewhere])
        assert elsewhere.mean() < 0.5 and (depth > 3).sum() < 0.005 * len(middles)
        assert (outside_at(chest.outside_heart, middles) < 0).mean() < 0.005


def test_organs_lie_where_they_belong(phantom: ChestPhantom) -> None:
    heart, spine, liver, lungs, airways = (
        centre(phantom, name) for name in ("heart", "spine", "liver", "lungs", "airways")
    )
    heart_x = np.argwhere(phantom.labels == LABELS["heart"])[:, 0]
    assert (heart_x > (SIZE[0] - 1) / 2).mean() > 0.55  # on the patient's left
    assert spine[1] < lungs[1] < heart[1] and abs(spine[0] - 0.5) < 0.02
    assert liver[0] < 0.45 and liver[2] < heart[2] < airways[2]
    bubble = (phantom.labels == LABELS["body"]) & (phantom.image < -800)  # air in the stomach
    assert np.argwhere(bubble[:, :, : SIZE[2] // 4])[:, 0].mean() > SIZE[0] / 2


def test_the_left_lung_makes_room_for_the_heart(finer: ChestPhantom) -> None:
    lungs = finer.labels == LABELS["lungs"]
    at_the_heart = slice(int(0.25 * 72), int(0.5 * 72))
    assert lungs[48:, 40:, at_the_heart].sum() < 0.9 * lungs[:48, 40:, at_the_heart].sum()


@pytest.mark.parametrize(
    "name, least, most", [("heart", 90, 260), ("vessels", 50, 260), ("liver", 50, 150), ("spine", 120, 450),
                          ("bones", 150, 600), ("airways", -1024, -600)],
)  # fmt: skip
def test_tissues_have_their_hounsfield_units(finer: ChestPhantom, name: str, least: float, most: float) -> None:
    assert least < np.median(finer.image[finer.labels == LABELS[name]]) < most


def test_outside_is_air_and_under_the_skin_is_fat(chest: Chest, finer: ChestPhantom) -> None:
    assert finer.image[finer.labels == 0].mean() < -950
    h, w, d = np.indices(finer.labels.shape)
    x, y, z = (finer.geometry.affine[:3, :3] @ np.stack([h, w, d]).reshape(3, -1)) + finer.geometry.affine[:3, 3:]
    fat = chest.outside_muscle((-x, y, z)).reshape(finer.labels.shape)
    under_the_skin = (finer.labels == LABELS["body"]) & (fat > 3) & (fat < chest.fat - 3)
    assert -140 < np.median(finer.image[under_the_skin]) < -60


def test_contrast_medium_is_in_the_blood_alone(chest: Chest) -> None:
    one, two = (render(some, (32, 24, 24), (6.0, 6.0, 4.0)) for some in (replace(chest, blood=40.0), chest))
    difference = two.image.astype(int) - one.image
    assert difference[one.labels == LABELS["heart"]].mean() > 90
    assert abs(difference[one.labels == LABELS["lungs"]].mean()) < 40
    assert abs(difference[one.labels == LABELS["spine"]].mean()) < 5


def test_the_lungs_end_within_the_picture(chest: Chest, finer: ChestPhantom) -> None:
    lungs = np.argwhere(finer.labels == LABELS["lungs"])
    assert (lungs.min(axis=0) > 0).all() and (lungs.max(axis=0) < np.array(finer.labels.shape) - 1).all()


@pytest.mark.parametrize("seed", range(30))
def test_drawn_chests_are_plausible(seed: int) -> None:
    chest = chest_of(seed)
    assert all(0.88 < scale < 1.12 for scale in chest.scale)
    assert 30 < chest.blood < 250 and -900 < chest.lung < -800
    assert chest == chest_of(seed) and chest != chest_of(seed + 1)
    assert list(chest.nodule_radii) == sorted(chest.nodule_radii, reverse=True)


@pytest.mark.parametrize(
    "size, spacing, message",
    [
        ((8, 64, 48), None, r"size=\(8, 64, 48\) must be three numbers .* at least 16 voxels"),
        ((64, 64), None, r"size=\(64, 64\) must be three numbers"),
        (SIZE, (3.0, 3.0), r"spacing=\(3.0, 3.0\) must be three positive numbers in mm"),
        (SIZE, (3.0, -3.0, 3.0), "three positive numbers in mm"),
        (SIZE, (3.0, float("nan"), 3.0), "three positive numbers in mm"),
    ],
)
def test_impossible_pictures(chest: Chest, size: tuple, spacing: tuple | None, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        render(chest, size, spacing)
