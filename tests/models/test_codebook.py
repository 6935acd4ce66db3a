"""The codebook: the published rule to the number, its corrections, precision, resuming, several processes."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file
from torch import Tensor, nn

from cardiodit.models import codebook as codebook_module
from cardiodit.models.codebook import EMACodebook, QuantizerOutput

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "codebook.safetensors"
UNCORRECTED = {"warm_counts": False, "data_init": False, "restart_dead": False, "sync": False}
NO_DRAWS = {"data_init": False, "restart_dead": False}


def batches(*sizes: int, channels: int = 4, seed: int = 0) -> list[Tensor]:
    """Latents `(size, channels, 5, 3)` off the origin, as an encoder's are."""
    generator = torch.Generator().manual_seed(seed)
    return [2 + 3 * torch.randn(size, channels, 5, 3, generator=generator) for size in sizes]


def vectors_of(z: Tensor) -> Tensor:
    return z.movedim(1, -1).flatten(0, -2)


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """The project's measure: 1e-5 of the largest reference value."""
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- the published rule


@pytest.fixture
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def golden_codebook(golden: dict[str, Tensor]) -> EMACodebook:
    book = EMACodebook(*golden["weight"].shape, **UNCORRECTED)
    start = {name: golden[name] for name in ("weight", "ema_sums", "ema_counts")}
    book.load_state_dict({**start, "num_updates": torch.tensor(7)})
    return book


@pytest.mark.parametrize("training", [False, True])
def test_quantises_as_published(golden: dict[str, Tensor], golden_codebook: EMACodebook, training: bool) -> None:
    output = golden_codebook.train(training)(golden["latents"])
    assert torch.equal(output.indices, golden["indices"])
    assert_close(output.latents, golden["quantized"])
    assert_close(output.commitment_loss, golden["commitment_loss"])


def test_learns_as_published(golden: dict[str, Tensor], golden_codebook: EMACodebook) -> None:
    golden_codebook(golden["latents"])
    assert_close(golden_codebook.weight, golden["trained_weight"])
    assert_close(golden_codebook.ema_sums, golden["trained_sums"])
    assert_close(golden_codebook.ema_counts, golden["trained_counts"])
    assert golden_codebook.num_updates == 8


def test_agrees_with_monai_over_many_steps() -> None:
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    book = EMACodebook(32, 4, **UNCORRECTED)
    reference = EMAQuantizer(2, 32, 4, decay=0.99)
    reference.embedding.weight.data.copy_(book.weight)
    reference.ema_w.data.copy_(book.weight)
    for z in batches(*[3] * 30):
        output = book(z)
        latents, loss, indices = reference(z)
        assert torch.equal(output.indices, indices)
        assert_close(output.latents, latents)
        assert_close(output.commitment_loss, loss)
    assert_close(book.weight, reference.embedding.weight)
    assert_close(book.ema_sums, reference.ema_w)
    assert_close(book.ema_counts, reference.ema_cluster_size)


# --- what any codebook keeps


@pytest.mark.parametrize("spatial", [(), (6,), (4, 3), (4, 3, 2), (2, 4, 3, 2)])
def test_any_number_of_axes(spatial: tuple[int, ...]) -> None:
    book = EMACodebook(16, 4).eval()
    z = torch.randn(2, 4, *spatial, generator=torch.Generator().manual_seed(0))
    output = book(z)
    assert isinstance(output, QuantizerOutput)
    assert output.latents.shape == z.shape
    assert output.indices.shape == (2, *spatial) and output.indices.dtype == torch.int64
    torch.testing.assert_close(output.latents, book.embed(output.indices))


def test_wrong_channels_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, 4, \*spatial\), got \(2, 3, 5\)"):
        EMACodebook(16, 4)(torch.zeros(2, 3, 5))


def test_gradient_passes_straight_through() -> None:
    (z,) = batches(2)
    z.requires_grad_()
    output = EMACodebook(16, 4)(z)
    weights = torch.linspace(-1, 1, z.numel()).view_as(z)
    (gradient,) = torch.autograd.grad((output.latents * weights).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad(output.commitment_loss, z)
    torch.testing.assert_close(gradient, 0.25 * 2 * (z - output.latents).detach() / z.numel())


def test_codes_take_no_gradient() -> None:
    book = EMACodebook(16, 4)
    assert not book.weight.requires_grad
    book.requires_grad_(True)  # as scripts do to a whole model
    (z,) = batches(2)
    output = book(z.requires_grad_())
    (output.latents.sum() + output.commitment_loss).backward()
    assert book.weight.grad is None


def test_evaluation_changes_nothing() -> None:
    book = EMACodebook(16, 4).eval()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    for z in batches(2, 3):
        book(z)
    assert_same_state(book.state_dict(), before)


def test_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    one, other = EMACodebook(64, 4, seed=3), EMACodebook(64, 4, seed=3)
    torch.rand(5)
    for z in batches(1, 2, 1):
        one(z)
    torch.rand(5)
    for z in batches(1, 2, 1):
        other(z)
    assert_same_state(one.state_dict(), other.state_dict())
    torch.set_rng_state(before)
    EMACodebook(64, 4)(batches(2)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(EMACodebook(64, 4, seed=4).weight, EMACodebook(64, 4, seed=3).weight)


def test_resumes_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_module, "DEAD_BELOW", 0.9)  # restarts on both sides of the break
    run = batches(*[2] * 40)
    straight, first, second = (EMACodebook(64, 4) for _ in range(3))
    for z in run:
        straight(z)
    for z in run[:17]:
        first(z)
    second.load_state_dict(first.state_dict())
    for z in run[17:]:
        second(z)
    assert_same_state(second.state_dict(), straight.state_dict())


# --- the search


@pytest.mark.parametrize("block", [1, 40, 7 * 40, 2**22])
def test_search_in_blocks_equals_the_full_one(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # small integers: exact distances, many ties
    codes = torch.randint(-2, 3, (40, 3), generator=generator).float()
    vectors = torch.randint(-2, 3, (500, 3), generator=generator).float()
    codes[20:] = codes[:20]
    book = EMACodebook(40, 3)
    book.weight.copy_(codes)
    squared = (vectors.unsqueeze(1) - codes).square().sum(dim=2)  # (500, 40)
    lowest = [row.tolist().index(row.min()) for row in squared]
    monkeypatch.setattr(codebook_module, "MAX_DISTANCES", block)
    assert book.nearest(vectors).tolist() == lowest


def test_search_is_bounded_in_memory() -> None:
    book, vectors = EMACodebook(16384, 2), torch.zeros(2048, 2)  # 128 MiB of distances at once
    with torch.profiler.profile(profile_memory=True) as profile:
        book.nearest(vectors)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 2 * 4 * codebook_module.MAX_DISTANCES


def test_search_takes_no_vectors() -> None:
    assert EMACodebook(16, 4).nearest(torch.zeros(0, 4)).shape == (0,)


# --- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_leaves_the_codebook_in_float32(dtype: torch.dtype) -> None:
    plain, model = EMACodebook(64, 4, data_init=False), nn.Sequential(EMACodebook(64, 4, data_init=False))
    cast = model.to(dtype)[0]
    assert_same_state(cast.state_dict(), plain.state_dict())
    for z in batches(2, 2, 2):
        low = z.to(dtype)
        output, expected = cast(low), plain(low.float())
        assert output.latents.dtype == dtype and output.commitment_loss.dtype == torch.float32
        assert torch.equal(output.latents, expected.latents.to(dtype))
        assert torch.equal(output.commitment_loss, expected.commitment_loss)
        assert torch.equal(output.indices, expected.indices)
    assert_same_state(cast.state_dict(), plain.state_dict())


def test_computes_in_float32_from_half_precision_tensors() -> None:
    """A loader may assign half precision tensors past `nn.Module.to`."""
    plain, half = EMACodebook(64, 4, data_init=False), EMACodebook(64, 4, data_init=False)
    half.weight.data = half.weight.data.half()
    half.ema_sums, half.ema_counts = half.ema_sums.half(), half.ema_counts.half()
    plain.load_state_dict(half.state_dict())
    for training, z in itertools.product([False, True], batches(2, 2)):
        output, expected = half.train(training)(z), plain.train(training)(z)
        assert torch.equal(output.indices, expected.indices)
        assert torch.equal(output.latents, expected.latents)
    assert_same_state(half.state_dict(), plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_no_effect(dtype: torch.dtype) -> None:
    plain, autocast = EMACodebook(64, 4), EMACodebook(64, 4)
    for z in batches(2, 2):
        expected = plain(z)
        with torch.autocast("cpu", dtype=dtype):
            output = autocast(z)
        assert torch.equal(output.indices, expected.indices)
        assert torch.equal(output.latents, expected.latents)
    assert_same_state(autocast.state_dict(), plain.state_dict())
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(autocast.nearest(vectors_of(z)), plain.nearest(vectors_of(z)))


class Holder(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.quantizer = EMACodebook(64, 4)


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        book = EMACodebook(64, 4)
    assert book.weight.is_meta
    assert not any(buffer.is_meta for buffer in book.buffers())
    filled = EMACodebook(64, 4)
    filled(batches(2)[0])
    book.load_state_dict(filled.state_dict(), assign=True)
    assert_same_state(book.state_dict(), filled.state_dict())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_survives_a_diffusers_folder(tmp_path: Path, low_cpu_mem_usage: bool, dtype: torch.dtype) -> None:
    saved = Holder()
    saved.quantizer(batches(2)[0])
    saved.save_pretrained(tmp_path)
    loaded = Holder.from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded.quantizer.num_updates == 1
    torch.testing.assert_close(loaded.quantizer.weight.float(), saved.quantizer.weight, atol=0, rtol=1e-3)


# --- the corrections


def test_warm_counts_keep_unchosen_codes_in_place() -> None:
    cold, warm = EMACodebook(64, 4, **UNCORRECTED), EMACodebook(64, 4, **{**UNCORRECTED, "warm_counts": True})
    assert torch.equal(cold.weight, warm.weight)
    start = warm.weight.clone()
    assert torch.equal(warm.ema_sums, start) and warm.ema_counts.eq(1).all()
    assert cold.ema_counts.eq(0).all()
    (z,) = batches(2)
    unchosen = torch.ones(64, dtype=torch.bool)
    unchosen[warm(z).indices.unique()] = False
    cold(z)
    assert unchosen.sum() > 10
    moved_warm, moved_cold = ((book.weight - start)[unchosen].norm(dim=1) for book in (warm, cold))
    assert moved_warm.max() < 0.01 < 100 < moved_cold.min()


def test_data_init_draws_codes_from_the_first_batch_only() -> None:
    book = EMACodebook(64, 4, **{**UNCORRECTED, "data_init": True, "warm_counts": True}, decay=1.0)
    first, second = batches(10, 10)  # 150 vectors each
    vectors = vectors_of(first)
    output = book(first)
    distances = torch.cdist(book.weight, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() < 1e-4
    assert len(distances.argmin(dim=1).unique()) == 64  # distinct vectors
    assert len(output.indices.unique()) == 64
    codes = book.weight.clone()
    book(second)
    torch.testing.assert_close(book.weight, codes)


def test_data_init_with_fewer_vectors_than_codes() -> None:
    book = EMACodebook(64, 4, **{**UNCORRECTED, "data_init": True, "warm_counts": True}, decay=1.0)
    (z,) = batches(1)  # 15 vectors
    book(z)
    distances = torch.cdist(book.weight, vectors_of(z))
    assert len(book.weight.unique(dim=0)) == 64
    assert distances.argmin(dim=1).bincount(minlength=15).min() >= 4
    assert 0 < distances.min(dim=1).values.max() < 0.5


def test_restart_moves_dead_codes_to_the_batch() -> None:
    book = EMACodebook(64, 4, **{**UNCORRECTED, "warm_counts": True, "restart_dead": True})
    book.ema_counts[:5] = 0.1
    live = torch.arange(64) >= 5
    (z,) = batches(10)
    reference = EMACodebook(64, 4, **{**UNCORRECTED, "warm_counts": True})
    reference.load_state_dict(book.state_dict())
    used = book(z).indices.unique()
    reference(z)
    dead = torch.tensor([code for code in range(5) if code not in used])
    assert len(dead) > 0
    distances = torch.cdist(book.weight[dead], vectors_of(z), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() == 0
    assert book.ema_counts[dead].gt(0.9).all() and book.ema_counts[dead].le(1).all()
    torch.testing.assert_close(book.ema_sums[dead], book.weight[dead] * book.ema_counts[dead].unsqueeze(1))
    assert torch.equal(book.weight[live], reference.weight[live])


def test_small_batches_do_not_kill_every_code() -> None:
    """15 vectors for 64 codes: counts average a quarter, yet few codes may be replaced in a step."""
    book = EMACodebook(64, 4)
    replaced = []
    for z in batches(*[1] * 1000):
        before = book.weight.clone()
        book(z)
        replaced.append(((book.weight - before).norm(dim=1) > 0.5).float().mean().item())
    assert book.ema_counts.mean() == pytest.approx(15 / 64, rel=0.05)
    assert 0 < sum(replaced[500:]) / 500 < 0.05


def test_a_sudden_large_batch_does_not_kill_every_code() -> None:
    book = EMACodebook(64, 4)
    small, large = batches(*[1] * 500), batches(100, seed=1)[0]
    for z in small:
        book(z)
    before = book.weight.clone()
    book(large)
    assert ((book.weight - before).norm(dim=1) > 1).float().mean() < 0.2


def rings(count: int, size: int = 32) -> Tensor:
    """Smooth rings around smooth blobs, as a left ventricle in the short axis, `(count, 1, size, size)`."""
    draw = torch.rand(6, count, 1, 1, generator=torch.Generator().manual_seed(0))
    row, column = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    y, x = row - 0.8 * draw[0] + 0.4, column - 0.8 * draw[1] + 0.4
    radius = (x.square() + y.square() * (0.7 + 0.6 * draw[2])).sqrt()
    wall = torch.exp(-(((radius - 0.25 - 0.25 * draw[3]) / (0.05 + 0.15 * draw[4])) ** 2))
    blood = 0.5 * draw[5] * torch.exp(-((radius / 0.2) ** 2))
    return (2 * (wall + blood) - 1).unsqueeze(1)


def codes_used_after_training(book: EMACodebook, steps: int = 200, batch: int = 16) -> int:
    data = rings(64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 8, 3, 1, 1),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.Conv2d(8, 32, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for images, _ in zip(itertools.cycle(data.split(batch)), range(steps), strict=False):
        output = book(encoder(images))
        loss = F.mse_loss(decoder(output.latents), images) + output.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return len(book.eval()(encoder(data)).indices.unique())


def test_corrections_keep_the_codebook_in_use() -> None:
    uncorrected = codes_used_after_training(EMACodebook(1024, 8, **UNCORRECTED))
    corrected = codes_used_after_training(EMACodebook(1024, 8))
    print(f"codes used of 1024 after 200 steps: {uncorrected} as published, {corrected} corrected")
    assert uncorrected <= 32
    assert corrected >= 512


# --- several processes

# Images of each rank, step by step. The first batch has fewer vectors than codes.
UNEQUAL = [(3, 1), (2, 4), (1, 2)] * 40
SETTINGS = {"no_draws": NO_DRAWS, "corrected": {}, "unsynchronised": {"sync": False}}


def train_on(options: dict[str, bool], rank: int | None = None) -> dict[str, Tensor]:
    """The codebook after a run over one rank's share of every batch, or over all of it."""
    book = EMACodebook(64, 4, **options)
    for step, sizes in enumerate(UNEQUAL):
        shares = batches(*sizes, seed=step)
        book(torch.cat(shares) if rank is None else shares[rank])
    return book.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({name: train_on(options, rank) for name, options in SETTINGS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("no_draws", "corrected"):
        assert_same_state(first[name], second[name])
        for key, value in train_on(SETTINGS[name]).items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(first["unsynchronised"]["weight"], second["unsynchronised"]["weight"])


def test_a_step_over_several_batches_is_a_step_over_one_large_batch() -> None:
    """Otherwise eight accumulated batches would keep 0.20 of the history, and a run depend on its number of GPUs."""
    parts = batches(2, 2, 3)
    large, small = EMACodebook(16, 4, data_init=False), EMACodebook(16, 4, data_init=False)
    small.accumulate = True
    large(torch.cat(parts))
    before = small.weight.clone()
    for part in parts:
        small(part)
    assert torch.equal(small.weight, before)
    small.update()
    assert int(small.num_updates) == 1
    for name, tensor in large.state_dict().items():
        assert torch.allclose(small.state_dict()[name], tensor, rtol=1e-6), name


def test_the_nearest_code_is_searched_in_full_float32() -> None:
    """TF32, which training may allow for everything else, finds another code for up to 3% of the vectors."""
    precisions = []

    class Listener(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.addmm:
                precisions.append(torch.backends.cuda.matmul.allow_tf32)
            return function(*args, **(kwargs or {}))

    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with Listener():
            EMACodebook(16, 4).nearest(torch.randn(5, 4))
        assert precisions == [False] and torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False  # as `cardiodit encode` does after training in the same process
        EMACodebook(16, 4).nearest(torch.randn(5, 4))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
