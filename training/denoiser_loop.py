"""The training loop of all denoisers: latent transformers, PRDiT and the mask adapter.

A stage's script reads its data, builds its model and its objective, and hands them over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from cardiodit.training.harness.deepspeed import optimizer_state
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.state import Average, Checkpointable, Network, decay_groups, reshard
from cardiodit.training.objectives import Batch, NoisyDataset, Objective, ValidationDataset
from cardiodit.training.settings import AveragedTraining

CleanOf = Callable[[Batch], torch.Tensor]


class Denoiser:
    """A model in training, with its optimizer and its moving averages. Making it resumes the run.

    Args:
        run: the opened run.
        model: called like a transformer.
        modules: parts of the model that are trained, by their names in checkpoints; default: all as "transformer".
        optimized: module by whose names the optimizer's state is saved; default: the model.
        adapter_only: save only the weights that are trained (LoRA).
        as_saved: changes how the parts are written to checkpoints.
    """

    def __init__(
        self,
        run: Run,
        model: torch.nn.Module,
        modules: Mapping[str, torch.nn.Module] | None = None,
        optimized: torch.nn.Module | None = None,
        adapter_only: bool = False,
        as_saved: Callable[[Sequence[Network | Average]], Sequence[Checkpointable]] = list,
    ) -> None:
        training: Any = run.settings
        modules, optimized = modules or {"transformer": model}, optimized or model
        if training.gradient_checkpointing:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        if training.compile:
            model.compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
        groups = decay_groups(optimized, training.weight_decay)
        optimizer = torch.optim.AdamW(
            groups,
            training.learning_rate,
            (training.adam_beta1, training.adam_beta2),
            fused=run.accelerator.device.type == "cuda" or None,
        )
        self.model, self.optimizer = run.accelerator.prepare(model, optimizer)

        self.weights = {name: trained_weights(module) for name, module in modules.items()}
        self.emas = {name: new_ema(weights, training) for name, weights in self.weights.items() if training.use_ema}
        networks = [Network(name, module, adapter_only) for name, module in modules.items()]
        averages = [Average(f"{name}_ema", modules[name], ema, adapter_only) for name, ema in self.emas.items()]
        best = [Average(name, modules[name], ema, adapter_only) for name, ema in self.emas.items()] or networks
        self.best = as_saved(best)
        state = optimizer_state("optimizer", optimized, self.optimizer)
        run.register([*as_saved([*networks, *averages]), state], [(self.optimizer, training.learning_rate)])

    def update(self, run: Run) -> None:
        """Take the optimizer's step, and update the averages."""
        run.update(self.optimizer, self.model)
        for name, ema in self.emas.items():
            ema.step(self.weights[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights in the model."""
        pairs = [(self.weights[name], ema.shadow_params) for name, ema in self.emas.items()]
        for weights, averages in pairs:
            swap(weights, averages)
        try:
            yield
        finally:
            for weights, averages in pairs:
                swap(weights, averages)


def train_denoiser(
    run: Run,
    denoiser: Denoiser,
    objective: Objective,
    noisy: NoisyDataset,
    validation: ValidationDataset,
    clean_of: CleanOf,
    preview: Callable[[], None] | None = None,
) -> None:
    """Train to the run's last step.

    Args:
        noisy, validation: samples with their noise and time.
        clean_of: returns the clean samples of a batch as the model sees them, such as scaled latents.
        preview: samples volumes from the averaged weights.
    """
    training: Any = run.settings
    loader, fixed = run.loader(noisy), run.validation_loader(validation)
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)
    preview_every = run.schedule.every(training.preview_epochs, training.preview_steps) if preview else 0
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        for batch in run.accumulating(denoiser.model, batches):
            loss = objective.losses(denoiser.model, clean_of(batch), batch).mean()
            run.backward(loss)
            total += loss.detach() / len(batches)
        denoiser.update(run)
        run.log({"loss": total}, batches)
        if run.is_due(validate_every):
            with denoiser.averaged():
                value = validate(run, denoiser.model, objective, fixed, clean_of)
            run.validated({"validation_loss": value}, denoiser.best, by="validation_loss")
        if preview and run.is_due(preview_every):
            preview()


@torch.no_grad()
def validate(run: Run, model: torch.nn.Module, objective: Objective, loader: DataLoader, clean_of: CleanOf) -> float:
    """Return the mean loss over fixed noise and times, over all processes."""
    model.eval()
    sums = torch.zeros(2, device=run.accelerator.device)
    for batch in map(run.to_device, loader):
        losses = objective.losses(model, clean_of(batch), batch)
        sums += torch.stack([(losses * batch["weight"]).sum(), batch["weight"].sum()])
    model.train()
    reshard(model)
    total, count = run.accelerator.reduce(sums, reduction="sum").tolist()
    return total / count


def trained_weights(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def new_ema(weights: Sequence[torch.nn.Parameter], training: AveragedTraining) -> EMAModel:
    """Return a moving average. Without a warm-up, a decay of 0.9999 keeps 74% of the first weights for 3000 steps."""
    decay, warmup = training.ema_decay, training.ema_warmup
    at_once = all(weight.is_cuda and not isinstance(weight, DTensor) for weight in weights)
    return EMAModel(
        weights, decay, min_decay=0.0 if warmup else decay, use_ema_warmup=warmup, power=2 / 3, foreach=at_once
    )


@torch.no_grad()
def swap(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    """Exchange values in place, to the bit, with memory for one more tensor; works on sharded tensors too."""
    for one, other in zip(some, others, strict=True):
        held = one.detach().clone()
        one.copy_(other)
        other.copy_(held)
