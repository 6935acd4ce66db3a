"""Cards of a real small pipeline folder."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from cardiodit import VolDiTPipeline, VQModel3D, make_scheduler
from cardiodit.cli import main
from cardiodit.energy import Energy
from cardiodit.energy.electricity import choose_electricity, footprint_of
from cardiodit.energy.meter import EnergyPart
from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.owner_facts import LICENCES, REQUIRED, TO_BE_STATED, OwnerFacts, read_facts
from cardiodit.hub.model_card import TEMPLATE, headings, is_as_made, to_be_stated, write_card

from .conftest import write_run

ROOT = Path(__file__).parents[2]


def test_the_template_at_the_root_is_the_packages_own() -> None:
    assert TEMPLATE.read_text() == (ROOT / "model_card.md").read_text()


def test_a_card_of_a_bare_folder_shows_everything_that_is_missing(model: Path) -> None:
    missing = write_card(model)
    text = (model / "README.md").read_text()
    for key in REQUIRED:
        assert any(sentence.startswith(f"`{key}`: ") for sentence in missing), key
    for what in ("training of stage 1", "training of stage 2", "energy of stage 1", "energy of stage 2"):
        assert any(what in sentence for sentence in missing)
    assert text.count(TO_BE_STATED) == len(missing) == len(REQUIRED) + 4
    assert not re.search(r"\{\{|\}\}", text) and "None" not in text and "<!-- The template" not in text
    assert "license" not in metadata_load(model / "README.md")


def test_a_complete_card_tells_what_files_runs_and_owner_know(complete: Path) -> None:
    text = (complete / "README.md").read_text()
    assert TO_BE_STATED not in text and "\n\n\n" not in text
    for told in (
        "# Small hearts",
        "16 × 16 × 2 × 8 voxels",
        "| Voxel size | 1.5 × 1.5 × 8 mm",
        "| Time between frames | 40 ms |",
        "-1 becomes 0 and 1 becomes 900",
        "`well`, `ill`",
        "Resampled to H 1.5 mm, W 1.5 mm; D as in the file.",
        "One beat resampled periodically to 8 frames.",
        "| Volumes trained on | 32 |",
        "| Steps | 1000, the best of them 800 |",
        "| Lowest validation loss | 0.12346 |",
        "| Hardware | 2 × NVIDIA H100 |",
        "| Duration | 5.0 h in 2 sessions, 2026-11-21 to 2026-11-22 |",
        "| Weights in this folder | byte for byte those of this run's best step |",
        "model: {num_layers: 2}",
        "`DPMSolverMultistepScheduler` (algorithm type dpmsolver++",
        "[lab/cines](https://huggingface.co/datasets/lab/cines); the register of 1999",
        "Written consent; approved as 12-345.",
        "| FID (real to real 3.1) | 12.5 | lab/cines |",
        "![A generated volume](previews/seed3-00000.gif)",
        'from_pretrained("lab/hearts")',
        'class_labels="well"',
    ):
        assert told in text, told
    assert "/home/jane" not in text and "cache_dir: cache" in text
    assert text.index("### Stage 1") < text.index("### Stage 2")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == headings()


def test_energy_becomes_grams(model: Path, runs: list[Path], facts: Path) -> None:
    """2 runs × 2 sessions × 1.25 kWh = 5 kWh; at 28 g/kWh 140 g, at the world average of 480 g/kWh 2.4 kg."""
    write_card(model, runs, read_facts(facts))
    emissions = metadata_load(model / "README.md")["co2_eq_emissions"]
    assert emissions == {
        "emissions": 140.0,
        "source": "cardiodit: GPU's counter",
        "training_type": "pre-training",
        "geographical_location": "Iceland",
        "hardware_used": "2 × NVIDIA H100",
    }
    write_card(model, runs, OwnerFacts(data_centre_overhead=1.5))
    assert metadata_load(model / "README.md")["co2_eq_emissions"]["emissions"] == 3600
    text = (model / "README.md").read_text()
    assert "world average" in text and "5 kWh" in text and "3.6 kg CO2-equivalent" in text


def test_the_place_that_runs_recorded_is_used(model: Path, tmp_path: Path) -> None:
    """Two stages of 2 kWh (1 to 4) in a German data centre: 4 kWh × 1.25 × 380.95 g = 1.9 kg."""
    energy = Energy((EnergyPart("cpu", 2.0, 1.0, 4.0, "CPU time"),))
    record = footprint_of(energy, choose_electricity("DEU", 1.25)).to_dict()
    session = {"versions": {}, "hardware": "CPU", "processes": 1, "seconds": 5.0, "energy_kwh": 2.0}
    sessions = [{**session, "energy_method": "CPU time", "energy": record}]
    runs = [write_run(tmp_path / "runs" / stage, stage, sessions=sessions) for stage in ("train_vqgan", "train_dit")]
    write_card(model, runs)
    emissions = metadata_load(model / "README.md")["co2_eq_emissions"]
    assert emissions["emissions"] == 1900 and emissions["geographical_location"] == "Germany"
    text = (model / "README.md").read_text()
    assert "381 g CO2-equivalent per kWh (Germany, mean of 2023), times 1.25 for the data centre (PUE)" in text
    assert "that is 1.9 kg CO2-equivalent; the true value lies between 480 g and 5.7 kg" in text
    write_card(model, runs, OwnerFacts(carbon_intensity=100.0))  # the owner knows better
    assert metadata_load(model / "README.md")["co2_eq_emissions"]["emissions"] == 500


def test_the_country_of_the_owner_gives_its_figure(model: Path, runs: list[Path]) -> None:
    write_card(model, runs, OwnerFacts(country="Iceland"))
    assert metadata_load(model / "README.md")["co2_eq_emissions"]["emissions"] == 140  # 5 kWh at 27.68 g
    write_card(model, runs, OwnerFacts(country="my cellar"))
    assert "480 g CO2-equivalent per kWh (the world average" in (model / "README.md").read_text()


def test_unrecorded_energy_is_marked_as_missing(model: Path, runs: list[Path], facts: Path, tmp_path: Path) -> None:
    session = {"versions": {}, "hardware": "CPU", "processes": 1, "seconds": 5.0}
    old = write_run(tmp_path / "old", "train_dit", sessions=[session])
    missing = write_card(model, [runs[0], old], read_facts(facts))
    assert len(missing) == 1 and "energy of stage 2" in missing[0]
    assert "co2_eq_emissions" not in metadata_load(model / "README.md")
    facts.write_text(facts.read_text() + "energy_kwh: 0.5\n")
    assert write_card(model, [runs[0], old], read_facts(facts)) == []
    assert metadata_load(model / "README.md")["co2_eq_emissions"]["emissions"] == 14

    killed = write_run(tmp_path / "killed", "train_dit", sessions=[{**session, "energy_kwh": 2.0}, {**session}])
    record = (killed / "run.json").read_text().replace('"seconds": 5.0}]', '"python": "3.11"}]')
    (killed / "run.json").write_text(record)
    write_card(model, [runs[0], killed])
    text = (model / "README.md").read_text()
    assert "at least 4.5 kWh" in text and "1 of them were killed" in text


def test_the_metadata_is_what_the_hub_reads(complete: Path) -> None:
    card = ModelCard.load(complete / "README.md")
    data = card.data
    assert isinstance(data, ModelCardData)
    assert data.license in LICENCES and data.library_name == "cardiodit" and data.datasets == ["lab/cines"]
    assert {"diffusers", "cardiodit", "cardiac-mri", "medical-imaging"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("fid", 12.5, "lab/cines")
    assert list(metadata_load(complete / "README.md"))[:3] == ["library_name", "pipeline_tag", "license"]


def test_terms_of_access_become_the_hubs_form(model: Path, runs: list[Path], facts: Path) -> None:
    facts.write_text(facts.read_text() + "access: For research at hospitals.\n")
    write_card(model, runs, read_facts(facts))
    metadata = metadata_load(model / "README.md")
    assert metadata["extra_gated_prompt"] == "For research at hospitals."
    assert {"text", "checkbox"} == set(metadata["extra_gated_fields"].values())


def test_models_of_another_system(make_vae: Callable, make_dit_3d: Callable, model: Path) -> None:
    pipe = VolDiTPipeline(make_vae(VQModel3D), make_dit_3d(), make_scheduler())
    pipe.transformer.save_pretrained(model / "transformer")
    with pytest.raises(CardioDiTError, match="contains a DiT3DTransformerModel, but a CardioDiTPipeline needs a DiT4D"):
        write_card(model)
    pipe.save_pretrained(model)
    assert any("`preprocessing`" in what for what in write_card(model))
    text = (model / "README.md").read_text()
    assert "synthetic 3D volumes of 32 × 32 × 16 voxels (H × W × D)" in text and "VolDiT" in text
    assert "unknown: files carry no voxel size" in text and "none; generation cannot be steered" in text
    assert "cardiac-mri" not in text and "end-diastole" not in text


def test_weights_that_a_run_did_not_make_must_be_explained(
    model: Path, runs: list[Path], facts: Path, make_dit: Callable
) -> None:
    make_dit().save_pretrained(model / "transformer")
    (missing,) = write_card(model, runs, read_facts(facts))
    assert "why the weights of stage 2, the denoiser differ from the best weights of run dit" in missing
    (runs[1] / "config.yaml").write_text("training: {lora_rank: 8}\n")
    assert write_card(model, runs, read_facts(facts)) == []
    assert "a LoRA adapter trained by this run" in (model / "README.md").read_text()


def test_fine_tuned_models_name_their_base_model(model: Path, runs: list[Path], facts: Path) -> None:
    facts.write_text(facts.read_text() + "base_model: lab/base\n")
    assert write_card(model, runs[1:], read_facts(facts)) == []
    metadata = metadata_load(model / "README.md")
    assert metadata["base_model"] == "lab/base"
    assert metadata["co2_eq_emissions"]["training_type"] == "fine-tuning"


def test_an_edited_card_is_not_replaced_unless_requested(model: Path, runs: list[Path], facts: Path) -> None:
    card = model / "README.md"
    write_card(model)
    assert is_as_made(card.read_text())
    write_card(model, runs)  # nobody touched it
    card.write_text(card.read_text().replace("teaching", "teaching, of course"))
    with pytest.raises(CardioDiTError, match="edited by hand and is not replaced"):
        write_card(model, runs, read_facts(facts))
    assert write_card(model, runs, read_facts(facts), overwrite=True) == []


def test_a_run_in_whose_folder_the_pipeline_lies_is_found(model: Path, runs: list[Path]) -> None:
    pipeline = model.rename(runs[1] / "pipeline")
    write_card(pipeline, [runs[0]])
    text = (pipeline / "README.md").read_text()
    assert text.startswith("---") and "# dit\n" in text and "(`train_dit`)" in text and "(`train_vqgan`)" in text


def test_damaged_records_are_reported_at_once(model: Path, runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "run.json").write_text('{"stage": "train_vqgan", "sessions": []}')
    with pytest.raises(CardioDiTError, match="(?s)record of the run .*vqgan is damaged.*contains no run.json"):
        write_card(model, [*runs, tmp_path])
    (model / "model_index.json").unlink()
    with pytest.raises(CardioDiTError, match="contains no model_index.json"):
        write_card(model)


def test_the_command(model: Path, runs: list[Path], facts: Path, samples: Path, capsys: pytest.CaptureFixture) -> None:
    blank = facts.with_name("blank.yaml")
    assert main(["card", str(model), "--write_facts", str(blank)]) == 0
    assert not (model / "README.md").exists()
    assert main(["card", str(model), "--write_facts", str(blank)]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert main(["card", str(model), "--facts", str(blank)]) == 0
    assert "  - `consent`: consent or ethics approval" in capsys.readouterr().out
    arguments = ["card", str(model), "--run", *map(str, runs), "--facts", str(facts), "--previews", str(samples)]
    assert main(arguments) == 0
    assert f"cardiodit publish {model} lab/hearts" in capsys.readouterr().out
    assert to_be_stated((model / "README.md").read_text()) == []
    assert main(["card", str(model / "nowhere")]) == 1
