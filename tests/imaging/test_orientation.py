import json
from itertools import permutations, product

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.orientation import (
    ASSUMED,
    MASK,
    SCANNER,
    StorageOrder,
    largest_pool,
    order_of_cine,
    order_of_ct,
    slices_towards_apex,
)
from cardiodit.imaging.phantom import Phantom, draw_heart, render
from cardiodit.imaging.volume import Volume


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    random = np.random.default_rng(3)
    return render(draw_heart("normal", random), (40, 36, 6, 8), random)


def stored_in(volume: Volume, axes: tuple[int, ...], flips: tuple[int, ...], first: int = 0) -> Volume:
    """Store a volume as some scanner could have; slices stay last."""
    volume = volume.permute(axes)
    for axis in flips:
        volume = volume.flip(axis)
    return volume.roll(first)


IN_PLANE = [(axes, flips) for axes in ((0, 1, 2), (1, 0, 2)) for flips in ((), (0,), (1,), (2,), (0, 1), (0, 1, 2))]


@pytest.mark.parametrize(("axes", "flips"), IN_PLANE)
def test_any_storage_order_becomes_the_same_heart_and_is_restored(phantom: Phantom, axes: tuple, flips: tuple) -> None:
    heart = Volume(phantom.image, phantom.geometry)
    stored = stored_in(heart, axes, flips)
    order = order_of_cine(stored)
    ours = order.apply(stored)
    assert order.slices_from == SCANNER
    assert np.array_equal(ours.voxels, heart.voxels)
    assert ours.geometry.is_close(heart.geometry)
    back = order.restore(ours)
    assert np.array_equal(back.voxels, stored.voxels) and back.geometry.is_close(stored.geometry)


def test_masks_determine_base_and_diastole_where_the_scanner_does_not(phantom: Phantom) -> None:
    nowhere = Geometry((1.5, 1.5, 10.0), 0.03)
    stored = stored_in(Volume(phantom.image, nowhere), (0, 1, 2), (2,), first=3)
    labels = stored_in(Volume(phantom.labels, nowhere), (0, 1, 2), (2,), first=3).voxels
    order = order_of_cine(stored, labels)
    assert (order.flips, order.slices_from, order.first_frame_from) == ((2,), MASK, MASK)
    assert order.first_frame == 5  # of 8 frames; the third frame was first
    assert np.array_equal(order.apply(stored).voxels, phantom.image)
    assert np.array_equal(order.restore(order.apply(stored)).voxels, stored.voxels)


def turned_by(volume: Volume, turn: int) -> Volume:
    """Turn the picture counter-clockwise: what is on the right comes to the top."""
    for _ in range(turn // 90):
        volume = volume.permute((1, 0, 2)).flip(0)
    return volume


@pytest.mark.parametrize(
    "geometry", [Geometry((1.5, 1.5, 10.0), 0.03), Geometry.of_affine(np.diag([-1.5, 1.5, 10, 1]))]
)
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_right_ventricle_on_the_right_is_brought_to_the_left(phantom: Phantom, geometry: Geometry, turn: int) -> None:
    """The header lies or is missing: voxels are turned, and the geometry is that of a picture that was not."""
    image, labels = (turned_by(Volume(v, Geometry()), turn).voxels for v in (phantom.image, phantom.labels))
    stored = Volume(image, geometry)
    order = order_of_cine(stored, labels, ventricles=(1, 3))
    ours = order.apply(stored)
    seen = order.apply(Volume(labels, geometry)).voxels[..., 0]
    right, left = (np.argwhere(seen == label)[:, 0].mean() for label in (1, 3))
    assert right <= left + 2  # beside each other at most: the header is believed
    assert (order.turn != 0) == (order.plane_from == MASK)
    if turn == 180 and not geometry.in_scanner:
        assert order.turn == 180 and np.array_equal(ours.voxels, phantom.image)
    back = order.restore(ours)
    assert np.array_equal(back.voxels, stored.voxels) and back.geometry.is_close(stored.geometry)


def test_the_manifest_determines_the_turn(phantom: Phantom) -> None:
    stored = turned_by(Volume(phantom.image, Geometry((1.5, 1.5, 10.0))), 90)
    order = order_of_cine(stored, turn=270)
    assert np.array_equal(order.apply(stored).voxels, phantom.image) and order.plane_from == "manifest"
    with pytest.raises(CardioDiTError, match="turn=45 must be one of 0, 90, 180, 270 degrees"):
        order_of_cine(stored, turn=45)


def test_without_information_the_order_stays_as_stored(phantom: Phantom) -> None:
    axial = Geometry.of_affine(np.diag([-1.5, -1.5, 10, 1]))  # a placeholder that many converted files carry
    order = order_of_cine(Volume(phantom.image, axial))
    assert (order.slices_from, order.first_frame_from, order.first_frame) == (ASSUMED, ASSUMED, 0)
    assert order.flips == (1,)  # stored to the back, shown with the front above
    assert order_of_cine(Volume(phantom.image, Geometry((1.0, 1.0, 8.0)))) == StorageOrder()


def test_the_manifest_determines_end_diastole(phantom: Phantom) -> None:
    volume = Volume(phantom.image, phantom.geometry)
    order = order_of_cine(volume, phantom.labels, end_diastole=6)
    assert (order.first_frame, order.first_frame_from) == (6, "manifest")
    with pytest.raises(CardioDiTError, match="cannot be frame 8"):
        order_of_cine(volume, end_diastole=8)


def test_two_labelled_frames_do_not_determine_diastole(phantom: Phantom) -> None:
    labels = np.zeros_like(phantom.labels)
    labels[..., 3] = phantom.labels[..., 3]
    assert order_of_cine(Volume(phantom.image, phantom.geometry), labels).first_frame_from == ASSUMED


def test_frame_0_is_preferred_if_it_holds_as_much() -> None:
    labels = np.zeros((10, 10, 1, 4), np.uint8)
    for frame, count in enumerate((99, 50, 60, 100)):
        labels.reshape(100, 4)[:count, frame] = 3
    assert largest_pool(labels) == 0
    labels[..., 0] *= labels[..., 1] > 0
    assert largest_pool(labels) == 3


def test_few_or_equal_slices_do_not_determine_the_apex() -> None:
    labels = np.ones((4, 4, 2), np.uint8)
    assert slices_towards_apex(labels) == 0
    assert slices_towards_apex(np.ones((4, 4, 6), np.uint8)) == 0


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_a_ct_goes_to_the_left_the_front_and_the_head(axes: tuple, signs: tuple) -> None:
    tilted = np.eye(4)
    tilted[:3, :3] = np.array([[0.99, 0.1, 0], [-0.1, 0.99, 0.1], [0, -0.1, 0.99]])[:, axes] * signs
    stored = Volume(np.random.default_rng(0).standard_normal((4, 5, 6)), Geometry.of_affine(tilted))
    order = order_of_ct(stored)
    ours = order.apply(stored)
    assert (np.sign(np.diag(ours.geometry.affine)[:3]) == (-1, 1, 1)).all()
    assert np.abs(np.diag(ours.geometry.affine)[:3]).min() > 0.9
    back = order.restore(ours)
    assert np.array_equal(back.voxels, stored.voxels) and back.geometry.is_close(stored.geometry)


def test_an_order_survives_json() -> None:
    order = StorageOrder((1, 0, 2), (0, 2), 5, MASK, "manifest")
    assert StorageOrder.from_dict(json.loads(json.dumps(order.to_dict()))) == order
