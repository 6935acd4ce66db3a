"""Weights from local files and from the Hub client's cache are loaded completely or not at all."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cardiodit._util.hashing import sha256_of
from cardiodit.cli import main
from cardiodit.convert.checkpoint import convert_weights
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.catalogue import torchvision_name, without_wrapper
from cardiodit.evaluation.features.weights import find_weights, load_strictly, read_weights


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))


def wrapped(module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in module.state_dict().items()}


def test_a_converted_torch_file_gives_the_same_weights(tmp_path: Path) -> None:
    source = network(1)
    torch.save({"epoch": 3, "state_dict": wrapped(source)}, tmp_path / "net.pth")
    output = tmp_path / "new" / "net.safetensors"
    assert main(["convert", "weights", str(tmp_path / "net.pth"), "--output", str(output)]) == 0
    target = network(2)
    load_strictly(target, read_weights(output), "net", without_wrapper)
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values()))
    described = find_weights(output).describe()
    assert described["converted_from_sha256"] == sha256_of(tmp_path / "net.pth")
    with pytest.raises(CardioDiTError, match="exists already"):
        convert_weights(tmp_path / "net.pth", output)
    with pytest.raises(CardioDiTError, match="ends in .safetensors"):
        convert_weights(tmp_path / "net.pth", tmp_path / "net.bin")


def test_a_torch_file_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pth")
    with pytest.raises(CardioDiTError, match=r"cardiodit convert weights \S+net\.pth --output net\.safetensors"):
        find_weights(tmp_path / "net.pth")
    with pytest.raises(CardioDiTError, match=r"convert weights a\.pth --repo lab/net --output a\.safetensors"):
        find_weights("lab/net:a.pth")


def test_missing_and_unexpected_names_are_listed_and_nothing_is_loaded() -> None:
    target, state = network(1), network(2).state_dict()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state["extra.weight"] = state.pop("0.weight")
    state["1.bias"] = torch.zeros(5)
    with pytest.raises(CardioDiTError, match=r"a\.pth .* lacks 0\.weight, has unexpected extra\.weight, .*1\.bias"):
        load_strictly(target, state, "a.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_only_listed_heads_are_ignored() -> None:
    state = {**network(1).state_dict(), "fc.weight": torch.zeros(2)}
    load_strictly(network(), state, "a.pth", heads=("fc.",))
    with pytest.raises(CardioDiTError, match=r"fc\.weight"):
        load_strictly(network(), state, "a.pth")


def test_old_files_may_lack_batch_norm_counters() -> None:
    state = {name: tensor for name, tensor in network(1).state_dict().items() if "num_batches" not in name}
    load_strictly(network(), state, "old.pth")


def test_names_of_slice_networks() -> None:
    assert torchvision_name("backbone.4.0.conv1.weight") == "layer1.0.conv1.weight"
    assert torchvision_name("module.backbone.1.running_mean") == "bn1.running_mean"
    assert torchvision_name("layer4.2.bn3.bias") == "layer4.2.bn3.bias"


class Trap:
    def __reduce__(self) -> tuple:
        return print, ("the trap was sprung",)


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(CardioDiTError, match="run any code when loaded"):
            convert_weights(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert capsys.readouterr().out == ""


def test_damaged_files_and_files_without_weights_are_refused(tmp_path: Path) -> None:
    save_file(wrapped(network()), tmp_path / "cut.safetensors")
    torch.save(wrapped(network()), tmp_path / "cut.pth")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    with pytest.raises(CardioDiTError, match="Download it again"):
        read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(CardioDiTError, match="damaged or cut short"):
        convert_weights(tmp_path / "cut.pth", tmp_path / "out.safetensors")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(CardioDiTError, match="table of named tensors"):
        convert_weights(tmp_path / "none.pth", tmp_path / "out.safetensors")


def test_a_file_is_checked_and_described_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "private-folder" / "net.safetensors"
    path.parent.mkdir()
    save_file(wrapped(network()), path)
    found = find_weights(path, sha256=sha256_of(path).upper())
    assert found.describe() == {"source": "net.safetensors", "sha256": sha256_of(path)}
    with pytest.raises(CardioDiTError, match="different weights"):
        find_weights(path, sha256="0" * 64)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub client's cache of `lab/net`, offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--lab--net"
    snapshot = folder / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("ab" * 20)
    save_file(wrapped(network(1)), snapshot / "net.safetensors")
    return snapshot


@pytest.mark.parametrize("reference", ["lab/net:net.safetensors", "lab/net", f"lab/net:net.safetensors@{'ab' * 20}"])
def test_a_file_from_the_hub_is_described_with_its_commit(hub_cache: Path, reference: str) -> None:
    found = find_weights(reference, "net.safetensors")
    assert found.source == "lab/net:net.safetensors" and found.revision == "ab" * 20
    assert found.sha256 == sha256_of(hub_cache / "net.safetensors")


def test_missing_weights_say_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(
        CardioDiTError, match=r"(?s)other\.safetensors of lab/net cannot be downloaded.*its path.*`random`"
    ):
        find_weights("lab/net:other.safetensors")
    with pytest.raises(CardioDiTError, match=r"no weights at \./nowhere\.safetensors"):
        find_weights("./nowhere.safetensors")
    with pytest.raises(CardioDiTError, match="neither a file"):
        find_weights("lab/net")
