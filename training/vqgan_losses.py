"""Losses of the published VQ-GAN: L1, commitment, perceptual, adversarial and spectral loss."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardiodit._util.gpu import without_autocast
from cardiodit._util.typed_yaml import option
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.training.perceptual import BACKBONES, NETWORKS, PerceptualDistance, check_perceptual_network


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of the losses of stage 1; the defaults are the published ones."""

    perceptual_weight: float = option(0.002, "weight of the perceptual loss")
    perceptual_network: str = option("squeeze", f"network of the perceptual loss: {', '.join(NETWORKS)}")
    perceptual_slices: float = option(
        0.5, "fraction of the planes along each axis on which a 2D network computes the perceptual loss"
    )
    perceptual_weights: str | None = option(
        None, "file with this network's weights, for machines without internet access"
    )
    adversarial_weight: float = option(0.005, "weight of the adversarial loss once it has risen fully")
    adversarial_ramp_epochs: float = option(
        50.0, "number of epochs in which the adversarial weight rises linearly from 0"
    )
    adversarial_start_epoch: float = option(0.0, "epoch at which this rise starts")
    spectral_weight: float = option(
        0.0, "weight of the spectral loss, which compares the Fourier amplitudes of image and reconstruction"
    )

    def __post_init__(self) -> None:
        problems = Problems("The losses cannot be used")
        for name in ("perceptual", "adversarial", "spectral"):
            _check_number(problems, f"{name}_weight", getattr(self, f"{name}_weight"))
        for name in ("adversarial_ramp_epochs", "adversarial_start_epoch"):
            _check_number(problems, name, getattr(self, name))
        if self.perceptual_network not in NETWORKS:
            problems.add(f"perceptual_network={self.perceptual_network!r} is not one of {', '.join(NETWORKS)}")
        if not 0 < self.perceptual_slices <= 1:
            problems.add(f"perceptual_slices={self.perceptual_slices} must be above 0 and at most 1")
        if self.perceptual_weights is not None and self.perceptual_network not in BACKBONES:
            problems.add(f"perceptual_weights are for {', '.join(BACKBONES)}, not for {self.perceptual_network}")
        problems.raise_if_any()

    @property
    def is_perceptual(self) -> bool:
        return self.perceptual_weight > 0 and self.perceptual_network != "none"


def check_perceptual(settings: LossSettings) -> None:
    """Check before training that the perceptual network is available; print a line if it will be downloaded.

    With several processes, one of them should call this first.
    """
    if settings.is_perceptual:
        check_perceptual_network(settings.perceptual_network, settings.perceptual_weights)


def adversarial_weight(settings: LossSettings, epoch: float) -> float:
    """Return the weight at an epoch, which rises linearly from 0; while it is 0, the discriminator is not trained."""
    since = epoch - settings.adversarial_start_epoch
    if since < 0:
        return 0.0
    ramp = settings.adversarial_ramp_epochs
    return settings.adversarial_weight * (min(1.0, since / ramp) if ramp else 1.0)


class GeneratorLoss(nn.Module):
    """The autoencoder's loss, computed in float32 outside autocast."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        perceptual = (settings.perceptual_network, settings.perceptual_slices, settings.perceptual_weights)
        self.perceptual = PerceptualDistance(*perceptual) if settings.is_perceptual else None
        self.spectral = _spectral_loss() if settings.spectral_weight > 0 else None

    def forward(
        self,
        reconstruction: Tensor,
        image: Tensor,
        commitment: Tensor,
        fake_logits: Tensor | None,
        adversarial_weight: float,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the unweighted parts and "loss", their weighted sum; parts with weight 0 are not computed.

        Args:
            reconstruction, image: `(B, C, H, W, T)` or `(B, C, H, W, D)`, in [-1, 1].
            commitment: commitment loss of the codebook, already multiplied by its cost.
            fake_logits: output of the discriminator for the reconstruction; not needed if its weight is 0.
            adversarial_weight: current weight, see the function of this name.
            generator: CPU generator that draws the planes of the perceptual loss; default: torch's global generator,
                which the training harness seeds at every step.
        """
        with without_autocast(image.device):
            fake, real = reconstruction.float(), image.float()
            parts = {"l1": F.l1_loss(fake, real), "commitment": commitment.float()}
            weights = {"l1": 1.0, "commitment": 1.0}
            if self.perceptual is not None:
                parts["perceptual"] = self.perceptual(fake, real, generator)
                weights["perceptual"] = self.settings.perceptual_weight
            if adversarial_weight > 0:
                parts["adversarial"] = _adversarial(_given(fake_logits), is_real=True)
                weights["adversarial"] = adversarial_weight
            if self.spectral is not None:
                parts["spectral"] = self.spectral(fake, real)
                weights["spectral"] = self.settings.spectral_weight
            loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return {**parts, "loss": loss}


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Least squares (Mao et al., arXiv:1611.04076, equation 2), the mean of real and fake."""
    with without_autocast(real_logits.device):
        real = _adversarial(real_logits, is_real=True)
        fake = _adversarial(fake_logits, is_real=False)
        return (real + fake) / 2


def _adversarial(logits: Tensor, is_real: bool) -> Tensor:
    """Return the least-squares loss of MONAI's PatchAdversarialLoss by default: with a LeakyReLU(0.05) on the logits.

    The published training used it, its weights are tuned to it, and models continue from its checkpoints.
    `no_activation_leastsq=True` would be the loss of the paper, with larger gradients for logits below 0. MONAI's own
    class copies its targets from the CPU in every call, which waits for the GPU.
    """
    activated = F.leaky_relu(logits.float(), 0.05)
    return F.mse_loss(activated, torch.full_like(activated, float(is_real)))


def _given(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise CardioDiTError("The adversarial loss has a weight above 0, so fake_logits must be given.")
    return logits


def _spectral_loss() -> nn.Module:
    from monai.losses import JukeboxLoss

    class SpectralLoss(JukeboxLoss):
        """Section 3.3 of Dhariwal et al. (arXiv:2005.00341), with a gradient that is finite everywhere.

        The slope of MONAI's square root is infinite at an amplitude of 0, which a constant image has at all frequencies
        but one: every weight would become NaN. The slope of `abs` is 0 there.
        """

        def _get_fft_amplitude(self, images: Tensor) -> Tensor:
            return torch.fft.fftn(images, s=self.fft_signal_size, dim=self.fft_dim, norm=self.fft_norm).abs()

    return SpectralLoss(spatial_dims=3)


def _check_number(problems: Problems, name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        problems.add(f"{name}={value} must be a number of at least 0")
