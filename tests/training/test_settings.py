"""Sections made from constructors: the keys and defaults of every stage, and a help text for each key."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cardiodit._util.typed_yaml import Reader, to_yaml
from cardiodit.training import settings
from cardiodit.training.harness.command_line import leaves

DEFAULTS = json.loads((Path(__file__).parents[1] / "fixtures/training/default_settings.json").read_text())
STAGES = {
    "train_vqgan": settings.VQGANSettings,
    "train_dit": settings.DiTSettings,
    "train_tgca": settings.TGCASettings,
    "train_prdit": settings.PRDiTSettings,
    "train_segmenter": settings.SegmenterSettings,
}


# Keys that earlier versions did not have
EVERYWHERE = {"checkpointing_minutes": None, "lr_step_gamma": None}
STOPS = {"stop_when": "finished", "memorizing_gap": 0.1, "validation_metric": "unconditioned"}
POSITIONS = {
    "position_mode": "absolute",
    "position_steps": None,
    "max_sample_size": None,
    "position_time_scale": 1.0,
    "phase_schema": "frames",
    "qk_norm": False,
    "self_conditioning": False,
}
DROPOUTS = dict.fromkeys(("attention_dropout", "projection_dropout", "mlp_dropout"))
PROCESS = {"huber_beta": 1.0, "min_snr_gamma": 0.0, "offset_noise_strength": 0.0, "zero_terminal_snr": False}
NEW = {
    "train_vqgan": {"model": {"quantize_latents": True, "dead_code_threshold": None}},
    "train_dit": {
        "diffusion": {"objective": "denoising", **PROCESS},
        "model": {**DROPOUTS, **POSITIONS, "condition_dropout_prob": 0.1, "unconditional_prob": 0.1},
        "training": {**STOPS, "batch_strategy": "fixed"},
    },
    "train_tgca": {"conditions": {"key_dropout_prob": 0.0}, "training": STOPS},
    "train_prdit": {
        "model": {"tile_size": 8, "super_resolution": 1},
        "process": {"objective": "noise_and_image"},
        "training": {**STOPS, "train_base": False},
    },
}
NO_CHANGE = {"shift": 0, "noise": 0.0, "flip_probability": 0.0, "cycle_probability": 0.0, "depth_flip_probability": 0.0}
FRAMES = {"phase_pool": "linear", **dict.fromkeys(("frame_multiple", "phase_column", "phase_dir", "latent_statistics"))}
NEW_SECTIONS = {"train_dit": {"augmentation": NO_CHANGE, **FRAMES, "condition_columns": None}}


@pytest.mark.parametrize("stage", STAGES)
def test_keys_and_defaults_are_those_of_earlier_versions(stage: str) -> None:
    now = to_yaml(asdict(STAGES[stage]()))
    new = NEW.get(stage, {})
    for section, keys in {**new, "training": {**EVERYWHERE, **new.get("training", {})}}.items():
        assert {key: now[section].pop(key) for key in keys} == keys
    if "data" in now:
        assert now["data"]["augmentation"].pop("rotation_axes") == [2]
        assert [now["data"]["preprocessing"].pop(key) for key in ("alignment", "frame_multiple")] == [None, None]
    for section, keys in NEW_SECTIONS.get(stage, {}).items():
        assert now.pop(section) == keys
    if stage == "train_dit":
        assert now.pop("image_augmentation")["rotation_probability"] == 0
    assert now == DEFAULTS[stage]


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({"preset": "cine", "intensity": {"low": 0}}, (0, "p99.5")),
        ({"preset": "cine", "intensity": {"high": "p98"}}, ("p0.5", "p98")),
        ({"preset": "prdit-radchest", "intensity": {"low": -900}}, (-900, "p99.5 at most 1000")),
        ({"preset": "cine"}, ("p0.5", "p99.5")),
        ({"intensity": {"low": "p1"}}, ("p1", "maximum")),
        ({"intensity": {"high": 1000}}, ("minimum", 1000)),
        ({}, ("minimum", "maximum")),
    ],
)
def test_one_limit_alone_keeps_the_presets_other_limit(given: dict, limits: tuple) -> None:
    config = Reader("x.yaml").section(settings.VQGANSettings, {"data": {"preprocessing": given}}, "")
    intensity = settings.build_preprocessing(config.data.preprocessing).intensity
    assert (intensity.low, intensity.high) == limits


@pytest.mark.parametrize("kind", [*STAGES.values(), settings.UNetSettings, settings.ControlNetSettings])
def test_every_key_has_a_help_text(kind: type) -> None:
    assert [leaf.name for leaf in leaves(kind) if not leaf.help] == []
