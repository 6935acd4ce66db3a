"""Cohorts of latents, and the scaling factor measured on them."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.cli import main
from cardiodit.imaging.manifest import check_disjoint, read_table, write_manifest
from cardiodit.latents import LatentCohort, encode_cohort, identity_of_vae, measure_scale, read_latent, write_scale


def rows_of(manifest: Path) -> list[dict[str, str]]:
    return [row for _, row in read_table(manifest, ())]


def test_a_cohort_has_the_order_of_its_manifest(latents: Path, vae: VQModel4D, phantoms: Path) -> None:
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


def test_the_identity_depends_on_the_data_and_not_on_paths(latents: Path, tmp_path: Path) -> None:
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


def test_all_problems_with_files_are_reported_together(latents: Path) -> None:
    first, second = (latents.parent / row["latent"] for row in rows_of(latents))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    write_manifest(latents, [*rows_of(latents), rows_of(latents)[0], {**rows_of(latents)[0], "latent": ""}])
    with pytest.raises(CardioDiTError) as caught:
        LatentCohort.open(latents)
    for part in (
        f"{first.name} is damaged or was cut short",
        f"{second.name} does not exist",
        "line 4: .* is already in line 2",
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
    assert "1 of 2 were made by another" in message and "2 different VQ models" in message
    assert "2 different preprocessings" in message
    assert "2 different shapes: 1 with (8, 4, 8, 8, 2), 1 with (8, 6, 8, 8, 2)" in message


def test_a_file_that_changes_while_it_is_in_use(latents: Path, vae: VQModel4D, phantoms: Path) -> None:
    cohort = LatentCohort.open(latents)
    encode_cohort(phantoms, vae, latents.parent, depth=6, report=list)
    with pytest.raises(CardioDiTError, match="was encoded again while it was in use"):
        cohort[0]


def test_labels_that_are_not_there(latents: Path) -> None:
    with pytest.raises(CardioDiTError, match="'vendor' is missing or empty for 2 of 2 latents.*latent, subject"):
        LatentCohort.open(latents).labels("vendor")


def test_a_manifest_of_images(phantoms: Path) -> None:
    with pytest.raises(CardioDiTError, match="has no column 'latent'"):
        LatentCohort.open(phantoms)


# --- The scaling factor ---


@pytest.mark.parametrize("mean, spread", [(0.0, 1.0), (1e6, 1.0), (-3.0, 1e-4)])
def test_one_pass_is_as_exact_as_all_values_together(mean: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(8, n, 5, generator=generator, dtype=torch.float64) * spread * n + mean + n for n in range(1, 9)
    ]
    everything = torch.cat([tensor.flatten() for tensor in tensors])
    assert measure_scale(iter(tensors)) == pytest.approx(1 / everything.std().item(), rel=1e-9)


def test_float32_latents_are_summed_in_float64() -> None:
    tensors = [torch.randn(8, 4, 16, 16, 8, generator=torch.Generator().manual_seed(i)) + 1000 for i in range(4)]
    expected = 1 / torch.cat([tensor.flatten() for tensor in tensors]).double().std().item()
    assert measure_scale(tensors) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_latents_without_deviation_have_no_scaling_factor(values: list[float]) -> None:
    with pytest.raises(CardioDiTError, match="so there is no scaling factor"):
        measure_scale([torch.tensor(values)] if values else [])


def test_writing_the_factor_changes_nothing_else(vae: VQModel4D, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    before = config.read_text()
    write_scale(tmp_path, 1.25)
    assert config.read_text() == before.replace('"scaling_factor": 1.0', '"scaling_factor": 1.25') != before
    opened = VQModel4D.from_pretrained(tmp_path)
    assert opened.config.scaling_factor == 1.25 and identity_of_vae(opened) == identity_of_vae(vae)


def test_the_command_measures_and_writes(latents: Path, vae: VQModel4D, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    vae.save_pretrained(run / "best" / "vae")
    command = ["scale-factor", "--latents", str(latents), "--vae", str(run)]
    assert main([*command, "--limit", "1"]) == 0
    cohort = LatentCohort.open(latents)
    first = 1 / cohort[0].double().std().item()
    messages = capsys.readouterr().out
    assert f"1 before, now {first:.6g}, measured on 1 of 2 files" in messages
    assert main(command) == 0
    both = 1 / torch.stack([cohort[0], cohort[1]]).double().std().item()
    config = json.loads((run / "best" / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(both, rel=1e-9)
    messages = capsys.readouterr().out
    assert f"{first:.6g} before, now {both:.6g}, measured on 2 of 2 files" in messages


def test_the_command_refuses_wrong_models_and_limits(latents: Path, vae: VQModel4D, tmp_path: Path, capsys) -> None:
    def error(*arguments: str) -> str:
        assert main(["scale-factor", "--latents", str(latents), *arguments]) == 1
        return capsys.readouterr().err

    assert "a model on the Hub must be downloaded first" in error("--vae", "org/name")
    vae.save_pretrained(tmp_path / "vae")
    assert "--limit 0: must be at least 1" in error("--vae", str(tmp_path / "vae"), "--limit", "0")
    vae.quantizer.weight.data += 1
    vae.save_pretrained(tmp_path / "vae")
    before = (tmp_path / "vae" / "config.json").read_bytes()
    assert "made by another VQ model" in error("--vae", str(tmp_path / "vae"))
    assert (tmp_path / "vae" / "config.json").read_bytes() == before
