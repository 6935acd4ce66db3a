"""Check an installation and measure it: one step of each stage, sampling, precision, resuming, several GPUs.

Each check is a function that returns a result in words and its numbers. A check that fails does not stop the others.
"""

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.gpu import channels_last, set_kernels
from cardiodit.energy import EnergyMeter
from cardiodit.energy.forecast import known_gpu
from cardiodit.errors import sentence_of
from cardiodit.imaging import Preprocessing, prepare_case, read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import encode_volume, measure_scale, write_scale
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.autoencoder_vq import VQModel4D
from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.models.transformer_dit import DiT4DTransformerModel
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.models.unet_medlord import MedLoRDUNetModel
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline
from cardiodit.schedulers import make_scheduler
from cardiodit.training import train_dit, train_vqgan
from cardiodit.training.adapter_model import Steered
from cardiodit.training.denoiser_loop import trained_weights
from cardiodit.training.harness.checkpoints import Checkpoint
from cardiodit.training.harness.run_record import versions
from cardiodit.training.objectives import Denoising, NoiseAndImage, Objective
from cardiodit.training.vqgan_losses import GeneratorLoss, LossSettings, discriminator_loss

SLICE = (1, 1, 256, 256, 32)  # a 2D+t slice, as published
CLOSE = 0.05  # largest acceptable difference between bf16 and float32, relative to the largest value

Numbers = dict[str, Any]
Step = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """Sizes at which the networks are measured.

    Args:
        vae, dit, prdit, unet, tgca, controlnet: arguments of the models.
        image: shape of a training batch of stage 1.
        volume: shape of a training batch of PRDiT.
    """

    vae: dict[str, Any] = field(default_factory=dict)
    dit: dict[str, Any] = field(default_factory=dict)
    prdit: dict[str, Any] = field(default_factory=dict)
    unet: dict[str, Any] = field(default_factory=dict)
    tgca: dict[str, Any] = field(default_factory=lambda: {"strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 1))})
    controlnet: dict[str, Any] = field(default_factory=lambda: {"condition_widths": (32, 64, 128)})
    image: tuple[int, ...] = SLICE
    volume: tuple[int, ...] = (1, 1, 128, 128, 128)


PUBLISHED = Sizes()
SMALL = Sizes(
    vae={"channels": (16, 32), "num_res_channels": (16, 32), "num_embeddings": 256},
    dit={"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16, "sample_size": (2, 16, 16, 8)},
    prdit={
        "patch_size": 8,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "sample_size": (32, 32, 32),
    },
    unet={"block_out_channels": (32, 32, 64, 64), "sample_size": (16, 16, 8)},
    tgca={"channels": (8, 16), "strides": ((2, 2, 2),)},
    controlnet={"condition_widths": (8, 8, 8)},
    image=(1, 1, 64, 64, 8),
    volume=(1, 1, 32, 32, 32),
)


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        check: what was checked.
        status: "ok", "note" for something that the user should know, or "failed".
        result: the result in words.
        numbers: what was measured.
    """

    check: str
    status: str
    result: str
    numbers: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Patient:
    """The machine that is examined.

    Args:
        device: device on which everything runs.
        sizes: sizes of the networks.
        rounds: timed repetitions of a step.
    """

    device: torch.device
    sizes: Sizes
    rounds: int

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def peak_tflops(self) -> float | None:
        """The dense bf16 peak of the GPU, if it is known."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else ""
        device = known_gpu(name)
        return None if device is None else device.tflops

    def measure(self, step: Step) -> Numbers:
        """Return the median time of a step in milliseconds and its peak memory in GiB."""
        step()  # allocates, and compiles
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(self.rounds):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.is_cuda else None
        return {"milliseconds": 1000 * statistics.median(seconds), "peak_gib": peak}

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.is_cuda else nullcontext()


def examine(device: str, sizes: Sizes, rounds: int = 5) -> Iterator[Finding]:
    """Yield a finding for each check, as soon as it is made."""
    patient = Patient(torch.device(device), sizes, rounds)
    set_kernels()
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            status, result, numbers = check(patient)
        except Exception as error:  # what fails here is what the user wants to know
            status, result, numbers = "failed", sentence_of(error), {}
        torch._dynamo.reset()
        if patient.is_cuda:
            torch.cuda.empty_cache()
        yield Finding(name, status, result, numbers)


def write_findings(findings: list[Finding], path: Path) -> None:
    """Write `doctor.json`, to be attached to an issue."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")


# --- The checks ---

Result = tuple[str, str, Numbers]


def check_versions(patient: Patient) -> Result:
    found = {"python": platform.python_version(), **versions()}
    if patient.is_cuda:
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return "ok", ", ".join(f"{name} {number}" for name, number in found.items()), found


def check_device(patient: Patient) -> Result:
    if not patient.is_cuda:
        text = f"{patient.device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
        return "note", f"{text}: there is no CUDA GPU, so small networks are measured", {"gpus": 0}
    properties = torch.cuda.get_device_properties(patient.device)
    gib, peak = properties.total_memory / 2**30, patient.peak_tflops
    numbers = {"name": properties.name, "memory_gib": gib, "gpus": torch.cuda.device_count(), "peak_tflops": peak}
    stated = f"{peak} TFLOP/s in bf16" if peak else "its peak is not in our table, so no utilisation is given"
    return "ok", f"{properties.name}, {gib:.0f} GiB, {stated}", numbers


def check_attention(patient: Patient) -> Result:
    """Name the kernels that torch chooses for the transformer's attention, in sampling and in training with dropout."""
    from torch.nn.attention import SDPBackend

    with torch.device("meta"):
        model = DiT4DTransformerModel(**patient.sizes.dit)
    config = model.config
    size = (1, config.num_attention_heads, math.prod(model.grid_of(config.sample_size)), config.attention_head_dim)
    query = torch.zeros(size, device=patient.device, dtype=torch.bfloat16)
    chosen, with_dropout = (
        SDPBackend(torch._fused_sdp_choice(query, query, query, None, dropout)).name.lower().replace("_", " ")
        for dropout in (0.0, 0.1)
    )
    words = f"torch chooses {chosen} for bf16"
    if with_dropout != chosen:
        words += f", and {with_dropout} with dropout (model.attention_dropout: 0 trains without)"
    status = "note" if "math" in (chosen, with_dropout) else "ok"
    return status, words, {"kernel": chosen, "kernel_with_dropout": with_dropout, "tokens": size[2]}


def check_stage_1(patient: Patient) -> Result:
    """Take a step of the VQ-GAN with its critic, eager and compiled."""
    vae = VQModel4D(**patient.sizes.vae).to(patient.device).train()
    critic = PatchDiscriminator().to(patient.device).train()
    losses = GeneratorLoss(LossSettings(perceptual_weight=0.0))
    fused = patient.is_cuda or None
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-4, fused=fused) for model in (vae, critic)]
    channels_last(vae, critic, device=patient.device)
    image = torch.rand(patient.sizes.image, device=patient.device) * 2 - 1

    def step() -> None:
        with patient.autocast():
            fake, commitment = vae(image, return_dict=False)
            logits = critic(fake)[-1]
        losses(fake, image, commitment, logits, 0.005)["loss"].backward()
        with patient.autocast():
            judged = critic(image)[-1], critic(fake.detach())[-1]
        discriminator_loss(*judged).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def compile_both(**how: Any) -> None:
        vae.compile_repeated_blocks(**how)
        critic.compile(**how)

    flops = operations(partial(VQModel4D, **patient.sizes.vae), lambda model: model(torch.empty(patient.sizes.image)))
    return eager_and_compiled(patient, step, 3 * flops, compile_both)


def check_stage_2(patient: Patient) -> Result:
    """Take a step of the 4D transformer, eager and compiled."""
    return denoiser_steps(patient, partial(DiT4DTransformerModel, **patient.sizes.dit), Denoising())


def check_prdit(patient: Patient) -> Result:
    """Take a step of PRDiT."""
    shape = patient.sizes.volume
    made = partial(PRDiTTransformerModel, **{"sample_size": shape[2:], **patient.sizes.prdit})
    return denoiser_steps(patient, made, NoiseAndImage(), shape)


def check_unet(patient: Patient) -> Result:
    """Take a step of MedLoRD's U-Net."""
    return denoiser_steps(patient, partial(MedLoRDUNetModel, **patient.sizes.unet), Denoising())


def check_tgca(patient: Patient) -> Result:
    """Take a step of the mask adapter on the frozen 4D transformer."""

    def make() -> Steered:
        base = DiT4DTransformerModel(**patient.sizes.dit)
        width = base.config.num_attention_heads * base.config.attention_head_dim
        own = {"hidden_size": width, "num_layers": base.config.num_layers, "num_axes": 4, "condition_channels": 3}
        return Steered(base, TGCAAdapterModel(**own, **patient.sizes.tgca))

    size = patient.sizes.dit.get("sample_size", DiT4DTransformerModel.published_sample_size)
    masks = (1, 3, size[0], *(4 * n for n in size[1:]))
    return denoiser_steps(patient, make, Denoising(), (1, 8, *size), masks, passes=2)


def check_controlnet(patient: Patient) -> Result:
    """Take a step of the ControlNet on the frozen U-Net."""
    base = MedLoRDUNetModel
    with torch.device("meta"):
        config = base(**patient.sizes.unet).config
    shared = ("block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim", "norm_num_groups")

    def make() -> Steered:
        own = {"in_channels": config.in_channels, **{name: config[name] for name in shared}}
        return Steered(base(**patient.sizes.unet), MedLoRDControlNetModel(**own, **patient.sizes.controlnet))

    masks = (1, 1, *(8 * n for n in config.sample_size))
    return denoiser_steps(patient, make, Denoising(), (1, config.in_channels, *config.sample_size), masks, passes=2)


def denoiser_steps(
    patient: Patient,
    make: Callable[[], Any],
    objective: Objective,
    shape: tuple[int, ...] | None = None,
    masks: tuple[int, ...] | None = None,
    passes: int = 3,
) -> Result:
    """Time a step, eager and compiled, of as much work as so many forward passes."""
    model = make().to(patient.device).train()
    shape = shape or (1, model.config.in_channels, *model.config.sample_size)
    weights = trained_weights(model)
    channels_last(model, device=patient.device)
    optimizer = torch.optim.AdamW(weights, 1e-4, fused=patient.is_cuda or None)
    average = EMAModel(weights, 0.9999, foreach=patient.is_cuda)
    clean = torch.randn(shape, device=patient.device)
    batch = {"noise": torch.randn_like(clean), "timestep": torch.tensor([100], device=patient.device)}
    if masks is not None:
        batch["condition"] = torch.ones(masks, dtype=torch.uint8, device=patient.device)

    def step() -> None:
        with patient.autocast():
            loss = objective.losses(model, clean, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(weights)

    def forward(model: Any) -> None:
        more = {} if masks is None else {"condition": torch.empty(masks)}
        model(torch.empty(shape), torch.empty(1, dtype=torch.long), **more)

    flops = operations(make, forward)
    return eager_and_compiled(patient, step, passes * flops, model.compile_repeated_blocks)


def eager_and_compiled(patient: Patient, step: Step, flops: float, compile_models: Callable[..., None]) -> Result:
    """Time a step of so many operations before and after its models are compiled."""
    status, result, numbers = timed(patient, {"eager": step}, flops)
    compile_models(fullgraph=True, backend="inductor" if patient.is_cuda else "eager")
    try:
        compiled = timed(patient, {"compiled": step}, flops)
    except Exception as error:  # a missing compiler, an unsupported GPU
        return "note", f"{result}; cannot be compiled: {sentence_of(error)}", numbers
    return status, f"{result}; {compiled[1]}", {**numbers, **compiled[2]}


def check_sampling(patient: Patient) -> Result:
    """Sample and decode one cine at the measured size with random weights."""
    pipe = pipeline(patient)
    steps = 4

    def sample(output_type: str) -> Step:
        return lambda: pipe(num_inference_steps=steps, seed=0, output_type=output_type)

    denoising, whole = (patient.measure(sample(kind)) for kind in ("latent", "pt"))
    a_step = denoising["milliseconds"] / steps
    decoding = max(0.0, whole["milliseconds"] - denoising["milliseconds"])
    numbers = {"milliseconds_per_step": a_step, "decoding_milliseconds": decoding, "peak_gib": whole["peak_gib"]}
    words = f"{_time(a_step)} a step, {_time(decoding)} to decode{_gib(whole['peak_gib'])}"
    return "ok", f"{words}; 25 steps take {(25 * a_step + decoding) / 1000:.3g} s", numbers


def check_precision(patient: Patient) -> Result:
    """Compare the transformer's output in bf16 with that in float32."""
    pipe = pipeline(patient)
    size = (1, pipe.transformer.config.in_channels, *pipe.transformer.config.sample_size)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(patient.device)
    for parameter in pipe.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with torch.no_grad(), TemporaryDirectory() as folder:
        exact = pipe.transformer(latents, 100).sample
        pipe.transformer.save_pretrained(folder)
        half = type(pipe.transformer).from_pretrained(folder, torch_dtype=torch.bfloat16).to(patient.device)
        rounded = half(latents.bfloat16(), 100).sample.float()
    error = float((rounded - exact).abs().max() / exact.abs().max())
    return "ok" if error <= CLOSE else "failed", f"bf16 differs from float32 by {error:.2%}", {"relative_error": error}


def check_resuming(patient: Patient) -> Result:
    """Train both stages in miniature; interrupt each, resume it, and compare the weights with a whole run's."""
    with TemporaryDirectory() as folder:
        here = Path(folder)
        ids = [write_cohort(here / split, num=2, seed=seed, size=(32, 32, 2, 4)) for seed, split in enumerate("ab")]
        differing = _differing(here, partial(_train, here, ids, patient, train_vqgan, options=VQGAN_OPTIONS), "vqgan")
        vae = VQModel4D.from_pretrained(here / "vqgan" / "best" / "vae")
        volumes = [
            prepare_case(case, Preprocessing.from_dict(vae.config.preprocessing)) for case in read_manifest(ids[0])
        ]
        write_scale(here / "vqgan" / "best" / "vae", measure_scale(encode_volume(vae, v.tensor()) for v in volumes))
        more = ("--vae", str(here / "vqgan"), *DIT_OPTIONS)
        differing += _differing(here, partial(_train, here, ids, patient, train_dit, options=more), "dit")
    if differing:
        return "failed", f"a resumed run differs from a whole one in {', '.join(differing)}", {"equal": False}
    return "ok", "a resumed run equals a whole one to the bit (--deterministic)", {"equal": True}


VQGAN_OPTIONS = (
    *("--model.channels", "[8, 16]", "--model.num_res_channels", "[8, 16]", "--model.num_embeddings", "16"),
    *("--losses.perceptual_network", "none", "--data.preprocessing.size", "[32, 32, 2]"),
    *("--data.preprocessing.frames", "4"),
)
DIT_OPTIONS = (
    *("--model.patch_size", "[1, 2, 2, 1]", "--model.num_layers", "1", "--model.num_attention_heads", "2"),
    *("--model.attention_head_dim", "16", "--preview_samples", "0", "--dataloader_num_workers", "0"),
)


def _differing(here: Path, train: Callable[..., None], name: str) -> list[str]:
    """Return the weights that differ between a run of four steps and one that stopped after two of them."""
    digests = []
    for run, stops in ((name, [4]), (f"{name}-resumed", [2, 4])):
        for stop in stops:
            train(name=run, steps=stop)
        digests.append(Checkpoint(here / run / "checkpoint-4").state()["files"])
    return [file for file, digest in digests[0].items() if digests[1].get(file) != digest]


def _train(
    here: Path, ids: list[Path], patient: Patient, script: Any, name: str, steps: int, options: tuple[str, ...]
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    common = ("--training_ids", str(ids[0]), "--validation_ids", str(ids[1]), "--output_dir", str(here))
    often = ("--checkpointing_steps", "2", "--validation_steps", "4", "--report_to", "none", "--deterministic")
    cpu = () if patient.is_cuda else ("--cpu",)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        script.main([*common, "--run_name", name, "--max_train_steps", str(steps), *often, *cpu, *options])
    AcceleratorState._reset_state(reset_partial_state=True)


def check_processes(patient: Patient) -> Result:
    """Sum a tensor over all local GPUs (NCCL), or over two CPU processes (gloo)."""
    count = torch.cuda.device_count() if patient.is_cuda else 2
    if count == 1:
        return "note", "there is one GPU, so nothing is exchanged between GPUs", {"processes": 1}
    backend = "nccl" if patient.is_cuda else "gloo"
    with TemporaryDirectory() as folder:
        mp.spawn(_sum_over_processes, (count, f"file://{folder}/meeting", backend), count)
    return "ok", f"{count} processes exchanged tensors by {backend}", {"processes": count, "backend": backend}


def _sum_over_processes(rank: int, count: int, meeting: str, backend: str) -> None:
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    values = torch.full((1024,), float(rank), device=device)
    dist.all_reduce(values)
    if not torch.equal(values.cpu(), torch.full((1024,), count * (count - 1) / 2)):
        raise RuntimeError("the sum over processes is wrong")
    dist.destroy_process_group()


def check_energy(patient: Patient) -> Result:
    method = EnergyMeter(patient.device).read().method
    return "note" if patient.is_cuda and "counter could not" in method else "ok", method, {"method": method}


CHECKS: dict[str, Callable[[Patient], Result]] = {
    "versions": check_versions,
    "device": check_device,
    "attention": check_attention,
    "stage 1, VQ-GAN": check_stage_1,
    "stage 2, 4D transformer": check_stage_2,
    "PRDiT": check_prdit,
    "MedLoRD, U-Net": check_unet,
    "mask adapter (TGCA)": check_tgca,
    "ControlNet": check_controlnet,
    "sampling": check_sampling,
    "precision": check_precision,
    "resuming": check_resuming,
    "processes": check_processes,
    "energy": check_energy,
}


# --- Measuring ---


def pipeline(patient: Patient) -> CardioDiTPipeline:
    vae, transformer = VQModel4D(**patient.sizes.vae), DiT4DTransformerModel(**patient.sizes.dit)
    pipe = CardioDiTPipeline(vae.eval(), transformer.eval(), make_scheduler()).to(patient.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def operations(make: Callable[[], Any], run: Callable[[Any], object]) -> int:
    """Count the floating-point operations of a forward pass, on tensors without values."""
    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            run(model)
    return int(counter.get_total_flops())


def timed(patient: Patient, steps: dict[str, Step], flops: float) -> Result:
    """Time steps of so many operations each; the utilisation is their share of the GPU's peak."""
    words, numbers = [], {}
    for name, step in steps.items():
        measured = patient.measure(step)
        tflops = flops / measured["milliseconds"] / 1e9
        used = tflops / patient.peak_tflops if patient.peak_tflops else None
        share = f", {used:.0%} of the peak" if used is not None else ""
        memory = _gib(measured["peak_gib"])
        rate = f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{1000 * tflops:.3g} GFLOP/s"
        words.append(f"{name} {_time(measured['milliseconds'])} a step, {rate}{share}{memory}")
        numbers[name] = {**measured, "tflops": tflops, "utilisation": used}
    return "ok", "; ".join(words), numbers


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _gib(peak: float | None) -> str:
    return "" if peak is None else f", {peak:.1f} GiB"
