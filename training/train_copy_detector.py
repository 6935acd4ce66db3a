"""Train the detector of copies for `cardiodit audit`: views of one patient get similar embeddings, those of others not.

Input: the manifests of the images that a generator was trained on and validated with. Output, in OUTPUT_DIR/RUN_NAME:
checkpoints, and `best/copy_detector` with the lowest contrastive loss on the validation volumes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from cardiodit._util.hashing import sha256_of
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.models.copy_detector import DIGITS, CopyDetector, nt_xent
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.schedule import SampleOrder, seed_for
from cardiodit.training.harness.state import Network, Optimizer, decay_groups
from cardiodit.training.image_data import preprocessing_of, read_volumes
from cardiodit.training.settings import CopyDetectorSettings, build_augmentation

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_copy_detector --config phantom/copy_detector.yaml \\\n"
    "    --training_ids phantoms/manifest.csv --validation_ids fresh/manifest.csv --output_dir runs --run_name detector"
)
Batch = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        CopyDetectorSettings,
        "Train the detector of copies for `cardiodit audit` on the images that a generator was trained on.",
        EXAMPLE,
        None,
        can_tune=False,
    )
    with Run(request, "train_copy_detector") as run:
        train(request, run)


def train(request: Request[CopyDetectorSettings], run: Run) -> None:
    settings, training = request.settings, request.settings.training
    if training.train_batch_size < 2:
        raise CardioDiTError("train_batch_size=1: the contrastive loss compares patients, so it needs at least 2.")
    volumes, validation = read_volumes(run, request, preprocessing_of(request))
    if len(validation) < 2 or len(volumes) < training.train_batch_size:
        raise CardioDiTError(
            f"There are {len(volumes)} training and {len(validation)} validation volumes; at least a batch "
            f"({training.train_batch_size}) and 2 are needed."
        )
    run.open(len(volumes), {"training_data": volumes.identity, "validation_data": validation.identity})
    torch.manual_seed(generator_for(seed_for(training.seed, "weights"), 0).initial_seed())
    model = CopyDetector(
        **settings.model,
        is_cine=len(volumes.shapes[0]) == 5,
        preprocessing=volumes.steps.to_dict(),
        training_data=volumes.identity,
        seen_files=sorted(sha256_of(case.image)[:DIGITS] for case in (*volumes.cases, *validation.cases)),
    )
    optimizer = torch.optim.Adam(decay_groups(model, training.weight_decay), training.learning_rate)
    model, optimizer = run.accelerator.prepare(model, optimizer)
    bare = run.accelerator.unwrap_model(model)
    networks = [Network("copy_detector", bare)]
    run.register([*networks, Optimizer("optimizer", bare, optimizer)], [(optimizer, training.learning_rate)])

    augmentation = build_augmentation(settings.data.augmentation)
    loader = run.loader(ViewDataset(volumes, augmentation, bare, training.seed))
    fixed = ViewDataset(validation, augmentation, bare, seed_for(training.seed, "validation"))
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        for batch in run.accumulating(model, batches):
            rows = model(torch.cat([batch["plain"], batch["altered"]]))
            loss = nt_xent(rows[: len(rows) // 2], rows[len(rows) // 2 :], settings.temperature)
            run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, model)
        run.log({"loss": total}, batches)
        if run.is_due(validate_every):
            run.validated(validate(bare, fixed, settings.temperature), networks, by="validation_loss")
    if run.was_interrupted:
        return
    run.finish()
    run.say(f"The detector is {run.folder}; use it with `cardiodit audit --detector {run.folder}`.")


class ViewDataset(Dataset):
    """Pairs of views by visit number: as published, one is the volume itself and only the other is altered.

    Of a cine, one random slice is taken, and the beat of the altered view begins with a random frame.
    """

    def __init__(self, volumes: PreparedVolumes, augmentation: Augmentation, model: CopyDetector, seed: int) -> None:
        augmentation.check(model.config.is_cine)
        self.volumes, self.augmentation, self.model = volumes, augmentation, model
        self.order = SampleOrder(len(volumes), seed)
        self.seed = seed_for(seed, "views")

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, visit: int) -> Batch:
        index = self.order[visit]
        generator = generator_for(self.seed, visit)
        shape, case = self.volumes.shapes[index], self.volumes.cases[index]
        slice_, first = torch.rand(2, generator=generator).tolist()
        is_cine = len(shape) == 5
        image = self.volumes.slice_of(index, int(slice_ * shape[1])) if is_cine else self.volumes[index]
        spacing = self.volumes.geometries[index].spacing or (1.0, 1.0, 1.0)
        altered, _ = self.augmentation(image, (), generator, spacing=spacing)
        if is_cine:
            altered = altered.roll(int(first * shape[4]), dims=3)
        return {"plain": self._view(image), "altered": self._view(altered), "subject": case.subject}

    def _view(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's input `(1, *size)` of a slice `(1, H, W, T)` or a volume `(1, H, W, D)`."""
        voxels = image[0][:, :, None] if self.model.config.is_cine else image[0]
        return self.model.views_of(voxels)[0]


@torch.no_grad()
def validate(model: CopyDetector, views: ViewDataset, temperature: float) -> dict[str, float]:
    """Return the contrastive loss of all validation volumes, and the share of views not recognized."""
    model.eval()
    pairs = [views[i] for i in range(len(views))]
    rows = []
    for name in ("plain", "altered"):
        inputs = torch.stack([pair[name] for pair in pairs])
        rows.append(torch.cat([model(part.to(model.device)) for part in inputs.split(8)]))
    model.train()
    similarity = torch.nn.functional.cosine_similarity(rows[1][:, None], rows[0][None], dim=2)
    found = similarity.argmax(dim=1) == torch.arange(len(pairs), device=similarity.device)
    loss = nt_xent(rows[0], rows[1], temperature)
    return {"validation_loss": loss.item(), "validation_recognition_error": 1 - found.float().mean().item()}


if __name__ == "__main__":
    run_script(main)
