"""The registry of systems is complete, consistent with the classes that it names, and open to new systems."""

from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.systems import (
    all_systems,
    find_system,
    load,
    registered,
    stages_by_script,
    system_of,
    system_of_pipeline,
)
from cardiodit.systems.registry import System

TRAINING = Path(__file__).parents[2] / "training"


@pytest.mark.parametrize("system", all_systems(), ids=lambda system: system.name)
def test_every_reference_of_a_record_can_be_loaded(system: System) -> None:
    references = [system.denoiser, system.scheduler, system.converter, system.autoencoder, system.adapter]
    for reference in (*system.pipelines.values(), *filter(None, references)):
        assert callable(load(reference))
    for stage in system.stages:
        assert is_dataclass(load(stage.settings)) and (TRAINING / f"{stage.script}.py").is_file()
        assert stage.component in system.components
        assert stage.open_checkpoint is None or callable(load(stage.open_checkpoint))


@pytest.mark.parametrize("system", all_systems(), ids=lambda system: system.name)
def test_records_agree_with_the_classes_that_they_name(system: System) -> None:
    for name, reference in system.pipelines.items():
        pipeline = load(reference)
        assert pipeline.__name__ == name and system_of_pipeline(name) is system
        assert pipeline.default_steps == system.default_steps and pipeline.denoiser_name == system.component
    assert len(load(system.denoiser).axis_names) == system.dimensions
    assert system_of(denoiser=system.components[system.component]) is system
    assert find_system(system.name) is system


def test_stages_of_a_model_follow_from_its_configs() -> None:
    prdit, cardiodit = find_system("prdit"), find_system("cardiodit")
    local, refiner, upscaling = prdit.stages
    assert prdit.stages_of({"transformer": {"num_layers": 0}}) == [local]
    assert prdit.stages_of({"transformer": {"num_layers": 4}}) == [local, refiner]
    assert prdit.stages_of({"transformer": {"num_layers": 4, "super_resolution": 2}})[-1] == upscaling
    assert cardiodit.stages_of({"vae": {}, "transformer": {}}) == list(cardiodit.stages[:2])
    assert [stage for _, stage in stages_by_script("train_prdit")] == [local, refiner, upscaling]


def test_a_system_is_found_by_its_traits() -> None:
    assert system_of("train_dit", dimensions=3).name == "voldit"
    assert system_of("train_dit", vae="VQModel4D").name == "cardiodit"
    assert system_of("train_prdit").name == "prdit"
    with pytest.raises(CardioDiTError, match="None of the systems CardioDiT, VolDiT, MedLoRD, PRDiT has denoiser UNet"):
        system_of(denoiser="UNet")
    with pytest.raises(CardioDiTError, match="Unknown pipeline Other; this version of cardiodit knows CardioDiT"):
        system_of_pipeline("Other")
    with pytest.raises(CardioDiTError, match="Unknown system 'other'; available: cardiodit, voldit, medlord, prdit"):
        find_system("other")


def test_names_of_systems_and_pipelines_are_unique() -> None:
    voldit = find_system("voldit")
    taken = "named VolDiTControlPipeline, VolDiTPipeline is already registered"
    with pytest.raises(CardioDiTError, match=taken), registered(replace(voldit, name="other")):
        pass
    with registered(replace(voldit, name="other", pipeline="m:OtherPipeline", control_pipeline=None)) as other:
        assert find_system("other") is other and all_systems()[-1] is other
        with pytest.raises(CardioDiTError, match="VolDiT has no pipeline that is steered by masks"):
            other.make_pipeline(None, None, adapter=object())
    assert len(all_systems()) == 4
