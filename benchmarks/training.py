"""Training the transformer: how long it waits for data, what our loop costs, what gradient checkpointing spares.

    python benchmarks/training.py                     # all of it, about five minutes on two idle cores
    python benchmarks/training.py --parts waiting     # or only some of waiting, loop, memory

Everything runs the real script, training/train_dit.py, in this process, on latents of the published size that are
written for it. Waiting is read from its metrics.jsonl. The loop is timed beside plain PyTorch with the same model,
optimizer, clipping and average on a batch in memory: a step of one, a step of the other, in turn, on one thread, which
other processes disturb less.
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
SHORT = (8, 2, 16, 16, 4)  # 64 tokens: a step in which whatever is not arithmetic shows
SAMPLES = 24
FIRST = 5  # steps that are not counted: threads, caches and worker processes start in them
TINY = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "patch_size": [1, 16, 16, 8]}
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 48, "patch_size": [1, 8, 8, 2]}
BLOCKS = {"num_attention_heads": 12, "patch_size": [1, 4, 4, 2]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# --- The real script ---


def write_data(folder: Path, shape: tuple[int, ...], samples: int = SAMPLES) -> Path:
    """A small VQ model, and random latents that say they are its own, in two manifests."""
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
    """What the script recorded of its steps, without the first few."""
    settings = {f"model.{key}": value for key, value in model.items()}
    settings |= {"max_train_steps": steps, "checkpointing_steps": steps, "validation_steps": steps}
    settings |= {"validation_timesteps": 1, "preview_samples": 0, "dataloader_num_workers": workers}
    settings |= {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    given = {"vae": data / "vae", "training_ids": data / "training.csv", "validation_ids": data / "validation.csv"}
    options = {**given, "output_dir": data / "runs", "run_name": name, **settings}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        train_dit.main([text for key, value in options.items() for text in (f"--{key}", str(value))])
    lines = (data / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "seconds" in line][FIRST:]


# --- Waiting for data ---


@contextlib.contextmanager
def accelerator_that_needs(seconds: float) -> Iterator[None]:
    """Forward passes take so long and leave the CPU alone, as they do on a GPU."""

    def sleep(self: Denoising, model: torch.nn.Module, latents: torch.Tensor, batch: Any) -> torch.Tensor:
        time.sleep(seconds)
        return next(model.parameters()).sum() * torch.zeros(len(latents), device=latents.device)

    with patch.object(Denoising, "losses", sleep):
        yield


def waiting(data: Path, rounds: int) -> None:
    """Share of its steps that the script waits, on the CPU and beside an accelerator; rounds take turns."""
    print("\nwaiting for a batch (a latent and its noise, 6.3 MB each), share of the step and median")
    kinds: list[tuple[str, float | None]] = [("small transformer on this CPU", None)]
    kinds += [(f"an accelerator's step of {round(1000 * s)} ms", s) for s in (0.02, 0.05, 0.1)]
    for kind, seconds in kinds:
        lines: dict[int, list[dict[str, Any]]] = {0: [], 2: []}
        for number in range(rounds):
            for workers, held in lines.items():
                name = f"{workers}-{number}-{seconds}"
                if seconds is None:
                    held += train(data, name, 25, SMALL, workers)
                else:
                    with accelerator_that_needs(seconds):
                        held += train(data, name, 45, TINY, workers)
        print(f"  {kind}: " + "; ".join(f"{w} workers {_waited(found)}" for w, found in lines.items()))


def _waited(lines: list[dict[str, Any]]) -> str:
    waited, seconds = ([line[key] for line in lines] for key in ("waited", "seconds"))
    median = 1000 * statistics.median(waited)
    return f"{sum(waited) / sum(seconds):.1%} ({median:.1f} ms of {1000 * statistics.median(seconds):.0f} ms)"


# --- Our loop beside a plain one ---


def plain_loop(shape: tuple[int, ...], model: dict[str, Any]) -> Callable[[], None]:
    """A step as one writes it without us, with the script's own hyper-parameters."""
    transformer = DiT4DTransformerModel(sample_size=shape[1:], **model).to(DEVICE).train()
    parameters = list(transformer.parameters())
    decay, still = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": still, "weight_decay": 0.0}], 1e-4, weight_decay=1e-4)
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
def interrupted_by(step: Callable[[], None], rounds: int) -> Iterator[tuple[list[float], list[float]]]:
    """After each step of a run comes one of another loop; yields the seconds of both, which fill up.

    Ours are whole: reading the batch, the average and the step's record are in them, as is all that the script does.
    """
    ours, theirs = [], []
    original = Run.steps

    def steps(self: Run, loader: Any) -> Iterator[Any]:
        began = now()
        for item in original(self, loader):
            yield item
            ours.append(now() - began)
            began = now()
            step()
            theirs.append(now() - began)
            if len(ours) == rounds:
                break
            began = now()
        self.was_interrupted = True  # so that nothing is saved

    with patch.object(Run, "steps", steps):
        yield ours, theirs


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def loop(folder: Path, what: str, shape: tuple[int, ...], model: dict[str, Any], rounds: int) -> None:
    data = write_data(folder / what, shape)
    skipped = 2
    with interrupted_by(plain_loop(shape, model), rounds + skipped) as (ours, theirs):
        train(data, "loop", 10 * rounds, model)
    ours, theirs = ours[skipped:], theirs[skipped:]
    mine, other = statistics.median(ours), statistics.median(theirs)
    pairs = statistics.median(one / beside for one, beside in zip(ours, theirs, strict=True))
    lines = (data / "runs" / "loop" / "metrics.jsonl").read_text().splitlines()
    waited = statistics.median([json.loads(line)["waited"] for line in lines][skipped:])
    print(
        f"  {what}: ours {1000 * mine:.1f} ms, plain {1000 * other:.1f} ms: {mine / other:.3f} times, in pairs "
        f"{pairs:.3f} times; {1000 * (mine - other):+.1f} ms, of which {1000 * waited:.1f} ms read the batch "
        f"(medians of {rounds})"
    )


# --- Gradient checkpointing ---


def activations_mib(layers: int, checkpointing: bool, on_paper: bool) -> float:
    """What a forward and a backward pass hold at most, above the weights and one gradient.

    Gradients are freed as they come, so that what is left is activations: neither gradients nor optimizer are counted.
    """
    model = DiT4DTransformerModel(num_layers=layers).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    latents = torch.randn(1, *PUBLISHED)

    def step() -> None:
        F.smooth_l1_loss(model(latents, torch.tensor([7])).sample, latents).backward()

    return peak_bytes(step) / 2**20 if on_paper else peak_mib(step)


def measured_activations_mib(layers: int, checkpointing: bool) -> float:
    """In a process of its own, which does the arithmetic and gives back what it frees.

    By default glibc keeps freed tensors of this size in a heap with holes: with checkpointing up to five times as much.
    """
    command = [sys.executable, "-W", "ignore", __file__, "--peak", str(layers), str(int(checkpointing))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory(layers: int) -> None:
    print(f"\nactivations of a step, {layers} published blocks at 6144 tokens, batch 1, float32")
    for name, find in (
        ("added up (cardiodit._util.memory)", lambda c: activations_mib(layers, c, on_paper=True)),
        ("measured", lambda c: measured_activations_mib(layers, c)),
    ):
        without, with_it = find(False), find(True)
        print(
            f"  {name}: {without:.0f} MiB, {with_it:.0f} MiB with gradient checkpointing: {without / with_it:.2f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["waiting", "loop", "memory"])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each at 6144 tokens")
    parser.add_argument("--layers", type=int, default=12, help="of the transformer whose memory is measured")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(activations_mib(arguments.peak[0], bool(arguments.peak[1]), on_paper=False)))
        return
    parts = arguments.parts or ["waiting", "loop", "memory"]
    print(f"{machine()}; load {os.getloadavg()[0]:.2f} at the start")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "waiting" in parts:
            waiting(write_data(folder / "waiting", PUBLISHED), rounds=2)
        if "loop" in parts:
            print("\na step of the script beside plain PyTorch on a batch in memory, 1 thread")
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
