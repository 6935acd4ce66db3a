"""Pipelines of every kind that travel with their code: they open, and do the same, without this package."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cardiodit import (
    CardioDiTControlPipeline,
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    MedLoRDControlNetModel,
    MedLoRDControlPipeline,
    MedLoRDUNetModel,
    NoiseAndImageScheduler,
    PRDiTPipeline,
    PRDiTTransformerModel,
    TGCAAdapterModel,
    VolDiTControlPipeline,
    VolDiTPipeline,
    VQModel3D,
    VQModel4D,
    make_scheduler,
)
from cardiodit.hub.export import export_with_code
from cardiodit.models.adapter_tgca import fingerprint_of

from ..conftest import randomise

SMALL: dict[str, Any] = {"channels": (8, 8), "num_res_channels": (8, 8), "num_res_layers": 1, "num_embeddings": 32}
SIZES = {3: (16, 16, 8), 4: (16, 16, 2, 8)}

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["cardiodit"] = None  # any import of it fails
import torch
from diffusers import DiffusionPipeline
for name, arguments, expected in torch.load("expected.pt", weights_only=True):
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == name and type(pipe).__module__.startswith("diffusers_modules"), type(pipe)
    out = pipe(*arguments, seed=1, num_inference_steps=4)
    assert torch.equal(out.volumes, expected), name
    out.save(f"{name}-samples")
"""


def pipes() -> list[Any]:
    vaes = {3: VQModel3D(**SMALL, embedding_dim=4).eval(), 4: VQModel4D(**SMALL, embedding_dim=4).eval()}
    bases = {
        3: DiT3DTransformerModel((4, 4, 2), (2, 2, 2), 4, 2, 2, 16),
        4: DiT4DTransformerModel((2, 4, 4, 2), (1, 2, 2, 2), 4, 2, 2, 16),
    }
    adapters = {}
    for axes, base in bases.items():
        randomise(base, std=0.2)
        adapters[axes] = TGCAAdapterModel(32, 2, axes, 1, ["body"], [[3]], channels=(4, 8), strides=((2, 2, 2),))
        randomise(adapters[axes], std=0.2)
        adapters[axes].register_to_config(fingerprint=fingerprint_of(base))
    shape: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_levels": (False, True)}
    shape |= {"attention_head_dim": 8, "norm_num_groups": 4, "in_channels": 4}
    unet = randomise(MedLoRDUNetModel(sample_size=(4, 4, 2), **shape), std=0.2)
    controlnet = MedLoRDControlNetModel(
        **shape,
        condition_keys=["body"],
        condition_labels=[[3]],
        condition_widths=(4, 4),
        fingerprint=fingerprint_of(unet),
    )
    return [
        MedLoRDControlPipeline(vaes[3], unet, randomise(controlnet, std=0.2), make_scheduler()),
        VolDiTPipeline(vaes[3], bases[3], make_scheduler()),
        VolDiTControlPipeline(vaes[3], bases[3], make_scheduler(), adapters[3]),
        CardioDiTControlPipeline(vaes[4], bases[4], make_scheduler(), adapters[4]),
        PRDiTPipeline(
            randomise(PRDiTTransformerModel((16, 16, 8), 8, 1, 1, 2, 12), std=0.05), NoiseAndImageScheduler()
        ),
    ]


def mask(axes: int) -> torch.Tensor:
    voxels = np.zeros(SIZES[axes], np.uint8)
    voxels[3:12, 3:9] = 3
    return torch.from_numpy(voxels)


def test_volumes_and_steered_pipelines_open_without_the_package(tmp_path: Path) -> None:
    expected = []
    for pipe in pipes():
        name = type(pipe).__name__
        pipe.set_progress_bar_config(disable=True)
        arguments = [] if pipe.mask_adapter is None else [mask(len(pipe.denoiser.axis_names))]
        expected.append((name, arguments, pipe(*arguments, seed=1, num_inference_steps=4).volumes))
        pipe.save_pretrained(tmp_path / "models" / name)
        export_with_code(tmp_path / "models" / name, tmp_path / name)
    assert (tmp_path / "VolDiTControlPipeline" / "adapter" / "adapter_tgca.py").is_file()
    assert (tmp_path / "MedLoRDControlPipeline" / "controlnet" / "controlnet_medlord.py").is_file()
    assert (tmp_path / "PRDiTPipeline" / "scheduler" / "prdit_scheduler.py").is_file()
    torch.save(expected, tmp_path / "expected.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    opened = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert opened.returncode == 0, opened.stderr
    assert "Expected types" not in opened.stderr and "might require" not in opened.stderr
    for name in ("VolDiTPipeline", "MedLoRDControlPipeline", "CardioDiTControlPipeline", "PRDiTPipeline"):
        assert len(list((tmp_path / f"{name}-samples").glob("*.nii.gz"))) == 1
