"""Every command of the README and of the pages behind it, run in its order: from the authors' checkpoints and from
NIfTI to the Hub.

What is large there is small here, and nothing else is changed: fewer phantoms, samples, steps. Blocks that are marked
as not run, and why, are left to the tests that the marks name.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from cardiodit.cli import main
from cardiodit.hub.card.owner_facts import REQUIRED
from cardiodit.imaging.phantom import write_cohort
from cardiodit.training import train_dit, train_vqgan

from .. import documented
from ..documented import ROOT, RUN_PAGES

GOLDEN = ROOT / "tests" / "fixtures" / "golden"
AUTHORS = {
    "vqgan/best_model.pth": GOLDEN / "cardiodit" / "vqgan_best_model.pth",
    "vqgan.yaml": GOLDEN / "cardiodit" / "vqgan.yaml",
    "dit/best_model.pth": GOLDEN / "cardiodit_labels" / "dit_best_model.pth",
    "dit_ds8_b4.yaml": GOLDEN / "cardiodit_labels" / "dit.yaml",
}
TRAINING = {"vqgan": train_vqgan.main, "dit": train_dit.main}
SHORT = ["--max_train_steps", "2", "--checkpointing_steps", "1", "--validation_steps", "2", "--preview_samples", "0"]
SMALLER = {
    ("--num", "40"): ("--num", "2"),
    ("--num", "8"): ("--num", "2"),
    ("--num", "10"): ("--num", "1"),
    ("--num_samples", "16"): ("--num_samples", "2"),
    ("--num_samples", "8"): ("--num_samples", "2"),
    ("--checkpoints", "500"): ("--checkpoints", "1"),
    ("1000", "500"): ("2", "1"),
    ("--segmenter", "phantom-segmenter"): ("--max_volumes", "2"),  # it runs in tests/evaluation/test_evaluate.py
}
EXTRAS = {
    "sample": ["--num_inference_steps", "2"],
    "demo": ["--num_samples", "2"],
    "evaluate": ["--features_size", "16", "16", "4"],
    "publish": ["--without_audit", "Phantoms are nobody."],
}
FACTS: dict[str, Any] = {
    **dict.fromkeys(REQUIRED, "Phantoms; nobody's data."),
    "license": "apache-2.0",
    "datasets": ["phantoms"],
}


def commands() -> list[list[str]]:
    """The words of every line of the shell blocks that are run."""
    return [words for line in documented.commands(*RUN_PAGES, run=True) if (words := shlex.split(line, comments=True))]


def smaller(words: list[str]) -> list[str]:
    """The same command on less."""
    words = list(words)
    for place in range(len(words) - 1):
        words[place : place + 2] = SMALLER.get((words[place], words[place + 1]), words[place : place + 2])
    return words


def run(words: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    name, options = words[0], smaller(words[1:])
    if options[0] == "train" and len(options) > 1:
        steps = SHORT if options[1] == "dit" else SHORT[:6]
        TRAINING[options[1]]([*options[2:], *steps, "--report_to", "none", "--cpu"])
        return
    assert name == "cardiodit", f"What is {name}?"
    assert main([*options, *EXTRAS.get(options[0], [])]) == 0, words


@pytest.fixture
def newcomer(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a hospital's cines, the authors' files and a facts file; the Hub is the local one."""
    for name, source in AUTHORS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / name)
    manifest = write_cohort(tmp_path / "made", num=20, size=(32, 32, 4, 8), seed=7)
    (tmp_path / "made" / "images").rename(tmp_path / "cines")
    rows = [row.split(",") for row in manifest.read_text().splitlines()]
    label = rows[0].index("label")
    table = ["subject,label", *(f"{Path(row[0]).name.removesuffix('.nii.gz')},{row[label]}" for row in rows[1:])]
    (tmp_path / "patients.csv").write_text("\n".join(table) + "\n")
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(f"{constants}ENDPOINT", hub.url)
    monkeypatch.setattr(f"{constants}HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=True)


def test_all_of_them_run(newcomer: Path, hub: Any) -> None:
    todo = commands()
    assert len(todo) >= 18
    for words in todo:
        if words[:2] == ["cardiodit", "publish"] and not (newcomer / "facts.yaml").exists():
            (newcomer / "facts.yaml").write_text(yaml.safe_dump(FACTS))
        if "--audit" in words:  # which would need 19 held-out patients
            words = [word for word in words if word not in ("--audit", "audit")]
        if "--write_facts" in words:
            (newcomer / "facts.yaml").rename("given.yaml")
        run(words)
        if "--write_facts" in words:
            (newcomer / "given.yaml").replace("facts.yaml")
    repository = next(words for words in todo if words[1] == "publish")[3]
    held = hub.repositories[repository].commits[-1].files
    assert {"README.md", "model_index.json", "transformer/config.json", "vae/config.json"} <= set(held)
    assert any(name.startswith("previews/") for name in held)
    assert "Stage 1, the autoencoder" in held["README.md"].decode()  # found beside the run, without being named


def test_every_command_is_shown() -> None:
    lines = documented.commands(*documented.pages())
    shown = {line.split()[1] for line in lines if line.startswith("cardiodit ")}
    listed = re.findall(r"^    ([a-z-]+) ", help_of_all(), re.MULTILINE)
    assert set(listed) <= shown, set(listed) - shown


def help_of_all() -> str:
    from cardiodit.cli import build_parser

    return build_parser().format_help()
