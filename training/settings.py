"""Config files of all training stages: one class per section, one field per key, with its help text.

A section that describes a model, an objective or a preprocessing is made from the constructor of that class, so each
key is declared only there. Keys are named like the options of diffusers' training scripts. What is counted in epochs
can also be given in steps, which take precedence.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from cardiodit._util.typed_yaml import (
    Count,
    Section,
    option,
    settings_of,
    settings_of_one,
)
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.alignment import BeatAlignment
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
from cardiodit.models.copy_detector import CopyDetector
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.models.segmenter import HeartSegmenter
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.models.unet_medlord import MedLoRDUNetModel
from cardiodit.training.cine_frames import Pool
from cardiodit.training.latent_augmentation import LatentAugmentation
from cardiodit.training.objectives import LATENT_OBJECTIVES, VOXEL_OBJECTIVES
from cardiodit.training.vqgan_losses import LossSettings

MEMORIZING = "memorizing"
LearningRateSchedule = Literal["constant", "cosine", "exponential"]
Error = Literal["smooth_l1", "mse", "l1"]

PEAK_RATE = "highest learning rate of the schedule"
SCHEDULE = "learning-rate schedule"
EPOCHS = "number of passes over the training data"
DECAY = "weight decay of weight matrices; biases, normalisation layers and embeddings do not decay"
WARMUP = "number of epochs at the start in which the learning rate rises linearly from 0"
BATCH_SIZE = "batch size of each process (GPU)"
EXPONENTIAL = "factor by which the exponential schedule multiplies the learning rate in every epoch"
SAMPLER_STEPS = "number of denoising steps of a preview"
EMA_DECAY = "decay of this average per step; with ema_warmup, the value that it rises to"
ALL_DROPPED = "probability of dropping all masks of a training sample, for classifier-free guidance towards the masks"
KEYS_DROPPED = "probability of dropping each mask, with all its channels, independently of the others"
CHANNELS_DROPPED = "probability of dropping each mask channel, if there are several"
OF_CONDITIONS = ("condition_channels", "condition_keys", "condition_labels", "other_labels")
WORKERS = "number of worker processes that load samples; 0 loads them in the training process"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of every stage's run. On the command line these keys are options under their own names."""

    seed: int = option(0, "random seed; on a CPU, or with --deterministic, the same seed repeats a run exactly")
    train_batch_size: Count = option(1, BATCH_SIZE)
    gradient_accumulation_steps: Count = option(
        1, "number of batches whose gradients are accumulated for one optimizer step"
    )
    num_train_epochs: Count = option(100, EPOCHS)
    max_train_steps: Count | None = option(None, "total number of optimizer steps; overrides num_train_epochs")
    learning_rate: float = option(1e-4, PEAK_RATE)
    lr_scheduler: LearningRateSchedule = option("constant", SCHEDULE)
    lr_warmup_epochs: float = option(0.0, WARMUP)
    lr_warmup_steps: int | None = option(None, "length of this rise in optimizer steps; overrides lr_warmup_epochs")
    lr_min_ratio: float = option(0.01, "final learning rate of the cosine schedule, as a fraction of learning_rate")
    lr_gamma: float = option(0.9999, EXPONENTIAL)
    lr_step_gamma: float | None = option(None, "the same factor for every optimizer step; overrides lr_gamma")
    adam_beta1: float = option(0.9, "decay rate of Adam's first moment")
    adam_beta2: float = option(0.999, "decay rate of Adam's second moment")
    weight_decay: float = option(0.0, DECAY)
    max_grad_norm: float = option(1.0, "norm to which larger gradients are scaled down")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "precision of the forward pass; default: as accelerate is configured"
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass to save memory; has no effect on a segmenter"
    )
    compile: bool = option(
        False,
        "apply torch.compile to the model's blocks: takes minutes at the start, then trains faster; has no effect on a "
        "segmenter",
    )
    allow_tf32: bool = option(
        True, "multiply matrices in TF32 on NVIDIA GPUs, which is faster and less precise than float32"
    )
    deterministic: bool = option(
        False, "use only deterministic algorithms, so that the same seed repeats a run exactly on a GPU, too"
    )
    dataloader_num_workers: int = option(0, WORKERS)
    checkpointing_steps: Count = option(500, "number of optimizer steps between checkpoints")
    checkpointing_minutes: float | None = option(
        None, "also write a checkpoint when this many minutes have passed since the last one"
    )
    checkpoints_total_limit: Count = option(2, "number of checkpoints to keep; older ones are deleted")
    validation_epochs: float = option(10.0, "number of epochs between validations")
    validation_steps: Count | None = option(
        None, "number of optimizer steps between validations; overrides validation_epochs"
    )
    report_to: str = option(
        "tensorboard", "experiment trackers, separated by commas: tensorboard, wandb, trackio, or none"
    )


# --- Data ---


@dataclass(frozen=True, kw_only=True)
class IntensitySettings:
    low: float | str | None = option(
        None,
        'intensity that becomes -1: a number (such as HU), "minimum", or a percentile such as "p0.5"; lower ones are '
        "clipped; default: as in the preset, or the minimum",
    )
    high: float | str | None = option(
        None,
        'intensity that becomes 1: a number, "maximum", a percentile such as "p99.5", or "p99.5 at most 1000", which '
        "is the percentile or 1000, whichever is lower; higher ones are clipped; default: as in the preset, or the "
        "maximum",
    )


PREPROCESSING: Section = settings_of(
    Preprocessing,
    defaults=dict.fromkeys([f.name for f in fields(Preprocessing)]),  # None: as the preset, or the file, has it
    kinds={
        "cycle": Literal["resample", "repeat", "linear", "fourier", "piecewise", "dtw"],
        "alignment": type(settings_of(BeatAlignment)) | None,
        "fit": Literal["crop", "resize"],
        "limits_of": Literal["file", "view"],
        "spacing": tuple[float | None, ...],
        "size": tuple[Count | None, ...],
        "frames": Count,
        "intensity": IntensitySettings | None,
    },
    extra={
        "preset": (str | None, option(None, f"preset to start from; the other keys override it: {', '.join(PRESETS)}"))
    },
)


def build_preprocessing(section: Section) -> Preprocessing:
    """Return the preset with what the section overrides."""
    overrides = {key: value for key, value in section.items() if value is not None}
    preset, intensity = overrides.pop("preset", None), overrides.get("intensity")
    if preset is not None and preset not in PRESETS:
        raise CardioDiTError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    if overrides.get("alignment") is not None:
        overrides["alignment"] = dict(overrides["alignment"].items())
    start = PRESETS[preset] if preset else Preprocessing()
    if intensity is not None:
        low, high = intensity.low, intensity.high
        kept = start.intensity
        overrides["intensity"] = Intensity(kept.low if low is None else low, kept.high if high is None else high)
    return Preprocessing.from_dict({**start.to_dict(), **overrides})


AUGMENTATION: Section = settings_of(
    Augmentation, kinds={"flip_axes": tuple[int, ...] | None, "rotation_axes": tuple[int, ...]}
)
NO_AUGMENTATION = replace(AUGMENTATION, rotation_probability=0.0, flip_probability=0.0)  # type: ignore[type-var]
ANATOMICAL_AUGMENTATION = replace(  # type: ignore[type-var]
    AUGMENTATION, rotation_degrees=15.0, rotation_probability=0.5, flip_probability=0.0, intensity_probability=0.8
)


def build_augmentation(section: Section) -> Augmentation:
    return Augmentation(**{**section, "flip_axes": section.flip_axes or ()})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings that turn volumes into training samples."""

    preprocessing: Section = PREPROCESSING
    augmentation: Section = AUGMENTATION
    crop: tuple[Count, ...] | None = option(
        None, "train on random crops of this size, [H, W, T] for cine and [H, W, D] for CT; default: no cropping"
    )
    cache: Literal["memory", "disk", "none"] = option("memory", "where preprocessed volumes are kept between epochs")
    cache_dir: str | None = option(None, "folder of the disk cache; default: `cache` next to the run's folder")
    workers: Count = option(1, "number of worker processes that preprocess volumes before training")


# --- VQ-GAN ---


@dataclass(frozen=True, kw_only=True)
class VQGANTraining(Training):
    learning_rate: float = option(5e-5, "highest learning rate of the autoencoder")
    discriminator_learning_rate: float = option(2e-5, "highest learning rate of the discriminator")
    train_batch_size: Count = option(4, "batch size of each process (GPU), in cine slices or 3D volumes")
    num_train_epochs: Count = option(
        500, "number of passes over the training data; a pass takes one random slice of each cine"
    )
    lr_scheduler: LearningRateSchedule = option("exponential", SCHEDULE)
    adam_beta1: float = option(0.5, "decay rate of Adam's first moment")
    adam_beta2: float = option(0.9, "decay rate of Adam's second moment")
    validation_slices: Count = option(3, "number of evenly spaced slices of each validation cine that are evaluated")


@dataclass(frozen=True, kw_only=True)
class VQGANSettings:
    """Config of the VQ-GAN (stage 1)."""

    dimensions: Literal[3, 4] = option(4, "4 for cine, encoded slice by slice (CardioDiT), 3 for 3D volumes (VolDiT)")
    model: Section = settings_of(
        VQModel,
        omit=(
            *("scaling_factor", "latents_mean", "latents_std", "spacing", "frame_time", "preprocessing"),
            *("mask_labels", "mask_channels"),
        ),
        kinds={"downsample_parameters": Any, "upsample_parameters": Any},
    )
    discriminator: Section = settings_of(
        PatchDiscriminator, omit=("spatial_dims",), kinds={"padding": int | tuple[int, ...]}
    )
    losses: LossSettings = LossSettings()
    data: DataSettings = DataSettings()
    training: VQGANTraining = VQGANTraining()


# --- Denoisers ---

CONDITION_COLUMNS = (
    "manifest columns with clinical conditions, numbers or categories, such as [ef, edv, diagnosis, 'age [years]', "
    "'sex [category]']; empty cells are not given; default: train without conditions"
)
CONDITION_DROPOUT = {"condition_dropout_prob": 0.1, "unconditional_prob": 0.1}


@dataclass(frozen=True, kw_only=True)
class AveragedTraining(Training):
    """Settings of stages that train a denoiser."""

    use_ema: bool = option(
        True, "keep an exponential moving average (EMA) of the weights, and validate and save the averaged weights"
    )
    ema_decay: float = option(0.9999, EMA_DECAY)
    ema_warmup: bool = option(
        True, "start with a lower decay, so that the initial weights are forgotten sooner; false as published"
    )
    validation_timesteps: Count = option(
        4, "number of noise levels at which the loss of each validation volume is computed"
    )
    validation_metric: Literal["unconditioned", "self_conditioned"] = option(
        "unconditioned",
        "validation loss that chooses the best weights of a self-conditioned model: without or with its own estimate; "
        "both are logged",
    )
    stop_when: Literal["finished", "memorizing"] = option(
        "finished",
        "when training ends: finished after its last step; memorizing also before, at the first validation whose loss "
        "exceeds that of training volumes by more than memorizing_gap; the best weights until then are kept",
    )
    memorizing_gap: float = option(
        0.1,
        "share by which the validation loss may exceed the loss of training volumes at the same times and noises; the "
        "lower end of its 90% interval counts",
    )
    dataloader_num_workers: int = option(2, WORKERS)


@dataclass(frozen=True, kw_only=True)
class PreviewedTraining(AveragedTraining):
    """Settings of stages that sample volumes while they train."""

    preview_epochs: float = option(
        50.0, "number of epochs between previews, which are volumes generated during training"
    )
    preview_steps: Count | None = option(None, "number of optimizer steps between previews; overrides preview_epochs")
    preview_samples: int = option(2, "number of volumes to generate for each preview; 0 turns previews off")
    preview_inference_steps: Count = option(25, SAMPLER_STEPS)
    preview_guidance_scale: float = option(
        1.0, "classifier-free guidance scale of previews with class labels; 1 disables it"
    )


@dataclass(frozen=True, kw_only=True)
class DiTTraining(PreviewedTraining):
    learning_rate: float = option(1e-4, PEAK_RATE)
    weight_decay: float = option(1e-4, DECAY)
    num_train_epochs: Count = option(3000, EPOCHS)
    lr_scheduler: LearningRateSchedule = option("cosine", SCHEDULE)
    lr_warmup_epochs: float = option(100.0, WARMUP)
    batch_strategy: Literal["fixed", "bucket"] = option(
        "fixed",
        "fixed: all latents have one size; bucket: those of a step have one size, and steps of all sizes are shuffled",
    )
    lora_rank: int = option(
        0, "train only a LoRA adapter of this rank on top of the model in --init_from; 0 trains all weights"
    )
    lora_alpha: float | None = option(None, "scale of the LoRA adapter (alpha); default: its rank")


@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """Config of the diffusion transformer (stage 2)."""

    dimensions: Literal[3, 4] | None = option(
        None, "4 for cine (CardioDiT), 3 for 3D volumes (VolDiT); default: as many as the latents have"
    )
    label_column: str | None = option(None, "manifest column with class labels; default: train without labels")
    frame_multiple: Count | None = option(
        None,
        "repeat the latents of cines in time to a multiple of this number of frames, such as the patch size; repeated "
        "frames do not count in the loss, and tokens that only hold such frames take no part in attention",
    )
    phase_column: str | None = option(
        None,
        "manifest column with the phase of each frame in the heart beat (0 to 1), or with the path of a file that "
        "holds them, for positions that depend on it; give the pipeline the same phases when sampling",
    )
    phase_dir: str | None = option(
        None, "folder with a file of phases for each latent, of the same name but for its ending, instead of a column"
    )
    phase_pool: Literal["linear", "mean", "none"] = option(
        "linear", "how phases of image frames become those of latent frames"
    )
    latent_statistics: str | None = option(
        None,
        "file with `mean` and `std` of each latent channel, by which latents are normalised, instead of the VQ model's "
        "own scaling (cardiodit scale-factor --per_channel); it becomes part of the trained pipeline",
    )
    condition_columns: tuple[str, ...] | None = option(None, CONDITION_COLUMNS)
    model: Section = settings_of(
        DiTTransformerModel,
        omit=("num_classes", "class_names", "prediction_type", "training_precision", "conditions"),
        defaults={
            "in_channels": None,
            "class_dropout_prob": 0.1,
            **CONDITION_DROPOUT,
        },
    )
    image_augmentation: Section = NO_AUGMENTATION  # of images that are encoded while training
    diffusion: Section = settings_of_one(
        LATENT_OBJECTIVES, "objective", "what the model is trained to do", omit=("noise_power",)
    )
    augmentation: Section = settings_of(LatentAugmentation)
    training: DiTTraining = DiTTraining()


@dataclass(frozen=True, kw_only=True)
class UNetTraining(DiTTraining):
    weight_decay: float = option(0.01, DECAY)
    num_train_epochs: Count = option(5000, EPOCHS)
    lr_scheduler: LearningRateSchedule = option("exponential", SCHEDULE)
    lr_warmup_epochs: float = option(0.0, WARMUP)
    lr_gamma: float = option(0.9995, EXPONENTIAL)
    ema_decay: float = option(0.999, EMA_DECAY)


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """Config of MedLoRD's U-Net (stage 2)."""

    dimensions: ClassVar[int] = 3
    label_column: ClassVar[None] = None  # the published U-Net has no class labels
    frame_multiple: ClassVar[None] = None  # nor frames
    phase_column: ClassVar[None] = None
    phase_dir: ClassVar[None] = None
    phase_pool: ClassVar[Pool] = "linear"
    latent_statistics: ClassVar[None] = None
    condition_columns: tuple[str, ...] | None = option(None, CONDITION_COLUMNS)
    model: Section = settings_of(
        MedLoRDUNetModel,
        omit=("prediction_type", "training_precision", "conditions"),
        defaults={"in_channels": None, "sample_size": None, **CONDITION_DROPOUT},
    )
    image_augmentation: Section = NO_AUGMENTATION  # of images that are encoded while training
    diffusion: Section = settings_of_one(
        LATENT_OBJECTIVES, "objective", "what the model is trained to do", omit=("noise_power",)
    )
    augmentation: Section = settings_of(LatentAugmentation)
    training: UNetTraining = UNetTraining()


# --- Adapters ---


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """The masks that steer, and how often they are dropped while training."""

    keys: tuple[str, ...] = option(("mask",), "manifest columns with the paths of masks")
    labels: tuple[tuple[int, ...], ...] | None = option(
        None,
        "for each mask, the label values that become one channel each, such as [[1, 2, 3]]; default: each mask is one "
        "channel",
    )
    other_labels: Literal["refuse", "background"] = option(
        "refuse", "label values that `labels` does not list: refuse stops with an error, background ignores them"
    )
    dropout_prob: float = option(0.1, ALL_DROPPED)
    key_dropout_prob: float = option(0.0, KEYS_DROPPED)
    channel_dropout_prob: float = option(0.1, CHANNELS_DROPPED)
    patch_dropout_prob: float = option(0.0, "probability of erasing each box of `patch_dropout_size` from the masks")
    patch_dropout_size: Count = option(16, "edge length of these boxes in voxels")


@dataclass(frozen=True, kw_only=True)
class TGCATraining(AveragedTraining):
    learning_rate: float = option(5e-5, PEAK_RATE)
    weight_decay: float = option(0.01, DECAY)
    num_train_epochs: Count = option(500, EPOCHS)
    train_batch_size: Count = option(2, BATCH_SIZE)
    lr_scheduler: LearningRateSchedule = option("exponential", SCHEDULE)
    lr_warmup_epochs: float = option(0.0, WARMUP)
    lr_gamma: float = option(0.999, EXPONENTIAL)
    noise_power: float = option(
        1.0,
        "how often high noise levels, where masks matter most, are trained: 1 trains all levels equally often, as "
        "published; larger numbers favour high ones, e.g. 6",
    )


@dataclass(frozen=True, kw_only=True)
class TGCASettings:
    """Config of the mask adapter (TGCA)."""

    label_column: str | None = option(
        None, "manifest column with class labels, if the base pipeline was trained with them"
    )
    conditions: ConditionSettings = ConditionSettings()
    adapter: Section = settings_of(
        TGCAAdapterModel,
        omit=("hidden_size", "num_layers", "num_axes", "fingerprint", *OF_CONDITIONS),
        defaults={"strides": None},
        kinds={"inject_layers": int | tuple[int, ...] | None},
        extra={
            "finetune_last_n_blocks": (
                int,
                option(
                    0,
                    "number of last transformer blocks of the base to train too, with its output layer; 0 trains only "
                    "the adapter",
                ),
            )
        },
    )
    loss: Error = option("smooth_l1", "loss function between prediction and target")
    training: TGCATraining = TGCATraining()


@dataclass(frozen=True, kw_only=True)
class KeyConditionSettings(ConditionSettings):
    dropout_prob: float = option(0.0, ALL_DROPPED)
    key_dropout_prob: float = option(0.1, KEYS_DROPPED)
    channel_dropout_prob: float = option(0.0, CHANNELS_DROPPED)


@dataclass(frozen=True, kw_only=True)
class ControlNetTraining(TGCATraining):
    learning_rate: float = option(7.5e-5, PEAK_RATE)
    train_batch_size: Count = option(1, BATCH_SIZE)
    ema_decay: float = option(0.999, EMA_DECAY)


@dataclass(frozen=True, kw_only=True)
class ControlNetSettings:
    """Config of MedLoRD's ControlNet (stage 3)."""

    label_column: ClassVar[None] = None
    conditions: KeyConditionSettings = KeyConditionSettings()
    controlnet: Section = settings_of(
        MedLoRDControlNetModel,
        omit=(
            *("in_channels", "block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim"),
            *("norm_num_groups", "fingerprint", *OF_CONDITIONS),
        ),
        defaults={"condition_widths": None},
    )
    loss: Error = option("smooth_l1", "loss function between prediction and target")
    training: ControlNetTraining = ControlNetTraining()


# --- PRDiT ---


@dataclass(frozen=True, kw_only=True)
class PRDiTDataSettings(DataSettings):
    augmentation: Section = NO_AUGMENTATION


@dataclass(frozen=True, kw_only=True)
class PRDiTTraining(PreviewedTraining):
    train_base: bool = option(
        False, "of a super-resolution model, also train the base that it corrects, as published with a rate of 1e-7"
    )
    learning_rate: float = option(1e-4, PEAK_RATE)
    num_train_epochs: Count = option(1000, EPOCHS)
    preview_inference_steps: Count = option(100, SAMPLER_STEPS)


@dataclass(frozen=True, kw_only=True)
class PRDiTSettings:
    """Config of PRDiT."""

    model: Section = settings_of(
        PRDiTTransformerModel,
        omit=(
            *("sample_size", "in_channels", "spacing", "preprocessing", "base_config"),
            *("prediction_type", "num_train_timesteps", "noise_scale", "training_precision"),
        ),
        defaults={"num_layers": 0},
        kinds={"num_layers": int},
    )
    process: Section = settings_of_one(VOXEL_OBJECTIVES, "objective", "what the model is trained to do")
    data: PRDiTDataSettings = PRDiTDataSettings()
    training: PRDiTTraining = PRDiTTraining()


# --- Copy detector ---

CONTRASTIVE_AUGMENTATION = replace(  # type: ignore[type-var]
    AUGMENTATION, rotation_probability=0.5, flip_axes=(1,), flip_probability=0.5
)


@dataclass(frozen=True, kw_only=True)
class CopyDetectorDataSettings(DataSettings):
    augmentation: Section = CONTRASTIVE_AUGMENTATION


@dataclass(frozen=True, kw_only=True)
class CopyDetectorTraining(Training):
    train_batch_size: Count = option(10, "batch size of each process (GPU), in cine slices or volumes; at least 2")
    num_train_epochs: Count = option(200, EPOCHS)
    lr_scheduler: LearningRateSchedule = option("cosine", SCHEDULE)
    lr_min_ratio: float = option(0.5, "final learning rate of the cosine schedule, as a fraction of learning_rate")


@dataclass(frozen=True, kw_only=True)
class CopyDetectorSettings:
    """Config of the copy detector."""

    model: Section = settings_of(CopyDetector, omit=("is_cine", "preprocessing", "training_data", "seen_files"))
    temperature: float = option(0.07, "temperature of the contrastive loss")
    data: CopyDetectorDataSettings = CopyDetectorDataSettings()
    training: CopyDetectorTraining = CopyDetectorTraining()


# --- Segmenter ---


@dataclass(frozen=True, kw_only=True)
class SegmenterDataSettings:
    preprocessing: Section = PREPROCESSING
    augmentation: Section = ANATOMICAL_AUGMENTATION
    blur: float = option(1.0, "largest standard deviation in voxels of a Gaussian blur, which half of the images get")
    noise: float = option(0.1, "largest standard deviation of Gaussian noise added to intensities in [-1, 1]")


@dataclass(frozen=True, kw_only=True)
class SegmenterTraining(Training):
    learning_rate: float = option(1e-3, PEAK_RATE)
    train_batch_size: Count = option(8, "batch size of each process (GPU), in frames")
    lr_scheduler: LearningRateSchedule = option("cosine", SCHEDULE)


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """Config of the segmenter."""

    model: Section = settings_of(HeartSegmenter, omit=("preprocessing", "spacing"))
    data: SegmenterDataSettings = SegmenterDataSettings()
    training: SegmenterTraining = SegmenterTraining()


# --- Masks of samples ---


@dataclass(frozen=True, kw_only=True)
class MasksTraining(Training):
    learning_rate: float = option(1e-3, PEAK_RATE)
    train_batch_size: Count = option(2, BATCH_SIZE)
    num_train_epochs: Count = option(100, EPOCHS)
    lr_scheduler: LearningRateSchedule = option("cosine", SCHEDULE)
    weight_decay: float = option(1e-4, DECAY)


@dataclass(frozen=True, kw_only=True)
class MasksSettings:
    """Config of the decoder that gives every sample its mask."""

    channels: Count = option(32, "width of the decoder at the latents' resolution; it halves with each level")
    latent_noise: float = option(
        0.1,
        "standard deviation of noise added to latents, in units of their own, since generated latents are not exact",
    )
    training: MasksTraining = MasksTraining()
