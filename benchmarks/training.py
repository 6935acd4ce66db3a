"""Measure training of the transformer: waiting for data, overhead of the loop, memory saved by gradient checkpointing.

    python benchmarks/training.py                     # everything, about five minutes on two idle cores
    python benchmarks/training.py --parts waiting     # only some parts: waiting, loop, memory

All parts run the real script, training/train_dit.py, in this process, on generated latents of the published size.
Waiting is read from its metrics.jsonl. The loop is compared with plain PyTorch with the same model, optimizer,
clipping and EMA on a batch in memory: steps of both alternate, on one thread, to reduce the influence of other
processes.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from measuring import machine, peak_mib

from cardiodit import DiT4DTransformerModel, VQModel4D
from cardiodit._util.memory import peak_bytes
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import write_manifest
from cardiodit.latents import LatentHeader, identity_of_vae, write_latent
from cardiodit.training import train_dit
from cardiodit.training.harness.run import Run
from cardiodit.training.objectives import Denoising

PUBLISHED = (8, 6, 64, 64, 8)  # latents, (C, D, H, W, T)
SHORT = (8, 2, 16, 16, 4)  # 64 tokens: a step short enough to show any overhead
SAMPLES = 24
WARM_UP = 5  # steps that are not counted, in which threads, caches and worker processes start
TINY = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "patch_size": [1, 16, 16, 8]}
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 48, "patch_size": [1, 8, 8, 2]}
BLOCKS = {"num_attention_heads": 12, "patch_size": [1, 4, 4, 2]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# --- The real script ---


def write_data(folder: Path, shape: tuple[int, ...], samples: int = SAMPLES) -> Path:
    """Write a small VQ model, and two manifests of random latents marked as encoded by it."""
    vae = VQModel4D(channels=(8, 16), num_res_channels=(8, 16), num_embeddings=64)
    vae.save_pretrained(folder / "vae")
    geometry = Geometry((1.4, 1.4, 10.0), 0.03)
    header = LatentHeader(identity_of_vae(vae), "0" * 64, "0" * 64, "float32", geometry, shape, 4 * shape[-1])
    names = [f"{number:03}.safetensors" for number in range(samples + 1)]
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        write_latent(folder / name, torch.randn(shape, generator=generator), header)
    rows = [{"latent": name, "subject": name} for name in names]
    write_manifest(folder / "training.csv", rows[:-1])
    write_manifest(folder / "validation.csv", rows[-1:])
    return folder


def train(data: Path, name: str, steps: int, model: dict[str, Any], workers: int = 0) -> list[dict[str, Any]]:
    """Run the script, and return its records of all steps except the first few."""
    settings = {f"model.{key}": value for key, value in model.items()}
    settings |= {"max_train_steps": steps, "checkpointing_steps": steps, "validation_steps": steps}
    settings |= {"validation_timesteps": 1, "preview_samples": 0, "dataloader_num_workers": workers}
    settings |= {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    paths = {"vae": data / "vae", "training_ids": data / "training.csv", "validation_ids": data / "validation.csv"}
    options = {**paths, "output_dir": data / "runs", "run_name": name, **settings}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        train_dit.main([text for key, value in options.items() for text in (f"--{key}", str(value))])
    lines = (data / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "seconds" in line][WARM_UP:]


# --- Waiting for data ---


@contextlib.contextmanager
def simulated_accelerator(seconds: float) -> Iterator[None]:
    """Replace forward passes by waiting, which leaves the CPU idle, as on a GPU."""

    def sleep(self: Denoising, model: torch.nn.Module, latents: torch.Tensor, batch: Any) -> torch.Tensor:
        time.sleep(seconds)
        return next(model.parameters()).sum() * torch.zeros(len(latents), device=latents.device)

    with patch.object(Denoising, "losses", sleep):
        yield


def waiting(data: Path, rounds: int) -> None:
    """Print the share of a step spent waiting for data, on the CPU and with a simulated accelerator."""
    print("\nwaiting for a batch (a latent and its noise, 6.3 MB each): share of the step, medians")
    kinds: list[tuple[str, float | None]] = [("small transformer on this CPU", None)]
    kinds += [(f"an accelerator's step of {round(1000 * s)} ms", s) for s in (0.02, 0.05, 0.1)]
    for kind, seconds in kinds:
        lines: dict[int, list[dict[str, Any]]] = {0: [], 2: []}
        for number in range(rounds):
            for workers, records in lines.items():
                name = f"{workers}-{number}-{seconds}"
                if seconds is None:
                    records += train(data, name, 25, SMALL, workers)
                else:
                    with simulated_accelerator(seconds):
                        records += train(data, name, 45, TINY, workers)
        print(f"  {kind}: " + "; ".join(f"{w} workers {_waited(records)}" for w, records in lines.items()))


def _waited(lines: list[dict[str, Any]]) -> str:
    waited, seconds = ([line[key] for line in lines] for key in ("waited", "seconds"))
    median = 1000 * statistics.median(waited)
    return f"{sum(waited) / sum(seconds):.1%} ({median:.1f} ms of {1000 * statistics.median(seconds):.0f} ms)"


# --- Our loop compared with plain PyTorch ---


def plain_loop(shape: tuple[int, ...], model: dict[str, Any]) -> Callable[[], None]:
    """Return a training step in plain PyTorch, with the script's hyper-parameters."""
    transformer = DiT4DTransformerModel(sample_size=shape[1:], **model).to(DEVICE).train()
    parameters = list(transformer.parameters())
    decay, others = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": others, "weight_decay": 0.0}], 1e-4, weight_decay=1e-4)
    ema = EMAModel(parameters, 0.9999, use_ema_warmup=True, power=2 / 3)
    scheduler = Denoising().scheduler
    latents, noise = torch.randn(2, 1, *shape, device=DEVICE)
    timesteps = torch.tensor([150], device=DEVICE)

    def step() -> None:
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        loss = F.smooth_l1_loss(transformer(noisy, timesteps).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)

    return step


@contextlib.contextmanager
def alternating_with(step: Callable[[], None], rounds: int) -> Iterator[tuple[list[float], list[float]]]:
    """Alternate the steps of a run with those of another loop; yield two lists that collect the seconds of both.

    Our steps are complete: they include reading the batch, the EMA and the step's record.
    """
    ours, theirs = [], []
    original = Run.steps

    def steps(self: Run, loader: Any) -> Iterator[Any]:
        start = now()
        for item in original(self, loader):
            yield item
            ours.append(now() - start)
            start = now()
            step()
            theirs.append(now() - start)
            if len(ours) == rounds:
                break
            start = now()
        self.was_interrupted = True  # prevents saving

    with patch.object(Run, "steps", steps):
        yield ours, theirs


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def loop(folder: Path, what: str, shape: tuple[int, ...], model: dict[str, Any], rounds: int) -> None:
    data = write_data(folder / what, shape)
    skipped = 2
    with alternating_with(plain_loop(shape, model), rounds + skipped) as (ours, theirs):
        train(data, "loop", 10 * rounds, model)
    ours, theirs = ours[skipped:], theirs[skipped:]
    mine, other = statistics.median(ours), statistics.median(theirs)
    pairs = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    lines = (data / "runs" / "loop" / "metrics.jsonl").read_text().splitlines()
    waited = statistics.median([json.loads(line)["waited"] for line in lines][skipped:])
    print(
        f"  {what}: ours {1000 * mine:.1f} ms, plain {1000 * other:.1f} ms: {mine / other:.3f} times, in pairs "
        f"{pairs:.3f} times; {1000 * (mine - other):+.1f} ms, of which {1000 * waited:.1f} ms for reading the batch "
        f"(medians of {rounds})"
    )


# --- Gradient checkpointing ---


def activations_mib(layers: int, checkpointing: bool, computed: bool) -> float:
    """Return the peak memory of a forward and backward pass, without weights, gradients and optimizer.

    Gradients are freed as soon as they are computed, so the peak consists of activations and a single gradient.
    """
    model = DiT4DTransformerModel(num_layers=layers).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    latents = torch.randn(1, *PUBLISHED)

    def step() -> None:
        F.smooth_l1_loss(model(latents, torch.tensor([7])).sample, latents).backward()

    return peak_bytes(step) / 2**20 if computed else peak_mib(step)


def measured_activations_mib(layers: int, checkpointing: bool) -> float:
    """Measure in a separate process whose allocator returns freed memory to the system.

    By default, glibc keeps freed tensors of this size in a fragmented heap, up to five times as much if checkpointing.
    """
    command = [sys.executable, "-W", "ignore", __file__, "--peak", str(layers), str(int(checkpointing))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory(layers: int) -> None:
    print(f"\nactivations of a step, {layers} published blocks, 6144 tokens, batch 1, float32")
    for name, activations in (
        ("computed by cardiodit._util.memory", lambda c: activations_mib(layers, c, computed=True)),
        ("measured", lambda c: measured_activations_mib(layers, c)),
    ):
        without, with_it = activations(False), activations(True)
        print(
            f"  {name}: {without:.0f} MiB, {with_it:.0f} MiB with gradient checkpointing: {without / with_it:.2f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["waiting", "loop", "memory"])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each loop with 6144 tokens")
    parser.add_argument("--layers", type=int, default=12, help="blocks for the memory measurement")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(activations_mib(arguments.peak[0], bool(arguments.peak[1]), computed=False)))
        return
    parts = arguments.parts or ["waiting", "loop", "memory"]
    print(f"{machine()}; load {os.getloadavg()[0]:.2f} at the start")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "waiting" in parts:
            waiting(write_data(folder / "waiting", PUBLISHED), rounds=2)
        if "loop" in parts:
            print("\na step of the script compared with plain PyTorch on a batch in memory, 1 thread")
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            narrow = {"num_layers": 12, "attention_head_dim": 16, **BLOCKS}
            loop(folder, "12 blocks, a quarter as wide, 64 tokens", SHORT, narrow, 12 * arguments.rounds)
            published = {"num_layers": 1, "attention_head_dim": 64, **BLOCKS}
            loop(folder, "1 published block, 6144 tokens", PUBLISHED, published, arguments.rounds)
            torch.set_num_threads(threads)
    if "memory" in parts:
        memory(arguments.layers)
    print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
