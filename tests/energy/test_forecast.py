"""Forecasts follow from counted operations and the table of devices."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cardiodit import DiT4DTransformerModel, NoiseAndImageScheduler, PRDiTPipeline, PRDiTTransformerModel
from cardiodit.cli import main
from cardiodit.commands import energy
from cardiodit.energy.forecast import (
    DEVICES,
    OperationCounter,
    Work,
    count_operations,
    find_device,
    forecast_work,
    known_gpu,
)
from cardiodit.errors import CardioDiTError
from cardiodit.pipelines.estimate import sampling_work, scaled_costs


def test_operations_are_counted_by_kind() -> None:
    """A convolution of 3×3 from 2 to 4 channels on 8×8, and a product of 16×32 and 32×8, each 2 for a multiply-add."""
    convolution, linear = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Linear(32, 8, bias=False)
    found = count_operations(lambda: (convolution(torch.empty(1, 2, 8, 8)), linear(torch.empty(16, 32))))
    assert found.convolution == pytest.approx(2 * 9 * 2 * 4 * 64 / 1e12)
    assert found.transformer == pytest.approx(2 * 16 * 32 * 8 / 1e12)


def test_attention_and_backward_passes_count_on_a_cpu() -> None:
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    with OperationCounter() as forward:
        value = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert forward.work.tflop == pytest.approx(2 * 2 * 2 * 16 * 16 * 8 / 1e12)
    with OperationCounter() as backward:
        value.sum().backward()
    assert backward.work.tflop == pytest.approx(2.5 * forward.work.tflop)


def test_the_published_transformer_counts_what_the_benchmark_measured() -> None:
    with torch.device("meta"):
        model = DiT4DTransformerModel()
    shape = (1, model.config.in_channels, *model.config.sample_size)
    with OperationCounter() as counter, torch.no_grad():
        model(torch.empty(shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta"))
    assert counter.work.tflop == pytest.approx(2.44, rel=0.01)


def test_energy_by_hand() -> None:
    """3.12 TFLOP of convolutions on an A100 at 25% of 312 TFLOP/s: 0.04 s of 55 + 0.8 · 345 = 331 W, and its host."""
    found = forecast_work(Work(convolution=3.12), find_device("a100-80"))
    assert found.seconds == pytest.approx(0.04)
    assert found.energy.kwh == pytest.approx(0.04 * (331 + 10 + 10) / 3.6e6)
    assert found.energy.low == pytest.approx(found.energy.kwh / 2)
    four = forecast_work(Work(convolution=3.12), find_device("a100-80"), 4)
    assert four.seconds == pytest.approx(0.01) and four.energy.kwh == pytest.approx(found.energy.kwh)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_a_gpu_is_found_by_the_name_that_torch_reports(name: str, key: str | None) -> None:
    assert known_gpu(name) is (None if key is None else DEVICES[key])


def test_an_unknown_device_is_an_error_and_help_lists_the_known_ones() -> None:
    with pytest.raises(CardioDiTError, match="no device 'a100'. Did you mean a10"):
        find_device("a100")
    listed = energy.DEVICE_HELP.partition(": ")[2].partition(" (")[0].replace(" or ", ", ").split(", ")
    assert sorted(listed) == sorted(DEVICES)


def test_the_work_of_a_sample_grows_with_steps_and_guidance(make_pipe: Callable) -> None:
    pipe = make_pipe()
    one, three = sampling_work(pipe, 1), sampling_work(pipe, 3)
    step = three.transformer - one.transformer
    assert step > 0 and three.convolution - one.convolution < one.convolution  # decoded once
    guided = sampling_work(pipe, 3, guidance_scale=2.0)
    assert guided.tflop - three.tflop == pytest.approx(1.5 * (three.tflop - one.tflop))


def test_a_wider_denoiser_and_a_larger_volume_take_more_work() -> None:
    """Also where the config holds only defaults, which diffusers would keep."""
    model = PRDiTTransformerModel(sample_size=(16, 16, 16), patch_size=8, num_layers=1, attention_head_dim=16)
    pipe = PRDiTPipeline(model, NoiseAndImageScheduler())
    normal, large = scaled_costs(pipe, (1.0, 2.0, 2.01))  # the third size is rounded to the second
    (wide,) = scaled_costs(pipe, (1.0,), width=2.0)
    assert (normal.size, large.size) == ("16 × 16 × 16", "32 × 32 × 32") and normal.decoding.tflop == 0
    assert large.step.tflop > 7 * normal.step.tflop and wide.step.tflop > 1.5 * normal.step.tflop


def test_the_command_prints_kwh_grams_and_kilometres(
    make_pipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_pipe().save_pretrained(tmp_path / "model")
    given = ["energy", "forecast", str(tmp_path / "model"), "--samples", "10000", "--country", "DEU", "--pue", "1.58"]
    assert main([*given, "--device", "t4", "--devices", "2"]) == 0
    printed = capsys.readouterr().out
    assert "10,000 volumes" in printed and "on 2 × T4" in printed and "kWh" in printed and "by car" in printed
    assert "381 g/kWh (Germany, mean of 2023), PUE 1.58" in printed
    assert main([*given, "--device", "tpu"]) == 1
    assert main([*given[:-4], "--samples", "0"]) == 1


def test_an_estimate_of_sampling_tells_energy(
    make_pipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_pipe().save_pretrained(tmp_path / "model")
    given = ["sample", str(tmp_path / "model"), "--output_dir", str(tmp_path / "s"), "--estimate", "--country", "FRA"]
    assert main([*given, "--estimate_device", "h100", "--num_samples", "100", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("Energy, with the power measured") and "56 g/kWh (France" in printed[1]
    assert printed[2].startswith("On H100 SXM: about") and "operations" in printed[2]
