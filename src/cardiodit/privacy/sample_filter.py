"""A filter of samples: those as near to a training patient as an audit's threshold allows nobody are not written.

`audit.json` holds thresholds and hashes but no images, so the training volumes are described again, or read from the
audit's cache. That they are the audited ones is checked by the hash over their contents.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.volume_sets import open_real
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.preprocessing import Preprocessing, without_typical
from cardiodit.pipelines.output import VolumePipelineOutput
from cardiodit.privacy.audit import CACHE, TRAINING, named, usable
from cardiodit.privacy.detectors import Detector, DetectorConfig, open_detector
from cardiodit.privacy.identities import known_cohort, model_folder
from cardiodit.privacy.report import REPORT, read_audit
from cardiodit.privacy.search import References, embed_all

NOTE = (
    "Filtering samples afterwards does not make the weights private: whoever has the weights can generate what was "
    "dropped."
)


@dataclass(frozen=True)
class SearchedDetector:
    """A detector with the training volumes that it searches, and the distance below which a sample is dropped."""

    detector: Detector
    references: References
    threshold: float

    def distance(self, voxels: np.ndarray, spacing: Any) -> float:
        rows = self.detector.rows(voxels, spacing, is_query=True, is_generated=True)
        rows = rows.astype(np.float16).astype(np.float32)  # as in the audit's cache
        return float(self.references.distances(lambda _: rows, 1).min())


@dataclass(frozen=True)
class CopyFilter:
    """Drops samples that are nearer to a training volume than 95% of an audit's held-out patients are.

    Args:
        audit: hash of the audit's file.
    """

    audit: str
    searches: tuple[SearchedDetector, ...]

    @property
    def description(self) -> dict[str, Any]:
        """The description of the filter in every sample's record."""
        return {"audit": self.audit, "detectors": [each.detector.name for each in self.searches], "note": NOTE}

    def reasons(self, output: VolumePipelineOutput) -> list[str | None]:
        """Return why each sample is dropped, or None; samples are compared as they would be read from their files."""
        return [self._reason(output, volume) for volume in np.asarray(output.volumes, np.float32)]

    def _reason(self, output: VolumePipelineOutput, volume: np.ndarray) -> str | None:
        voxels = output.in_units(volume)
        voxels = np.clip(voxels, -1, 1) if output.units is None else to_model(voxels, output.units)
        for search in self.searches:
            distance = search.distance(voxels, output.geometry.spacing)
            if distance < search.threshold:
                return (
                    f"It is a copy by the audit's rule: {search.detector.name} measures a distance of {distance:.4g} "
                    f"to the nearest training volume, and 95% of held-out patients are {search.threshold:.4g} or more "
                    "away."
                )
        return None


def open_filter(
    path: Path,
    training: Path,
    pipe: Any,
    model: str,
    trained_detectors: Sequence[str] = (),
    weights: str | None = None,
    device: str = "cpu",
) -> CopyFilter:
    """Prepare a filter by an audit's thresholds.

    Args:
        path: `audit.json`, or the folder of an audit, whose cache is then used.
        training: manifest of the audited training volumes.
        pipe, model: the pipeline that samples, and its name.
        trained_detectors: run folders of train_copy_detector, for detectors that the audit calls "trained".
        weights: of a feature network.
    """
    report, file = read_audit(path), path / REPORT if path.is_dir() else path
    steps = _preprocessing(report, pipe, file)
    trained_on = known_cohort(model_folder(model))
    if trained_on is not None and trained_on.match(report["model"]["cohort"]) is None:
        raise CardioDiTError(
            f"{file} is the audit of another training cohort than that of {model} ({trained_on.source} records "
            f"{trained_on.identity[:16]}). Give the audit of this model."
        )
    volumes = named(open_real(training), TRAINING)
    paths = list(trained_detectors)
    searches = []
    with ExitStack() as stack:
        cache = file.parent / CACHE
        if not cache.is_dir():  # such as beside published weights, where nothing about patients may lie
            cache = Path(stack.enter_context(TemporaryDirectory(prefix="cardiodit-filter-")))
        for part in report["detectors"]:
            config = DetectorConfig(_name(part, paths, file), model, weights, device)
            detector = _same_detector(part, config, file)
            results = list(embed_all(volumes.items, steps, config, cache, Workers(), is_query=False))
            described = usable(volumes, results)
            if described.identity != report["sets"][TRAINING]["identity"]:
                raise CardioDiTError(
                    f"{training} does not list the {report['sets'][TRAINING]['volumes']} training volumes that {file} "
                    f"searched ({len(described.items)} can be used, with other contents). Give the manifest of the "
                    "audit, or audit again."
                )
            references = References.of(described.described, described.patients)
            searches.append(SearchedDetector(detector, references, _threshold(part, file)))
    return CopyFilter(sha256_of(file), tuple(searches))


def _preprocessing(report: dict[str, Any], pipe: Any, file: Path) -> Preprocessing:
    """Return how training volumes were prepared, with the model's usual grey values, on which the cache depends."""
    audited = Preprocessing.from_dict(report["preprocessing"])
    if pipe.facts.preprocessing is None:
        return audited
    own = Preprocessing.from_dict(pipe.facts.preprocessing)
    own = replace(own, size=(*own.size[:2], audited.size[2]), spacing=audited.spacing)
    if without_typical(own) != audited:
        raise CardioDiTError(
            f"{file} prepared training volumes in another way than this model's training did, so that distances cannot "
            "be compared. Give the audit of this model."
        )
    return own


def _name(part: dict[str, Any], trained_detectors: list[str], file: Path) -> str:
    name = str(part["detector"]["name"])
    if name != "trained":
        return name
    if not trained_detectors:
        raise CardioDiTError(f"{file} used a trained detector: name its run folder with --filter_detector.")
    return trained_detectors.pop(0)


def _same_detector(part: dict[str, Any], config: DetectorConfig, file: Path) -> Detector:
    detector = open_detector(config)
    if detector.identity != part["detector"]["identity"]:
        raise CardioDiTError(
            f"The detector {config.name} is not the one that {file} used: its weights or settings differ, so that the "
            "threshold does not apply. Audit again."
        )
    return detector


def _threshold(part: dict[str, Any], file: Path) -> float:
    threshold = part["copies"].get("threshold")
    if threshold is None:
        raise CardioDiTError(f"{file} records no threshold for samples; run `cardiodit audit` again.")
    return float(threshold)
