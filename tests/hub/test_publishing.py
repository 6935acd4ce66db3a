"""Push, wipe the cache, load: the real client of the Hub against a small Hub on loopback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardiodit import CardioDiTPipeline
from cardiodit.cli import main
from cardiodit.convert.cardiodit import convert_cardiodit
from cardiodit.hub.card.owner_facts import TO_BE_STATED, read_facts
from cardiodit.hub.checks.files import CHECKED, file_problems, folder_problems
from cardiodit.hub.model_card import write_card
from cardiodit.hub.publishing import check_folder

from ..prepared_python import python
from .conftest import Repository

# Six layers, so that the weights are more than the 10 MB that the client keeps at a time.
PREPARE = """
import sys, torch, cardiodit
from cardiodit import CardioDiTPipeline, DiT4DTransformerModel, VQModel4D, make_scheduler

def small_pipe(seed):
    torch.manual_seed(seed)
    vae = VQModel4D(channels=(8, 16), num_res_channels=(8, 16), num_embeddings=64, spacing=(1.5, 1.5, 8.0))
    transformer = DiT4DTransformerModel(
        sample_size=(2, 8, 8, 4), num_layers=6, num_attention_heads=2, attention_head_dim=128
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    pipe = CardioDiTPipeline(vae, transformer, make_scheduler("dpm++"))
    pipe.set_progress_bar_config(disable=True)
    return pipe

def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(seed=1, num_inference_steps=3).volumes
"""

PUSH = """
first, second = small_pipe(1), small_pipe(2)
try:
    first.push_to_hub("lab/hearts")
except cardiodit.CardioDiTError as error:
    assert "There is no audit of whether the model reproduces its training patients" in str(error), error
else:
    raise AssertionError("uploaded without an audit")
first.push_to_hub("lab/hearts", without_audit="phantoms only")
from huggingface_hub import HfApi
HfApi().create_tag("lab/hearts", tag="v1")
second.push_to_hub("lab/hearts", commit_message="trained longer", without_audit="phantoms only")
torch.save({"v1": sample(first), "main": sample(second)}, "expected.pt")
"""

LOAD = """
from diffusers import DiffusionPipeline

expected = torch.load("expected.pt", weights_only=True)
for cls in (CardioDiTPipeline, DiffusionPipeline):
    for revision in ("main", "v1"):
        pipe = cls.from_pretrained("lab/hearts", revision=revision)
        assert type(pipe) is CardioDiTPipeline
        assert torch.equal(sample(pipe), expected[revision]), (cls, revision)
record = pipe(seed=1, num_inference_steps=3).records[0]
assert record["model"] == "lab/hearts" and len(record["revision"]) == 40, record
vae = VQModel4D.from_pretrained("lab/hearts", subfolder="vae")
assert tuple(vae.config.spacing) == (1.5, 1.5, 8.0)
"""


@pytest.fixture(scope="module")
def start(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen]:
    folder = tmp_path_factory.mktemp("client")

    def start_(code: str, cache: str, **environment: str) -> subprocess.Popen:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / cache),
            "HF_TOKEN": "hf_secret",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        }
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # Whether it opens without the package is seen where nothing is imported yet.
        interpreter = sys.executable if code == WITHOUT_THE_PACKAGE else python()
        return subprocess.Popen([interpreter, "-c", code], cwd=folder, env={**os.environ, **settings}, **pipes)

    return start_


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    printed, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


@pytest.fixture(scope="module")
def run(start: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """Runs code in a process of its own, after small pipelines have been pushed and exported in one."""
    pushed = finish(start(PREPARE + PUSH + EXPORT, cache="pushing"))
    assert pushed.returncode == 0, pushed.stderr
    return lambda code, cache, **environment: finish(start(code, cache, **environment))


@pytest.fixture(scope="module")
def clients(hub: Any, start: Callable[..., subprocess.Popen], run: Any) -> dict[str, subprocess.CompletedProcess]:
    """Three clients that load at the same time; the first one's download of a pushed pipeline breaks off."""
    hub.cut.add("lab/hearts/transformer/diffusion_pytorch_model.safetensors")
    begun = {
        "loads": start(PREPARE + LOAD, cache="fresh"),
        "has no package": start(WITHOUT_THE_PACKAGE, cache="without-package"),
        "errs": start(PREPARE + "CardioDiTPipeline.from_pretrained('lab/nothing')", cache="erring"),
    }
    return {name: finish(process) for name, process in begun.items()}


def test_what_is_pushed_are_safetensors_and_configs(hub: Any, run: Any) -> None:
    repository = hub.repositories["lab/hearts"]
    assert sorted(repository.commits[-1].files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    card = repository.commits[-1].files["README.md"]
    assert b"library_name: diffusers" in card and b"**Published without an audit.** phantoms only" in card


def test_it_loads_by_name_and_revision_with_the_same_output_to_the_bit(hub: Any, run: Any, clients: Any) -> None:
    loaded = clients["loads"]
    if loaded.returncode != 0:  # older clients stop where newer ones resume by themselves; the user starts again
        loaded = run(PREPARE + LOAD, cache="fresh")
    assert loaded.returncode == 0, loaded.stderr
    # The download that broke off half-way was resumed, not begun again.
    assert not hub.cut
    (resumed,) = [line for line in hub.ranges if line.startswith("lab/hearts/transformer/diffusion")]
    assert int(resumed.split("bytes=")[1].split("-")[0]) > 0


@pytest.mark.usefixtures("clients")
def test_offline_it_opens_from_the_cache(hub: Any, run: Any) -> None:
    before = len(hub.requests)
    offline = run(PREPARE + LOAD, cache="fresh", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == before


def test_a_missing_repository_is_named(clients: Any) -> None:
    missing = clients["errs"]
    assert missing.returncode != 0 and "lab/nothing" in missing.stderr


EXPORT = """
from pathlib import Path
from huggingface_hub import HfApi
from cardiodit.cli import main
pipe = small_pipe(1)
pipe.save_pretrained("model")
assert main(["export", "model", "--output_dir", "with-code"]) == 0
HfApi().create_repo("lab/with-code")
HfApi().upload_folder(repo_id="lab/with-code", folder_path="with-code")
"""

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["cardiodit"] = None  # any import of it fails
import torch
from diffusers import DiffusionPipeline
expected = torch.load("expected.pt", weights_only=True)["v1"]
for name in ("with-code", "lab/with-code"):
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(seed=1, num_inference_steps=3)
    assert torch.equal(out.volumes, expected), name
out.save("saved")
"""


def test_an_export_needs_no_package(clients: Any) -> None:
    loaded = clients["has no package"]
    assert loaded.returncode == 0, loaded.stderr
    assert "Expected types" not in loaded.stderr


PUBLISH = """
from pathlib import Path
from cardiodit import CardioDiTError, CardioDiTPipeline
from cardiodit.cli import main
from cardiodit.hub.client import create_repository
assert main(["publish", "MODEL", "lab/small-hearts", "--dry_run"]) == 1  # the card's example names another model
assert main(["publish", "MODEL", "lab/small", "--dry_run", "--without_audit", "x"]) == 0
assert main(["publish", "MODEL", "lab/small", "--without_audit", "Small."]) == 0
assert main(["publish", "MODEL", "lab/small", "--without_audit", "Nobody.", "--gated"]) == 0  # again, as after a change
try:
    create_repository("lab/open", private=True)
except CardioDiTError as error:
    print(error)
opened, there = CardioDiTPipeline.from_pretrained("lab/small"), CardioDiTPipeline.from_pretrained("MODEL")
for name in ("vae", "transformer"):
    weights = getattr(there, name).state_dict()
    assert all(weights[key].equal(value) for key, value in getattr(opened, name).state_dict().items())
Path("MODEL", "notes.txt").write_text("from /home/jane/ACDC")
assert main(["publish", "MODEL", "lab/small"]) == 1
"""


def test_a_complete_folder_is_published_with_card_and_previews(
    hub: Any, run: Any, complete: Path, runs: list[Path], facts: Path
) -> None:
    hub.repositories["lab/open"] = Repository(private=False)
    hub.repositories["lab/open"].add({})
    facts.write_text(facts.read_text().replace("lab/hearts", "lab/small"))
    write_card(complete, runs, read_facts(facts))
    files = {path.relative_to(complete).as_posix(): path.read_bytes() for path in complete.rglob("*") if path.is_file()}
    published = run(PUBLISH.replace("MODEL", str(complete)), cache="publishing")
    assert published.returncode == 0, published.stderr
    assert f"can be published: {len(files) + 1} files" in published.stdout  # and config.json, which it writes
    assert f"Uploaded to {hub.url}/lab/small" in published.stdout
    repository = hub.repositories["lab/small"]
    assert repository.private and repository.gated == "manual"
    held = repository.commits[-1].files
    assert "**Published without an audit.** Nobody." in held["README.md"].decode()
    files["README.md"] = (complete / "README.md").read_bytes()  # with the reason
    assert {name: held[name] for name in files} == files and set(held) - set(files) <= {".gitattributes", "config.json"}
    assert json.loads(held["config.json"])["library_name"] == "cardiodit"  # the file by which the Hub counts downloads
    assert any(re.search(r"/lab/small/resolve/[^/]+/config.json$", request) for request in hub.requests)
    assert sum(name.startswith("previews/") for name in held) == 5
    assert (
        "contains absolute paths (/home/jane/ACDC)" in published.stderr and "Nothing was uploaded" in published.stderr
    )
    assert "another model than lab/small-hearts" in published.stderr
    assert "lab/open exists already and is public" in published.stdout


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: None, "README.md is missing"),
        (lambda text: text.replace("Written consent", f"{TO_BE_STATED} consent"), "does not state yet: consent"),
        (lambda text: text.replace("## Privacy", "## Secrets"), "lacks the section Privacy"),
        (lambda text: text.replace("license: cc-by-nc-4.0\n", ""), "states no licence"),
        (
            lambda text: text.replace("license: cc-by-nc-4.0", "license: mine"),
            "the licence 'mine', which the Hub does not",
        ),
        (lambda text: text.replace("license: cc-by-nc-4.0", "license: other"), "without a license_name"),
        (lambda text: text.replace("tags:\n", "tags: [\n"), "metadata block that cannot be read"),
        (lambda text: text.replace("emissions: 140.0", "emissions: much"), "not a number of grams"),
        (
            lambda text: text.replace("datasets:\n- lab/cines", "datasets: lab"),
            "datasets in its metadata that are not a list",
        ),
        (lambda text: text.replace("results:", "result:"), "metadata block that cannot be read"),
        (lambda text: text.partition("---\n\n")[2], "has no metadata block"),
        (lambda text: text + "\nFrom /home/jane/ACDC.", "absolute paths (/home/jane/ACDC)"),
    ],
)
def test_incomplete_cards_are_refused(complete: Path, change: Any, message: str) -> None:
    card = complete / "README.md"
    assert check_folder(complete, "lab/hearts").found == []
    changed = change(card.read_text())
    card.unlink()
    if changed is not None:
        card.write_text(changed)
    (sentence,) = check_folder(complete).found
    assert message in sentence


def test_all_problems_are_reported_at_once_before_any_network_access(
    model: Path, capsys: pytest.CaptureFixture
) -> None:
    (model / "doe.dcm").write_bytes(bytes(128) + b"DICM")
    (model / "weights.pt").write_bytes(b"")
    assert main(["publish", str(model), "lab/hearts"]) == 1
    errors = capsys.readouterr().err
    assert all(
        part in errors
        for part in ("README.md is missing", "doe.dcm is a DICOM file", "weights.pt is or may be a pickle")
    )
    for arguments, message in [
        ([str(model), "hearts"], "is not a repository name"),
        ([str(model / "x"), "a/b"], "is not a folder"),
        ([str(model), "a/b", "--dry_run"], "cannot be published"),
    ]:
        assert main(["publish", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_a_dry_run_lists_every_file_with_its_size_and_what_was_checked(
    complete: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["publish", str(complete), "lab/hearts", "--dry_run", "--without_audit", "None."]) == 0
    *lines, end = capsys.readouterr().out.splitlines()
    listed = {line.split()[2]: line.split(maxsplit=3) for line in lines}
    files = {path.relative_to(complete).as_posix(): path for path in complete.rglob("*") if path.is_file()}
    assert set(listed) == set(files)
    for name, (size, *_, checked) in listed.items():
        assert float(size) == pytest.approx(files[name].stat().st_size / 1e6, abs=6e-4)
        assert checked.startswith(CHECKED[Path(name).suffix])
    assert f"{len(files)} files" in end and "Nothing was uploaded." in end


def test_a_pipeline_that_was_opened_and_saved_reveals_no_folder(model: Path, tmp_path: Path) -> None:
    CardioDiTPipeline.from_pretrained(model).save_pretrained(tmp_path / "again")
    assert list(file_problems(tmp_path / "again")) == []


def test_what_a_conversion_writes_can_be_published(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "fixtures" / "golden" / "cardiodit"
    stages = [golden / name for name in ("vqgan_best_model.pth", "vqgan.yaml", "dit_best_model.pth", "dit.yaml")]
    folder = convert_cardiodit(*stages, tmp_path / "converted", scale_factor=1.0)
    assert list(file_problems(folder)) == [] and list(folder_problems(folder)) == []
