"""Print what the published systems need: memory and time of training, by arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/needs.py

Memory is computed from tensor sizes without running a model: weights, AdamW's moments, the EMA weights, activations
with gradient checkpointing, one volume a step, bf16. Times are counted operations over a device's peak at the
utilisation that `cardiodit energy forecast` assumes; a training step costs three forward passes. The time of an
autoencoder is without discriminator and perceptual network. Nothing was measured on a GPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cardiodit import (
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    MedLoRDUNetModel,
    PRDiTTransformerModel,
    VQModel3D,
    VQModel4D,
    estimate_memory,
)
from cardiodit._util.memory import peak_bytes, weight_bytes
from cardiodit.energy.electricity import format_duration
from cardiodit.energy.forecast import Work, count_operations, find_device, forecast_work

CONFIGS = Path(__file__).parents[1] / "configs"
GIB = 2**30
FORWARDS = 3  # forward passes that a training step costs
STEPS = 100_000
DEVICES = ("a100-80", "rtx4090")


@dataclass(frozen=True)
class Need:
    weights: int
    training: int  # bytes
    sampling: int
    step: Work


def main() -> None:
    titles = [find_device(name).title for name in DEVICES]
    print(f"| denoiser | weights | training | sampling | {' | '.join(f'100,000 steps, {title}' for title in titles)} |")
    print("|---|---|---|---|---|---|")
    for name, (model, inputs) in denoisers().items():
        need = need_of(model, inputs)
        hours = [format_duration(forecast_work(need.step * FORWARDS * STEPS, find_device(d)).seconds) for d in DEVICES]
        print(
            f"| {name} | {need.weights / 1e6:.0f} M | {need.training / GIB:.1f} GiB | {need.sampling / GIB:.1f} GiB | "
            f"{' | '.join(hours)} |",
            flush=True,
        )
    print(
        f"\n| autoencoder | weights | {' | '.join(f'100,000 steps, {title}' for title in titles)} |\n|---|---|---|---|"
    )
    for name, (vae, voxels) in autoencoders().items():
        with torch.no_grad():
            work = count_operations(lambda: vae(voxels))  # noqa: B023
        hours = [format_duration(forecast_work(work * FORWARDS * STEPS, find_device(d)).seconds) for d in DEVICES]
        print(f"| {name} | {sum(p.numel() for p in vae.parameters()) / 1e6:.0f} M | {' | '.join(hours)} |", flush=True)


def denoisers() -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
    found: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {}
    time = torch.zeros(1)
    for size in ("s", "b", "l"):
        config = model_config(f"cardiodit/dit_ds8_{size}4.yaml")
        latents = {"hidden_states": torch.zeros(1, 8, 6, 64, 64, 8), "timestep": time}
        name = f"CardioDiT-{size.upper()}/4, 6 × 256 × 256 × 32"
        found[name] = untouched(lambda: DiT4DTransformerModel(sample_size=(6, 64, 64, 8), **config)), latents  # noqa: B023
    volume = torch.zeros(1, 8, 64, 64, 32)
    config = model_config("voldit/dit_ds8_b4.yaml")
    inputs = {"hidden_states": volume, "timestep": time}
    found["VolDiT-B/4, 512 × 512 × 256"] = untouched(lambda: DiT3DTransformerModel(in_channels=8, **config)), inputs
    unet = model_config("medlord/medlord.yaml")
    inputs = {"sample": volume, "timestep": time}
    found["MedLoRD, 512 × 512 × 256"] = untouched(lambda: MedLoRDUNetModel(sample_size=(64, 64, 32), **unet)), inputs
    voxels = {"hidden_states": torch.zeros(1, 1, 128, 128, 128), "timestep": time}
    prdit = model_config("prdit/lidc128_b_12_4.yaml")
    made = untouched(lambda: PRDiTTransformerModel(sample_size=(128, 128, 128), **prdit))
    found["PRDiT-B/12/4, 128 × 128 × 128"] = made, voxels
    return found


def autoencoders() -> dict[str, tuple[Any, torch.Tensor]]:
    voldit, medlord = model_config("voldit/vqgan_ds8.yaml"), model_config("medlord/vqgan_ds8_new.yaml")
    return {
        "CardioDiT, a slice of 256 × 256 × 32": (untouched(VQModel4D), torch.zeros(1, 1, 256, 256, 32)),
        "VolDiT, 128 × 128 × 128": (untouched(lambda: VQModel3D(**voldit)), torch.zeros(1, 1, 128, 128, 128)),
        "MedLoRD, 256 × 256 × 128": (untouched(lambda: VQModel3D(**medlord)), torch.zeros(1, 1, 256, 256, 128)),
    }


def need_of(model: Any, inputs: dict[str, torch.Tensor]) -> Need:
    with torch.no_grad():
        step = count_operations(lambda: model(**inputs))
        sampling = peak_bytes(lambda: model(**inputs).sample) + weight_bytes(model)
    model.train().enable_gradient_checkpointing()
    training = estimate_memory(model, inputs, autocast=torch.bfloat16)["total"]
    return Need(sum(p.numel() for p in model.parameters()), training, sampling, step)


def model_config(name: str) -> dict[str, Any]:
    config = dict(yaml.safe_load((CONFIGS / name).read_text())["model"])
    return {**config, **({"dropout": 0.0} if "dropout" in config else {})}


def untouched(make: Any) -> Any:
    """Make a model whose weights take no memory."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu").eval()


if __name__ == "__main__":
    main()
