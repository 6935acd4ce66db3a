"""The recipes in CONTRIBUTING.md work as they are written."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cardiodit import DiT3DTransformerModel, VolDiTPipeline, VQModel3D, make_scheduler
from cardiodit.cli import main
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.cohorts import COHORTS
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.systems import find_system, registered
from cardiodit.training.noisy_samples import LabelledSamples, Noising, NoisyDataset

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def recipe(heading: str, folder: Path) -> ModuleType:
    """Write a recipe's code to the file that its first line names, and import it."""
    section = TEXT.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    target = re.match(r"# (\S+)\n", code)
    assert target is not None and (ROOT / target[1]).parent.is_dir()
    file = folder / Path(target[1]).name
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[ModuleType]:
    yield recipe("Add a cohort", tmp_path)
    del COHORTS["our-hospital"]


def test_a_cohort_is_one_file(cohort: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "hospital"
    write_cohort(tmp_path / "hearts", num=3, size=(32, 32, 4, 8))
    for number, case in enumerate(read_manifest(tmp_path / "hearts" / "manifest.csv")):
        (source / f"patient-{number}").mkdir(parents=True)
        (case.image).rename(source / f"patient-{number}" / "cine.nii.gz")
    assert main(["prepare", "our-hospital", str(source), "--output_dir", str(tmp_path / "prepared")]) == 0
    assert len(read_manifest(tmp_path / "prepared" / "manifest.csv")) == 3
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "one folder per patient with cine.nii.gz" in capsys.readouterr().out


def test_a_metric_is_one_function(tmp_path: Path) -> None:
    recipe("Add a metric", tmp_path)
    sets = [write_cohort(tmp_path / f"set-{seed}", num=2, size=(32, 32, 4, 8), seed=seed) for seed in (0, 1)]
    (tmp_path / "steps.json").write_text(json.dumps(Preprocessing(size=(32, 32, 4), frames=8).to_dict()))
    metric, steps = tmp_path / "mean_intensity.py", tmp_path / "steps.json"
    own = ["--metric", f"{metric}:mean_intensity", "--preprocessing", str(steps)]
    given = ["--real", str(sets[0]), "--synthetic", str(sets[1]), "--output_dir", str(tmp_path / "report")]
    assert main(["evaluate", *given, *own]) == 0
    metrics = json.loads((tmp_path / "report" / "report.json").read_text())["metrics"]
    (found,) = [metric for metric in metrics if metric["name"] == "mean_intensity"]
    assert found["group"] == "distribution" and 0 <= found["value"] < 0.5
    assert "Difference of mean intensities" in (tmp_path / "report" / "report.html").read_text()


def test_an_objective_is_one_class(tmp_path: Path) -> None:
    objective = recipe("Add an objective", tmp_path).CleanSample(50)
    samples = LabelledSamples([torch.full((1, 4, 4, 4), 0.5)], ["patient"])
    batch = torch.utils.data.default_collate(
        [NoisyDataset(samples.shuffled(0), Noising(objective, 0))[i] for i in (0, 1)]
    )

    class HalfModel(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (torch.full_like(noisy, 0.25),)

    assert torch.allclose(objective.losses(HalfModel(), batch["sample"], batch), torch.tensor([0.25, 0.25]))
    assert objective.conflicts({"prediction_type": "epsilon"}) == ["prediction_type is sample here and epsilon there"]
    assert objective.sampling_scheduler().config.prediction_type == "sample"


def test_a_system_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = ModuleType("twin_pipeline")
    twin.TwinPipeline = type("TwinPipeline", (VolDiTPipeline,), {})
    twin.TwinTransformerModel = type("TwinTransformerModel", (DiT3DTransformerModel,), {})
    monkeypatch.setitem(sys.modules, "twin_pipeline", twin)
    with registered(recipe("Add a system", tmp_path).SYSTEM) as system:
        assert find_system("twin") is system and replace(system).components["transformer"] == "TwinTransformerModel"
        small = {"channels": (8, 16), "num_res_channels": (8, 16), "num_embeddings": 16}
        sizes = {"sample_size": (8, 8, 4), "patch_size": (2, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12}
        denoiser = twin.TwinTransformerModel(**sizes, num_layers=1)
        pipe = system.make_pipeline(denoiser, make_scheduler(), VQModel3D(**small))
        assert type(pipe).__name__ == "TwinPipeline" and pipe.default_steps == system.default_steps


def test_the_paths_of_the_table_exist() -> None:
    table = TEXT.partition("### Smaller changes")[2].partition("## Deprecation")[0]
    for path in re.findall(r"`([\w./]+/[\w.]*)`", table):
        assert (ROOT / path).exists() or (ROOT / "src" / "cardiodit" / path).exists(), path
