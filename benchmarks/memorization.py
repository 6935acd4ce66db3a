"""Measure what `cardiodit audit` finds: planted copies, overtrained models, and how long a search takes.

    python benchmarks/memorization.py planted --output memorization     which altered copies of phantoms are found
    python benchmarks/memorization.py scale                             1000 samples among 10,000 training volumes
    python benchmarks/memorization.py series --output memorization      models of 12 to 400 hearts
    python benchmarks/memorization.py mitigation --output memorization  stopping and augmentation at equal distance
    python benchmarks/memorization.py bundled --output memorization     the model in checkpoints/cardiodit-phantom

`series` trains the same small model on 12, 50, 200 and 400 phantoms, and audits the last weights of each. `mitigation`
trains it on 12 phantoms with and without augmentation of latents, and searches samples of several steps for copies. Run
again to resume. Results are added to results.json in the output folder; `series` and `mitigation` also write a table,
`series` a picture, too.
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
import yaml
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
from cardiodit.privacy.detectors import ALTERED, LATENTS, PIXELS, RECONSTRUCTIONS, DetectorConfig
from cardiodit.privacy.findings import Distances, findings_of
from cardiodit.privacy.planted import sensitivity
from cardiodit.privacy.search import Embedded, References, embed_all
from cardiodit.privacy.statistics import LEVEL, proportion_interval
from cardiodit.training import train_dit, train_vqgan
from cardiodit.training.harness.command_line import find_config

BASE = "cardiodit-phantom"
COHORTS = {"training": (400, 0), "validation": (32, 1), "held_out": (100, 2)}  # number and seed
HEARTS, FEW = (12, 50, 200, 400), 12
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "shift": {"shift": 1}, "noise": {"noise": 0.5}}  # of augmentation
STEPS = (500, 750, 1000, 1250, 1500, 2000, 3000)
SIZE = (32, 32, 2, 8)
CONFIGS = "phantom/memorization"
RESULTS = "results.json"
ALL = (PIXELS, LATENTS, RECONSTRUCTIONS)
SLICES, FEATURES = 8, 768  # of the rows of the detector `pixels` for a cine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100, help="of each model (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings of `mitigation`")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="of `mitigation` (all)")
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
        model = weights_at(trained)
        examine(folder, f"hearts{hearts}", model, hearts, arguments.samples, processor_seconds() - began)
    found = json.loads((folder / RESULTS).read_text())
    write_table(folder / "series.md", {str(hearts): found[f"hearts{hearts}"] for hearts in HEARTS})
    write_plot(folder / "series.png", [found[f"hearts{hearts}"] for hearts in HEARTS])


def write_table(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Write what was found of each model, by the detectors and by the loss."""
    lines = [
        "| hearts | copies by pixels, % | copies by latents, % | copies by reconstructions, % | patients, % | "
        "named copies, patients | published rule: patients, % | AUC of the loss | Fréchet distance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        by = row["detectors"]
        best = by[RECONSTRUCTIONS]
        cells = [percent(by[each]["copies_excess"]) for each in ALL] + [percent(best["patients_excess"])]
        cells += [f"{best['named_copies'] * row['samples']:.0f}, {best['named_patients']}"]
        cells += [f"{100 * best['published']['patients']:.0f}", f"{row['loss_auc']['value']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['frechet']:.3f} |")
    path.write_text("\n".join(lines) + "\n")


def percent(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.0f} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


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
        share = row["detectors"][RECONSTRUCTIONS]["copies_excess"]
        x, y = place(row["hearts"], share["value"])
        pen.line((x, place(row["hearts"], share["low"])[1], x, place(row["hearts"], share["high"])[1]), "grey", 3)
        pen.text((x, 390), str(row["hearts"]), "black", font, anchor="mt")
        points.append((x, y))
    pen.line(points, "firebrick", 2)
    for x, y in points:
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), "firebrick")
    pen.text((380, 12), "Copies among samples beyond chance (detector reconstructions)", "black", font, anchor="mt")
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


def train(
    folder: Path, latents: Path, name: str, hearts: int, *more: str, augmentation: dict[str, Any] | None = None
) -> Path:
    config = f"{CONFIGS}/dit.yaml"
    if augmentation:
        settings = yaml.safe_load(find_config(Path(config)).read_text())
        config = str(folder / f"{name}.yaml")
        Path(config).write_text(yaml.safe_dump({**settings, "augmentation": augmentation}))
    if not (folder / name / "pipeline").is_dir():
        ids = ["--training_ids", str(latents / "training" / f"first{hearts}.csv")]
        ids += ["--validation_ids", str(latents / "validation" / "manifest.csv")]
        options = ["--config", config, "--vae", str(folder / "vqgan"), *ids, "--output_dir", str(folder)]
        train_dit.main([*options, "--run_name", name, *more])
    return folder / name


def weights_at(run: Path, step: int | None = None) -> Path:
    """Write the pipeline of a run's averaged weights at a step (default: the last), which only its checkpoints hold."""
    target = run / ("last" if step is None else f"step{step}")
    if not target.is_dir():
        at = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*")) if step is None else step
        pipe = open_pipeline(str(run / "pipeline"))
        pipe.transformer = open_transformer(run / f"checkpoint-{at}" / "transformer_ema")
        with new_folder(target) as temporary:
            pipe.save_pretrained(temporary)
    return target


def examine(
    folder: Path, name: str, model: Path, hearts: int, samples: int, seconds: float, detectors: Sequence[str] = ALL
) -> None:
    """Sample from a model, audit it, and keep the numbers of the table."""
    file = folder / RESULTS
    if file.is_file() and name in json.loads(file.read_text()):
        return
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
        detectors=detectors,
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


# --- Mitigation ---


def mitigation(arguments: argparse.Namespace) -> None:
    """Train on few hearts in several ways, and measure copies and Fréchet distance while the training goes on."""
    folder = arguments.output
    latents = prepare(folder)
    for seed in arguments.seeds:
        for way in arguments.ways:
            began = processor_seconds()
            keeping = ["--seed", str(seed), "--checkpointing_steps", "250", "--checkpoints_total_limit", "99"]
            trained = train(folder, latents, f"few-{way}-seed{seed}", FEW, *keeping, augmentation=WAYS[way])
            seconds = processor_seconds() - began
            for step in STEPS:
                name, model = f"few-{way}-step{step}-seed{seed}", weights_at(trained, step)
                examine(folder, name, model, FEW, arguments.samples, seconds, [RECONSTRUCTIONS])
    found = json.loads((folder / RESULTS).read_text())
    rows = {name: row for name, row in found.items() if "-step" in name}
    with atomic_file(folder / "mitigation.md") as temporary:
        lines = [
            "| training, step | copies beyond chance, % | Fréchet distance | AUC of the loss |",
            "|---|---|---|---|",
        ]
        for way in WAYS:
            for step in STEPS:
                same = [row for name, row in rows.items() if name.startswith(f"few-{way}-step{step}-")]
                if same:
                    copies = [100 * row["detectors"][RECONSTRUCTIONS]["copies_excess"]["value"] for row in same]
                    cells = [spread(copies, 0), spread([row["frechet"] for row in same], 3)]
                    cells += [spread([row["loss_auc"]["value"] for row in same], 2)]
                    lines.append(f"| {way}, {step} | {' | '.join(cells)} |")
        temporary.write_text("\n".join(lines) + "\n")
    print((folder / "mitigation.md").read_text())


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the range over seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else mean


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


PARTS = {"planted": planted, "scale": scale, "series": series, "mitigation": mitigation, "bundled": bundled}


if __name__ == "__main__":
    main()
