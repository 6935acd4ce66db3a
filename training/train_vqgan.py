"""Stage 1: train a VQ-GAN that encodes and reconstructs the slices of cine volumes, or 3D volumes.

Input: two manifests of images. Output, in OUTPUT_DIR/RUN_NAME: checkpoints, `best/vae` with the lowest error on the
validation slices, and pictures of reconstructions. Next: `cardiodit reconstruct`, `encode`, `scale-factor`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from cardiodit._util.gpu import channels_last
from cardiodit.evaluation.similarity import psnr
from cardiodit.imaging.pictures import write_gif, write_slices
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.codebook import perplexity
from cardiodit.training.build_autoencoder import (
    check_sizes,
    discriminator_beside,
    model_to_tune,
    new_discriminator,
    new_model,
)
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.state import Network, Optimizer, decay_groups
from cardiodit.training.image_data import (
    Batch,
    SliceDataset,
    ValidationSlices,
    data_config,
    preprocessing_of,
    read_volumes,
    say_oddities,
)
from cardiodit.training.settings import VQGANSettings, build_augmentation
from cardiodit.training.upstream_config import translate_vqgan
from cardiodit.training.vqgan_losses import GeneratorLoss, adversarial_weight, check_perceptual, discriminator_loss

SMALLEST_ERROR = 1e-12  # mean square, so that the PSNR of a perfect reconstruction is finite
SHOWN = 4  # validation images
EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_vqgan --config cardiodit/vqgan_tiny.yaml \\\n"
    "    --training_ids cohort/training.csv --validation_ids cohort/validation.csv --output_dir runs --run_name vqgan"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv, VQGANSettings, "Train a VQ-GAN, which compresses volumes to latents (stage 1).", EXAMPLE, translate_vqgan
    )
    with Run(request, "train_vqgan") as run:
        train(request, run)


def train(request: Request[VQGANSettings], run: Run) -> None:
    settings, training, options = request.settings, request.settings.training, request.options
    device = run.accelerator.device

    # The data, the autoencoder, the discriminator, the losses.
    run.main_first(lambda: check_perceptual(settings.losses))
    tuned = model_to_tune(options.init_from, settings, request.given) if options.init_from else None
    volumes, validation = read_volumes(run, request, preprocessing_of(request, tuned))
    run.open(len(volumes), {"training_data": volumes.identity, "validation_data": validation.identity})
    model = tuned or new_model(settings)
    check_sizes(model, volumes, settings.data.crop)
    say_oddities(run, volumes)
    model.register_to_config(**data_config(volumes), frame_time=volumes.frame_time())
    critic = (discriminator_beside(options.init_from) if options.init_from else None) or new_discriminator(settings)
    losses = GeneratorLoss(settings.losses).to(device)
    model.train()
    critic.train()
    if training.gradient_checkpointing:
        model.enable_gradient_checkpointing()

    if training.compile:
        model.compile_repeated_blocks(fullgraph=True)
        critic.compile(fullgraph=True)

    # What is trained and kept.
    betas = (training.adam_beta1, training.adam_beta2)
    fused = device.type == "cuda" or None
    optimizer = torch.optim.AdamW(
        decay_groups(model, training.weight_decay), training.learning_rate, betas, fused=fused
    )
    critic_optimizer = torch.optim.AdamW(
        decay_groups(critic, training.weight_decay), training.discriminator_learning_rate, betas, fused=fused
    )
    channels_last(model, critic, device=device)
    model, critic, optimizer, critic_optimizer = run.accelerator.prepare(model, critic, optimizer, critic_optimizer)
    bare, bare_critic = run.accelerator.unwrap_model(model), run.accelerator.unwrap_model(critic)
    bare.quantizer.accumulate = True  # the codes move once per step, however many batches and GPUs make it up
    networks = [Network("vae", bare), Network("discriminator", bare_critic)]
    run.register(
        [
            *networks,
            Optimizer("optimizer", bare, optimizer),
            Optimizer("discriminator_optimizer", bare_critic, critic_optimizer),
        ],
        [(optimizer, training.learning_rate), (critic_optimizer, training.discriminator_learning_rate)],
    )

    augmentation, crop = build_augmentation(settings.data.augmentation), settings.data.crop
    loader = run.loader(SliceDataset(volumes, augmentation, training.seed, crop))
    fixed = run.validation_loader(ValidationSlices(validation, training.validation_slices, run.samples_a_pass, crop))
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)

    for step, batches in run.steps(loader):
        weight = adversarial_weight(settings.losses, step / run.schedule.epoch)
        means: dict[str, torch.Tensor] = {}
        fakes = []

        # The autoencoder: close to the image, close to its codes, and real to the discriminator.
        bare_critic.requires_grad_(False)
        for batch in run.accumulating(model, batches):
            fake, commitment = model(batch["sample"], return_dict=False)
            with run.accelerator.autocast():
                logits = bare_critic(fake)[-1] if weight else None
            parts = losses(fake, batch["sample"], commitment, logits, weight)
            run.backward(parts["loss"])
            # One batch at a time on the GPU; the copy is queued before the one back to the GPU.
            fakes.append(fake.detach() if len(batches) == 1 else fake.detach().to("cpu", non_blocking=True))
            add(means, parts, len(batches))
        run.update(optimizer, model)
        bare.quantizer.update()

        # The discriminator: real or reconstructed?
        if weight:
            bare_critic.requires_grad_(True)
            for batch, fake in run.accumulating(critic, list(zip(batches, fakes, strict=True))):
                loss = discriminator_loss(critic(batch["sample"])[-1], critic(fake)[-1])
                run.backward(loss)
                add(means, {"discriminator": loss}, len(batches))
            run.update(critic_optimizer, critic, "discriminator_gradient_norm")
        use = perplexity(bare.quantizer.ema_counts)
        run.log({**means, "perplexity": use, "adversarial_weight": weight}, batches)

        if run.is_due(validate_every):
            values = validate(run, bare, fixed)
            show_reconstructions(run, bare, fixed)
            run.validated(values, networks, by="validation_l1")
    if run.was_interrupted:
        return

    run.finish()
    run.say(
        f"The VQ model is {run.folder / 'best' / 'vae'}. Check how it reconstructs your data before stage 2:\n"
        f"  cardiodit reconstruct --ids {options.validation_ids} --vae {run.folder} --output_dir reconstructions"
    )


def add(sums: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], batches: int) -> None:
    """Add one batch to the means over a step's batches."""
    for name, value in parts.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / batches


@torch.no_grad()
def validate(run: Run, model: VQModel, loader: DataLoader) -> dict[str, float]:
    """Return the reconstruction error and the codebook use, over all processes."""
    model.eval()
    codes = torch.zeros(model.config.num_embeddings, device=run.accelerator.device)
    sums = torch.zeros(3, device=run.accelerator.device)
    for batch in map(run.to_device, loader):
        reconstruction, indices = reconstruct(run, model, batch)
        error = (reconstruction - batch["sample"]).flatten(1)
        weight = batch["weight"]
        of_each = [error.abs().mean(dim=1), error.square().mean(dim=1), torch.ones_like(weight)]
        sums += torch.stack([(weight * values).sum() for values in of_each])
        codes += torch.bincount(indices[weight > 0].flatten(), minlength=len(codes))
    model.train()
    l1, l2, count = run.accelerator.reduce(sums, reduction="sum").tolist()
    counts = run.accelerator.reduce(codes, reduction="sum")
    return {
        "validation_l1": l1 / count,
        "validation_psnr": psnr(max(l2 / count, SMALLEST_ERROR)),
        "validation_perplexity": float(perplexity(counts)),
        "validation_codes_used": float((counts > 0).float().mean()),
    }


def reconstruct(run: Run, model: VQModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return reconstructions in [-1, 1] and their codes."""
    with run.accelerator.autocast():
        quantized = model.quantize(model.encode(batch["sample"]).latents)
        image = model.decode(quantized.latents, force_not_quantize=True).sample
    return image.float().clamp(-1, 1), quantized.indices


@torch.no_grad()
def show_reconstructions(run: Run, model: VQModel, loader: DataLoader) -> None:
    """Draw images above their reconstructions: a GIF of slices over time, or a PNG of a volume's slices."""
    if not run.is_main:
        return
    model.eval()
    samples = loader.dataset
    images = torch.stack([samples[i]["sample"] for i in range(min(SHOWN, len(samples)))])  # type: ignore[arg-type]
    with run.accelerator.autocast():
        drawn = model(images.to(run.accelerator.device)).sample.float().clamp(-1, 1).cpu()
    model.train()
    # (B, 1, H, W, N) → (H, 2W, B, N): the second axis runs upwards in pictures, so the images come last
    both = torch.cat([drawn, images], dim=3)[:, 0].permute(1, 2, 0, 3).numpy()
    folder = run.folder / "reconstructions"
    folder.mkdir(exist_ok=True)
    is_cine = len(model.accepted_inputs) > 1
    path = folder / f"step-{run.step + 1}.{'gif' if is_cine else 'png'}"
    if is_cine:
        write_gif(path, both, rows=2)
    else:
        write_slices(path, np.ascontiguousarray(both[:, :, 0]))
    run.metrics.picture("reconstruction", path, run.step + 1)


if __name__ == "__main__":
    run_script(main)
