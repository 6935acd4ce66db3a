"""The losses against closed forms and MONAI's own; the perceptual network where lpips and torchvision are there."""

import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from cardiodit.errors import CardioDiTError
from cardiodit.training import perceptual
from cardiodit.training.vqgan_losses import (
    GeneratorLoss,
    LossSettings,
    adversarial_weight,
    check_perceptual,
    discriminator_loss,
)

PLAIN = LossSettings(perceptual_network="none")


def images(seed: int = 0, size: tuple[int, ...] = (2, 1, 12, 10, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(size, generator=generator) * 2 - 1 for _ in range(2))
    return first.requires_grad_(), second


def test_the_weight_rises_over_the_ramp_and_stays() -> None:
    assert [adversarial_weight(LossSettings(), epoch) for epoch in (0, 1, 25, 50, 400)] == pytest.approx(
        [0, 0.0001, 0.0025, 0.005, 0.005]
    )
    later = LossSettings(adversarial_start_epoch=10, adversarial_ramp_epochs=20)
    assert [adversarial_weight(later, epoch) for epoch in (0, 10, 15, 30)] == pytest.approx([0, 0, 0.00125, 0.005])
    at_once = LossSettings(adversarial_start_epoch=3, adversarial_ramp_epochs=0)
    assert [adversarial_weight(at_once, epoch) for epoch in (2.9, 3)] == [0, 0.005]


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    settings = LossSettings(perceptual_network="none", spectral_weight=0.3)
    fake, real = images()
    logits = torch.tensor([[-2.0, 0.5]])
    parts = {k: p.item() for k, p in GeneratorLoss(settings)(fake, real, torch.tensor(0.7), logits, 0.004).items()}
    assert parts["l1"] == pytest.approx((fake - real).abs().mean().item())
    assert parts["adversarial"] == pytest.approx(((-0.1 - 1) ** 2 + (0.5 - 1) ** 2) / 2)  # LeakyReLU(0.05) of -2
    fft = [torch.fft.fftn(x.detach(), dim=(1, 2, 3, 4), norm="ortho").abs() for x in (fake, real)]
    assert parts["spectral"] == pytest.approx((fft[0] - fft[1]).square().mean().item(), rel=1e-5)
    total = parts["l1"] + 0.7 + 0.004 * parts["adversarial"] + 0.3 * parts["spectral"]
    assert parts["loss"] == pytest.approx(total)


def test_parts_without_weight_are_not_computed() -> None:
    fake, real = images()
    parts = GeneratorLoss(PLAIN)(fake, real, torch.tensor(0.1), None, 0.0)
    assert set(parts) == {"l1", "commitment", "loss"}
    assert set(GeneratorLoss(PLAIN)(fake, real, torch.tensor(0.1), torch.ones(2), 0.0)) == set(parts)
    assert GeneratorLoss(LossSettings(perceptual_weight=0)).perceptual is None
    with pytest.raises(CardioDiTError, match="fake_logits must be given"):
        GeneratorLoss(PLAIN)(fake, real, torch.tensor(0.1), None, 0.005)


def test_the_discriminator_loss_is_the_mean_of_real_and_fake() -> None:
    real, fake = torch.tensor([1.0, 0.5, -1.0]), torch.tensor([0.0, 0.2, -4.0])
    expected = ((0.5**2 + 1.05**2) / 3 + (0.2**2 + 0.2**2) / 3) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert discriminator_loss(torch.ones(4), torch.zeros(4)) == 0


def test_the_spectral_loss_is_monais_and_its_gradient_is_finite_where_monais_is_not() -> None:
    from monai.losses import JukeboxLoss

    loss = GeneratorLoss(LossSettings(perceptual_network="none", spectral_weight=1.0)).spectral
    assert loss is not None
    gradients = []
    for function in (loss, JukeboxLoss(spatial_dims=3)):
        fake, real = images()
        function(fake, real).backward()
        assert fake.grad is not None
        gradients.append((function(fake, real).item(), fake.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-7)
    for function, is_finite in ((loss, True), (JukeboxLoss(spatial_dims=3), False)):
        black = torch.full((1, 1, 8, 8, 4), -1.0, requires_grad=True)
        function(black, images(size=(1, 1, 8, 8, 4))[1]).backward()
        assert black.grad is not None and bool(black.grad.isfinite().all()) is is_finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_is_float32_under_autocast(dtype: torch.dtype) -> None:
    settings = LossSettings(perceptual_network="none", spectral_weight=1.0)
    fake, real = images()
    half = fake.detach().to(dtype)
    logits = torch.full((2, 1, 3, 3, 2), 0.3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = GeneratorLoss(settings)(half, real, torch.tensor(0.1), logits, 0.005)
        verdict = discriminator_loss(logits, logits)
    outside = GeneratorLoss(settings)(half.float(), real, torch.tensor(0.1), logits.float(), 0.005)
    assert {part.dtype for part in (*inside.values(), verdict)} == {torch.float32}
    assert all(torch.equal(inside[name], outside[name]) for name in outside)


def test_wrong_settings_come_in_one_error() -> None:
    with pytest.raises(CardioDiTError) as raised:
        LossSettings(perceptual_network="squeez", perceptual_slices=0, spectral_weight=-1, adversarial_weight=math.nan)
    assert [name in str(raised.value) for name in ("'squeez'", "perceptual_slices=0", "spectral", "nan")] == [True] * 4
    with pytest.raises(CardioDiTError, match="perceptual_weights are for squeeze, alex, vgg"):
        LossSettings(perceptual_network="none", perceptual_weights="squeeze.pth")


def test_a_loss_without_a_network_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    check_perceptual(PLAIN)
    check_perceptual(LossSettings(perceptual_weight=0))
    for use in (check_perceptual, GeneratorLoss):
        with pytest.raises(CardioDiTError, match=r'pip install "cardiodit\[train\]"[^$]*perceptual_network none'):
            use(LossSettings())


def test_a_network_from_github_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(perceptual, "GITHUB", "http://127.0.0.1:9/perceptual-models")
    settings = LossSettings(perceptual_network="radimagenet_resnet50")
    with pytest.raises(CardioDiTError, match=f"cannot be reached. Copy the folder {tmp_path}/Project-MONAI"):
        check_perceptual(settings)
    (tmp_path / "Project-MONAI_perceptual-models_main").mkdir()
    check_perceptual(settings)


# --- With the real network, where it is installed ---


@pytest.fixture(scope="module")
def lpips() -> ModuleType:
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        pytest.skip(f'the perceptual network needs lpips and a fitting torchvision, the extra "train": {error}')
    return lpips


@pytest.fixture(scope="module")
def squeeze(lpips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's network with random weights, as torchvision stores it."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture
def distance(squeeze: Path) -> Callable[..., perceptual.PerceptualDistance]:
    def make(slices: float = 1.0) -> perceptual.PerceptualDistance:
        return perceptual.PerceptualDistance("squeeze", slices, str(squeeze))

    return make


LARGE = (2, 1, 24, 20, 17)


def test_the_distance_is_lpips_over_the_planes_of_all_axes(lpips: ModuleType, squeeze: Path, distance) -> None:
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1(weights=None)
    network.load_state_dict(torch.load(squeeze, weights_only=True))
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for i in range(1, 8):
        for name, layer in getattr(reference.net, f"slice{i}").named_children():
            layer.load_state_dict(network.features[int(name)].state_dict())
    fake, real = images(size=LARGE)
    planes = [[x.movedim(axis, 1).flatten(0, 1) for x in (fake, real)] for axis in (2, 3, 4)]
    expected = sum(reference(first, second).mean() for first, second in planes)
    assert distance()(fake, real).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance()(real, real) == 0


def test_the_network_is_frozen_and_has_no_dropout(distance) -> None:
    loss = distance()
    assert not any(p.requires_grad for p in loss.parameters())
    loss.train()
    assert not any(module.training for module in loss.modules())
    fake, real = images(size=LARGE)
    loss(fake, real).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    black = torch.full(LARGE, -1.0, requires_grad=True)
    loss(black, torch.full(LARGE, -1.0)).backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_the_planes_come_from_the_generator_or_from_the_global_one(distance) -> None:
    loss = distance(0.25)
    fake, real = images(size=LARGE)

    def draw(seed: int) -> float:
        return loss(fake, real, torch.Generator().manual_seed(seed)).item()

    state = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(loss(fake, real).item())
    assert values[0] == values[1] != values[2]


def test_making_the_loss_draws_nothing_and_autocast_does_not_reach_the_network(squeeze: Path) -> None:
    state = torch.get_rng_state()
    loss = GeneratorLoss(LossSettings(perceptual_weights=str(squeeze)))
    assert torch.equal(torch.get_rng_state(), state)
    fake, real = images(size=LARGE)
    parts = loss(fake, real, torch.tensor(0.0), None, 0.0)
    assert parts["loss"].item() == pytest.approx((parts["l1"] + 0.002 * parts["perceptual"]).item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        inside = loss(fake, real, torch.tensor(0.0), None, 0.0)["perceptual"]
    torch.manual_seed(0)
    assert torch.equal(inside, loss(fake, real, torch.tensor(0.0), None, 0.0)["perceptual"])


def test_images_that_the_network_cannot_look_at(distance) -> None:
    with pytest.raises(CardioDiTError, match="12 × 10 × 8 are too small.*at least 17"):
        distance()(*images())
    with pytest.raises(CardioDiTError, match="leaves none"):
        distance(0.05)(*images(size=(1, 1, 24, 20, 17)))


def test_the_smallest_sizes_are_those_that_work(lpips: ModuleType) -> None:
    for name, backbone in perceptual.BACKBONES.items():
        if name == "vgg":
            continue  # half a gigabyte of weights
        network = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
        network(*[torch.zeros(1, 3, 40, backbone.smallest)] * 2)
        with pytest.raises(RuntimeError):
            network(*[torch.zeros(1, 3, 40, backbone.smallest - 1)] * 2)


def test_a_given_file_is_checked_before_training(squeeze: Path, tmp_path: Path) -> None:
    def check(path: Path, network: str = "squeeze") -> None:
        check_perceptual(LossSettings(perceptual_network=network, perceptual_weights=str(path)))

    check(squeeze)
    weights = torch.load(squeeze, weights_only=True)
    save_file(weights, tmp_path / "squeeze.safetensors")
    check(tmp_path / "squeeze.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "squeeze.safetensors").read_bytes()[:-100])
    (tmp_path / "cut.pth").write_bytes(squeeze.read_bytes()[:-100])
    torch.save({key: value for key, value in weights.items() if "features.12" not in key}, tmp_path / "part.pth")
    for path, network, message in [
        (tmp_path / "none.pth", "squeeze", "none.pth does not exist"),
        (tmp_path / "cut.safetensors", "squeeze", "damaged"),
        (tmp_path / "cut.pth", "squeeze", "damaged or cut short"),
        (tmp_path / "part.pth", "squeeze", "does not hold the weights of torchvision's squeezenet1_1"),
        (squeeze, "alex", "does not hold the weights of torchvision's alexnet"),
    ]:
        with pytest.raises(CardioDiTError, match=message):
            check(path, network)


def test_a_download_is_announced_or_refused(
    lpips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url = (tmp_path / "squeezenet1_1-b8a52dc0.pth").as_uri()
    monkeypatch.setattr(perceptual, "_address", lambda backbone: (url, 4.7))
    with pytest.raises(CardioDiTError) as raised:
        check_perceptual(LossSettings())
    where = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    for said in (url, str(where), "--losses.perceptual_weights FILE", "--losses.perceptual_network none"):
        assert said in str(raised.value)
    (tmp_path / "squeezenet1_1-b8a52dc0.pth").touch()
    check_perceptual(LossSettings())
    assert f"squeezenet1_1 (4.7 MB) is downloaded once from {url}" in capsys.readouterr().out
    where.parent.mkdir()
    where.touch()
    check_perceptual(LossSettings())
    assert not capsys.readouterr().out


def test_a_download_is_checked_and_kept(squeeze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    content = squeeze.read_bytes()
    names = {"good": hashlib.sha256(content).hexdigest()[:8], "bad": "00000000"}
    for name, digest in names.items():
        source = tmp_path / f"{name}-{digest}.pth"
        source.write_bytes(content)
        url = source.as_uri()
        monkeypatch.setattr(perceptual, "_address", lambda backbone, url=url: (url, 4.7))
        if name == "bad":
            with pytest.raises(CardioDiTError, match="could not be downloaded from.*perceptual_weights FILE"):
                GeneratorLoss(LossSettings())
            continue
        fake, real = images(size=LARGE)
        downloaded = perceptual.PerceptualDistance("squeeze", 1.0)
        source.unlink()
        given = perceptual.PerceptualDistance("squeeze", 1.0, str(squeeze))
        assert torch.equal(downloaded(fake, real), given(fake, real))
        assert torch.equal(perceptual.PerceptualDistance("squeeze", 1.0)(fake, real), given(fake, real))  # kept
