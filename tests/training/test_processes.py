"""One process, several, several that share one model's weights: the same run."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cardiodit import CardioDiTPipeline, DiT4DTransformerModel
from cardiodit.imaging.cache import SHARED_MEMORY, shared_memory_folder
from cardiodit.imaging.manifest import read_manifest
from cardiodit.training import train_dit, train_prdit
from cardiodit.training.harness.schedule import DistributedSampler
from cardiodit.training.harness.state import WEIGHTS
from cardiodit.training.noisy_samples import LabelledSamples, Noising, NoisyDataset
from cardiodit.training.objectives import Denoising

from ..conftest import begin_two, copy_chests
from ..prepared_python import python
from .conftest import DIT, PATIENCE, VQGAN, Cohorts, arguments_of, lines_of, merged, said_by, wait_for_step
from .processes_at_work import work_off

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
CLOSE = 1e-5  # sums in another order


LONG = {"max_train_steps": 40, "checkpointing_steps": 1000, "validation_steps": 1000}


@dataclass(frozen=True)
class Runs:
    """Runs in one folder, and what was said of them; every process is given one sample at a time."""

    folder: Path
    cohorts: Cohorts
    said: dict[str, str] = field(default_factory=dict)

    def dit(self, name: str, processes: int = 2, **training: Any) -> list[str]:
        """Two samples a step: of two processes, or accumulated by one."""
        changes = {"train_batch_size": 1, "gradient_accumulation_steps": 2 // processes, **training}
        config = merged(DIT, {"training": changes})
        return arguments_of(self.folder, name, config, self.cohorts.latents, "--vae", str(self.cohorts.vae), "--cpu")

    def buckets(self, name: str, processes: int, manifests: tuple[Path, Path]) -> list[str]:
        """Latents of two lengths, for a self-conditioned model with rotary positions that know the phase."""
        training = {"batch_strategy": "bucket", "train_batch_size": 1, "gradient_accumulation_steps": 2 // processes}
        changes = {"model": {"position_mode": "axial_rope", "self_conditioning": True}, "phase_column": "phase"}
        config = merged(DIT, {**changes, "training": {**training, "max_train_steps": 6}})
        return arguments_of(self.folder, name, config, manifests, "--vae", str(self.cohorts.vae), "--cpu")

    def vqgan(self, name: str) -> list[str]:
        config = merged(VQGAN, {"data": {"cache": "disk"}})  # which both processes fill, each with its share
        return arguments_of(self.folder, name, config, self.cohorts.images, "--cpu")

    def prdit(self, name: str, processes: int, *more: str, layers: int = 0) -> list[str]:
        """Two chests a step, by the local denoiser or with a refiner."""
        shape = {"patch_size": 8, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": layers}
        data = {"preprocessing": {"intensity": {"low": -1000, "high": 1000}}}
        steps = {"train_batch_size": 1, "gradient_accumulation_steps": 2 // processes, "max_train_steps": 4}
        changes = {"model": shape, "data": data, "training": {**steps, "validation_steps": 4}}
        config = merged({"training": {**DIT["training"]}}, changes)
        chests = tuple(self.folder / split / "manifest.csv" for split in ("chests", "chests-val"))
        return arguments_of(self.folder, name, config, chests, "--cpu", *more)

    def alone(self, name: str, **training: Any) -> Path:
        """Trained by this one process, with one thread, as those of two are."""
        AcceleratorState._reset_state(reset_partial_state=True)
        train_dit.main(self.dit(name, processes=1, **training))
        return self.folder / name

    def cut(self, name: str, new_name: str) -> Path:
        """A copy of a run as if it had been killed after step 8."""
        copy = shutil.copytree(self.folder / name, self.folder / new_name)
        for beyond in ("checkpoint-12", "best", "pipeline"):
            shutil.rmtree(copy / beyond)
        return copy


@pytest.fixture(scope="module")
def runs(cohorts: Cohorts, mixed: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by one process, and what two processes made of the same and of its checkpoint, sharded and not."""
    made = Runs(tmp_path_factory.mktemp("runs"), cohorts)
    made.said["stopped"] = stop_politely(made, "stopped")
    made.alone("alone")
    plan = [{"stage": "train_vqgan", "arguments": made.vqgan("vqgan"), "sharded": False}]
    for seed, (split, number) in enumerate((("chests", 3), ("chests-val", 2))):
        copy_chests(made.folder / split, number, seed, size=(16, 16, 16))
    for name, layers in (("voxels", 0), ("refined", 1)):
        more = ("--stage1", str(made.folder / "voxels-alone")) if layers else ()
        AcceleratorState._reset_state(reset_partial_state=True)
        train_prdit.main(made.prdit(f"{name}-alone", 1, *more, layers=layers))
        arguments = made.prdit(name, 2, *more, layers=layers)
        plan.append({"stage": "train_prdit", "arguments": arguments, "sharded": False})
    for name in ("stopped", "not-stopped"):
        plan.append({"stage": "train_dit", "arguments": made.dit(name, **LONG), "sharded": False})
    AcceleratorState._reset_state(reset_partial_state=True)
    train_dit.main(made.buckets("buckets-alone", 1, mixed))
    plan.append({"stage": "train_dit", "arguments": made.buckets("buckets", 2, mixed), "sharded": False})
    half = {"mixed_precision": "bf16", "max_train_steps": 4}
    for name, is_sharded in (("half-copies", False), ("half-shards", True)):
        plan.append({"stage": "train_dit", "arguments": made.dit(name, **half), "sharded": is_sharded})
    for name, is_sharded in (("copies", False), ("shards", True)):
        made.cut("alone", f"alone-then-{name}")
        for run in (name, f"alone-then-{name}"):
            plan.append({"stage": "train_dit", "arguments": made.dit(run), "sharded": is_sharded})
    file = made.folder / "plan.json"
    file.write_text(json.dumps(plan))
    said = made.folder / "said"
    processes = begin_two(work_off, file, said=said)
    for process in processes:
        process.join(PATIENCE)
    made.said["plan"] = said.read_text()
    assert [process.exitcode for process in processes] == [0, 0], made.said["plan"]
    return made


def stop_politely(runs: Runs, name: str) -> str:
    """torchrun is told to stop, and passes it on. A copy shows what was there before the run went on."""
    process = start_dit(runs.dit(name, **LONG))
    wait_for_step(runs.folder / name, 5, process)
    process.send_signal(signal.SIGTERM)
    said = said_by(process)
    shutil.copytree(runs.folder / name, runs.folder / f"as-{name}")
    return said


def start(command: list[str]) -> subprocess.Popen:
    """As two processes."""
    caught: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()}  # which torchrun starts
    return subprocess.Popen([python(), *TORCHRUN, *command], env=environment, **caught)


def start_dit(arguments: list[str]) -> subprocess.Popen:
    return start(["-m", "cardiodit.training.train_dit", *arguments])


def finish(process: subprocess.Popen) -> str:
    """Waits for a process that must succeed."""
    said = said_by(process)
    assert process.returncode == 0, said
    return said


def check_same(run: Path, other: Path) -> None:
    """Every loss and every validation of the EMA weights."""
    for key, count in (("loss", 12), ("gradient_norm", 12), ("validation_loss", 2)):
        assert lines_of(run, key) == pytest.approx(lines_of(other, key), rel=CLOSE), key
        assert len(lines_of(run, key)) == count


# --- Processes with copies of the model (DDP), or with shares of it (FSDP2) ---


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_two_processes_train_as_one_does(runs: Runs, kind: str) -> None:
    check_same(runs.folder / kind, runs.folder / "alone")
    record = json.loads((runs.folder / kind / "run.json").read_text())
    assert record["status"] == "finished"
    session = record["sessions"][0]
    assert (session["processes"], session["distribution"]) == (2, "FSDP" if kind == "shards" else "MULTI_CPU")


def test_shards_in_bf16_sum_gradients_in_float32_as_copies_do(runs: Runs) -> None:
    """By default, accelerate would sum them in bf16."""
    copies, shards = (lines_of(runs.folder / f"half-{kind}", "gradient_norm") for kind in ("copies", "shards"))
    assert len(shards) == 4 and shards == pytest.approx(copies, rel=2e-2)
    weights = load_file(runs.folder / "half-shards/checkpoint-4/transformer" / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_two_processes_go_on_with_the_checkpoint_of_one(runs: Runs, kind: str) -> None:
    run = runs.folder / f"alone-then-{kind}"
    check_same(run, runs.folder / "alone")
    assert [s["processes"] for s in json.loads((run / "run.json").read_text())["sessions"]] == [1, 2]


def test_two_processes_fill_buckets_and_draw_estimates_as_one_does(runs: Runs) -> None:
    """Every step has latents of one size, and both processes decide alike whether it hands an estimate on."""
    for key in ("loss", "validation_loss", "validation_loss_self_conditioned"):
        of_two, of_one = (lines_of(runs.folder / name, key) for name in ("buckets", "buckets-alone"))
        assert len(of_one) == (6 if key == "loss" else 1)
        assert of_two == pytest.approx(of_one, rel=CLOSE)


def test_the_energy_of_both_processes_is_recorded(runs: Runs) -> None:
    """Neither can have been busy for longer than the run took; both together were."""
    (session,) = json.loads((runs.folder / "copies" / "run.json").read_text())["sessions"]
    own = session["energy"]["kwh_of"]["cpu"] * 3.6e6 / 10  # core seconds
    assert own > 0 and not session["energy"]["is_at_least"] and "forecast" in session


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_one_process_goes_on_with_the_checkpoint_of_two(runs: Runs, kind: str) -> None:
    runs.cut(kind, f"{kind}-then-alone")
    check_same(runs.alone(f"{kind}-then-alone"), runs.folder / "alone")


@pytest.mark.parametrize("kind", ["copies", "shards", "alone-then-shards"])
def test_two_processes_write_what_one_writes(runs: Runs, kind: str) -> None:
    """The same files, whole; among them the average of the weights with the number of its updates."""
    written, expected = (runs.folder / name / "checkpoint-12" for name in (kind, "alone"))
    files = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    for name in (file for file in files if file.endswith(".safetensors")):
        assert difference(load_file(written / name), load_file(expected / name)) < 1e-4, name
    assert (written / "transformer_ema/updates.txt").read_text() == "12"


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_two_processes_end_in_a_pipeline(runs: Runs, kind: str) -> None:
    best = DiT4DTransformerModel.from_pretrained(runs.folder / kind / "best/transformer").state_dict()
    pipe = CardioDiTPipeline.from_pretrained(runs.folder / kind / "pipeline")
    assert all(torch.equal(best[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    pipe.set_progress_bar_config(disable=True)
    volumes = pipe(num_samples=1, num_inference_steps=2, class_labels=[0], seed=0, output_type="np").volumes
    assert volumes.shape == (1, 32, 32, 4, 8)


def difference(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Largest one, over the largest value of the tensor it is in.

    Or over a thousandth of the largest in tensors of its kind: the bias of the keys has no gradient but rounding.
    """
    assert set(some) == set(others)
    sizes = {name: float(tensor.abs().max()) for name, tensor in others.items()}
    kinds: dict[str, float] = {}
    for name, size in sizes.items():
        kinds[kind_of(name)] = max(size, kinds.get(kind_of(name), 0.0))
    floors = {name: max(sizes[name], kinds[kind_of(name)] / 1000, 1e-12) for name in others}
    return max(float((some[name] - others[name]).abs().max()) / floors[name] for name in others)


def kind_of(name: str) -> str:
    """`bias` of `blocks.0.attn.to_k.bias`."""
    return name.rpartition(".")[2]


def test_both_processes_hold_the_same_autoencoder(runs: Runs) -> None:
    """Weights, codebook and its averages, critic and moments: to the bit, after the critic has begun to judge.

    Except the running statistics of the critic's norms: each process has those of what it saw, and while training
    nobody asks for them.
    """
    run = runs.folder / "vqgan"
    weights = lines_of(run, "adversarial_weight")
    assert weights[1] == 0 and weights[12] > 0 and set(lines_of(run, "discriminator")) < set(weights)
    one, other = (json.loads((run / f"held-by-{rank}.json").read_text()) for rank in (0, 1))
    assert {"vae/quantizer.weight", "vae/quantizer.ema_sums", "discriminator/0.conv.weight"} < set(one)
    assert {name.partition("/")[0] for name in one} > {"optimizer", "discriminator_optimizer"}
    assert {name.rpartition(".")[2] for name in one if one[name] != other[name]} <= {"running_mean", "running_var"}
    assert set(one) == set(other)
    volumes = sum(len(read_manifest(manifest)) for manifest in runs.cohorts.images)
    assert len(list((runs.folder / "cache").glob("*.npy"))) == volumes


@pytest.mark.parametrize("name", ["voxels", "refined"])
def test_both_processes_begin_and_end_with_the_same_voxel_transformer(runs: Runs, name: str) -> None:
    """Both stages of PRDiT, to the bit, and as one process trains it."""
    run, alone = runs.folder / name, runs.folder / f"{name}-alone"
    one, other = (json.loads((run / f"held-by-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and any(key.startswith("transformer_ema/") for key in one)
    for key in ("loss", "gradient_norm", "validation_loss"):
        assert lines_of(run, key) == pytest.approx(lines_of(alone, key), rel=CLOSE), key
    weights = Path("checkpoint-4") / "transformer" / WEIGHTS
    assert difference(load_file(run / weights), load_file(alone / weights)) < 1e-4
    assert not list(SHARED_MEMORY.glob(f"{shared_memory_folder(str(run.resolve())).name}*"))  # type: ignore[union-attr]


# --- Accumulated batches ---


def noisy_visits(channels: int, size: tuple[int, ...], labels: bool = False) -> NoisyDataset:
    latents = list(torch.randn(5, channels, *size, generator=torch.Generator().manual_seed(1)))
    patients = LabelledSamples(latents, [f"heart {i}" for i in range(5)], [i % 2 for i in range(5)] if labels else None)
    return NoisyDataset(patients.shuffled(3), Noising(Denoising(300), seed=3, null_label=2, label_dropout=0.5))


def test_accumulated_gradients_are_those_of_the_large_batch(make_dit: Callable) -> None:
    model = make_dit()
    visits = noisy_visits(model.config.in_channels, (2, 8, 8, 4))
    denoising = Denoising()

    def gradients(*batches: list[int]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for numbers in batches:
            batch = torch.utils.data.default_collate([visits[visit] for visit in numbers])
            (denoising.losses(model, batch["sample"], batch).mean() / len(batches)).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    at_once = gradients([0, 1, 2, 3])
    assert difference(gradients([0], [1], [2], [3]), at_once) < CLOSE
    assert difference(gradients([0, 1], [2, 3]), at_once) < CLOSE
    assert difference(gradients([0, 1, 2, 4]), at_once) > 0.01  # the measure sees one other sample


def test_accumulated_batches_take_the_step_of_the_large_batch(runs: Runs) -> None:
    """Adam's first step follows the signs of the gradients, so its first moment is what tells of their size."""
    settings = {"max_train_steps": 1, "lr_warmup_steps": 0}
    at_once = runs.alone("at-once", train_batch_size=4, gradient_accumulation_steps=1, **settings)
    accumulated = runs.alone("accumulated", train_batch_size=1, gradient_accumulation_steps=4, **settings)
    one, other = (run / "checkpoint-1" for run in (at_once, accumulated))
    moments, others = (load_file(folder / "optimizer.safetensors") for folder in (one, other))
    assert difference(others, moments) < 2 * CLOSE  # the second moment is a square
    assert difference(load_file(other / "transformer" / WEIGHTS), load_file(one / "transformer" / WEIGHTS)) < CLOSE


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 2), (4, 2)])
def test_a_visit_does_not_depend_on_who_makes_it(processes: int, accumulation: int) -> None:
    """The same samples, noise, timesteps and dropped labels in a step, however its 8 samples are spread."""
    whole = noisy_visits(2, (2, 4, 4, 2), labels=True)
    batch_size = 8 // (processes * accumulation)
    for step in range(3):
        shares = [
            DistributedSampler(step, step + 1, batch_size, accumulation, process, processes)
            for process in range(processes)
        ]
        seen = {visit: mine[visit] for mine, share in made_by(shares) for batch in share for visit in batch}
        assert sorted(seen) == list(range(step * 8, step * 8 + 8))
        for visit, item in seen.items():
            expected = whole[visit]
            assert item["subject"] == expected["subject"]
            assert all(torch.equal(item[key], expected[key]) for key in ("sample", "noise", "timestep", "label"))


def made_by(shares: list[DistributedSampler]) -> list[tuple[NoisyDataset, DistributedSampler]]:
    """Each share with a data set of its own, as each process has one."""
    return [(noisy_visits(2, (2, 4, 4, 2), labels=True), share) for share in shares]


# --- Ends ---


def test_two_processes_stop_after_the_same_step_and_go_on(runs: Runs) -> None:
    """The same command, to the losses of a run that nobody stopped, to the bit."""
    said, found = runs.said["stopped"], runs.folder / "as-stopped"
    last = max(lines_of(found))
    assert last < 40 and said.count("Stopped by ") == said.count(f" after step {last}; the same command") == 1, said
    assert "forcefully exiting" not in said  # as torchrun does after 30 seconds
    assert [folder.name for folder in found.glob("checkpoint-*")] == [f"checkpoint-{last}"]
    assert json.loads((found / "run.json").read_text())["status"] == "interrupted"

    assert f"Resuming stopped after step {last}." in runs.said["plan"]
    for key in ("loss", "validation_loss"):
        assert lines_of(runs.folder / "stopped", key) == lines_of(runs.folder / "not-stopped", key)
    assert sorted(lines_of(runs.folder / "stopped")) == list(range(1, 41))


def test_an_error_ends_all_processes_with_one_sentence(runs: Runs) -> None:
    """One that every process finds, and one that only the first can find: the others do not wait for it."""
    alike = [*runs.dit("alike"), "--validation_ids", str(runs.cohorts.latents[0])]
    other = runs.dit("copies", learning_rate=0.5)
    processes = [start_dit(arguments) for arguments in (alike, other)]
    for process, sentence in zip(processes, ["The splits share subjects:", "learning_rate was 0.001, now 0.5"]):
        said = said_by(process)
        assert process.returncode != 0
        assert said.count(sentence) == said.count("error: ") == 1, said
        assert "forcefully exiting" not in said
