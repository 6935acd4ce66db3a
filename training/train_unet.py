"""Stage 2 of MedLoRD: train a U-Net on the latents of a cohort.

The same as `train_dit`, with another network: input is a VQ model of stage 1 and two manifests of latents or of images;
output, in OUTPUT_DIR/RUN_NAME, checkpoints, `best/`, previews, and `pipeline/`, which
`MedLoRDPipeline.from_pretrained` and `cardiodit sample` open.
"""

from collections.abc import Sequence

from cardiodit.training.harness.command_line import read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.settings import UNetSettings
from cardiodit.training.train_dit import add_options, train
from cardiodit.training.upstream_config import translate_unet

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_unet --config medlord/medlord.yaml --vae runs/vqgan \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name unet"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        UNetSettings,
        "Train MedLoRD's U-Net on the latents of a VQ-GAN (stage 2).",
        EXAMPLE,
        translate_unet,
        add_options,
    )
    with Run(request, "train_unet") as run:
        train(request, run)


if __name__ == "__main__":
    run_script(main)
