"""Stage 2 as a user runs it: what is checked before the first step, what is reported, what comes out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from cardiodit import CardioDiTPipeline, DiT4DTransformerModel, VQModel4D, make_scheduler, open_pipeline
from cardiodit._util.typed_yaml import Section, settings_of_one
from cardiodit.errors import CardioDiTError
from cardiodit.latents import encode_cohort
from cardiodit.training import train_dit
from cardiodit.training.checkpoint_gallery import open_checkpoint
from cardiodit.training.denoiser_loop import swap
from cardiodit.training.harness.metrics import Metrics
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.state import WEIGHTS
from cardiodit.training.objectives import LATENT_OBJECTIVES
from cardiodit.training.settings import DiTSettings

from ..test_contributing import recipe
from .conftest import DIT, Cohorts, arguments_of, lines_of, merged


def test_a_run_ends_in_a_pipeline_that_samples(train_a_dit: Callable) -> None:
    more = {"preview_samples": 2, "preview_steps": 6, "preview_inference_steps": 2, "report_to": "tensorboard"}
    run = train_a_dit("hearts", training=more)
    pipe = CardioDiTPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=2, class_labels="dilated", seed=0)
    assert output.volumes.shape == (1, 32, 32, 4, 8)
    assert pipe.geometry.spacing == (4.5, 4.5, 25.0)
    assert pipe.transformer.config.class_names == ["dilated", "hypertrophic", "infarct", "normal"]
    assert pipe.transformer.null_label == 4
    assert pipe.scheduler.config.trained_betas is not None
    best = load_file(run / "best" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in pipe.transformer.state_dict().items())
    card = (run / "pipeline" / "README.md").read_text()
    assert "| Volumes trained on | 8 |" in card and "learning_rate: 0.001" in card
    for step in (6, 12):
        with Image.open(run / "previews" / f"step-{step}.gif") as preview:
            assert preview.n_frames == 8
    assert any(b"GIF8" in path.read_bytes() for path in run.rglob("events.out.tfevents*"))


def test_previews_do_not_change_training(train_a_dit: Callable) -> None:
    with_previews = {"preview_samples": 1, "preview_steps": 2, "preview_inference_steps": 1}
    assert lines_of(train_a_dit("a", training=with_previews)) == lines_of(train_a_dit("b"))


def test_the_record_says_what_was_run_and_names_nobody(train_a_dit: Callable, cohorts: Cohorts) -> None:
    run = train_a_dit("run")
    text = (run / "run.json").read_text()
    record = json.loads(text)
    assert (record["seed"], record["samples"], record["status"]) == (0, 8, "finished")
    assert record["sessions"][0]["versions"]["torch"] == version("torch")
    assert set(record["data"]) == {"vae", "scaling_factor", "training_data", "validation_data"}
    assert str(cohorts.folder) not in text and "phantom-" not in text


def test_two_evaluations_of_one_checkpoint_are_equal(train_a_dit: Callable) -> None:
    """Nothing learned: every validation sees the same weights, noise and timesteps."""
    run = train_a_dit("run", training={"learning_rate": 0.0, "validation_steps": 3})
    assert len(set(lines_of(run, "validation_loss").values())) == 1


def test_validation_looks_at_the_average_and_training_goes_on_from_the_weights(train_a_dit: Callable) -> None:
    never = train_a_dit("never", training={"validation_steps": 1000, "ema_warmup": False, "ema_decay": 0.9})
    often = train_a_dit("often", training={"validation_steps": 1, "ema_warmup": False, "ema_decay": 0.9})
    assert lines_of(never) == lines_of(often)
    raw = train_a_dit("raw", training={"use_ema": False})
    assert lines_of(raw) == lines_of(never)
    assert lines_of(raw, "validation_loss")[12] != lines_of(often, "validation_loss")[12]


def test_the_average_is_the_closed_form(train_a_dit: Callable) -> None:
    """After n steps at a fixed decay d: d^n·w0 + (1 - d)·Σ d^(n-i)·w_i."""
    settings = {"ema_warmup": False, "ema_decay": 0.5, "checkpointing_steps": 1, "checkpoints_total_limit": 9}
    run = train_a_dit("run", training={**settings, "max_train_steps": 4})
    first = train_a_dit("first", training={**settings, "learning_rate": 0.0, "max_train_steps": 1})

    def weights(folder: Path, step: int, part: str = "transformer") -> torch.Tensor:
        return load_file(folder / f"checkpoint-{step}/{part}/diffusion_pytorch_model.safetensors")["patch_embed.weight"]

    expected = weights(first, 1)
    for step in range(1, 5):
        expected = 0.5 * expected + 0.5 * weights(run, step)
    torch.testing.assert_close(weights(run, 4, "transformer_ema"), expected, rtol=1e-5, atol=1e-7)


def test_the_pipeline_is_of_the_averaged_weights(train_a_dit: Callable) -> None:
    run = train_a_dit(training={"validation_steps": 12})  # only the last step is judged, so it is the best
    places = ("pipeline/transformer", "checkpoint-12/transformer_ema", "checkpoint-12/transformer")
    published, averaged, last = (load_file(run / at / "diffusion_pytorch_model.safetensors") for at in places)
    assert all(torch.equal(published[name], averaged[name]) for name in published)
    assert any(not torch.equal(published[name], last[name]) for name in published)


def test_swapping_twice_changes_nothing() -> None:
    some, others = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    before = [tensor.clone() for tensor in (*some, *others)]
    swap(some, others)
    assert torch.equal(some[0], before[2]) and torch.equal(others[1], before[1])
    swap(some, others)
    assert all(torch.equal(a, b) for a, b in zip((*some, *others), before))


def test_images_may_be_encoded_while_training(train_a_dit: Callable, cohorts: Cohorts) -> None:
    """The losses equal those from latent files to the bit."""
    ids = ["--training_ids", str(cohorts.images[0]), "--validation_ids", str(cohorts.images[1])]
    online = train_a_dit("online", *ids)
    assert lines_of(online) == lines_of(train_a_dit("files"))


def test_epsilon_and_sample_and_the_other_losses_train(train_a_dit: Callable) -> None:
    for name, diffusion in {
        "eps": {"prediction_type": "epsilon", "loss": "mse"},
        "x0": {"prediction_type": "sample", "loss": "l1"},
    }.items():
        run = train_a_dit(name, diffusion=diffusion, model={"learn_sigma": name == "eps"})
        losses = list(lines_of(run).values())
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
        pipe = CardioDiTPipeline.from_pretrained(run / "pipeline")
        assert pipe.scheduler.config.prediction_type == diffusion["prediction_type"]


def test_a_fine_tuned_model_keeps_its_prediction_type(train_a_dit: Callable) -> None:
    base = train_a_dit("eps", diffusion={"prediction_type": "epsilon"})
    tuned = train_a_dit("tuned", "--init_from", str(base), training={"max_train_steps": 2})
    pipe = CardioDiTPipeline.from_pretrained(tuned / "pipeline")
    assert pipe.transformer.config.prediction_type == pipe.scheduler.config.prediction_type == "epsilon"


def test_flow_matching_from_the_config_to_samples(train_a_dit: Callable) -> None:
    run = train_a_dit("flow", diffusion={"objective": "flow_matching"}, training={"max_train_steps": 40})
    losses = list(lines_of(run).values())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    pipe = open_pipeline(run / "pipeline")
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    whole, split = (pipe(num_inference_steps=4, num_samples=n, seed=0, first_sample=2 - n) for n in (2, 1))
    assert np.allclose(whole.volumes[1], split.volumes[0], atol=1e-5)
    pipe.scheduler = make_scheduler()
    with pytest.raises(CardioDiTError, match="is for models that predict v_prediction, but this one was trained for f"):
        pipe()
    with pytest.raises(CardioDiTError, match="prediction_type is v_prediction here and flow there"):
        train_a_dit("tuned", "--init_from", str(run))


NEWEST = {
    "position_mode": "axial_rope",
    "qk_norm": True,
    "self_conditioning": True,
    "position_steps": [3.0, 1.0, 1.0, 2.0],
    "mlp_dropout": 0.1,
}


def test_the_newest_model_from_the_config_to_samples(train_a_dit: Callable) -> None:
    """Rotary positions, self-conditioning and zero-terminal SNR; it also samples more slices and frames."""
    settings: dict[str, Any] = {"model": NEWEST, "diffusion": {"zero_terminal_snr": True, "offset_noise_strength": 0.1}}
    by_estimate = {"validation_metric": "self_conditioned", "max_train_steps": 40}
    run = train_a_dit("newest", **settings, training=by_estimate)
    losses = list(lines_of(run).values())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    both = [lines_of(run, f"validation_loss{name}") for name in ("", "_self_conditioned")]
    assert both[0].keys() == both[1].keys() and both[0] != both[1]
    assert json.loads((run / "best/state.json").read_text())["measure"] == "validation_loss_self_conditioned"
    pipe = open_pipeline(run / "pipeline")
    assert pipe.transformer.config.mlp_dropout == 0.1 and pipe.scheduler.config.trained_betas[-1] == 1.0
    whole, split = (pipe(num_inference_steps=4, num_samples=n, seed=0, first_sample=2 - n) for n in (2, 1))
    assert np.allclose(whole.volumes[1], split.volumes[0], atol=1e-5)
    first = pipe(num_inference_steps=4, seed=0, output_type="latent").volumes
    pipe.transformer.register_to_config(self_conditioning=False)
    with pytest.raises(Exception, match="shape|size"):
        pipe(num_inference_steps=4, seed=0)  # its first layer also takes the estimate
    pipe.transformer.register_to_config(self_conditioning=True)
    assert torch.equal(pipe(num_inference_steps=4, seed=0, output_type="latent").volumes, first)
    longer = pipe(num_inference_steps=2, depth=pipe.transformer.config.sample_size[0] + 1, seed=0).volumes
    assert longer.shape[3] == pipe.transformer.config.sample_size[0] + 1


def test_estimates_are_drawn_by_the_step_alone(train_a_dit: Callable) -> None:
    """Two batches per step in one process make the same choice, so that other batch sizes give the same losses."""
    of_one = train_a_dit(
        "one", model=NEWEST | {"mlp_dropout": 0.0}, training={"max_train_steps": 6, "train_batch_size": 4}
    )
    split = {"max_train_steps": 6, "train_batch_size": 2, "gradient_accumulation_steps": 2}
    of_two = train_a_dit("two", model=NEWEST | {"mlp_dropout": 0.0}, training=split)
    first, second = lines_of(of_one), lines_of(of_two)
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"diffusion": {"zero_terminal_snr": True, "prediction_type": "epsilon"}},
            "does not go with prediction_type epsilon",
        ),
        (
            {"diffusion": {"zero_terminal_snr": True, "min_snr_gamma": 5.0}},
            "min_snr_gamma does not go with zero_terminal",
        ),
        ({"diffusion": {"huber_beta": 0.5, "loss": "mse"}}, "huber_beta=0.5 belongs to the loss smooth_l1"),
        ({"diffusion": {"objective": "flow_matching", "offset_noise_strength": 0.1}}, "belongs to objective denoising"),
        ({"diffusion": {"objective": "flow_matching"}, "model": {"learn_sigma": True}}, "learn_sigma needs a process"),
        ({"training": {"validation_metric": "self_conditioned"}}, "needs a model with self_conditioning"),
    ],
)
def test_combinations_without_a_meaning_are_refused_by_name(train_a_dit: Callable, changes: dict, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        train_a_dit("run", **changes)


def test_a_labelled_model_that_is_tuned_without_labels_gets_its_null_label(train_a_dit: Callable) -> None:
    """Sampling without labels uses it, too; and every weight has a gradient, without which DDP stops."""
    base = train_a_dit("base", training={"max_train_steps": 2})
    tuned = train_a_dit("tuned", "--init_from", str(base), label_column=None, training={"max_train_steps": 2})
    rows = [load_file(run / "checkpoint-2/transformer" / WEIGHTS)["class_embed.weight"] for run in (base, tuned)]
    start = load_file(base / "best/transformer" / WEIGHTS)["class_embed.weight"]
    assert not torch.equal(rows[1][-1], start[-1]) and torch.equal(rows[1][:-1], start[:-1])


def test_a_config_chooses_the_objective(train_a_dit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe of CONTRIBUTING.md: its class in the table, its keys in the config, its scheduler afterwards."""
    clean_sample = recipe("Add an objective", tmp_path).CleanSample
    monkeypatch.setitem(LATENT_OBJECTIVES, "clean_sample", clean_sample)
    section = settings_of_one(LATENT_OBJECTIVES, "objective", "the objective", omit=("noise_power",))
    extended = make_dataclass("Extended", [("diffusion", Section, section)], bases=(DiTSettings,), frozen=True)
    monkeypatch.setattr(train_dit, "DiTSettings", extended)
    diffusion = {"objective": "clean_sample", "num_train_timesteps": 40}
    run = train_a_dit("run", diffusion=diffusion)
    assert yaml.safe_load((run / "config.yaml").read_text())["diffusion"] == diffusion
    for pipe in (open_pipeline(run / "pipeline"), open_checkpoint(run, run / "checkpoint-12")):
        assert pipe.transformer.config.prediction_type == pipe.scheduler.config.prediction_type == "sample"
        assert pipe.scheduler.config.num_train_timesteps == 40
    with pytest.raises(CardioDiTError, match="diffusion.loss belongs to objective denoising or flow_matching, and obj"):
        train_a_dit("other", diffusion={**diffusion, "loss": "mse"})
    with pytest.raises(CardioDiTError, match=r"diffusion.objective must be 'denoising' or .*'clean_sample', found 'f'"):
        train_a_dit("other", diffusion={"objective": "f"})
    with pytest.raises(CardioDiTError, match="prediction_type is sample here and v_prediction there"):
        train_a_dit("tuned", "--init_from", str(train_a_dit("velocity")), diffusion=diffusion)


def test_a_run_of_an_earlier_version_resumes_without_the_new_keys(train_a_dit: Callable) -> None:
    run = train_a_dit("run", training={"max_train_steps": 4})
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["diffusion"].pop("objective") == "denoising"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert set(lines_of(train_a_dit("run", training={"max_train_steps": 6}))) == set(range(1, 7))


# --- What is wrong is found before the first step ---


def test_a_subject_in_both_splits(train_a_dit: Callable, cohorts: Cohorts, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="seed0-phantom-0003 is in training and in validation"):
        train_a_dit("run", "--validation_ids", str(cohorts.latents[0]))
    assert not (tmp_path / "run").exists()


def test_latents_of_another_vq_model(train_a_dit: Callable, cohorts: Cohorts, tmp_path: Path) -> None:
    other = VQModel4D.from_pretrained(cohorts.vae)
    other.decoder.blocks[0].conv.bias.data += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CardioDiTError, match=r"8 of 8 were made by another VQ model than the one given"):
        train_a_dit("run", "--vae", str(tmp_path / "other"))


def test_a_damaged_and_a_missing_latent_come_together(train_a_dit: Callable, cohorts: Cohorts, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    shutil.copytree(cohorts.latents[0].parent, folder)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    with pytest.raises(CardioDiTError) as error:
        train_a_dit("run", "--training_ids", str(folder / "manifest.csv"))
    assert f"{first} is damaged or was cut short" in str(error.value)
    assert f"{second} does not exist" in str(error.value)


def test_a_wrong_scaling_factor(train_a_dit: Callable, cohorts: Cohorts, tmp_path: Path) -> None:
    vae = shutil.copytree(cohorts.vae, tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "scaling_factor": 1.0}))
    with pytest.raises(CardioDiTError, match="scaling_factor is 1, but these latents need about .* scale-factor"):
        train_a_dit("run", "--vae", str(vae))


def test_labels_that_training_does_not_know(train_a_dit: Callable, cohorts: Cohorts) -> None:
    manifest = cohorts.latents[1]
    other = manifest.with_name("other-labels.csv")
    other.write_text(manifest.read_text().replace("normal", "healthy"))
    with pytest.raises(CardioDiTError, match="'healthy', which is not one of dilated, hypertrophic, infarct, normal"):
        train_a_dit("run", "--validation_ids", str(other))


def test_a_patch_that_does_not_divide(train_a_dit: Callable) -> None:
    with pytest.raises(CardioDiTError, match="depth axis has size 4, which the patch size 3 does not divide"):
        train_a_dit("run", model={"patch_size": [3, 2, 2, 2]})


def test_a_tracker_that_is_not_installed_or_not_known(train_a_dit: Callable) -> None:
    with pytest.raises(CardioDiTError, match="report_to 'tensorbord' is not one of tensorboard, wandb, trackio"):
        train_a_dit("run", training={"report_to": "tensorbord"})


def test_someone_elses_folder_is_left_alone(train_a_dit: Callable, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(CardioDiTError, match=r"contains thesis.tex and is not a run folder"):
        train_a_dit("run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


# --- A loss that is no number ---


def test_a_loss_that_explodes_is_reported_and_the_checkpoint_before_is_good(
    train_a_dit: Callable,
) -> None:
    """A rate at which the weights overflow within a few steps."""
    with pytest.raises(CardioDiTError) as error:
        train_a_dit("run", training={"learning_rate": 1e30, "checkpointing_steps": 1, "lr_warmup_steps": 0})
    message = str(error.value)
    assert "the loss is not a number: loss" in message
    assert "with the subjects seed0-phantom-" in message
    run = Path(message.split("checkpoint in ")[1].split(" is good")[0])
    step = int(message.split("Step ")[1].split(":")[0])
    losses = lines_of(run)
    assert sorted(losses) == list(range(1, step))
    assert all(np.isfinite(list(losses.values())))
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    DiT4DTransformerModel.from_pretrained(run / f"checkpoint-{step - 1}" / "transformer")


# --- Fine-tuning ---


def test_fine_tuning_starts_from_the_weights(train_a_dit: Callable) -> None:
    base = train_a_dit("base")
    tuned = train_a_dit("tuned", "--init_from", str(base / "pipeline"), "--seed", "1", training={"learning_rate": 0.0})
    weights = "transformer/diffusion_pytorch_model.safetensors"
    first, second = load_file(base / "best" / weights), load_file(tuned / "best" / weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_config_that_contradicts_the_model_is_an_error(train_a_dit: Callable) -> None:
    base = train_a_dit("base", training={"max_train_steps": 1})
    with pytest.raises(CardioDiTError, match="num_layers is 3 in the config and 2 in the model"):
        train_a_dit("tuned", "--init_from", str(base), model={"num_layers": 3})


def test_an_adapter_is_trained_alone_saved_and_merged(train_a_dit: Callable, tmp_path: Path) -> None:
    base = train_a_dit("base")
    lora = {"lora_rank": 2, "lora_alpha": 4.0, "learning_rate": 1e-2, "use_ema": False}
    run = train_a_dit("tuned", "--init_from", str(base / "pipeline"), training=lora)
    kept = load_file(run / "checkpoint-12" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert kept and all("lora_" in name for name in kept)
    hidden = torch.randn(1, 4, 4, 8, 8, 2)
    plain = CardioDiTPipeline.from_pretrained(base / "pipeline")
    merged = CardioDiTPipeline.from_pretrained(run / "pipeline").transformer
    labels, step = torch.tensor([1]), torch.tensor([100])
    before = plain.transformer(hidden, step, labels).sample
    plain.load_lora_weights(run / "lora")
    with torch.no_grad():
        adapted, expected = plain.transformer(hidden, step, labels).sample, merged(hidden, step, labels).sample
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-5)
    assert (adapted - before).abs().max() > 1e-4
    losses = lines_of(run)
    shutil.rmtree(run / "checkpoint-12")
    assert lines_of(train_a_dit("tuned", "--init_from", str(base / "pipeline"), training=lora)) == losses


def test_the_stop_flag_is_everybodys(train_a_dit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run leaves at the end of the step in which it was told to."""
    original = Run.update

    def update(self: Run, *arguments: object, **more: object) -> None:
        original(self, *arguments, **more)  # type: ignore[arg-type]
        if self.step == 4:
            self._stop = "SIGUSR1"

    monkeypatch.setattr(Run, "update", update)
    run = train_a_dit("run")
    assert max(lines_of(run)) == 5
    assert (run / "checkpoint-5").is_dir()


def test_latents_in_shards_train_the_same(train_a_dit: Callable, cohorts: Cohorts, tmp_path: Path) -> None:
    """To the bit, and as the same data: a run that began with single files resumes with shards."""
    vae, shards = VQModel4D.from_pretrained(cohorts.vae), []
    for images in cohorts.images:
        encode_cohort(images, vae, tmp_path / images.parent.name, report=lambda _: None, shard_size=3)
        shards.append(str(tmp_path / images.parent.name / "manifest.csv"))
    ids = ["--training_ids", shards[0], "--validation_ids", shards[1]]
    whole = train_a_dit("whole")
    packed = train_a_dit("packed", *ids, training={"dataloader_num_workers": 1})
    shutil.rmtree(train_a_dit("mixed") / "checkpoint-12")
    mixed = train_a_dit("mixed", *ids)
    for key in ("loss", "validation_loss"):
        assert lines_of(packed, key) == lines_of(whole, key) == lines_of(mixed, key)
    weights = f"checkpoint-12/transformer/{WEIGHTS}"
    assert (packed / weights).read_bytes() == (whole / weights).read_bytes() == (mixed / weights).read_bytes()


# --- On a GPU ---


def test_no_step_waits_for_the_device(train_a_dit: Callable, waits_of: Callable) -> None:
    assert waits_of(partial(train_a_dit, "run", model={"dropout": 0.1})) == []


def test_values_are_read_while_the_next_step_is_computed(
    train_a_dit: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a step's loss at its end would leave a GPU without work until the next step has been queued."""
    happened: list[tuple[str, int]] = []
    update, write = Run.update, Metrics.write

    def updating(self: Run, *arguments: Any) -> None:
        happened.append(("computed", self.step + 1))
        update(self, *arguments)

    def writing(self: Metrics, step: int, *arguments: Any) -> None:
        happened.append(("read", step))
        write(self, step, *arguments)

    monkeypatch.setattr(Run, "update", updating)
    monkeypatch.setattr(Metrics, "write", writing)
    train_a_dit("run", training={"max_train_steps": 4, "checkpointing_steps": 3, "validation_steps": 100})
    order = [happened.index(item) for item in [("read", 1), ("read", 2), ("read", 3), ("computed", 4), ("read", 4)]]
    assert happened.index(("computed", 2)) < order[0] < happened.index(("computed", 3)) < order[1]
    assert order == sorted(order)  # everything is read before a checkpoint, after step 3


def test_previews_are_sampled_in_the_precision_of_training(
    train_a_dit: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    predict = CardioDiTPipeline._run_denoiser

    def listening(self: CardioDiTPipeline, *arguments: Any) -> torch.Tensor:
        linear = self.transformer.transformer_blocks[0].attn.to_q
        hook = linear.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        predicted = predict(self, *arguments)
        hook.remove()
        return predicted

    monkeypatch.setattr(CardioDiTPipeline, "_run_denoiser", listening)
    brief = {"max_train_steps": 1, "preview_samples": 1, "preview_inference_steps": 2, "mixed_precision": "bf16"}
    run = train_a_dit("run", training=brief)
    assert seen == {torch.bfloat16}
    assert (
        json.loads((run / "pipeline" / "transformer" / "config.json").read_text())["training_precision"] == "bfloat16"
    )


# --- Latents of different sizes ---


def train_on(manifests: tuple[Path, Path], cohorts: Cohorts, folder: Path, name: str, **training: Any) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    training = {"batch_strategy": "bucket", "validation_steps": 4, "lr_scheduler": "constant", **training}
    settings = merged(DIT, {"training": training})
    train_dit.main(arguments_of(folder, name, settings, manifests, "--vae", str(cohorts.vae)))
    return folder / name


def test_buckets_train_resume_and_do_not_depend_on_the_batch_size(
    mixed: tuple[Path, Path], cohorts: Cohorts, tmp_path: Path
) -> None:
    whole = lines_of(train_on(mixed, cohorts, tmp_path, "whole", max_train_steps=8))
    assert len(whole) == 8 and np.isfinite(list(whole.values())).all()
    train_on(mixed, cohorts, tmp_path, "parts", max_train_steps=4)
    assert lines_of(train_on(mixed, cohorts, tmp_path, "parts", max_train_steps=8)) == whole
    split = {"max_train_steps": 8, "train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert lines_of(train_on(mixed, cohorts, tmp_path, "split", **split)) == pytest.approx(whole, rel=1e-4)
    pipe = CardioDiTPipeline.from_pretrained(tmp_path / "whole/pipeline")
    assert tuple(pipe.transformer.config.sample_size) == (4, 8, 8, 4)  # the largest
    for frames in (8, 16):
        assert pipe(num_inference_steps=1, frames=frames, seed=0).volumes.shape[-1] == frames


def test_sizes_that_differ_need_buckets_and_buckets_need_latents(
    mixed: tuple[Path, Path], cohorts: Cohorts, tmp_path: Path
) -> None:
    with pytest.raises(CardioDiTError, match="2 different shapes"):
        train_on(mixed, cohorts, tmp_path, "fixed", batch_strategy="fixed")
    with pytest.raises(CardioDiTError, match="batch_strategy: bucket is for stored latents"):
        train_on(cohorts.images, cohorts, tmp_path, "online")
