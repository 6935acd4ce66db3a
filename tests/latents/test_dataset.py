import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.imaging.manifest import check_disjoint, read_table, write_manifest
from cardiodit.latents import LatentCohort, encode_cohort, identity_of_vae, read_latent


def rows_of(manifest: Path) -> list[dict[str, str]]:
    return [row for _, row in read_table(manifest, ())]


def test_a_cohort_is_its_files_in_the_manifests_order(latents: Path, vae: VQModel4D, phantoms: Path) -> None:
    cohort = LatentCohort.open(latents, identity_of_vae(vae))
    assert (len(cohort), cohort.channels, cohort.size) == (2, 8, (4, 8, 8, 2))
    assert [case.subject for case in cohort.cases] == [row["subject"] for row in rows_of(phantoms)]
    assert cohort.labels() == ["normal", "dilated"] and cohort.labels("ed_frame") == ["0", "0"]
    for index, row in enumerate(rows_of(latents)):
        header, tensor = read_latent(latents.parent / row["latent"])
        assert torch.equal(cohort[index], tensor) and cohort.headers[index] == header


def test_workers_read_the_same(latents: Path) -> None:
    cohort = LatentCohort.open(latents)
    (batch,) = DataLoader(pickle.loads(pickle.dumps(cohort)), batch_size=2, num_workers=1)
    assert torch.equal(batch, torch.stack([cohort[0], cohort[1]]))


def test_its_identity_is_that_of_the_data(latents: Path, tmp_path: Path) -> None:
    identity = LatentCohort.open(latents).identity
    moved = latents.parent.rename(tmp_path / "moved") / latents.name
    assert LatentCohort.open(moved).identity == identity
    write_manifest(moved, rows_of(moved)[::-1])
    assert LatentCohort.open(moved).identity != identity
    write_manifest(moved, rows_of(moved)[:1])
    assert LatentCohort.open(moved).identity != identity


def test_subjects_can_be_compared_between_splits(latents: Path) -> None:
    cohort = LatentCohort.open(latents)
    with pytest.raises(CardioDiTError, match="phantom-0000 is in training and in validation"):
        check_disjoint(training=cohort.cases, validation=cohort.cases[:1])


def test_all_that_is_wrong_with_files_comes_at_once(latents: Path) -> None:
    first, second = (latents.parent / row["latent"] for row in rows_of(latents))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    write_manifest(latents, [*rows_of(latents), rows_of(latents)[0], {**rows_of(latents)[0], "latent": ""}])
    with pytest.raises(CardioDiTError) as caught:
        LatentCohort.open(latents)
    for part in (
        f"{first.name} is damaged or was cut short",
        f"{second.name} does not exist",
        "line 4: .* is that of line 2",
        "line 5: the column 'latent' is empty",
        "`cardiodit encode .* --output_dir",
    ):
        assert re.search(part, str(caught.value)), part


def test_latents_of_other_models_preprocessings_and_shapes(latents: Path, vae: VQModel4D, phantoms: Path) -> None:
    with pytest.raises(CardioDiTError, match="2 of 2 were made by another VQ model than the one given"):
        LatentCohort.open(latents, "0" * 64)
    first = latents.parent / rows_of(latents)[0]["latent"]
    kept = first.read_bytes()
    vae.quantizer.weight.data += 0.1
    encode_cohort(phantoms, vae, latents.parent, depth=6, report=list)
    first.write_bytes(kept)
    with pytest.raises(CardioDiTError) as caught:
        LatentCohort.open(latents, identity_of_vae(vae))
    message = str(caught.value)
    assert "1 of 2 were made by another" in message and "of 2 VQ models" in message
    assert "of 2 preprocessings" in message and "of 2 shapes: 1 of (8, 4, 8, 8, 2), 1 of (8, 6, 8, 8, 2)" in message


def test_a_file_that_changes_while_it_is_in_use(latents: Path, vae: VQModel4D, phantoms: Path) -> None:
    cohort = LatentCohort.open(latents)
    encode_cohort(phantoms, vae, latents.parent, depth=6, report=list)
    with pytest.raises(CardioDiTError, match="was encoded anew while it was in use"):
        cohort[0]


def test_labels_that_are_not_there(latents: Path) -> None:
    with pytest.raises(CardioDiTError, match="'vendor' is missing or empty for 2 of 2 latents.*latent, subject"):
        LatentCohort.open(latents).labels("vendor")


def test_a_manifest_of_images(phantoms: Path) -> None:
    with pytest.raises(CardioDiTError, match="has no column 'latent'"):
        LatentCohort.open(phantoms)
