"""Train a ControlNet by which masks steer a trained U-Net of MedLoRD; the U-Net stays as it is.

The same as `train_tgca`, with another adapter: input is a pipeline and two manifests of latents with masks
(`cardiodit encode --condition_keys`); output, in OUTPUT_DIR/RUN_NAME, checkpoints, `best/`, and `pipeline/`, which
`cardiodit sample --masks` opens.
"""

from collections.abc import Sequence

from cardiodit.training.adapter_model import new_controlnet
from cardiodit.training.harness.command_line import read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.settings import ControlNetSettings
from cardiodit.training.train_tgca import add_options, train
from cardiodit.training.upstream_config import translate_controlnet

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_controlnet --config medlord/controlnet.yaml \\\n"
    "    --base runs/unet/pipeline --training_ids latents/training/manifest.csv \\\n"
    "    --validation_ids latents/validation/manifest.csv --output_dir runs --run_name controlnet"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        ControlNetSettings,
        "Train a ControlNet through which masks steer a trained U-Net (MedLoRD, stage 3).",
        EXAMPLE,
        translate_controlnet,
        add_options,
        can_tune=False,
    )
    with Run(request, "train_controlnet") as run:
        train(request, run, new_controlnet)


if __name__ == "__main__":
    run_script(main)
