"""`cardiodit doctor`: every check runs, measures and reports; one that fails does not stop the others."""

import json
from functools import partial
from pathlib import Path

import pytest

from cardiodit import doctor
from cardiodit.cli import main
from cardiodit.doctor import CHECKS, PUBLISHED, SMALL, Patient, Sizes, examine, operations
from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_dit import DiT4DTransformerModel

TINY = Sizes(
    vae={"channels": (8, 8), "num_res_channels": (8, 8), "num_res_layers": 1, "num_embeddings": 16},
    dit={"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "sample_size": (1, 8, 8, 4)},
    prdit={"patch_size": 8, "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16},
    unet={
        "block_out_channels": (8, 16),
        "attention_levels": (False, True),
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": (4, 4, 4),
    },
    tgca={"channels": (4, 4), "strides": ((2, 2, 1),)},
    controlnet={"condition_widths": (4, 4, 4)},
    image=(1, 1, 32, 32, 8),
    volume=(1, 1, 16, 16, 16),
)


def test_every_check_is_made_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SMALL", TINY)
    start = partial(doctor.mp.start_processes, start_method="forkserver")  # from the one that all tests share
    monkeypatch.setattr(doctor.mp, "spawn", start)
    assert main(["doctor", "--device", "cpu", "--rounds", "1", "--output_dir", str(tmp_path)]) == 0
    findings = {finding["check"]: finding for finding in json.loads((tmp_path / "doctor.json").read_text())}
    assert list(findings) == list(CHECKS)
    assert {finding["status"] for finding in findings.values()} <= {"ok", "note"}
    assert findings["resuming"]["numbers"] == {"equal": True}
    assert 0 < findings["precision"]["numbers"]["relative_error"] < 0.05
    denoisers = ("stage 2, 4D transformer", "PRDiT", "MedLoRD, U-Net", "mask adapter (TGCA)", "ControlNet")
    for check in ("stage 1, VQ-GAN", *denoisers):
        assert findings[check]["numbers"]["compiled"]["tflops"] > 0
    assert findings["attention"]["numbers"]["tokens"] == 8
    printed = capsys.readouterr().out
    assert all(f"{check} " in printed for check in CHECKS) and "attach it to an issue" in printed


def test_a_check_that_fails_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Patient) -> None:
        raise CardioDiTError("The disk is full.")

    monkeypatch.setattr(doctor, "CHECKS", {"first": broken, "versions": CHECKS["versions"]})
    first, second = examine("cpu", SMALL)
    assert (first.status, first.result, second.status) == ("failed", "The disk is full.", "ok")


def test_the_published_step_counts_as_many_operations_as_the_paper_states() -> None:
    """2.44 TFLOP in a forward pass of dit_ds8_b4."""
    import torch

    def run(model: DiT4DTransformerModel) -> object:
        return model(torch.empty(1, 8, *model.config.sample_size), torch.empty(1, dtype=torch.long))

    assert operations(lambda: DiT4DTransformerModel(**PUBLISHED.dit), run) == pytest.approx(2.44e12, rel=0.01)
