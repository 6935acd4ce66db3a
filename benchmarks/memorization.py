"""Measure what `cardiodit audit` finds: planted copies, overtrained models, and how long a search takes.

    python benchmarks/memorization.py planted --output memorization     which altered copies of phantoms are found
    python benchmarks/memorization.py scale                             1000 samples among 10,000 training volumes
    python benchmarks/memorization.py series --output memorization      models of 12 to 400 hearts, and early stopping
    python benchmarks/memorization.py bundled --output memorization     the model in checkpoints/cardiodit-phantom

`series` trains the same small model on 12, 50, 200 and 400 phantoms, and audits the last weights of each. Run again to
resume. Results are added to results.json in the output folder; `series` also writes series.md and series.png.
"""

import argparse
import csv
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file, new_folder
from cardiodit.cli import main as cardiodit
from cardiodit.evaluation.features import Choice, load_network
from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.volume_sets import Item, load, open_real, open_synthetic, settle_preprocessing
from cardiodit.evaluation.workers import Workers
from cardiodit.hub.load import open_transformer, open_vae
from cardiodit.imaging.phantom import GROUPS, write_cohort
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.pipelines.load import open_pipeline
from cardiodit.privacy.audit import AuditSettings, audit
from cardiodit.privacy.detectors import ALTERED, LATENTS, PIXELS, DetectorConfig
from cardiodit.privacy.findings import Distances, findings_of
from cardiodit.privacy.planted import sensitivity
from cardiodit.privacy.search import Embedded, References, embed_all
from cardiodit.privacy.statistics import LEVEL, proportion_interval
from cardiodit.training import train_dit, train_vqgan

BASE = "cardiodit-phantom"
COHORTS = {"training": (400, 0), "validation": (32, 1), "held_out": (100, 2)}  # number and seed
HEARTS, STOPPED = (12, 50, 200, 400), 50
SIZE = (32, 32, 2, 8)
CONFIGS = "phantom/memorization"
RESULTS = "results.json"
SLICES, FEATURES = 8, 768  # of the rows of the detector `pixels` for a cine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100, help="of each model (%(default)s)")
    parser.add_argument("--detector", default=PIXELS, help="of planted copies (%(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the volumes of `scale`, for a trial (%(default)s)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](arguments)


def keep(folder: Path, name: str, result: Any) -> None:
    file = folder / RESULTS
    results = json.loads(file.read_text()) if file.is_file() else {}
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps({**results, name: result}, indent=1) + "\n")
    print(name, json.dumps(result), flush=True)


def processor_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


# --- Models of 12 to 400 hearts ---


def series(arguments: argparse.Namespace) -> None:
    folder = arguments.output
    latents = prepare(folder)
    for hearts in HEARTS:
        began = processor_seconds()
        trained = train(folder, latents, f"hearts{hearts}", hearts)
        model = last_weights(trained)
        examine(folder, f"hearts{hearts}", model, hearts, arguments.samples, processor_seconds() - began)
    began = processor_seconds()
    stopping = ["--stop_when", "memorizing", "--validation_steps", "50"]
    stopped = train(folder, latents, f"hearts{STOPPED}-stopped", STOPPED, *stopping)
    seconds = processor_seconds() - began
    examine(folder, f"hearts{STOPPED}-stopped", stopped / "pipeline", STOPPED, arguments.samples, seconds)
    found = json.loads((folder / RESULTS).read_text())
    write_table(folder / "series.md", {name: row for name, row in found.items() if name.startswith("hearts")})
    write_plot(folder / "series.png", [found[f"hearts{hearts}"] for hearts in HEARTS])


def write_table(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Write what was found of each model, by both detectors and by the loss."""
    lines = [
        "| hearts | copies by pixels, % | copies by latents, % | patients by latents, % | named copies, patients | "
        "published rule: patients, % | AUC of the loss | Fréchet distance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        by = row["detectors"]
        shares = [by["pixels"]["copies_excess"], by["latents"]["copies_excess"], by["latents"]["patients_excess"]]
        cells = [f"{100 * s['value']:.0f} ({100 * s['low']:.0f} to {100 * s['high']:.0f})" for s in shares]
        named = f"{by['latents']['named_copies'] * row['samples']:.0f}, {by['latents']['named_patients']}"
        published = f"{100 * by['latents']['published']['patients']:.0f}"
        cells += [named, published, f"{row['loss_auc']['value']:.2f}", f"{row['frechet']:.3f}"]
        lines.append(f"| {name.removeprefix('hearts').replace('-', ', ')} | {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n")


def write_plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the excess of copies by latents, with its interval, over the number of training hearts (logarithmic)."""
    picture = Image.new("RGB", (720, 440), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    ticks = range(-20, 101, 20)

    def place(hearts: int, share: float) -> tuple[float, float]:
        along = np.log(hearts / HEARTS[0]) / np.log(HEARTS[-1] / HEARTS[0])
        return 110 + 540 * along, 380 - 340 * (100 * share - ticks[0]) / (ticks[-1] - ticks[0])

    for tick in ticks:
        (left, y), (right, _) = place(HEARTS[0], tick / 100), place(HEARTS[-1], 0)
        pen.line((left - 30, y, right + 30, y), fill="black" if tick == 0 else "lightgrey")
        pen.text((left - 40, y), f"{tick}%", "black", font, anchor="rm")
    points = []
    for row in rows:
        share = row["detectors"]["latents"]["copies_excess"]
        x, y = place(row["hearts"], share["value"])
        pen.line((x, place(row["hearts"], share["low"])[1], x, place(row["hearts"], share["high"])[1]), "grey", 3)
        pen.text((x, 390), str(row["hearts"]), "black", font, anchor="mt")
        points.append((x, y))
    pen.line(points, "firebrick", 2)
    for x, y in points:
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), "firebrick")
    pen.text((380, 12), "Copies among samples beyond chance (detector latents)", "black", font, anchor="mt")
    pen.text((380, 412), "training hearts", "black", font, anchor="mt")
    picture.save(path)


def prepare(folder: Path) -> Path:
    """Write the phantoms, their latents, and manifests of the first hearts."""
    for name, (number, seed) in COHORTS.items():
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed, SIZE)
    latents, vae = folder / "latents", folder / "vqgan"
    ids = [str(folder / name / "manifest.csv") for name in ("training", "validation")]
    if not (folder / "latents" / "training" / "manifest.csv").is_file():
        manifests = ["--training_ids", ids[0], "--validation_ids", ids[1]]
        train_vqgan.main(
            ["--config", f"{CONFIGS}/vqgan.yaml", *manifests, "--output_dir", str(folder), "--run_name", vae.name]
        )
        run(["encode", "--ids", *ids, "--vae", str(vae), "--output_dir", str(latents), "--batch_size", "2"])
        run(["scale-factor", "--latents", str(latents / "training" / "manifest.csv"), "--vae", str(vae)])
    for place in (folder / "training", latents / "training"):
        for hearts in HEARTS:
            write_first(place / "manifest.csv", hearts)
    return latents


def run(command: Sequence[str]) -> None:
    if cardiodit(command):
        raise SystemExit(1)


def write_first(manifest: Path, count: int) -> None:
    """Write a manifest of the first hearts beside that of all; the four groups alternate, so it is balanced."""
    with manifest.open(newline="") as file:
        rows = list(csv.reader(file))
    with manifest.with_name(f"first{count}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows[: count + 1])


def train(folder: Path, latents: Path, name: str, hearts: int, *more: str) -> Path:
    if not (folder / name / "pipeline").is_dir():
        ids = ["--training_ids", str(latents / "training" / f"first{hearts}.csv")]
        ids += ["--validation_ids", str(latents / "validation" / "manifest.csv")]
        options = ["--config", f"{CONFIGS}/dit.yaml", "--vae", str(folder / "vqgan"), *ids, "--output_dir", str(folder)]
        train_dit.main([*options, "--run_name", name, *more])
    return folder / name


def last_weights(run: Path) -> Path:
    """Write the pipeline of a run's last averaged weights, which the run itself only keeps in a checkpoint."""
    target = run / "last"
    if not target.is_dir():
        newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        pipe = open_pipeline(str(run / "pipeline"))
        pipe.transformer = open_transformer(newest / "transformer_ema")
        with new_folder(target) as temporary:
            pipe.save_pretrained(temporary)
    return target


def examine(folder: Path, name: str, model: Path, hearts: int, samples: int, seconds: float) -> None:
    """Sample from a model, audit it, and keep the numbers of the table."""
    began = processor_seconds()
    drawn = folder / "samples" / name
    options = ["--num_samples", str(samples), "--batch_size", "20", "--seed", "0", "--device", "cpu"]
    run(["sample", str(model), "--output_dir", str(drawn), "--decode_batch_size", "8", *options])
    sampled = processor_seconds() - began
    settings = AuditSettings(
        training=folder / "training" / f"first{hearts}.csv",
        held_out=folder / "held_out" / "manifest.csv",
        synthetic=drawn,
        output_dir=folder / "audits" / name,
        model=str(model),
        attack_volumes=50,
        detectors=(PIXELS, LATENTS),
        planted=0,
    )
    found = audit(settings)
    assert found is not None
    attacks = found.report["attacks"]
    result = {
        "hearts": hearts,
        "samples": samples,
        "detectors": {
            each["detector"]["name"]: {
                "copies_excess": each["copies"]["excess"],
                "patients_excess": each["patients"]["excess"],
                "published": each["published_rule"],
                "named_copies": each["named_copies"] / samples,
                "named_patients": each["named_patients"],
            }
            for each in found.report["detectors"]
        },
        "loss_auc": next(a["auc"] for a in attacks if a["name"] == "loss_mean"),
        "generalisation_gap": found.report["generalisation_gap"],
        "conclusion": found.report["conclusion"][-1],
        "frechet": frechet_to_held_out(folder, drawn),
        "seconds": {"training": seconds, "sampling": sampled, "rest": processor_seconds() - began - sampled},
    }
    keep(folder, name, result)


def frechet_to_held_out(folder: Path, samples: Path) -> float:
    """Return the Fréchet distance between samples and held-out hearts, by the random network's features of motion."""
    network = load_network("random", Choice(kind="spatiotemporal"))
    synthetic = open_synthetic(samples)
    steps = settle_preprocessing(synthetic)

    def features(items: Sequence[Item]) -> np.ndarray:
        volumes = (load(item, steps).volume for item in items)
        return np.stack([network.features(each.voxels, each.geometry.spacing) for each in volumes])

    return frechet_distance(features(open_real(folder / "held_out" / "manifest.csv").items), features(synthetic.items))


# --- Planted copies ---

PLANTED_COHORTS = {"planted-training": (80, 10), "planted-held_out": (300, 11), "planted-unseen": (300, 12)}
COPIED = 20  # training hearts of which copies of every kind are hidden


def planted(arguments: argparse.Namespace) -> None:
    """Hide altered copies of training hearts, at the threshold that 5% of held-out hearts reach."""
    folder, config = arguments.output, DetectorConfig(arguments.detector)
    steps = Preprocessing.from_dict(open_vae(BASE).config.preprocessing)
    began, items, described = processor_seconds(), {}, {}
    for name, (number, seed) in PLANTED_COHORTS.items():
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed)
        items[name] = open_real(folder / name / "manifest.csv").items
        found = embed_all(items[name], steps, config, folder / "planted-rows", Workers(), name != "planted-training")
        described[name] = [each for each in found if isinstance(each, Embedded)]
    training, held_out, unseen = described.values()
    patients = [item.case.subject for item in items["planted-training"] if item.case is not None]
    references = References.of(training, patients)
    nearest = [references.distances(lambda i, s=s: s[i].rows(), len(s)).min(axis=1) for s in (held_out, unseen)]
    rank = int(LEVEL * (len(held_out) + 1))
    threshold = float(np.partition(nearest[0], rank - 1)[rank - 1])
    alarms = int((nearest[1] < threshold).sum())
    found = sensitivity(
        config, references, threshold, items["planted-training"][:COPIED], items["planted-unseen"], steps, Workers()
    )
    result = {
        "false_alarms": [alarms / len(unseen), *proportion_interval(alarms, len(unseen))],
        "kinds": found,
        "seconds": processor_seconds() - began,
    }
    keep(folder, f"planted-{config.name}", result)
    print(f"False alarms {alarms} of {len(unseen)}.\n| copy | found |\n|---|---|")
    for kind in found:
        print(f"| {kind['title']} ({kind['group']}) | {kind['found']:.0%} ({kind['low']:.0%} to {kind['high']:.0%}) |")


# --- Scale ---


def scale(arguments: argparse.Namespace) -> None:
    """Search 10,000 training hearts for 1000 samples and 200 held-out hearts, all with random rows."""
    training, samples, held_out = (round(n * arguments.share) for n in (10_000, 1000, 200))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((training, SLICES, FEATURES), dtype=np.float32)

    def query(seed: int) -> Callable[[int], np.ndarray]:
        shape = (len(ALTERED), SLICES, FEATURES)
        return lambda place: np.random.default_rng([seed, place]).standard_normal(shape, dtype=np.float32)

    began, times = time.perf_counter(), processor_seconds()
    references = References(rows, [f"patient{i}" for i in range(training)])
    to_samples = references.distances(query(1), samples).T
    to_held_out = references.distances(query(2), held_out).T
    patients = list(references.patients or ())
    searched = processor_seconds() - times
    between = references.with_rows(rng.standard_normal((held_out, SLICES, FEATURES), dtype=np.float32))
    found = Distances(
        to_held_out, to_samples, between.distances(query(1), samples).T, references.own, references.rarity()
    )
    findings_of(found, patients, {})
    result = {
        "training": training,
        "samples": samples,
        "held_out": held_out,
        "processor_seconds": processor_seconds() - times,
        "of_which_search": searched,
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    keep(arguments.output, f"scale-{training}", result)


# --- The bundled model ---


def bundled(arguments: argparse.Namespace) -> None:
    """Audit the model in checkpoints/cardiodit-phantom on the hearts that it was trained on."""
    folder = arguments.output
    for name, (number, seed) in {"bundled-training": (1200, 0), "held_out": COHORTS["held_out"]}.items():
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed)
    drawn = folder / "samples" / "bundled"
    options = ["--num_samples", str(arguments.samples), "--batch_size", "8", "--seed", "0", "--device", "cpu"]
    labels = ["--class_label", *GROUPS]  # balanced, as in training
    run(["sample", BASE, "--output_dir", str(drawn), "--decode_batch_size", "8", *options, *labels])
    settings = AuditSettings(
        training=folder / "bundled-training" / "manifest.csv",
        held_out=folder / "held_out" / "manifest.csv",
        synthetic=drawn,
        output_dir=folder / "audits" / "bundled",
        model=BASE,
        attack_volumes=50,
    )
    found = audit(settings)
    assert found is not None
    keep(folder, "bundled", {"conclusion": found.report["conclusion"]})


PARTS = {"planted": planted, "scale": scale, "series": series, "bundled": bundled}


if __name__ == "__main__":
    main()
