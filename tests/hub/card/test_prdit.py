"""Cards of PRDiT's folders, whose parts and stages are not those of a latent model."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.repocard import metadata_load

from cardiodit import NoiseAndImageScheduler, PRDiTPipeline, PRDiTTransformerModel
from cardiodit._util.hashing import sha256_of
from cardiodit.cli import main
from cardiodit.hub.card.owner_facts import REQUIRED, read_facts
from cardiodit.hub.model_card import write_card
from cardiodit.hub.publishing import check_folder
from cardiodit.imaging import Preprocessing
from cardiodit.systems import all_systems, load

from ..conftest import FACTS, write_run

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CT = Preprocessing(spacing=(1.0, 1.0, 1.0), size=(64, 48, 32), pool=2)


def network(num_layers: int, **settings: object) -> PRDiTTransformerModel:
    torch.manual_seed(0)
    model = PRDiTTransformerModel((32, 24, 16), 8, 1, num_layers, 2, 12, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def save_pipeline(folder: Path, num_layers: int = 1) -> Path:
    facts = {"spacing": (2.0, 2.0, 2.0), "preprocessing": CT.to_dict()}
    PRDiTPipeline(network(num_layers, **facts), NoiseAndImageScheduler()).save_pretrained(folder)
    return folder


def save_run(folder: Path, num_layers: int, named: int | None = None) -> Path:
    """As training leaves it, with its best weights; `named`: the number of layers that its config says."""
    write_run(folder, "train_prdit")
    network(num_layers).save_pretrained(folder / "best" / "transformer")
    best = {"step": 800, "measure": "validation_loss", "value": 0.1, "files": {}}
    best["files"] = {WEIGHTS: sha256_of(folder / "best" / WEIGHTS)}
    (folder / "best" / "state.json").write_text(json.dumps(best))
    (folder / "config.yaml").write_text(f"model: {{num_layers: {num_layers if named is None else named}}}\n")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return save_pipeline(tmp_path / "prdit")


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_card_tells_what_the_model_is(pipeline: Path) -> None:
    config = pipeline / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"patch_size": 12}))
    write_card(pipeline)
    text = card_of(pipeline)
    for told in (
        "synthetic 3D volumes of 32 × 24 × 16 voxels (H × W × D), with a diffusion model on voxels.",
        "from cardiodit import PRDiTPipeline",
        "num_samples=4, num_inference_steps=100, seed=0)",
        "There is no autoencoder",
        "The model follows *PRDiT*",
        "| Denoiser (`transformer`) | `PRDiTTransformerModel`, ",
        "| Patches | 12 × 12 × 12 voxels, neighbours overlap by 4 voxels; the central 8 × 8 × 8 of each are predicted",
        "| Refiner | 1 blocks, 2 heads of 12, 24 tokens |",
        "| Voxel size | 2 × 2 × 2 mm (H × W × D) |",
        "Averaged over cubes of 2 voxels",
        "`hot` of `NoiseAndImageScheduler` (a stochastic predictor-corrector); also available: `euler`",
        "| Process | between noise and image, 1000 steps, noise of standard deviation 0.5 |",
        "| Steps | 100 by default |",
        "Detail below the voxel size is invented or missing.",
    ):
        assert told in text, told
    for untold in ("codebook", "atents", "None", "first half"):
        assert untold not in text, untold
    tags = metadata_load(pipeline / "README.md")["tags"]
    assert "pixel-space-diffusion" in tags and "latent-diffusion" not in tags


def test_a_local_denoiser_says_that_it_is_one(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "local", num_layers=0)
    missing = write_card(folder)
    text = card_of(folder)
    assert "This is the local denoiser alone (stage 1)" in text and "| Refiner | none (stage 1) |" in text
    assert "| Patches | 8 × 8 × 8 voxels, without overlap" in text
    assert any("training of stage 1, the local denoiser" in what for what in missing)
    assert len(missing) == len(REQUIRED) + 2  # the energy, too


def test_both_stages_are_told_and_recognised_by_their_weights(pipeline: Path, tmp_path: Path) -> None:
    local = save_run(tmp_path / "runs" / "local", num_layers=0)
    refined = save_run(tmp_path / "runs" / "refined", num_layers=1, named=0)  # as with --init_from: the model tells
    part = PRDiTTransformerModel.from_pretrained(pipeline / "transformer")
    held = part.state_dict()
    first = PRDiTTransformerModel.from_pretrained(local / "best" / "transformer")
    first.load_state_dict({key: held[key] for key in first.state_dict()})
    first.save_pretrained(local / "best" / "transformer")
    state = json.loads((refined / "best" / "state.json").read_text())
    state["files"][WEIGHTS] = sha256_of(pipeline / WEIGHTS)
    (refined / "best" / "state.json").write_text(json.dumps(state))

    home = pipeline.rename(refined / "pipeline")
    missing = write_card(home)  # the run in whose folder it lies, and the one beside that made its local part
    text = card_of(home)
    assert len(missing) == len(REQUIRED), missing
    assert text.index("### Stage 1, the local denoiser (`train_prdit`)") < text.index("### Stage 2, the refiner")
    assert "those that this stage trained are identical, number by number, to this run's best step" in text
    assert "| byte for byte those of this run's best step" in text
    assert "# refined\n" in text and "5 kWh" in text

    first.time_embed.bias.data += 1
    first.save_pretrained(local / "best" / "transformer")
    missing = write_card(home, [local])
    assert any("why the weights of stage 1, the local denoiser differ" in what for what in missing)
    assert any("training of stage 1, the local denoiser" in what for what in write_card(home))


def test_a_complete_folder_can_be_published(pipeline: Path, tmp_path: Path) -> None:
    runs = [save_run(tmp_path / name, layers) for name, layers in (("local", 0), ("refined", 1))]
    facts = tmp_path / "facts.yaml"
    facts.write_text(FACTS + "training: Both stages, and then both again.\n")
    arguments = ["card", str(pipeline), "--run", *map(str, runs), "--facts", str(facts)]
    assert main(arguments) == 0
    assert check_folder(pipeline, read_facts(facts).repository).found == []
    (pipeline / WEIGHTS).unlink()
    assert any("contains no weights" in problem for problem in check_folder(pipeline).found)


def test_the_card_names_the_pipelines_own_number_of_steps() -> None:
    for system in all_systems():
        for pipeline in system.pipelines.values():
            assert load(pipeline).default_steps == system.default_steps
