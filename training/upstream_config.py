"""Translate the authors' YAML files to our configs, so that `--config` accepts either.

Keys that only their code needs (paths, trackers, workers) are ignored; keys that would change training and that we do
not support are refused.
"""

from pathlib import Path
from typing import Any

from cardiodit._util.terminal import say
from cardiodit.convert.dit_config import DiTConfig, read_dit_config
from cardiodit.convert.medlord_config import (
    ControlNetConfig,
    UNetConfig,
    UNetTraining,
    read_controlnet_config,
    read_unet_config,
)
from cardiodit.convert.upstream_config import Run, VQGANConfig, read_vqgan_config
from cardiodit.errors import CardioDiTError

Plain = dict[str, Any]
PRECISIONS = {"fp16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "fp32": "no", "float32": "no"}
NATIVE, NATIVE_MULTIPLE = "native", 8  # each cine's own frames, repeated to a multiple of this number
MICROBATCHES = "grad_accum_microbatch"


def translate_vqgan(path: Path, raw: Plain) -> Plain | None:
    """Return our config for their stage 1 file; None for a file in our layout."""
    return vqgan_settings(read_vqgan_config(path)) if _is_theirs(raw) else None


def translate_dit(path: Path, raw: Plain) -> Plain | None:
    """Return our config for their stage 2 file; None for a file in our layout."""
    return dit_settings(read_dit_config(path)) if _is_theirs(raw) else None


def translate_unet(path: Path, raw: Plain) -> Plain | None:
    """Return our config for MedLoRD's stage 2 file; None for a file in our layout."""
    return unet_settings(read_unet_config(path)) if _is_theirs(raw) else None


def translate_controlnet(path: Path, raw: Plain) -> Plain | None:
    """Return our config for MedLoRD's stage 3 file; None for a file in our layout."""
    controlnet = raw.get("controlnet")
    is_theirs = isinstance(controlnet, dict) and "params" in controlnet
    return controlnet_settings(read_controlnet_config(path)) if is_theirs else None


def _is_theirs(raw: Plain) -> bool:
    model = raw.get("model")
    return "stage1" in raw or "dit" in raw or (isinstance(model, dict) and "params" in model)


def vqgan_settings(config: VQGANConfig) -> Plain:
    params, training = config.params, config.training
    model = {
        "in_channels": params.in_channels,
        "out_channels": params.out_channels,
        "channels": params.num_channels,
        "num_res_channels": params.res_channels,
        "num_res_layers": params.num_res_layers,
        "downsample_parameters": params.downsampling,
        "upsample_parameters": params.upsampling,
        "num_embeddings": params.num_embeddings,
        "embedding_dim": params.embedding_dim,
        "commitment_cost": params.commitment_cost,
        "decay": params.decay,
        "epsilon": params.epsilon,
        "dropout": params.dropout,
        "quantize_latents": config.quantized,
        "dead_code_threshold": params.dead_code_threshold,
    }
    losses = {
        "perceptual_weight": training.perceptual_weight,
        "perceptual_network": config.perceptual.network_type,
        "perceptual_slices": config.perceptual.fake_3d_ratio,
        "adversarial_weight": training.adv_weight,
        "adversarial_ramp_epochs": training.adv_warmup,
        "spectral_weight": training.jukebox_weight,
    }
    run = {
        **_shared(training),
        "discriminator_learning_rate": training.disc_lr,
        "lr_gamma": training.lr_gamma,
        "lr_step_gamma": training.lr_update_gamma,
    }
    plain: Plain = {
        "model": model,
        "losses": losses,
        "training": run,
        "data": {"preprocessing": _preprocessing(training)},
    }
    if config.discriminator is not None:
        names = ("num_channels", "num_layers_d", "in_channels", "out_channels", "kernel_size", "norm", "bias")
        more = ("padding", "activation", "dropout", "last_conv_kernel_size")
        plain["discriminator"] = {name: getattr(config.discriminator, name) for name in (*names, *more)}
    return _without_nulls(_of_medlord(plain, config) if config.is_medlord else plain)


def _of_medlord(plain: Plain, config: VQGANConfig) -> Plain:
    """Return the settings of a 3D autoencoder, which is trained on crops at constant rates."""
    training = config.training
    if training.use_persistent is None:
        say(
            f"{config.file} lacks training.use_persistent, without which the authors' code stops; it is not needed "
            "here.",
            aside=True,
        )
    constant = {"lr_scheduler": "constant", "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999}
    return {
        **plain,
        "dimensions": 3,
        "data": {
            "preprocessing": {"preset": "voldit-tgca"},
            "augmentation": {"flip_axes": [1], "rotation_axes": [0, 1, 2]},
            "crop": training.roi_size,
        },
        "training": {**constant, **{key: value for key, value in plain["training"].items() if value is not None}},
    }


def unet_settings(config: UNetConfig) -> Plain:
    return _without_nulls(
        {
            "model": config.params.shape,
            "diffusion": {
                "num_train_timesteps": config.scheduler.num_train_timesteps,
                "prediction_type": config.scheduler.prediction_type,
            },
            "training": _averaged(config.training),
        }
    )


def controlnet_settings(config: ControlNetConfig) -> Plain:
    """Return the settings of the ControlNet; the shape of the U-Net comes from the base."""
    params, training = config.params, config.training
    return _without_nulls(
        {
            "conditions": {
                "keys": config.keys,
                "key_dropout_prob": training.control_dropout,
                "patch_dropout_prob": training.spatial_dropout_prob,
                "patch_dropout_size": training.spatial_dropout_patch_size,
            },
            "controlnet": {
                "width_ratio": params.r,
                "condition_widths": params.conditioning_embedding_num_channels,
                "initial_stride": params.initial_stride,
            },
            "training": _averaged(training),
        }
    )


def _averaged(training: UNetTraining) -> Plain:
    return {
        **_shared(training),
        "use_ema": training.use_ema,
        "ema_decay": training.ema_decay,
        "lr_gamma": training.lr_gamma,
    }


def dit_settings(config: DiTConfig) -> Plain:
    params, training = config.params, config.training
    if training.normalize_latents and training.latent_stats_path is None:
        say(
            f"{config.file}: normalize_latents is a property of the VQ model here, which `cardiodit scale-factor "
            "--per_channel` writes into its config.",
            aside=True,
        )
    betas = training.betas or (None, None)
    kept = training.keep_last_n_checkpoints
    run = {
        **_shared(training),
        "max_train_steps": training.target_optimizer_updates or training.total_updates,
        "checkpointing_steps": training.checkpoint_optimizer_updates,
        "checkpoints_total_limit": kept if kept is not None and kept > 0 else None,
        "lr_warmup_steps": training.warmup_updates,
        "use_ema": training.use_ema,
        "ema_decay": training.ema_decay,
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "validation_metric": training.validation_primary_metric,
        "batch_strategy": "bucket" if training.use_bucket_sampler or training.batch_strategy == "bucket" else None,
    }
    if training.batch_strategy == MICROBATCHES:
        batches = (training.grad_accum_steps or 1) * (training.batch_size or 1)
        run |= {"train_batch_size": 1, "gradient_accumulation_steps": batches}
    of_cosine = (training.warmup_epochs, training.warmup_updates, training.min_lr_ratio)
    if training.rate_schedule == "cosine_warmup" or (training.rate_schedule is None and of_cosine != (None,) * 3):
        run["lr_scheduler"] = "cosine"
    elif training.lr_gamma is not None:
        run |= {"lr_scheduler": "exponential", "lr_gamma": training.lr_gamma, "lr_warmup_epochs": 0}
    return _without_nulls(
        {
            "dimensions": len(params.input_size),
            "label_column": "label" if params.num_classes else None,
            "model": params.of_model,
            "diffusion": _diffusion(config),
            "frame_multiple": training.latent_time_pad_multiple,
            "phase_dir": training.phase_dir,
            "phase_pool": training.alpha_pool if training.phase_dir else None,
            "latent_statistics": training.latent_stats_path,
            "augmentation": _augmentation(config),
            "training": run,
        }
    )


def _augmentation(config: DiTConfig) -> Plain | None:
    """Return flips of every spatial axis, which only VolDiT's code makes."""
    return {"flip_probability": 0.5, "depth_flip_probability": 0.5} if config.training.augment_latents else None


def _diffusion(config: DiTConfig) -> Plain:
    """Return the settings of the objective."""
    scheduler, training = config.scheduler, config.training
    shared = {
        "num_train_timesteps": scheduler.num_train_timesteps,
        "loss": training.loss,
        "huber_beta": training.huber_beta if training.loss in (None, "smooth_l1") else None,
        "min_snr_gamma": training.min_snr_gamma,
    }
    if config.is_flow:
        names = ("sample_method", "logit_mean", "logit_std")
        return {"objective": "flow_matching", **shared, **{name: getattr(scheduler, name) for name in names}}
    return {
        **shared,
        "prediction_type": scheduler.prediction_type,
        "zero_terminal_snr": scheduler.zero_terminal_snr,
        "offset_noise_strength": training.offset_noise_strength,
    }


def _shared(training: Run) -> Plain:
    precision = training.amp_dtype
    if precision is not None and precision not in PRECISIONS:
        raise CardioDiTError(f"amp_dtype {precision!r} is not one of {', '.join(PRECISIONS)}.")
    return {
        "num_train_epochs": training.n_epochs,
        "validation_epochs": training.eval_freq,
        "train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.grad_accum_steps,
        "learning_rate": training.base_lr,
        "weight_decay": training.weight_decay,
        "lr_warmup_epochs": training.warmup_epochs,
        "lr_min_ratio": training.min_lr_ratio,
        "max_grad_norm": training.max_grad_norm if training.grad_clip is None else training.grad_clip,
        "mixed_precision": None if precision is None else PRECISIONS[precision],
    }


def _preprocessing(training: Run) -> Plain:
    """Return CardioDiT's preset with the sizes of the file."""
    plane = training.roi_size
    if isinstance(training.target_frames, str):
        if training.target_frames != NATIVE:
            raise CardioDiTError(f"target_frames {training.target_frames!r} is neither a number nor {NATIVE}.")
        size = None if plane is None else [*plane[:2], training.target_z]
        multiple = training.time_pad_multiple or NATIVE_MULTIPLE
        say(
            f"target_frames: native: cines keep their frames, repeated to a multiple of {multiple}. If their numbers "
            "differ, set train_batch_size to 1, or data.crop with a number of frames.",
            aside=True,
        )
        return {"size": size, "orient": False, "frame_multiple": multiple}  # else as the preset
    frames = training.target_frames or (plane[2] if plane is not None and len(plane) == 3 else None)
    size = None if plane is None else [*plane[:2], training.target_z]
    return {"preset": "cardiodit", "size": size, "frames": frames}


def _without_nulls(plain: Any) -> Any:
    """Remove keys that the file does not give, and convert tuples to lists as in YAML."""
    if isinstance(plain, dict):
        return {key: _without_nulls(value) for key, value in plain.items() if value is not None}
    return [_without_nulls(value) for value in plain] if isinstance(plain, list | tuple) else plain
