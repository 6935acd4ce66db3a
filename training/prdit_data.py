"""PRDiT's samples and loss: noise is put on volumes, and a model is asked for both."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from cardiodit._util.randomness import generator_for
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.schedulers import NoiseAndImageScheduler
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.objectives import Batch
from cardiodit.training.slices import SliceVisits


class NoisyVolumes(Dataset):
    """Training samples by visit: a volume, changed a little and cut where that was asked, its noise and timestep."""

    def __init__(
        self,
        volumes: PreparedVolumes,
        augmentation: Augmentation,
        timesteps: int,
        seed: int,
        crop: Sequence[int] | None = None,
    ) -> None:
        self.visits = SliceVisits(volumes, augmentation, seed, crop)
        self.timesteps = timesteps
        self.seed = seed_for(seed, "noise")

    def __getitem__(self, visit: int) -> Batch:
        found = self.visits[visit]
        generator = generator_for(self.seed, visit)
        timestep = torch.randint(self.timesteps, (), generator=generator)
        noise = torch.randn(found["image"].shape, generator=generator)
        return {"sample": found["image"], "noise": noise, "timestep": timestep, "subject": found["subject"]}


class NoiseAndImage:
    """The published loss: MSE of the noise and MSE of the image."""

    def __init__(self, scheduler: NoiseAndImageScheduler) -> None:
        self.scheduler = scheduler

    def losses(self, model: torch.nn.Module, latents: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of each sample `(B,)`; latents are volumes `(B, 1, H, W, D)`."""
        noisy = self.scheduler.add_noise(latents, batch["noise"], batch["timestep"])
        predicted = model(noisy, batch["timestep"], return_dict=False)[0].float()
        error = (predicted - self.scheduler.targets(latents, batch["noise"])).square()
        return 2 * error.flatten(1).mean(dim=1)  # the sum of two means
