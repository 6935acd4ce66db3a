"""Stage 1: a VQ-GAN learns to code the slices of a cohort's cine volumes (or its 3D volumes) and to draw them again.

In: two manifests of images. Out, in OUTPUT_DIR/RUN_NAME: checkpoints to go on from, `best/vae` with the lowest error on
the validation slices, and pictures of reconstructions. Then: `cardiodit reconstruct`, `encode`, `scale-factor`.
"""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Subset

from cardiodit.evaluation.similarity import psnr
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.codebook import perplexity
from cardiodit.training.build_autoencoder import (
    check_sizes,
    discriminator_beside,
    model_to_tune,
    new_discriminator,
    new_model,
)
from cardiodit.training.codebook_use import CodebookUse
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.state import Network, Optimizer, decaying
from cardiodit.training.reconstructions import show_reconstructions
from cardiodit.training.settings import VQGANSettings
from cardiodit.training.slices import Batch, FixedSlices, SliceVisits
from cardiodit.training.upstream_config import translate_vqgan
from cardiodit.training.volumes import facts_of, preprocessing_of, read_volumes
from cardiodit.training.vqgan_losses import GeneratorLoss, adversarial_weight, check_perceptual, discriminator_loss

SMALLEST_ERROR = 1e-12  # of a mean square, so that a perfect reconstruction is a number too
EXAMPLE = (
    "accelerate launch training/train_vqgan.py --config configs/cardiodit/vqgan_tiny.yaml \\\n"
    "    --training_ids cohort/training.csv --validation_ids cohort/validation.csv --output_dir runs --run_name vqgan"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(argv, VQGANSettings, "Train the VQ-GAN (stage 1).", EXAMPLE, translate_vqgan)
    with Run(request, "train_vqgan") as run:
        train(request, run)


def train(request: Request[VQGANSettings], run: Run) -> None:
    settings, training, options = request.settings, request.settings.training, request.options
    device = run.accelerator.device

    # The data, the autoencoder, the discriminator, the losses.
    run.main_first(lambda: check_perceptual(settings.losses))
    tuned = model_to_tune(options.init_from, settings, request.plain) if options.init_from else None
    volumes, validation = read_volumes(run, request, preprocessing_of(request, tuned))
    run.open(len(volumes), {"training_data": volumes.identity, "validation_data": validation.identity})
    model = tuned or new_model(settings)
    check_sizes(model, volumes, settings.data.crop)
    model.register_to_config(**facts_of(volumes), frame_time=volumes.frame_time())
    critic = (discriminator_beside(options.init_from) if options.init_from else None) or new_discriminator(settings)
    losses = GeneratorLoss(settings.losses).to(device)
    model.train()
    critic.train()
    if training.gradient_checkpointing:
        model.enable_gradient_checkpointing()

    # What is trained and kept.
    betas = (training.adam_beta1, training.adam_beta2)
    optimizer = torch.optim.AdamW(decaying(model, training.weight_decay), training.learning_rate, betas)
    critic_optimizer = torch.optim.AdamW(
        decaying(critic, training.weight_decay), training.discriminator_learning_rate, betas
    )
    model, critic, optimizer, critic_optimizer = run.accelerator.prepare(model, critic, optimizer, critic_optimizer)
    bare, bare_critic = run.accelerator.unwrap_model(model), run.accelerator.unwrap_model(critic)
    networks = [Network("vae", bare), Network("discriminator", bare_critic)]
    run.keep(
        [
            *networks,
            Optimizer("optimizer", bare, optimizer),
            Optimizer("discriminator_optimizer", bare_critic, critic_optimizer),
        ],
        [(optimizer, training.learning_rate), (critic_optimizer, training.discriminator_learning_rate)],
    )

    loader = run.loader(SliceVisits(volumes, settings.data.augmentation.build(), training.seed, settings.data.crop))
    fixed = validation_loader(run, validation, training.validation_slices, settings.data.crop)
    validate_every = run.calendar.every(training.validation_epochs, training.validation_steps)

    for step, batches in run.steps(loader):
        weight = adversarial_weight(settings.losses, step / run.calendar.epoch)
        found: dict[str, torch.Tensor] = {}
        fakes = []
        subjects = [subject for batch in batches for subject in batch["subject"]]

        # The autoencoder: near to the image, near to its codes, and good enough for the critic.
        bare_critic.requires_grad_(False)
        for number, batch in enumerate(batches, start=1):
            with run.accumulating(model, is_last=number == len(batches)):
                fake, commitment = model(batch["image"], return_dict=False)
                with run.accelerator.autocast():
                    verdict = bare_critic(fake)[-1] if weight else None
                parts = losses(fake, batch["image"], commitment, verdict, weight)
                run.backward(parts["loss"])
            fakes.append(fake.detach())
            add(found, parts, len(batches))
        run.update(optimizer, model)

        # The critic: real or reconstructed?
        if weight:
            bare_critic.requires_grad_(True)
            for number, (batch, fake) in enumerate(zip(batches, fakes, strict=True), start=1):
                with run.accumulating(critic, is_last=number == len(batches)):
                    loss = discriminator_loss(critic(batch["image"])[-1], critic(fake)[-1])
                    run.backward(loss)
                add(found, {"discriminator": loss}, len(batches))
            run.update(critic_optimizer, critic, "discriminator_gradient_norm")
        use = perplexity(bare.quantizer.ema_counts)
        run.log({**found, "perplexity": use, "adversarial_weight": weight}, subjects)

        if run.is_due(validate_every):
            values = validate(run, bare, fixed)
            show_reconstructions(run, bare, fixed)
            run.validated(values, networks, by="validation_l1")
    if run.was_interrupted:
        return

    run.finish()
    run.say(
        f"The VQ model is {run.folder / 'best' / 'vae'}. Look what it does to your data before stage 2:\n"
        f"  cardiodit reconstruct --ids {options.validation_ids} --vae {run.folder} --output_dir reconstructions"
    )


def add(sums: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], batches: int) -> None:
    """The mean over a step's batches, part by part."""
    for name, value in parts.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / batches


def validation_loader(run: Run, volumes: PreparedVolumes, slices: int, crop: tuple[int, ...] | None) -> DataLoader:
    """This process's share: every process judges equally many."""
    batch_size, processes = run.settings.train_batch_size, run.accelerator.num_processes
    fixed = FixedSlices(volumes, slices, batch_size * processes, crop)
    mine = Subset(fixed, range(run.accelerator.process_index, len(fixed), processes))
    return DataLoader(mine, batch_size)


@torch.no_grad()
def validate(run: Run, model: VQModel, loader: DataLoader) -> dict[str, float]:
    """Error of the reconstructions, and how many codes they need, over all processes."""
    model.eval()
    use = CodebookUse(model.config.num_embeddings, run.accelerator.device)
    sums = torch.zeros(3, device=run.accelerator.device)
    for batch in map(run.to_device, loader):
        reconstruction, indices = reconstruct(run, model, batch)
        error = (reconstruction - batch["image"]).flatten(1)
        weight = batch["weight"]
        of_each = [error.abs().mean(dim=1), error.square().mean(dim=1), torch.ones_like(weight)]
        sums += torch.stack([(weight * values).sum() for values in of_each])
        use.add(indices[weight > 0])
    model.train()
    l1, l2, count = run.accelerator.reduce(sums, reduction="sum").tolist()
    counts = run.accelerator.reduce(use.counts, reduction="sum")
    return {
        "validation_l1": l1 / count,
        "validation_psnr": psnr(max(l2 / count, SMALLEST_ERROR)),
        "validation_perplexity": float(perplexity(counts)),
        "validation_codes_used": float((counts > 0).float().mean()),
    }


def reconstruct(run: Run, model: VQModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] and the codes they were made of."""
    with run.accelerator.autocast():
        quantized = model.quantize(model.encode(batch["image"]).latents)
        image = model.decode(quantized.latents, force_not_quantize=True).sample
    return image.float().clamp(-1, 1), quantized.indices


if __name__ == "__main__":
    run_script(main)
