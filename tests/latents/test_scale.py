import json
from pathlib import Path

import pytest
import torch

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.cli import main
from cardiodit.latents import LatentCohort, identity_of_vae, measure_scale, write_scale


@pytest.mark.parametrize("mean, spread", [(0.0, 1.0), (1e6, 1.0), (-3.0, 1e-4)])
def test_one_pass_is_as_exact_as_all_at_once(mean: float, spread: float) -> None:
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
def test_no_deviation_is_no_factor(values: list[float]) -> None:
    with pytest.raises(CardioDiTError, match="so there is no scaling factor"):
        measure_scale([torch.tensor(values)] if values else [])


def test_only_the_factor_changes(vae: VQModel4D, tmp_path: Path) -> None:
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
    said = capsys.readouterr().out
    assert f"1 before, now {first:.6g}, measured on 1 of 2 files" in said
    assert main(command) == 0
    both = 1 / torch.stack([cohort[0], cohort[1]]).double().std().item()
    config = json.loads((run / "best" / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(both, rel=1e-9)
    said = capsys.readouterr().out
    assert f"{first:.6g} before, now {both:.6g}, measured on 2 of 2 files" in said


def test_the_command_refuses_what_would_be_wrong(latents: Path, vae: VQModel4D, tmp_path: Path, capsys) -> None:
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
