"""What a config file may say, typed: one class a section, one field a key, its help beside it.

Keys are named as diffusers' training scripts name their options. What is counted in epochs can also be given in steps,
which then go before the epochs.
"""

import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from cardiodit._util.typed_yaml import Count, option, options_of
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.training.vqgan_losses import LossSettings


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every stage is told about its run. These keys are options of the command line under their own names."""

    seed: int = option(0, "of every draw: the same seed, the same run")
    train_batch_size: Count = option(1, "samples a process and forward pass")
    gradient_accumulation_steps: Count = option(1, "forward passes a step")
    num_train_epochs: Count = option(100, "passes over the training data")
    max_train_steps: Count | None = option(None, "steps in all, in place of num_train_epochs")
    learning_rate: float = option(1e-4, "at its highest")
    lr_scheduler: Literal["constant", "cosine", "exponential"] = option("constant", "course of the rate")
    lr_warmup_epochs: float = option(0.0, "in which the rate rises from 0")
    lr_warmup_steps: int | None = option(None, "the same in steps")
    lr_min_ratio: float = option(0.01, "where cosine ends, as a share of learning_rate")
    lr_gamma: float = option(0.9999, "factor an epoch of exponential")
    adam_beta1: float = option(0.9, "of Adam")
    adam_beta2: float = option(0.999, "of Adam")
    weight_decay: float = option(0.0, "of matrices; biases, norms and embeddings do not decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "of the forward pass; left out: what accelerate is configured for"
    )
    gradient_checkpointing: bool = option(False, "compute activations twice, to hold fewer")
    compile: bool = option(False, "torch.compile the blocks: minutes at the start, faster after")
    allow_tf32: bool = option(True, "quicker matrix products on NVIDIA GPUs, 10 bits of mantissa")
    deterministic: bool = option(False, "only deterministic kernels, so that a GPU too repeats a run to the bit")
    dataloader_num_workers: int = option(0, "processes that load samples; 0 loads them in the training process")
    checkpointing_steps: Count = option(500, "steps between checkpoints to go on from")
    checkpoints_total_limit: Count = option(2, "checkpoints kept; older ones are removed")
    validation_epochs: float = option(10.0, "between two validations")
    validation_steps: Count | None = option(None, "the same in steps")
    report_to: str = option("tensorboard", "tracker: tensorboard, wandb, trackio, several with commas, or none")


@dataclass(frozen=True, kw_only=True)
class IntensitySettings:
    low: float | str = option("minimum", 'what becomes -1: a number, "minimum", or a percentile "p0.5"')
    high: float | str = option(
        "maximum", 'what becomes 1: a number, "maximum", or a percentile "p99.5", also "p99.5 at most 1000"'
    )


@dataclass(frozen=True, kw_only=True)
class PreprocessingSettings:
    """`Preprocessing`; what is left out is as the preset says, or as it is in the file."""

    preset: str | None = option(None, f"where the keys below start from: {', '.join(PRESETS)}")
    spacing: tuple[float | None, ...] | None = option(None, "mm along H, W, D")
    size: tuple[Count | None, ...] | None = option(None, "voxels along H, W, D")
    frames: Count | None = option(None, "of a beat")
    cycle: Literal["resample", "repeat"] | None = option(None, "how a beat gets its frames")
    intensity: IntensitySettings | None = field(default=None, metadata={"help": "grey values that become -1 and 1"})
    fit: Literal["crop", "resize"] | None = option(None, "how a volume gets its size")
    orient: bool | None = option(None, "turn volumes to our axis order")
    limits_of: Literal["file", "view"] | None = option(None, "voxels that percentiles are of: the file's, or the cut's")
    pool: Count | None = option(None, "last of all, means over cubes of so many voxels")

    def build(self) -> Preprocessing:
        if self.preset is not None and self.preset not in PRESETS:
            raise CardioDiTError(f"There is no preset {self.preset!r}; choose one of {', '.join(PRESETS)}.")
        start = PRESETS[self.preset] if self.preset else Preprocessing()
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        values = {**start.to_dict(), **{name: value for name, value in said.items() if value is not None}}
        if self.intensity is not None:
            values["intensity"] = Intensity(self.intensity.low, self.intensity.high)
        return Preprocessing.from_dict(values)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """`Augmentation`, as it was published."""

    rotation_degrees: float = option(5.0, "at most so far to either side")
    rotation_probability: float = option(0.2, "of a rotation in the plane")
    flip_probability: float = option(0.5, "of a flip, for each of the axes")
    flip_axes: tuple[int, ...] | None = option((0, 1), "0 for H, 1 for W; null for none")
    intensity_probability: float = option(0.0, "of a change of contrast and brightness")
    contrast: float = option(0.1, "at most so much is multiplied")
    brightness: float = option(0.05, "at most so much is added")

    def build(self) -> Augmentation:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Augmentation(**{**values, "flip_axes": self.flip_axes or ()})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How volumes become training samples."""

    preprocessing: PreprocessingSettings = PreprocessingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    crop: tuple[Count, ...] | None = option(None, "train on random boxes of this size: H W T of cine, H W D of CT")
    cache: Literal["memory", "disk", "none"] = option("memory", "where prepared volumes are kept between epochs")
    cache_dir: str | None = option(None, "folder of the disk cache; default: cache, beside the run folder")
    workers: Count = option(1, "processes that prepare volumes before training")


@dataclass(frozen=True, kw_only=True)
class VQModelSettings:
    """`VQModel4D` and `VQModel3D`."""

    in_channels: Count = option(1, "image channels")
    out_channels: Count = option(1, "image channels")
    channels: tuple[Count, ...] = option((128, 256), "width of each level; each halves the image")
    num_res_channels: tuple[Count, ...] = option((256, 256), "width of the levels' residual units")
    num_res_layers: Count = option(2, "residual units a level")
    downsample_parameters: Any = option((2, 4, 1, 1), "stride, kernel, dilation, padding; once or for each level")
    upsample_parameters: Any = option((2, 4, 1, 1, 0), "the same with an output padding")
    num_embeddings: Count = option(16384, "codes")
    embedding_dim: Count = option(8, "channels of a latent")
    commitment_cost: float = option(0.25, "weight of the commitment loss")
    decay: float = option(0.99, "of the codebook's moving averages")
    epsilon: float = option(1e-5, "smooths the codebook's counts")
    dropout: float = option(0.0, "in the residual units")
    codebook_warm_counts: bool = option(True, "counts start at one; false as published")
    codebook_data_init: bool = option(True, "codes start at latents; false as published")
    codebook_restart: bool = option(True, "unused codes start again; false as published")
    codebook_sync: bool = option(True, "one codebook for all processes; false as published")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings:
    """`PatchDiscriminator`."""

    num_channels: Count = option(64, "width of the first layer")
    num_layers_d: Count = option(3, "layers between the first and the last")
    in_channels: Count = option(1, "image channels")
    out_channels: Count = option(1, "of the verdict")
    kernel_size: Count = option(3, "of the convolutions")
    norm: Any = option("BATCH", "MONAI's name of the normalisation")
    bias: bool = option(False, "of the convolutions")
    padding: int | tuple[int, ...] = option(1, "of the convolutions")
    activation: Any = option(("LEAKYRELU", {"negative_slope": 0.2}), "MONAI's name of the activation")
    dropout: float = option(0.0, "in the layers")
    last_conv_kernel_size: Count | None = option(None, "of the last convolution, where it differs")


@dataclass(frozen=True, kw_only=True)
class VQGANTraining(Training):
    learning_rate: float = option(5e-5, "of the autoencoder")
    discriminator_learning_rate: float = option(2e-5, "of the discriminator")
    train_batch_size: Count = option(4, "slices a process and forward pass")
    num_train_epochs: Count = option(500, "passes over the training data, one slice of each volume")
    lr_scheduler: Literal["constant", "cosine", "exponential"] = option("exponential", "course of the rate")
    adam_beta1: float = option(0.5, "of Adam")
    adam_beta2: float = option(0.9, "of Adam")
    validation_slices: Count = option(3, "evenly spaced slices of each validation volume")


@dataclass(frozen=True, kw_only=True)
class VQGANSettings:
    """A config of stage 1."""

    dimensions: Literal[3, 4] = option(4, "4: cine, coded slice by slice (CardioDiT); 3: volumes (VolDiT)")
    model: VQModelSettings = VQModelSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    losses: LossSettings = LossSettings()
    data: DataSettings = DataSettings()
    training: VQGANTraining = VQGANTraining()


@dataclass(frozen=True, kw_only=True)
class TransformerSettings:
    """`DiT4DTransformerModel` and `DiT3DTransformerModel`; what is left out is as the latents have it."""

    sample_size: tuple[Count, ...] | None = option(None, "of the latents; default: what they have")
    patch_size: tuple[Count, ...] | None = option(None, "along the same axes; default: as published")
    in_channels: Count | None = option(None, "of the latents; default: what they have")
    num_layers: Count = option(12, "blocks")
    num_attention_heads: Count = option(12, "heads")
    attention_head_dim: Count = option(64, "width of a head")
    mlp_ratio: float = option(4.0, "width of the MLP over the width of the tokens")
    class_dropout_prob: float = option(0.1, "share of labels dropped, for guidance; without labels it does nothing")
    learn_sigma: bool = option(False, "also learn the variance")
    dropout: float = option(0.0, "in attention and MLP")


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """The process that is undone, and the error that is lowered."""

    num_train_timesteps: Count = option(300, "steps of the squared-cosine schedule")
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = option("v_prediction", "what is predicted")
    loss: Literal["smooth_l1", "mse", "l1"] = option("smooth_l1", "error of the prediction")


@dataclass(frozen=True, kw_only=True)
class AveragedTraining(Training):
    """Of what learns to denoise."""

    use_ema: bool = option(True, "validate, preview and save a moving average of the weights")
    ema_decay: float = option(0.9999, "of the moving average, at its highest")
    ema_warmup: bool = option(True, "a shorter average at first; false as published")
    validation_timesteps: Count = option(4, "noise levels at which each validation volume is judged")
    dataloader_num_workers: int = option(2, "processes that load samples; 0 loads them in the training process")


@dataclass(frozen=True, kw_only=True)
class PreviewedTraining(AveragedTraining):
    """Of what draws volumes while it learns."""

    preview_epochs: float = option(50.0, "between two previews: volumes sampled from the EMA weights")
    preview_steps: Count | None = option(None, "the same in steps")
    preview_samples: int = option(2, "volumes a preview; 0 for none")
    preview_inference_steps: Count = option(25, "steps of the sampler")
    preview_guidance_scale: float = option(1.0, "classifier-free guidance of labelled previews")


@dataclass(frozen=True, kw_only=True)
class DiTTraining(PreviewedTraining):
    learning_rate: float = option(1e-4, "at its highest")
    weight_decay: float = option(1e-4, "of matrices; biases, norms and embeddings do not decay")
    num_train_epochs: Count = option(3000, "passes over the training data")
    lr_scheduler: Literal["constant", "cosine", "exponential"] = option("cosine", "course of the rate")
    lr_warmup_epochs: float = option(100.0, "in which the rate rises from 0")
    lora_rank: int = option(0, "train a LoRA adapter of this rank on top of --init_from; 0 trains all weights")
    lora_alpha: float | None = option(None, "strength of the adapter; default: its rank")


@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """A config of stage 2."""

    dimensions: Literal[3, 4] | None = option(
        None, "4: cine (CardioDiT); 3: volumes (VolDiT); default: what the latents have"
    )
    label_column: str | None = option(None, "of the manifest, to be learned as class labels; null for none")
    model: TransformerSettings = TransformerSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    training: DiTTraining = DiTTraining()


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """`TGCAAdapterModel`."""

    inject_layers: int | tuple[int, ...] | None = option(
        None, "blocks that are steered: null for all, a number for the last so many, or a list"
    )
    channels: tuple[Count, ...] = option((8, 16, 32, 64, 128), "widths while masks become tokens")
    strides: tuple[tuple[Count, ...], ...] | None = option(
        None, "of all but the first; default: halved as often as a token is large, four times at most"
    )
    normalise_control: bool = option(False, "as the released code has it, where gate and scale do nothing")
    finetune_last_n_blocks: int = option(0, "of the base, which are trained too, with its head; 0 for none")


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """What masks become, and how often they are left out while training."""

    keys: tuple[str, ...] = option(("mask",), "columns of the manifests of latents that name masks")
    labels: tuple[tuple[int, ...], ...] | None = option(
        None, "of each mask, the labels that become channels; null: a mask is one channel, as it is"
    )
    other_labels: Literal["refuse", "background"] = option(
        "refuse", "labels that are not among them are an error, or background"
    )
    dropout_prob: float = option(0.1, "of all masks together, so that a base without them is learned too")
    channel_dropout_prob: float = option(0.1, "of each channel where there are several")
    patch_dropout_prob: float = option(0.0, "of each box of patch_dropout_size")
    patch_dropout_size: Count = option(16, "voxels along every axis")


@dataclass(frozen=True, kw_only=True)
class TGCATraining(AveragedTraining):
    learning_rate: float = option(5e-5, "at its highest")
    weight_decay: float = option(0.01, "of matrices; biases, norms and embeddings do not decay")
    num_train_epochs: Count = option(500, "passes over the training data")
    train_batch_size: Count = option(2, "samples a process and forward pass")
    lr_scheduler: Literal["constant", "cosine", "exponential"] = option("exponential", "course of the rate")
    lr_warmup_epochs: float = option(0.0, "in which the rate rises from 0")
    lr_gamma: float = option(0.999, "factor an epoch of exponential")
    noise_power: float = option(
        1.0, "1 visits all noise levels alike, as published; 6 mostly the first, where masks decide what lies where"
    )


@dataclass(frozen=True, kw_only=True)
class TGCASettings:
    """A config of the adapter."""

    label_column: str | None = option(None, "of the manifests, where the base knows class labels; null for none")
    conditions: ConditionSettings = ConditionSettings()
    adapter: AdapterSettings = AdapterSettings()
    loss: Literal["smooth_l1", "mse", "l1"] = option("smooth_l1", "error of the prediction")
    training: TGCATraining = TGCATraining()


AS_IT_IS = AugmentationSettings(rotation_probability=0.0, flip_probability=0.0)


@dataclass(frozen=True, kw_only=True)
class PRDiTModelSettings:
    """`PRDiTTransformerModel`."""

    patch_size: Count = option(12, "voxels along each side of a patch, whose middle 8 are predicted; 8: no overlap")
    num_layers: int = option(0, "blocks of the refiner; 0 is stage 1, the local denoiser alone")
    num_attention_heads: Count = option(12, "heads")
    attention_head_dim: Count = option(64, "width of a head")
    mlp_ratio: float = option(4.0, "width of the refiner's MLPs over the width of its tokens")


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """`NoiseAndImageScheduler`."""

    num_train_timesteps: Count = option(1000, "steps between image and noise")
    noise_scale: float = option(0.5, "standard deviation of the noise")
    solver: Literal["hot", "euler"] = option("hot", "of samples: hot is the stochastic predictor-corrector")


@dataclass(frozen=True, kw_only=True)
class PRDiTDataSettings(DataSettings):
    augmentation: AugmentationSettings = AS_IT_IS


@dataclass(frozen=True, kw_only=True)
class PRDiTTraining(PreviewedTraining):
    learning_rate: float = option(1e-4, "at its highest")
    num_train_epochs: Count = option(1000, "passes over the training data")
    preview_inference_steps: Count = option(100, "steps of the sampler")


@dataclass(frozen=True, kw_only=True)
class PRDiTSettings:
    """A config of PRDiT."""

    model: PRDiTModelSettings = PRDiTModelSettings()
    process: ProcessSettings = ProcessSettings()
    data: PRDiTDataSettings = PRDiTDataSettings()
    training: PRDiTTraining = PRDiTTraining()


ANATOMY_KEPT = AugmentationSettings(
    rotation_degrees=15.0, rotation_probability=0.5, flip_probability=0.0, intensity_probability=0.8
)


@dataclass(frozen=True, kw_only=True)
class SegmenterModelSettings:
    """`HeartSegmenter`."""

    channels: tuple[Count, ...] = option((16, 32, 64, 64), "width of each of the four levels")
    num_labels: Count = option(4, "with the background")


@dataclass(frozen=True, kw_only=True)
class SegmenterDataSettings:
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    augmentation: AugmentationSettings = ANATOMY_KEPT
    blur: float = option(1.0, "voxels; half of the images are blurred by up to so much")
    noise: float = option(0.1, "standard deviation of noise that is added, at most; the range is 2")


@dataclass(frozen=True, kw_only=True)
class SegmenterTraining(Training):
    learning_rate: float = option(1e-3, "at its highest")
    train_batch_size: Count = option(8, "frames a process and forward pass")
    lr_scheduler: Literal["constant", "cosine", "exponential"] = option("cosine", "course of the rate")


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """A config of the segmenter."""

    model: SegmenterModelSettings = SegmenterModelSettings()
    data: SegmenterDataSettings = SegmenterDataSettings()
    training: SegmenterTraining = SegmenterTraining()


@dataclass(frozen=True)
class Leaf:
    """A key of a config class.

    Args:
        name: dotted.
        default, help: of its field.
        choices: what it may be, where that is a list.
        is_switch: true or false.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...]
    is_switch: bool


def leaves(kind: type, at: str = "") -> list[Leaf]:
    """Every key of a config class and its sections."""
    found = []
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        name, options = f"{at}{f.name}", options_of(hints[f.name])
        sections = [o for o in options if is_dataclass(o)]
        choices = [str(c) for o in options if typing.get_origin(o) is Literal for c in typing.get_args(o)]
        if sections:
            found += leaves(typing.cast(type, sections[0]), f"{name}.")
        else:
            found.append(Leaf(name, f.default, f.metadata.get("help", ""), tuple(choices), bool in options))
    return found
