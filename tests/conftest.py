"""Small models that every test can afford, and processes that begin without importing everything anew."""

import os

# Work this small is slowed down many times by threads that wait for a busy core: here, and in whatever a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

from .prepared_python import SHARED, share, start_forkserver

share()  # before the imports below, beside which it imports

import importlib
import multiprocessing
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from cardiodit import (
    CardioDiTPipeline,
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    VQModel3D,
    VQModel4D,
    make_scheduler,
)
from cardiodit.imaging.phantom import cohort

# A shell starts what it runs in the background with Ctrl-C ignored, and so would be all that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BROWSER_FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --window-size=1280,800"""

CHESTS = Path(__file__).parent / "fixtures" / "chests"
cohort.PICTURED = 0  # the pictures of a small phantom take four times as long as the phantom

NOTHING: Mapping[str, str] = MappingProxyType({})

# The first process that a test starts by this context imports the package; those after it are copies of that one.
PREPARED = multiprocessing.get_context("forkserver")
PREPARED.set_forkserver_preload(["cardiodit.cli", "cardiodit.training.train_dit", "cardiodit.evaluation.workers"])
# So are workers. They are given pickled work, as spawned ones are.
PLACES_OF_WORKERS = ("evaluation.workers", "imaging.cache", "imaging.cohorts.prepare", "imaging.phantom.cohort")
WORKERS = [importlib.import_module(f"cardiodit.{place}") for place in PLACES_OF_WORKERS]
for module in WORKERS:
    module.get_context = lambda method: PREPARED


@pytest.fixture(scope="session", autouse=True)
def forkserver_of_prepared_python() -> None:
    """Begin as one of the copies, if there is a shared prepared Python; here, where its output is captured."""
    start_forkserver()


def pytest_xdist_setupnodes(specs: Sequence[Any]) -> None:
    """Let the processes that run the tests be copies of the prepared Python."""
    for spec in specs:
        if SHARED in os.environ:
            spec.python = os.environ[SHARED]


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import for themselves, as those of users do."""
    for module in WORKERS:
        monkeypatch.setattr(module, "get_context", multiprocessing.get_context)


def begin(
    work: Callable[..., Any], *arguments: Any, said: Path = Path(os.devnull), environment: Mapping[str, str] = NOTHING
) -> ForkServerProcess:
    """A process that has begun to do `work`, with one thread as this one; what it prints is added to a file."""
    # A daemon is ended with pytest, should a test fail before it waits.
    process = PREPARED.Process(target=do, args=(work, arguments, said, dict(environment)), daemon=True)
    process.start()
    return process


def begin_two(work: Callable[..., Any], *arguments: Any, said: Path) -> list[ForkServerProcess]:
    """Two CPU processes that find what torchrun would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common = {**meeting, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [begin(work, *arguments, said=said, environment=rank) for rank in ranks]


def do(work: Callable[..., Any], arguments: Sequence[Any], said: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    work(*arguments)


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Random trainable weights everywhere: a fresh DiT predicts zero whatever it is shown."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


@pytest.fixture(scope="session")
def make_dit() -> Callable[..., DiT4DTransformerModel]:
    def make(**settings: Any) -> DiT4DTransformerModel:
        small = {"sample_size": (2, 8, 8, 4), "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
        return randomise(DiT4DTransformerModel(**{**small, **settings}))

    return make


@pytest.fixture(scope="session")
def make_dit_3d() -> Callable[..., DiT3DTransformerModel]:
    def make(**settings: Any) -> DiT3DTransformerModel:
        small = {
            "sample_size": (8, 8, 4),
            "patch_size": (2, 2, 2),
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
        }
        return randomise(DiT3DTransformerModel(**{**small, **settings}))

    return make


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., VQModel4D]:
    def make(cls: type = VQModel4D, **settings: Any) -> Any:
        small = {"channels": (8, 16), "num_res_channels": (8, 16), "num_embeddings": 64}
        torch.manual_seed(0)
        return cls(**{**small, **settings}).eval()

    return make


@pytest.fixture(scope="session")
def make_pipe(make_dit: Callable, make_vae: Callable) -> Callable[..., CardioDiTPipeline]:
    def make(solver: str = "dpm++", vae: dict | None = None, **settings: Any) -> CardioDiTPipeline:
        pipe = CardioDiTPipeline(make_vae(**(vae or {})), make_dit(**settings), make_scheduler(solver))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(params=[VQModel3D, VQModel4D])
def any_vae(request: pytest.FixtureRequest, make_vae: Callable) -> Any:
    return make_vae(request.param)


def copy_chests(folder: Path, num: int, seed: int, size: tuple[int, int, int]) -> Path:
    """Copy chests that `write_chests` drew beforehand (without pictures), since drawing one takes over a second."""
    shutil.copytree(CHESTS / "x".join(map(str, size)) / f"seed{seed}", folder)
    manifest = folder / "manifest.csv"
    header, *rows = manifest.read_text().splitlines(keepends=True)
    assert num <= len(rows)
    manifest.write_text("".join([header, *rows[:num]]))
    return manifest


def train(script: Any, folder: Path, name: str, config: dict[str, Any], manifests: Sequence[Path], *more: str) -> Path:
    """Trains in this process as a user would from the command line; returns the run's folder."""
    AcceleratorState._reset_state(reset_partial_state=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    ids = ["--training_ids", str(manifests[0]), "--validation_ids", str(manifests[1])]
    script.main(
        ["--config", str(folder / f"{name}.yaml"), *ids, "--output_dir", str(folder), "--run_name", name, *more]
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real one without a window, that knows no network."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*BROWSER_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
