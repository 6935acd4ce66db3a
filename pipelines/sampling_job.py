"""Sample into a folder in batches, over several processes, resuming where an interrupted call stopped."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cardiodit._util.atomic_io import append_line
from cardiodit._util.sample_records import DROPPED, SAMPLE_LIST, list_of_process, read_sample_list
from cardiodit._util.terminal import SharedBar
from cardiodit.errors import Problems
from cardiodit.imaging.volume import AXES
from cardiodit.pipelines.condition_rows import ConditionRows
from cardiodit.pipelines.mask_rows import MaskRows
from cardiodit.pipelines.output import VolumePipelineOutput, check_folder, describe_model, sample_path

# Settings that change the volume of a given seed and index; others (device, seconds, batch) do not.
DECISIVE = (
    *("revision", "solver", "dtype", "num_inference_steps", "guidance_scale", "eta", "class_label", "latent_size"),
    *("masks", "conditioning_scale", "condition_guidance_scale"),
    *("control_guidance_start", "control_guidance_end"),
    *("conditions", "guidance_over"),
)

FILTER = "filter"  # key of a record: the filter that the sample passed, or that dropped it


class SampleFilter(Protocol):
    """Decides which samples are written, such as `cardiodit.privacy.sample_filter.CopyFilter`."""

    @property
    def description(self) -> dict[str, Any]:
        """What every sample's record says about the filter; another description is another filter."""

    def reasons(self, output: VolumePipelineOutput) -> list[str | None]:
        """Return for each sample why it is dropped, or None."""


@dataclass(frozen=True)
class SamplingJob:
    """Samples to generate.

    Args:
        seed: random seed; sample i of a seed is always the same.
        first, count: number of the first sample, and how many samples.
        labels: class labels that are cycled over the samples; empty for none.
        settings: further arguments of the pipeline's call, the same for all samples.
        masks: masks that steer the samples, by sample number; None without steering.
        filter: decides which samples are written; None writes all.
        conditions: clinical conditions, by sample number; None gives none.
    """

    seed: int
    first: int
    count: int
    labels: Sequence[int | str] = ()
    settings: dict[str, Any] | None = None
    masks: MaskRows | None = None
    filter: SampleFilter | None = None
    conditions: ConditionRows | None = None

    def label(self, index: int) -> int | str | None:
        return self.labels[index % len(self.labels)] if self.labels else None


def sample_many(
    pipe: Any, folder: Path, job: SamplingJob, batch_size: int = 1, process: int = 0, processes: int = 1
) -> Iterator[Path]:
    """Generate the samples that a folder lacks, and yield each file once it is written.

    Args:
        pipe: the pipeline.
        folder: new or empty folder, or one of samples; samples in it must have been made with the same settings.
        job: the samples to generate.
        batch_size: volumes per batch; does not change the samples.
        process, processes: index of this process and number of processes, each of which makes its share.
    """
    # Shares are by sample number, not by place among the missing: other processes may already be writing.
    sample_list = SAMPLE_LIST if processes == 1 else list_of_process(process)
    missing = [index for index in missing_samples(pipe, folder, job) if index % processes == process]
    half_written = _half_written(folder)
    batches = (missing[start : start + batch_size] for start in range(0, len(missing), batch_size))
    if job.masks is None:
        runs = [run for batch in batches for run in consecutive(batch)]
    else:
        runs = [[index] for index in missing]  # each has its own mask
    with SharedBar(pipe, len(runs), is_shown=process == 0):
        for run in runs:
            output = _generate(pipe, job, run)
            for index in run:
                path = sample_path(folder, job.seed, index)
                path.unlink(missing_ok=True)  # written, but not recorded
                for other in half_written.get(path.name.partition(".")[0], ()):
                    other.unlink(missing_ok=True)
            for part in _kept(output, job.filter, folder, sample_list):
                yield from part.save(folder, sample_list)


def _kept(
    output: VolumePipelineOutput, filter: SampleFilter | None, folder: Path, sample_list: str
) -> Iterator[VolumePipelineOutput]:
    """Yield what is to be written; a sample that the filter drops leaves only a record with the reason."""
    if filter is None:
        yield output
        return
    for place, reason in enumerate(filter.reasons(output)):
        one = output[place]
        one.records[0][FILTER] = filter.description
        if reason is None:
            yield one
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLE_LIST).touch()
        record = one.records[0]
        name = sample_path(folder, record["seed"], record["index"]).name
        append_line(folder / sample_list, json.dumps({"file": name, DROPPED: reason, **record}))


def _half_written(folder: Path) -> dict[str, list[Path]]:
    """Return what interrupted calls left half-written, by the names of their samples."""
    found: dict[str, list[Path]] = {}
    for path in folder.glob(".tmp-*-*"):
        found.setdefault(path.name.split("-", 2)[2].partition(".")[0], []).append(path)
    return found


def _generate(pipe: Any, job: SamplingJob, run: Sequence[int]) -> VolumePipelineOutput:
    """Generate consecutive samples; steered ones one by one, since each has its own position in the scanner."""
    labels = [job.label(index) for index in run] if job.labels else None
    common: dict[str, Any] = {"num_samples": len(run), "seed": job.seed, "first_sample": run[0], "class_labels": labels}
    if job.conditions is not None:
        common["conditions"] = [job.conditions[index] for index in run]
    if job.masks is None:
        return pipe(**common, **(job.settings or {}))
    masks, geometry = job.masks[run[0]]
    output = pipe(masks, **common, **(job.settings or {}))
    frame_time = geometry.frame_time or output.geometry.frame_time
    output.geometry = geometry.with_frame_time(frame_time)
    return output


def consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Split numbers into runs of consecutive ones, as the pipeline's `first_sample` counts them."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def missing_samples(pipe: Any, folder: Path, job: SamplingJob) -> list[int]:
    """Return the numbers of the samples that are missing; existing ones must have been made with the same settings."""
    check_folder(folder, [])
    records = read_sample_list(folder, with_dropped=True)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    model = describe_model(pipe) if records else {}
    missing = []
    problems = Problems(f"{folder} contains samples that were made with other settings")
    for index in range(job.first, job.first + job.count):
        path = sample_path(folder, job.seed, index)
        record = records.get(path.name)
        if record is None or (DROPPED not in record and path.name not in present):
            missing.append(index)
            continue
        now = _expected(pipe, model, job, index)
        differing = [
            f"{key} was {record[key]}, now {now[key]}" for key in now if key in record and record[key] != now[key]
        ]
        if (was := record.get(FILTER)) != (own := job.filter.description if job.filter else None):
            differing.append(f"filter was {_in_words(was)}, now {_in_words(own)}")
        if differing:
            problems.add(f"{path.name}: {'; '.join(differing)}")
    problems.raise_if_any("Choose another --output_dir, another --seed, or the same settings.")
    return missing


def _in_words(filter: dict[str, Any] | None) -> str:
    return "none" if filter is None else f"by {', '.join(filter['detectors'])} of the audit {filter['audit'][:12]}"


def _expected(pipe: Any, model: dict[str, Any], job: SamplingJob, index: int) -> dict[str, Any]:
    """Return what the record of a sample would say now, as far as that is known before sampling."""
    label, names, settings = job.label(index), pipe.denoiser.config.get("class_names"), job.settings or {}
    if job.masks is None:
        made = {"latent_size": pipe.latent_size(**{axis: settings.get(axis) for axis in AXES})}
    else:
        made = {"latent_size": pipe.latent_size_of(job.masks.shapes[index]), "masks": job.masks.identities[index]}
    asked: dict[str, Any] = {} if pipe.conditions is None else {"conditions": {}, "guidance_over": None}
    if job.conditions is not None:
        asked["conditions"] = job.conditions[index]
    known = {
        **model,
        **asked,
        **settings,
        **made,
        "class_label": names[label] if names and isinstance(label, int) else label,
    }
    return {key: known[key] for key in DECISIVE if key in known}
