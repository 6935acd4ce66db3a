"""The policy of GPUs: one for training, encoding and sampling."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from cardiodit import VQModel4D
from cardiodit._util.gpu import channels_last, default_dtype, fixed_kernels, free_memory, set_kernels, upload
from cardiodit.training.harness.processes import start_accelerator
from cardiodit.training.settings import Training

from ..device_waits import META, Waits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def policy() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = policy()
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before


def test_one_policy_of_tf32() -> None:
    set_kernels(tf32=False, benchmark=True)
    assert policy() == (False, False, True, False)
    with fixed_kernels():
        encoding = policy()
    assert policy() == (False, False, True, False)
    set_kernels()
    sampling = policy()
    assert encoding[:3] == sampling[:3] == (True, True, False)


def test_training_takes_it_too(tmp_path: Path) -> None:
    """With cuDNN's search for fast kernels, unless a run must repeat to the bit."""
    for settings, expected in [
        (Training(report_to="none"), (True, True, True)),
        (Training(report_to="none", allow_tf32=False), (False, False, True)),
        (Training(report_to="none", deterministic=True), (True, True, False)),
    ]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_accelerator(settings, cpu=True, folder=tmp_path)
        assert accelerator.ddp_handler is not None and accelerator.ddp_handler.gradient_as_bucket_view
        torch.use_deterministic_algorithms(False)
        assert policy()[:3] == expected
    AcceleratorState._reset_state(reset_partial_state=True)


def test_convolutions_keep_channels_last_through_the_network(make_vae) -> None:
    vae = make_vae(VQModel4D)
    channels_last(vae, device=CPU)
    assert vae.encoder.blocks[0].conv.weight.is_contiguous()  # on a CPU, the layout stays
    x = torch.rand(1, 1, 32, 32, 16)
    expected = vae.encode(x).latents
    channels_last(vae, device=CUDA)
    assert vae.encoder.blocks[0].conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    layouts = []
    for block in vae.encoder.blocks[:-1]:  # for the last, narrow one, CPUs have a kernel of another layout
        block.register_forward_hook(lambda module, inputs, output: layouts.append(is_channels_last(output)))
    torch.testing.assert_close(vae.encode(x).latents, expected, rtol=1e-4, atol=1e-5)
    assert layouts and all(layouts)


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def test_bfloat16_is_chosen_for_models_trained_in_it_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    chosen = [default_dtype(trained, CUDA) for trained in ("bfloat16", "float16", "float32", None)]
    assert chosen == ["bfloat16", "float32", "float32", "float32"]
    assert default_dtype("bfloat16", CPU) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert default_dtype("bfloat16", CUDA) == "float32"


def test_a_copy_is_queued() -> None:
    with Waits() as waits:
        upload(torch.ones(3), META)
    assert waits.found == []
    with Waits() as waits:
        torch.ones(3).to(META)
        torch.tensor([1.0, 2.0], device=META)
        torch.zeros(3, device=META).sum().item()
    assert len(waits.found) == 3


def test_free_memory_of_a_cpu() -> None:
    assert 2**20 < free_memory(CPU) < 2**50
