"""What was measured is found again by all that decides it, and by nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, EvaluatorConfig, Evaluators, open_evaluators
from cardiodit.evaluation.measure import Measured, measure
from cardiodit.evaluation.volume_sets import Item, open_real
from cardiodit.evaluation.workers import key_of, read_cached, write_cached
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.phantom import write_cohort

STEPS = Preprocessing()


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    return open_real(write_cohort(tmp_path_factory.mktemp("hearts") / "c", num=1, size=(24, 24, 4, 4))).items[0]


@pytest.fixture(scope="module")
def instruments() -> Evaluators:
    return open_evaluators(EvaluatorConfig(labels=(("real", MASKS),)))


@pytest.fixture(scope="module")
def measured(item: Item, instruments: Evaluators) -> Measured:
    return measure(item, STEPS, instruments, MASKS)


def test_the_key_is_all_that_decides_what_is_measured(item: Item, instruments: Evaluators, tmp_path: Path) -> None:
    assert item.case is not None
    mask = item.case.path("mask")
    assert mask is not None
    mask = Path(shutil.copy(mask, tmp_path))
    with mask.open("ab") as stream:
        stream.write(b" ")
    other_mask, other_order = (
        replace(item, case=replace(item.case, row={**item.case.row, **changed}))
        for changed in ({"mask": str(mask)}, {"mask_order": "1=RV;2=MYO;3=LV"})
    )
    phases, other_phases = (
        replace(item, case=replace(item.case, row={**item.case.row, "mask": "", "ed_mask": ed, "es_mask": str(mask)}))
        for ed in (item.case.row["mask"], str(mask))
    )
    same = replace(item, id="of another name")
    without_networks = replace(instruments, networks={})
    keys = {
        key_of(item, STEPS, instruments, MASKS),
        key_of(item, STEPS, instruments, SEGMENTER),
        key_of(item, STEPS, without_networks, MASKS),
        key_of(item, replace(STEPS, frames=2), instruments, MASKS),
        key_of(other_mask, STEPS, instruments, MASKS),
        key_of(other_order, STEPS, instruments, MASKS),
        key_of(replace(item, set="synthetic"), STEPS, instruments, MASKS),
        key_of(phases, STEPS, instruments, MASKS),
        key_of(other_phases, STEPS, instruments, MASKS),
    }
    assert len(keys) == 9
    assert key_of(same, STEPS, instruments, MASKS) == key_of(item, STEPS, instruments, MASKS)
    assert key_of(other_mask, STEPS, instruments, None) == key_of(item, STEPS, instruments, None)  # no mask is read


def test_it_comes_back_as_it_was(measured: Measured, tmp_path: Path) -> None:
    write_cached(tmp_path / "kept", "a", measured)
    found = read_cached(tmp_path / "kept", "a")
    assert found is not None and found.was_cached
    assert {kind: row.tolist() for kind, row in found.features.items()} == {
        kind: row.tolist() for kind, row in measured.features.items()
    }
    assert replace(found, was_cached=False, features={}) == replace(measured, features={})
    assert read_cached(tmp_path / "kept", "b") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_what_is_damaged_is_not_believed(measured: Measured, tmp_path: Path, damage: str) -> None:
    write_cached(tmp_path, "a", measured)
    file = tmp_path / "a.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"cut": content[:1000], "flip": content, "other": b"not an archive"}[damage])
    with pytest.warns(UserWarning, match=r"a\.npz is damaged .* Measuring the volume again"):
        assert read_cached(tmp_path, "a") is None


def test_a_folder_that_cannot_be_is_said(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CardioDiTError, match="cannot be written"):
        write_cached(tmp_path / "file" / "kept", "a", measured)
