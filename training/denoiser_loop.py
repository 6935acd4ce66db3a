"""The training loop of all denoisers: latent transformers, PRDiT and the mask adapter.

A stage's script reads its data, builds its model and its objective, and hands them over.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from cardiodit._util.gpu import PRECISIONS, channels_last
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.deepspeed import optimizer_state
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.harness.state import Average, Checkpointable, Network, decay_groups, reshard
from cardiodit.training.noisy_samples import LabelledSamples, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import Batch, Objective
from cardiodit.training.settings import MEMORIZING, AveragedTraining

CleanOf = Callable[[Batch], torch.Tensor]
FEWEST = 8  # volumes of each set, for a gap that may end a run
SELF_CONDITIONED = "validation_loss_self_conditioned"  # the loss of a model that is given its own estimate
NORMAL_95 = 1.645  # quantile of the normal distribution


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
        for module in modules.values():
            if "training_precision" in module.config:  # type: ignore[operator]
                module.register_to_config(training_precision=PRECISIONS[run.precision])  # type: ignore[operator]
        channels_last(model, device=run.accelerator.device)
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
        configs: list[Any] = [module.config for module in modules.values()]
        self.is_self_conditioned = any(config.get("self_conditioning") for config in configs)
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
    members: LabelledSamples | None = None,
) -> None:
    """Train to the run's last step, or until the model begins to memorize (`stop_when`).

    Args:
        noisy, validation: samples with their noise and time.
        clean_of: returns the clean samples of a batch as the model sees them, such as scaled latents.
        preview: samples volumes from the averaged weights.
        members: training samples as they are, for the generalisation gap.
    """
    training: Any = run.settings
    estimates = seed_for(training.seed, "self_conditioning")
    one_by_one = getattr(training, "batch_strategy", "fixed") == "bucket"  # validation samples differ in size
    loader, fixed = run.loader(noisy), run.validation_loader(validation, one_by_one)
    fixed_members = None if members is None else run.validation_loader(validation.with_samples(members), one_by_one)
    may_stop = training.stop_when == MEMORIZING
    if may_stop and (members is None or min(len(members), len(validation.samples)) < FEWEST):
        raise CardioDiTError(f"stop_when: memorizing needs at least {FEWEST} training and {FEWEST} validation volumes.")
    chooses = "validation_loss"
    if training.validation_metric == "self_conditioned":
        if not denoiser.is_self_conditioned:
            raise CardioDiTError("validation_metric: self_conditioned needs a model with self_conditioning.")
        chooses = SELF_CONDITIONED
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)
    preview_every = run.schedule.every(training.preview_epochs, training.preview_steps) if preview else 0
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        # One draw per step, so that every process and every batch of the step does the same.
        drawn = torch.rand((), generator=generator_for(estimates, run.step))
        with_estimate = denoiser.is_self_conditioned and bool(drawn < 0.5)
        for batch in run.accumulating(denoiser.model, batches):
            loss = objective.losses(denoiser.model, clean_of(batch), batch, with_estimate).mean()
            run.backward(loss)
            total += loss.detach() / len(batches)
        denoiser.update(run)
        run.log({"loss": total}, batches)
        if run.is_due(validate_every):
            with denoiser.averaged():
                value, losses = validate(run, denoiser.model, objective, fixed, clean_of)
                values = {"validation_loss": value}
                if denoiser.is_self_conditioned:
                    values[SELF_CONDITIONED] = validate(run, denoiser.model, objective, fixed, clean_of, True)[0]
                if members is not None and fixed_members is not None:
                    _, own = validate(run, denoiser.model, objective, fixed_members, clean_of)
                    values |= generalisation_gap(own, losses, len(members))
            if may_stop and "generalisation_gap" not in values:
                raise CardioDiTError(
                    "stop_when: memorizing needs a positive loss, which learned variances do not have."
                )
            is_memorizing = may_stop and values["generalisation_gap_low"] > training.memorizing_gap
            run.validated(values, denoiser.best, by=chooses, may_be_best=not is_memorizing)
            if is_memorizing:
                run.end_early()
                run.say(
                    f"Step {run.step + 1}: the validation loss exceeds that of training volumes by "
                    f"{values['generalisation_gap']:.0%} (at least {values['generalisation_gap_low']:.0%}), so the "
                    "model begins to memorize. Training ends, and the best weights so far are kept."
                )
        if preview and run.is_due(preview_every):
            preview()


@torch.no_grad()
def validate(
    run: Run,
    model: torch.nn.Module,
    objective: Objective,
    loader: DataLoader,
    clean_of: CleanOf,
    with_estimate: bool = False,
) -> tuple[float, torch.Tensor]:
    """Return the mean loss over fixed noise and times, over all processes, and the mean loss of each volume."""
    model.eval()
    data: ValidationDataset = loader.dataset.dataset  # type: ignore[attr-defined]
    each = torch.zeros(data.real, device=run.accelerator.device)
    sums = torch.zeros(2, device=run.accelerator.device)
    for batch in map(run.to_device, loader):
        losses = objective.losses(model, clean_of(batch), batch, with_estimate)
        sums += torch.stack([(losses * batch["weight"]).sum(), batch["weight"].sum()])
        is_real = batch["weight"] > 0
        each[batch["place"][is_real]] = losses[is_real].float()
    model.train()
    reshard(model)
    total, count = run.accelerator.reduce(sums, reduction="sum").tolist()
    losses_of_all = run.accelerator.reduce(each, reduction="sum").cpu()
    return total / count, losses_of_all.view(-1, data.levels).mean(dim=1)


def generalisation_gap(members: torch.Tensor, others: torch.Tensor, distinct: int) -> dict[str, float]:
    """Compare the losses of training volumes with those of validation volumes at the same times and noises.

    The gap is the share by which the mean validation loss exceeds the other; its lower bound is the lower end of a 90%
    interval (Welch), so that few volumes show a gap only if it is large. Negative losses, as of learned variances, have
    none.

    Args:
        members, others: losses of training and of validation volumes.
        distinct: number of different training volumes, if fewer than there are losses.
    """
    usual, count = members.mean().item(), min(distinct, len(members))
    known = {"loss_of_training_volumes": usual}
    if usual <= 0 or min(count, len(others)) < 2:  # a likelihood has no shares, and one volume no spread
        return known
    gap = others.mean().item() - usual
    error = math.sqrt(members.var().item() / count + others.var().item() / len(others))
    return {**known, "generalisation_gap": gap / usual, "generalisation_gap_low": (gap - NORMAL_95 * error) / usual}


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
