"""Many samples into one folder: in batches, over processes, and on from where an interrupted call stopped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.sample_records import read_sample_list
from cardiodit.errors import Problems
from cardiodit.imaging.volume import AXES
from cardiodit.pipelines.mask_rows import MaskRows
from cardiodit.pipelines.output import VolumePipelineOutput, check_folder, sample_path
from cardiodit.pipelines.provenance import describe_model

# What makes another volume of the same seed and index; the rest (device, seconds, batch) does not, or hardly.
DECISIVE = (
    *("revision", "solver", "dtype", "num_inference_steps", "guidance_scale", "eta", "class_label", "latent_size"),
    *("masks", "conditioning_scale", "condition_guidance_scale"),
    *("control_guidance_start", "control_guidance_end"),
)


@dataclass(frozen=True)
class Order:
    """What is to be sampled.

    Args:
        seed: sample i of a seed is always the same.
        first, count: numbers of the samples.
        labels: classes that the samples get in turn, by their numbers; empty for none.
        settings: further arguments of the pipeline's call, the same for all.
        masks: that steer the samples, by their numbers; None without.
    """

    seed: int
    first: int
    count: int
    labels: Sequence[int | str] = ()
    settings: dict[str, Any] | None = None
    masks: MaskRows | None = None

    def label(self, index: int) -> int | str | None:
        return self.labels[index % len(self.labels)] if self.labels else None


def sample_many(
    pipe: Any, folder: Path, order: Order, batch_size: int = 1, process: int = 0, processes: int = 1
) -> Iterator[Path]:
    """Makes the samples that the folder does not hold yet, and yields each file when it is written.

    Args:
        pipe: the pipeline.
        folder: new, empty, or one of samples; a sample that is there must have been made in the same way.
        order: what is to be sampled.
        batch_size: volumes at once; the result is the same.
        process, processes: this one makes its share of what is missing.
    """
    # By number, not by place among the missing: other processes may be writing already.
    missing = [index for index in missing_samples(pipe, folder, order) if index % processes == process]
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for run in consecutive(batch) if order.masks is None else [[index] for index in batch]:
            output = _make(pipe, order, run)
            for index in run:
                sample_path(folder, order.seed, index).unlink(missing_ok=True)  # written, but not recorded
            yield from output.save(folder)


def _make(pipe: Any, order: Order, run: Sequence[int]) -> VolumePipelineOutput:
    """Samples that follow each other; steered ones come alone, since each has a place of its own in the scanner."""
    labels = [order.label(index) for index in run] if order.labels else None
    common = {"num_samples": len(run), "seed": order.seed, "first_sample": run[0], "class_labels": labels}
    if order.masks is None:
        return pipe(**common, **(order.settings or {}))
    masks, geometry = order.masks[run[0]]
    output = pipe(masks, **common, **(order.settings or {}))
    frame_time = geometry.frame_time or output.geometry.frame_time
    output.geometry = geometry.with_frame_time(frame_time)
    return output


def consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Runs of numbers that follow each other, as the pipeline's `first_sample` counts them."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def missing_samples(pipe: Any, folder: Path, order: Order) -> list[int]:
    """Numbers of the samples that are not there and recorded; others must be what would be made now."""
    check_folder(folder, [])
    held = read_sample_list(folder)
    missing = []
    problems = Problems(f"{folder} holds samples that were made otherwise")
    for index in range(order.first, order.first + order.count):
        path = sample_path(folder, order.seed, index)
        record = held.get(path.name)
        if record is None or not path.is_file():
            missing.append(index)
            continue
        now = _expected(pipe, order, index)
        differing = [
            f"{key} was {record[key]}, now {now[key]}" for key in now if key in record and record[key] != now[key]
        ]
        if differing:
            problems.add(f"{path.name}: {'; '.join(differing)}")
    problems.raise_if_any("Choose another --output_dir, another --seed, or the same settings.")
    return missing


def _expected(pipe: Any, order: Order, index: int) -> dict[str, Any]:
    """What the record of a sample would say now, as far as that is known beforehand."""
    label, names, settings = order.label(index), pipe.transformer.config.get("class_names"), order.settings or {}
    if order.masks is None:
        asked = {axis: settings.get(axis) for axis in AXES}
        made = {"latent_size": pipe.latent_size(**asked)}
    else:
        made = {"latent_size": pipe.latent_size_of(order.masks.shapes[index]), "masks": order.masks.identities[index]}
    known = {
        **describe_model(pipe),
        **settings,
        **made,
        "class_label": names[label] if names and isinstance(label, int) else label,
    }
    return {key: known[key] for key in DECISIVE if key in known}
